"""The command line: parse, call, print. No logic.

Exit codes: 0 done, 1 error, 2 usage (a wrong option or config), 3 finished but a gate failed, 75 stopped in time: the
same command goes on.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, NoReturn

import typer

from pipeline import __version__

if TYPE_CHECKING:
    from datetime import date

    from pipeline.commands.failures import Nameable
    from pipeline.inference.model import Model
    from pipeline.orchestration.run import Result
    from pipeline.settings.card import Card
    from pipeline.settings.config import Config
    from pipeline.store.registry import Registry, Version

ERROR, USAGE, GATE_FAILED = 1, 2, 3
EXPECTED = (ValueError, RuntimeError, OSError, MemoryError)
LAST = "report"
NO_KEY = "-" * 16  # as long as a key
STOPPED = 75  # EX_TEMPFAIL of sysexits.h: try again

app = typer.Typer(
    name="maescreen",
    help="From a folder of medical images to a calibrated model, a threshold with certified recall, and a report.",
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    rich_markup_mode=None,
)

ConfigPath = Annotated[Path, typer.Argument(metavar="CONFIG", help="YAML file of the run", show_default=False)]
Overrides = Annotated[
    list[str] | None,
    typer.Argument(metavar="[section.key=value]…", help="settings that replace those of the file", show_default=False),
]
StoreOption = Annotated[Path | None, typer.Option("--store", help="folder of artifacts, instead of the config's")]
Keep = Annotated[
    list[str] | None, typer.Option("--keep", metavar="STEP", help="use the artifact that earlier code made")
]
Rebuild = Annotated[list[str] | None, typer.Option("--rebuild", metavar="STEP", help="make it anew, and what follows")]
Json = Annotated[bool, typer.Option("--json", help="print one JSON object for a program to read")]


def main() -> None:
    """Run the command line."""
    app()


@app.callback(invoke_without_command=True)
def _version(version: Annotated[bool, typer.Option("--version", help="print the version")] = False) -> None:
    if version:
        print(__version__)
        raise typer.Exit


@app.command()
def run(
    config: ConfigPath,
    overrides: Overrides = None,
    until: Annotated[str, typer.Option(metavar="STEP", help="last step to run: a stage, or stage@SET")] = LAST,
    store: StoreOption = None,
    keep: Keep = None,
    rebuild: Rebuild = None,
    as_json: Json = False,
) -> None:
    """Run every stage that has to run, reuse the others, and print the path of the report."""
    _run(config, overrides, store, keep, rebuild, as_json, until=until)


def _stage_command(name: str, summary: str) -> Callable[..., None]:
    def command(
        config: ConfigPath,
        overrides: Overrides = None,
        store: StoreOption = None,
        keep: Keep = None,
        rebuild: Rebuild = None,
        as_json: Json = False,
    ) -> None:
        _run(config, overrides, store, keep, rebuild, as_json, only=name)

    command.__doc__ = f"{summary}. Runs this stage alone; what it needs must have been made."
    return command


@app.command()
def ingest(
    config: Annotated[Path | None, typer.Argument(metavar="CONFIG", help="YAML file of the run")] = None,
    overrides: Overrides = None,
    dry_run: Annotated[
        Path | None, typer.Option("--dry-run", metavar="DIR", help="say what would be found there; needs no CONFIG")
    ] = None,
    workers: Annotated[int, typer.Option(min=1, help="with --dry-run: processes")] = 2,
    store: StoreOption = None,
    keep: Keep = None,
    rebuild: Rebuild = None,
    as_json: Json = False,
) -> None:
    """Read, check and pseudonymise the studies; or, with --dry-run DIR, look at a folder and keep nothing."""
    if (config is None) == (dry_run is None):
        _fail("name either a CONFIG or --dry-run DIR", USAGE)
    if config is not None:
        _run(config, overrides, store, keep, rebuild, as_json, only="ingest")
    if dry_run is not None:
        from pipeline.commands import inspect as rehearsal

        with _errors() as nameable:
            nameable.add(dry_run)
            found = rehearsal.dry_run(dry_run, workers)
        if as_json:
            _print_json(found)
        else:
            print("\n".join(rehearsal.lines(found)))


for _name, _summary in {
    "split": "Divide patients into train, tune, calibration and test",
    "preprocess": "Turn images into arrays",
    "pretrain": "Fit the masked autoencoder",
    "finetune": "Fit the classifiers",
    "score": "Score tune, calibration and test images",
    "calibrate": "Fit the calibrator and certify the threshold",
    "evaluate": "Measure on the locked test set",
    "package": "Make the finished model a folder that predict takes",
    "report": "Render PDF, HTML and JSON",
}.items():
    app.command(_name)(_stage_command(_name, _summary))


@app.command()
def plan(
    config: ConfigPath,
    overrides: Overrides = None,
    store: StoreOption = None,
    keep: Keep = None,
    rebuild: Rebuild = None,
    as_json: Json = False,
) -> None:
    """Say which stages would run and why, and how much time, memory and disk they will take; run nothing."""
    from dataclasses import replace

    from pipeline.commands import typed
    from pipeline.orchestration import estimate
    from pipeline.orchestration.plan import plan as planned

    with _errors(config, overrides, store) as nameable:
        settings, card = _settings(config, overrides, store, nameable)
        secret = _known_key(settings, card)
        steps = planned(settings, card, secret, keep=_stages(keep), rebuild=_stages(rebuild))
        expected = estimate.estimates(settings, steps)
    if not secret:
        real = "`run` makes a new one, and with it everything anew"
        todo = real if card.identifiers == "real" else "`run` needs the public one of such data: restore it"
        _say(f"{settings.data.key_file}: no such key file; {todo}")
        steps = [replace(step, key=NO_KEY) for step in steps]
    if as_json:
        rows = [{"stage": s.name, "key": s.key, "action": s.action, "reason": s.reason} for s in steps]
        figures = {name: one.to_dict() for name, one in expected.items()}
        rows = [row | {"estimate": figures.get(row["stage"])} for row in rows]
        _print_json([row | {"key": None if row["key"] == NO_KEY else row["key"]} for row in rows])
    else:
        print("\n".join(step.line() for step in steps))
        for line in estimate.lines(expected, settings.store):
            print(line)
    if stopped := [step.name for step in steps if step.action == "stop"]:
        kept = typed.command("run", config, overrides, store=store, keep=[*(keep or ()), *stopped], rebuild=rebuild)
        _say(f"to use what earlier code made: {kept}")


ModelRef = Annotated[
    str,
    typer.Argument(
        metavar="MODEL",
        help="folder of a packaged model, the CONFIG of a finished run, models:/NAME@ALIAS or models:/NAME/VERSION",
    ),
]
RegistryConfig = Annotated[
    Path | None, typer.Option("--config", metavar="CONFIG", help="whose store and MLflow hold the registered models")
]
Table = Annotated[
    Path | None, typer.Option(exists=True, dir_okay=False, help="columns path and study, for files without headers")
]


@app.command()
def predict(
    model: ModelRef,
    paths: Annotated[list[Path], typer.Argument(metavar="PATH…", exists=True, help="files, folders and zip archives")],
    out: Annotated[Path, typer.Option("--out", metavar="DIR", help="folder of the results; nothing else is written")],
    table: Table = None,
    target: Annotated[
        float | None, typer.Option(metavar="RECALL", help="another certified operating point; default: the first")
    ] = None,
    prevalence: Annotated[
        float | None, typer.Option(min=1e-6, max=0.999999, help="share with the condition here, for local_probability")
    ] = None,
    workers: Annotated[int, typer.Option(min=1, help="processes that read studies")] = 2,
    threads: Annotated[int | None, typer.Option(min=1, help="CPU threads of the network; default: all cores")] = None,
    device: Annotated[str, typer.Option(help="auto, cpu or cuda")] = "auto",
    pages: Annotated[bool, typer.Option("--pages/--no-pages", help="a PDF page per study")] = True,
    identified: Annotated[
        bool, typer.Option("--identified", help="write the headers' patient identifiers, too; DIR becomes private")
    ] = False,
    dicom: Annotated[
        str, typer.Option("--dicom", metavar="KINDS", help="sr,pdf,sc: objects for the archive; DIR becomes private")
    ] = "",
    store: StoreOption = None,
    config: RegistryConfig = None,
    as_json: Json = False,
) -> None:
    """Judge new studies: refer, no refer or not assessable, with score, probability and reasons."""
    from pipeline.commands import predict as prediction
    from pipeline.commands import typed

    words = [*map(str, paths), *(["--config", str(config)] if config else [])]
    again = typed.command("predict", Path(model), words, out=out, table=table, store=store)
    with _errors(again=f"{again} …") as nameable, _sigterm_interrupts():
        nameable.add(out, table, *paths)
        nameable.folders.add(out.resolve())
        with _opened(model, store, config, nameable) as (folder, _, _):
            loaded = _loaded(folder, nameable, device, threads)
            written = prediction.predict(
                loaded,
                paths,
                out,
                table=table,
                recall_target=target,
                prevalence=prevalence,
                workers=workers,
                pages=pages,
                identified=identified,
                dicom=prediction.kinds(dicom),
                say=_say,
            )
    if as_json:
        _print_json(
            {"out": str(out), "counts": written.counts(), "usable": loaded.usable, "model_sha256": loaded.sha256}
        )
    else:
        for line in prediction.lines(loaded, written, out):
            _say(line)
        print(out / "results.json")
    raise typer.Exit(0 if loaded.usable else GATE_FAILED)


@app.command()
def serve(
    model: ModelRef,
    queue: Annotated[
        Path, typer.Option("--queue", metavar="DIR", help="folder of received studies and results; patients' data")
    ],
    token_file: Annotated[
        Path, typer.Option("--token-file", metavar="FILE", help="token that requests must have; readable by you alone")
    ],
    host: Annotated[str, typer.Option(metavar="ADDRESS", help="address to listen on")] = "127.0.0.1",
    port: Annotated[int, typer.Option(min=0, max=65535, help="port to listen on; 0 takes a free one")] = 8080,
    certificate: Annotated[
        Path | None, typer.Option("--ssl-certfile", metavar="FILE", help="certificate for https, PEM")
    ] = None,
    key: Annotated[Path | None, typer.Option("--ssl-keyfile", metavar="FILE", help="its private key, PEM")] = None,
    target: Annotated[
        float | None, typer.Option(metavar="RECALL", help="another certified operating point; default: the first")
    ] = None,
    prevalence: Annotated[
        float | None, typer.Option(min=1e-6, max=0.999999, help="share with the condition here, for local_probability")
    ] = None,
    upload_mb: Annotated[int, typer.Option(min=1, help="MB that one study may have as it is sent")] = 1024,
    upload_seconds: Annotated[float, typer.Option(min=1, help="seconds in which it must have arrived")] = 600.0,
    unpacked_mb: Annotated[int, typer.Option(min=1, help="MB that one study may have unpacked")] = 4096,
    most_waiting: Annotated[int, typer.Option(min=1, help="studies that may wait before others are put off")] = 1000,
    keep_images: Annotated[
        bool, typer.Option("--keep-images", help="keep what was received of a finished study, too")
    ] = False,
    workers: Annotated[int, typer.Option(min=1, help="processes that read studies")] = 2,
    threads: Annotated[int | None, typer.Option(min=1, help="CPU threads of the network; default: all cores")] = None,
    device: Annotated[str, typer.Option(help="auto, cpu or cuda")] = "auto",
    store: StoreOption = None,
    config: RegistryConfig = None,
) -> None:
    """Judge studies that come over HTTP, and show them as a reading list in the browser."""
    from pipeline.commands import serve as serving
    from pipeline.delivery.http.receiving import Limits
    from pipeline.delivery.worker_process import Options

    with _errors() as nameable:
        nameable.add(queue, token_file, certificate, key)
        nameable.folders.add(queue.resolve())
        with _opened(model, store, config, nameable) as (folder, _, _):
            nameable.folders.add(folder.resolve())
            options = Options(
                model=folder,
                device=device,
                threads=threads,
                recall_target=target,
                prevalence=prevalence,
                workers=workers,
                most_mb=unpacked_mb,
                keep_files=keep_images,
            )
            serving.serve(
                serving.Place(host=host, port=port, token_file=token_file, certificate=certificate, key=key),
                queue,
                options,
                Limits(upload_mb=upload_mb, upload_s=upload_seconds, most_waiting=most_waiting),
                _say,
                lambda address: print(address, flush=True),
            )


@app.command()
def monitor(
    places: Annotated[
        list[str],
        typer.Argument(
            metavar="[SITE=]DIR…", help="folders that predict wrote, and queues; SITE names where they are from"
        ),
    ],
    model: Annotated[str, typer.Option("--model", metavar="MODEL", help="the model that judged them, as in predict")],
    outcomes: Annotated[
        Path | None,
        typer.Option(exists=True, dir_okay=False, help="table: study, outcome, and date, study_date, site if known"),
    ] = None,
    out: Annotated[Path, typer.Option("--out", metavar="DIR", help="folder of monitor.pdf and monitor.json")] = Path(
        "monitor"
    ),
    prevalence: Annotated[
        float | None,
        typer.Option(min=1e-6, max=0.999999, help="share with the condition here, for referrals to expect"),
    ] = None,
    audited: Annotated[
        float | None,
        typer.Option(min=1e-6, max=1.0, help="share of studies not referred that is audited, fixed beforehand"),
    ] = None,
    since: Annotated[str | None, typer.Option(metavar="DATE", help="watch anew from this day: 2026-11-29")] = None,
    store: StoreOption = None,
    config: RegistryConfig = None,
    as_json: Json = False,
) -> None:
    """Watch a model in use: referrals, scores, typicality, quality, and recall where outcomes allow it."""
    from pipeline.commands import monitor as watching

    with _errors() as nameable:
        nameable.add(out, outcomes, *(Path(place.partition("=")[2] or place) for place in places))
        nameable.folders.add(out.resolve())
        with _opened(model, store, config, nameable) as (folder, _, _):
            found = watching.watch(
                folder,
                places,
                out,
                outcomes=outcomes,
                prevalence=prevalence,
                audited=audited,
                since=None if since is None else _date(since),
            )
    if as_json:
        _print_json(found.content)
    else:
        for line in watching.lines(found.lights):
            _say(line)
        print(out / watching.PDF)
    raise typer.Exit(GATE_FAILED if found.alarm else 0)


def _date(text: str) -> date:
    from datetime import date

    try:
        return date.fromisoformat(text)
    except ValueError:
        _fail("a date is written as 2026-11-29", USAGE)


@app.command()
def listen(
    model: ModelRef,
    out: Annotated[
        Path, typer.Option("--out", metavar="DIR", help="queue of received studies and results; patients' data")
    ],
    send: Annotated[
        str | None, typer.Option(metavar="TITLE@HOST:PORT", help="archive that takes results by C-STORE")
    ] = None,
    stow: Annotated[str | None, typer.Option(metavar="URL", help="archive that takes results by STOW-RS")] = None,
    stow_token_file: Annotated[
        Path | None, typer.Option("--stow-token-file", metavar="FILE", help="bearer token for it")
    ] = None,
    ca_file: Annotated[
        Path | None, typer.Option("--ca-file", metavar="FILE", help="certificates to trust, PEM, beside the system's")
    ] = None,
    dicom: Annotated[str, typer.Option("--dicom", metavar="KINDS", help="objects to send")] = "sr,pdf,sc",
    host: Annotated[str, typer.Option(metavar="ADDRESS", help="address to listen on")] = "127.0.0.1",
    port: Annotated[int, typer.Option(min=0, max=65535, help="port to listen on; 0 takes a free one")] = 11112,
    title: Annotated[str, typer.Option("--aet", metavar="TITLE", help="application entity title of this node")] = (
        "MAESCREEN"
    ),
    allow_title: Annotated[
        list[str] | None, typer.Option("--allow-aet", metavar="TITLE", help="who may send, by title; default: anybody")
    ] = None,
    allow_address: Annotated[
        list[str] | None,
        typer.Option(
            "--allow-address", metavar="ADDRESS", help="who may send, by address or network; default: anybody"
        ),
    ] = None,
    quiet_seconds: Annotated[
        float, typer.Option(min=0, help="a study is whole after so long without a new image")
    ] = 60.0,
    keep_hours: Annotated[float, typer.Option(min=0, help="how long images are kept for a late one")] = 24.0,
    file_mb: Annotated[int, typer.Option(min=1, help="MB that one image may have")] = 512,
    memory_mb: Annotated[int, typer.Option(min=64, help="MB that the receiving process may take")] = 1024,
    connections: Annotated[int, typer.Option(min=1, help="peers at once")] = 20,
    idle_seconds: Annotated[float, typer.Option(min=1, help="seconds that a peer may say nothing")] = 30.0,
    target: Annotated[
        float | None, typer.Option(metavar="RECALL", help="another certified operating point; default: the first")
    ] = None,
    prevalence: Annotated[
        float | None, typer.Option(min=1e-6, max=0.999999, help="share with the condition here, for local_probability")
    ] = None,
    workers: Annotated[int, typer.Option(min=1, help="processes that read studies")] = 2,
    threads: Annotated[int | None, typer.Option(min=1, help="CPU threads of the network; default: all cores")] = None,
    device: Annotated[str, typer.Option(help="auto, cpu or cuda")] = "auto",
    store: StoreOption = None,
    config: RegistryConfig = None,
) -> None:
    """Judge studies that come by DICOM, and send results as DICOM objects to the archive."""
    from pipeline.commands import listen as listening
    from pipeline.commands import predict as prediction
    from pipeline.delivery.node.c_store import Archive
    from pipeline.delivery.node.receiver import Receiving
    from pipeline.delivery.node.stow import Stow
    from pipeline.delivery.worker_process import Options

    if (send is None) == (stow is None):
        _fail("name the archive that takes the results: either --send TITLE@HOST:PORT or --stow URL", USAGE)
    with _errors() as nameable:
        nameable.add(out, stow_token_file, ca_file)
        nameable.folders.add(out.resolve())
        with _opened(model, store, config, nameable) as (folder, _, _):
            nameable.folders.add(folder.resolve())
            listening.listen(
                out,
                Options(
                    model=folder,
                    device=device,
                    threads=threads,
                    recall_target=target,
                    prevalence=prevalence,
                    workers=workers,
                    keep_files=True,
                    dicom=prediction.kinds(dicom),
                ),
                Receiving(
                    host=host,
                    port=port,
                    title=title,
                    calling=tuple(allow_title or ()),
                    addresses=tuple(allow_address or ()),
                    most_file_mb=file_mb,
                    most_memory_mb=memory_mb,
                    connections=connections,
                    idle_s=idle_seconds,
                ),
                listening.Waiting(quiet_s=quiet_seconds, keep_hours=keep_hours),
                Archive.parse(send, title)
                if send
                else Stow(stow or "", listening.read_token(stow_token_file), ca_file),
                _say,
                lambda where: print(where, flush=True),
            )


def _loaded(folder: Path, nameable: Nameable, device: str = "cpu", threads: int | None = None) -> Model:
    from pipeline.inference.model import Model

    nameable.folders.add(folder.resolve())
    return Model.load(folder, device=device, threads=threads, say=_say)


@contextmanager
def _opened(
    reference: str, store: Path | None, config: Path | None, nameable: Nameable, registry: bool = False
) -> Iterator[tuple[Path, Registry | None, Version | None]]:
    """Yield the folder of a model, the version where a reference named one, and with `registry` the known one."""
    from pipeline.commands import models

    if reference.startswith("models:"):
        from pipeline.commands.registry import check_same

        known = _registry(store, config, nameable)
        version = known.find(reference)
        with known.folder(version) as folder:
            check_same(folder, version)
            yield folder, known, version
    elif models.is_folder(reference) or not Path(reference).is_file():
        nameable.add(Path(reference))
        yield Path(reference), _registry(store, config, nameable) if registry and (store or config) else None, None
    else:
        settings, card = _settings(Path(reference), None, store, nameable)
        folder = models.folder_of_run(settings, card, _known_key(settings, card) or None)
        yield folder, _registry(store, config or Path(reference), nameable) if registry else None, None


def _registry(store: Path | None, config: Path | None, nameable: Nameable) -> Registry:
    """Return the registered models of a config's store and MLflow, or of a store and the MLflow inside it."""
    from pipeline.store.registry import Registry

    settings = _settings(config, None, store, nameable)[0] if config else None
    folder = settings.store if settings else (store or Path("store")).resolve()
    nameable.folders.add(folder)
    return Registry(folder, settings.tracking.uri if settings else None)


model_app = typer.Typer(
    help="Packaged models: look at one, give it a name, say which is in use, hand one on.",
    no_args_is_help=True,
    rich_markup_mode=None,
)
app.add_typer(model_app, name="model")
ModelName = Annotated[str, typer.Argument(metavar="NAME", help="name of a registered model")]


@model_app.command("info")
def model_info(
    reference: ModelRef,
    store: StoreOption = None,
    config: RegistryConfig = None,
    as_json: Json = False,
) -> None:
    """Say what a packaged model judges, what is certified, for whom, and what it was made from; checks every file."""
    from pipeline.commands import models
    from pipeline.inference.model_folder import verified

    with (
        _errors() as nameable,
        _opened(reference, store, config, nameable, registry=True) as (folder, registry, version),
    ):
        found = models.info(*verified(folder))
        said = models.lines(found)
        if registry is not None:
            from pipeline.commands import registry as registered

            forced = registered.forced(registry, found["sha256"], version)
            found |= {"registered": registered.of_version(version) if version else None, "forced": forced}
            said += registered.forced_lines(forced)
    if as_json:
        _print_json(found)
    else:
        print("\n".join(said))


@model_app.command("register")
def model_register(
    reference: Annotated[str, typer.Argument(metavar="RUN", help="CONFIG of a finished run, or folder of its model")],
    name: Annotated[str, typer.Option("--name", metavar="NAME", help="what the model is to be called")],
    store: StoreOption = None,
    config: RegistryConfig = None,
    as_json: Json = False,
) -> None:
    """Make a finished model the next version of a name in MLflow; print what commands take for it."""
    from pipeline.commands import registry as registered

    with _errors() as nameable, _opened(reference, store, config, nameable, registry=True) as (folder, registry, _):
        version = registered.register(registry or _registry(store, config, nameable), folder, name)
    if as_json:
        _print_json({"reference": version.reference, "sha256": version.sha256, "usable": version.usable})
    else:
        print(version.reference)
    if not version.usable:
        _say("the model is not usable: it gives scores, never decisions; maescreen model info says why")


@model_app.command("promote")
def model_promote(
    name: ModelName,
    version: Annotated[str, typer.Argument(metavar="VERSION", help="number of the version")],
    alias: Annotated[str, typer.Option("--alias", metavar="ALIAS", help="what the version is to be known by")],
    why: Annotated[str, typer.Option("--why", metavar="TEXT", help="reason, kept for ever; name no patient")],
    force: Annotated[bool, typer.Option("--force", help="even a model that is not usable; shown for ever")] = False,
    store: StoreOption = None,
    config: RegistryConfig = None,
    as_json: Json = False,
) -> None:
    """Let an alias such as champion lead to a version, and write down when, from which model, by whom and why."""
    from dataclasses import asdict

    from pipeline.commands import registry as registered

    with _errors() as nameable:
        move = registered.promote(_registry(store, config, nameable), name, version, alias, why, force)
    if as_json:
        _print_json(asdict(move))
    else:
        print(f"models:/{name}@{alias}")


@model_app.command("history")
def model_history(
    name: ModelName, store: StoreOption = None, config: RegistryConfig = None, as_json: Json = False
) -> None:
    """Say which version each alias led to, since when, by whom and why; exit code 1 when the history was changed."""
    from pipeline.commands import registry as registered

    with _errors() as nameable:
        history = _registry(store, config, nameable).history(name)
    if as_json:
        _print_json(registered.history_json(history, name))
    else:
        print("\n".join(registered.history_lines(history, name)))
    for problem in history.problems:
        _say(problem)
    raise typer.Exit(ERROR if history.problems else 0)


@model_app.command("export")
def model_export(
    reference: ModelRef,
    out: Annotated[Path, typer.Argument(metavar="DIR", help="new or empty folder; the model becomes DIR/model")],
    onnx: Annotated[
        bool,
        typer.Option(
            "--onnx", help="also DIR/model.onnx, from display pixels of one image to its logits; see the docs"
        ),
    ] = False,
    int8: Annotated[
        bool, typer.Option("--int8", help="refused: whole numbers would need a certificate of their own")
    ] = False,
    store: StoreOption = None,
    config: RegistryConfig = None,
    as_json: Json = False,
) -> None:
    """Copy a model, every file of it checked; with --onnx also as a graph whose scores are those of the model."""
    from pipeline.inference import export as exporting

    with _errors() as nameable:
        nameable.add(out)
        nameable.folders.add(out.resolve())
        if int8:
            raise exporting.ExportError(exporting.NO_INT8)
        with _opened(reference, store, config, nameable) as (folder, _, _):
            exported = exporting.export(folder, out, onnx=onnx, say=_say)
    if as_json:
        _print_json(exported)
    else:
        print("\n".join(exported["files"]))


@app.command()
def compare(
    configs: Annotated[
        list[str],
        typer.Argument(
            metavar="CONFIG [section.key=value]… | REPORT…",
            help="finished runs: each a config and, behind it, the settings that replaced those of the file; or a "
            "finished report of whatever version, its report.pdf, report.json or their folder",
        ),
    ],
    pdf: Annotated[
        Path | None,
        typer.Option("--pdf", metavar="FILE", help="the PDF's path; default: <reports>/<project>-compare-<digits>.pdf"),
    ] = None,
    store: Annotated[
        Path | None, typer.Option("--store", help="folder of artifacts, instead of those of the configs, or ./store")
    ] = None,
    as_json: Json = False,
) -> None:
    """Print finished runs side by side and write them as one PDF, whose path comes last."""
    from pipeline.commands import compare as comparison
    from pipeline.commands.trace import is_report
    from pipeline.settings.load import divide
    from pipeline.store.artifacts import Store

    with _errors() as nameable:
        nameable.add(pdf)
        named = divide(configs)
        loaded = [None if is_report(file) else _settings(file, more, store, nameable) for file, more in named]
        configured = [settings for settings, _ in filter(None, loaded)]
        folders = [one.store for one in configured] or [(store or Path("store")).resolve()]
        nameable.folders |= {*folders}
        runs = []
        for (file, more), known in zip(named, loaded, strict=True):
            if known is not None:
                key = _known_key(*known) or None
                runs.append(comparison.of_config(comparison.name_of(file, more), *known, key))
                continue
            nameable.add(file)
            if more:
                _fail(f"{more[0]} stands behind a finished report, which settings do not change", USAGE)
            runs.append(comparison.of_report(file, [Store(folder) for folder in folders]))
        first = configured[0] if configured else None
        place = pdf or comparison.beside(runs, first, named[0][0])
        result = comparison.compare(runs, place, first.report.fonts if first else None)
    for warning in result["warnings"]:
        _say(warning)
    if as_json:
        _print_json(result)
        return
    from rich.console import Console
    from rich.table import Table

    table = Table("", *result["runs"])
    for name, values in result["settings"].items():
        table.add_row(name, *map(str, values))
    table.add_section()
    for name, values in result["measures"].items():
        table.add_row(name, *map(_number, values, result["gate_failures"]))
    table.add_row("gate", *("failed" if failures else "passed" for failures in result["gate_failures"]))
    Console().print(table)
    print(result["pdf"])


@app.command()
def trace(
    report: Annotated[
        Path, typer.Argument(metavar="REPORT.pdf", exists=True, dir_okay=False, help="a report that maescreen made")
    ],
    verify: Annotated[bool, typer.Option("--verify", help="read every file again and compare its SHA-256")] = False,
    config: Annotated[Path | None, typer.Option(help="with --verify: also check the source files it names")] = None,
    store: StoreOption = None,
    as_json: Json = False,
) -> None:
    """Walk from a report to the artifacts, code, settings and source files it rests on."""
    from pipeline.commands import trace as tracing
    from pipeline.store.artifacts import Store
    from pipeline.store.wording import counted

    with _errors() as nameable:
        nameable.add(report)
        settings = _settings(config, None, store, nameable)[0] if config else None
        folder = settings.store if settings else (store or Path("store")).resolve()
        nameable.folders.add(folder)
        artifacts = Store(folder)
        result = tracing.trace(report, artifacts)
        problems = tracing.verify(report, artifacts, _say) if verify else []
        if verify and settings:
            problems += tracing.verify_sources(report, artifacts, settings.data)
    if as_json:
        _print_json({**result, "problems": problems if verify else None})
    else:
        for artifact in result["artifacts"]:
            code, files = artifact["git_commit"][:12] or "not in git", counted(len(artifact["files"]), "file")
            print(f"{artifact['step']:<10} {artifact['key']}  {artifact['created']}  code {code}  {files}")
        for source in result["sources"]:
            print(f"source     {source['source_id']}  sha256 {source['sha256']}  {source['verdict']}")
    for problem in problems:
        _say(problem)
    if verify:
        what = "every file of its artifacts" + (" and every source file" if config else "")
        _say(counted(len(problems), "difference") if problems else f"verified: {what} is as it was when it was made")
    raise typer.Exit(ERROR if problems else 0)


@app.command()
def doctor(
    store: StoreOption = None,
    config: Annotated[Path | None, typer.Option(help="look at the store and the server that it names")] = None,
    as_json: Json = False,
) -> None:
    """Look at versions, device, codecs, disk, store and tracking server."""
    from pipeline.commands import doctor as examination

    with _errors() as nameable:
        settings = _settings(config, None, store, nameable)[0] if config else None
        folder = settings.store if settings else (store or Path("store")).resolve()
        nameable.folders.add(folder)
        checks = examination.examine(folder, settings.tracking.uri if settings else None)
    if as_json:
        _print_json([check.to_dict() for check in checks])
    else:
        for check in checks:
            print(f"{check.state:<8} {check.name:<20} {check.detail}")
    raise typer.Exit(ERROR if any(check.state == "problem" for check in checks) else 0)


@app.command()
def power(
    recall: Annotated[float, typer.Option(help="share of people with the condition to be found")] = 0.95,
    confidence: Annotated[float, typer.Option(help="how sure the certificate is to be")] = 0.95,
    auc: Annotated[float, typer.Option(help="expected area under the ROC curve, for referrals")] = 0.95,
    prevalence: Annotated[float, typer.Option(help="share with the condition where the model will be used")] = 0.05,
    positives: Annotated[
        int | None, typer.Option(min=1, help="patients with the condition for calibration and test together")
    ] = None,
    groups: Annotated[int, typer.Option(min=1, help="groups that are to be certified one by one")] = 1,
    figure: Annotated[Path | None, typer.Option(dir_okay=False, help="also draw the answer, as this SVG file")] = None,
    as_json: Json = False,
) -> None:
    """Say how many patients it takes to certify and to confirm a recall, and what that costs in referrals."""
    from pipeline.commands import power as planning

    if not (0 < recall < 1 and 0 < confidence < 1 and 0 < prevalence < 1 and 0.5 <= auc < 1):
        _fail("recall, confidence and prevalence lie strictly between 0 and 1, the AUC from 0.5 to below 1", USAGE)
    asked = planning.Question(recall, confidence, auc, prevalence, positives, groups)
    found = planning.answer(asked)
    if figure is not None:
        with _errors() as nameable:
            nameable.add(figure)
            figure.write_bytes(planning.figure(asked))
    if as_json:
        _print_json(found)
    else:
        print("\n".join(planning.lines(found)))


@app.command()
def init(
    folder: Annotated[Path, typer.Argument(metavar="DIR", exists=True, help="folder or zip of studies")],
    labels: Annotated[
        Path | None, typer.Option(exists=True, dir_okay=False, help="CSV or Parquet table of labels")
    ] = None,
    classes: Annotated[
        bool, typer.Option("--classes", help="no table: DIR holds a folder for each class, e.g. normal/ and sick/")
    ] = False,
    name: Annotated[str | None, typer.Option(help="project name; default: the folder's")] = None,
    label: Annotated[str | None, typer.Option(help="label column")] = None,
    patient: Annotated[
        str | None, typer.Option(help="column that names the patients; that of the paths if each image is another's")
    ] = None,
    positive: Annotated[list[str] | None, typer.Option(help="value that means positive; may be repeated")] = None,
    negative: Annotated[
        list[str] | None, typer.Option(help="value that means negative; default: all others that look like an answer")
    ] = None,
    unused: Annotated[list[str] | None, typer.Option(help="value that is no answer, like unclear")] = None,
    minutes: Annotated[float, typer.Option(min=1, help="how long the run may take on this machine")] = 60,
    output: Annotated[Path, typer.Option(help="where configs/ and data_manifests/ are")] = Path(),
    as_json: Json = False,
) -> None:
    """Look at your own studies, labels and machine, and write a card and a config, with a reason for each setting."""
    if (labels is None) != classes:
        _fail("say where the labels are: --labels FILE for a table, or --classes for a folder per class", USAGE)
    from pipeline.commands import init as initialisation
    from pipeline.commands import typed

    with _errors() as nameable:
        nameable.add(folder, labels, output)
        answers = initialisation.Answers(label, patient, positive or (), negative or (), unused or ())
        written = initialisation.write(folder, labels, output, name, answers, minutes)
    _say("\n".join(written.lines))
    if as_json:
        _print_json(written.to_dict())
        return
    print(f"fill in   {written.card}")
    print(f"then run  {typed.command('run', written.config)}")


@app.command()
def reindex(config: ConfigPath, overrides: Overrides = None, store: StoreOption = None) -> None:
    """Fill MLflow from the store again, as after a lost database or a move to a server: runs and registered models."""
    from pipeline.orchestration import run as pipeline
    from pipeline.store.wording import counted

    with _errors(config, overrides, store) as nameable:
        settings, _ = _settings(config, overrides, store, nameable)
        artifacts, runs = pipeline.reindex(settings)
        from pipeline.commands import registry as registered
        from pipeline.store.registry import Registry

        folders = sorted(settings.store.glob("package/*/model"))
        restored = registered.restore(Registry(settings.store, settings.tracking.uri), folders)
    for line in registered.restored_lines(*restored):
        _say(line)
    print(f"{counted(artifacts, 'artifact')} {'is' if artifacts == 1 else 'are'} indexed")
    _say(f"and {counted(runs, 'pipeline run')}, which `maescreen ui` compares")


@app.command()
def gc(
    config: ConfigPath,
    overrides: Overrides = None,
    delete: Annotated[bool, typer.Option("--delete", help="remove what is listed; without it nothing changes")] = False,
    keep_last: Annotated[int, typer.Option(min=1, help="newest finished runs of the project whose artifacts stay")] = 1,
    older_than: Annotated[float, typer.Option(min=0, metavar="DAYS", help="keep what is younger than that")] = 0,
    store: StoreOption = None,
    as_json: Json = False,
) -> None:
    """List what no kept report, registered model, newest or next run needs; remove it with --delete."""
    from pipeline.commands import gc as collection
    from pipeline.commands import typed

    with _errors(config, overrides, store) as nameable:
        settings, card = _settings(config, overrides, store, nameable)
        found = collection.examine(settings, card, _known_key(settings, card) or None, keep_last, older_than)
        gone = collection.delete(settings, found, _say) if delete else []
    listed = gone if delete else found.removable
    if as_json:
        rows = {"removable" if not delete else "removed": listed, "kept": found.kept}
        shown = {name: [item.to_dict() for item in items] for name, items in rows.items()}
        _print_json({**shown, "bytes": collection.total(listed), "remarks": found.remarks})
    else:
        print("\n".join(collection.lines(listed, found.kept)))
    for remark in found.remarks:
        _say(typed.filled(remark, config, overrides, store))
    size = collection.human(collection.total(listed))
    if delete or not listed:
        _say(f"removed: {size}" if delete else "nothing to remove")
        return
    last, days = str(keep_last) if keep_last > 1 else None, f"{older_than:g}" if older_than else None
    again = typed.command("gc", config, overrides, keep_last=last, older_than=days, store=store, delete=True)
    _say(f"nothing was removed; this frees {size}: {again}")


@app.command()
def ui(
    config: ConfigPath,
    overrides: Overrides = None,
    store: StoreOption = None,
    port: Annotated[int, typer.Option(min=1, max=65535, help="port on this machine")] = 5000,
) -> None:
    """Open the MLflow UI on this machine at the comparison of pipeline runs."""
    with _errors(config, overrides, store) as nameable:
        from pipeline.store import server

        settings, _ = _settings(config, overrides, store, nameable)
        uri = settings.tracking.uri
        elsewhere = uri is not None and uri.startswith(("http://", "https://"))
        if not elsewhere:
            server.check_free(port)
        from pipeline.store import tracking  # takes seconds

        experiment = tracking.experiment_id(settings.project, settings.store, uri)
        if experiment is None:
            raise tracking.TrackingError(f"{settings.project} has no runs yet; run: maescreen run CONFIG")
        page = server.comparison_fragment(experiment)
        if elsewhere:
            print(f"{uri}/{page}")
            return

        def announce() -> None:
            print(f"http://{server.HOST}:{port}/{page}", flush=True)
            _say("stop with Ctrl-C")

        tracking.serve(settings.store, uri, port, announce)


# ---------------------------------------------------------------- shared by the commands


def _run(
    config: Path,
    overrides: list[str] | None,
    store: Path | None,
    keep: list[str] | None,
    rebuild: list[str] | None,
    as_json: bool,
    only: str | None = None,
    until: str = LAST,
) -> None:
    from pipeline.commands import typed
    from pipeline.imaging.pseudonyms import load_key
    from pipeline.orchestration import run as pipeline
    from pipeline.orchestration import torchrun
    from pipeline.settings.load import load_settings

    options = {"store": store, "until": None if until == LAST else until}
    options |= {"keep": keep, "rebuild": rebuild, "json": as_json}
    again = typed.command(only or "run", config, overrides, typed.program(), **options)
    with _errors(config, overrides, store, again) as nameable, _sigterm_interrupts():
        _stages([only or until])
        if torchrun.follows():
            torchrun.follow(_in_store(load_settings(config, overrides), store))
            raise typer.Exit
        settings, card = _settings(config, overrides, store, nameable)
        secret = load_key(settings.data.key_file, identifiers=card.identifiers)
        chosen = {"keep": _stages(keep), "rebuild": _stages(rebuild), "only": only, "until": until}
        with torchrun.leading(settings):
            result = pipeline.run(settings, card, secret, say=_say, **chosen)
    _announce(result, typed.command("ui", config, _of_tracking(overrides), store=store), as_json)
    raise typer.Exit(GATE_FAILED if result.failures else 0)


def _of_tracking(overrides: list[str] | None) -> list[str]:
    """Return the overrides that say where the runs are found in MLflow."""
    return [one for one in overrides or () if one.startswith(("project=", "store=", "tracking"))]


def _announce(result: Result, ui_command: str, as_json: bool) -> None:
    for failure in result.failures:
        _say(f"gate failed on {failure['on']}: {failure['code']}: {failure['message']}")
    if as_json:
        from pipeline.orchestration.mlflow_runs import headline

        _print_json(
            {
                "artifacts": {name: str(artifact.path) for name, artifact in result.artifacts.items()},
                "headline": headline(result.artifacts),
                "gate_failures": list(result.failures),
                "report": str(result.report) if result.report else None,
            }
        )
        return
    _say(f"compare runs: {ui_command}  (opens {result.comparison})")
    if result.report:
        print(result.report)


def _settings(config: Path, overrides: list[str] | None, store: Path | None, nameable: Nameable) -> tuple[Config, Card]:
    """Return the config and its card; from now on, errors may name the files that the config names."""
    from pipeline.settings.load import load

    nameable.add(config, store)
    settings, card = load(config, overrides)
    settings = _in_store(settings, store)
    if (shown := ascii(str(settings.store))).count("\\udc"):
        _fail(f"the path of the store, {shown}, is not UTF-8, which MLflow needs; choose another with --store", USAGE)
    for data in (settings.data, *settings.data.external):
        nameable.add(data.labels, data.card, *data.studies)
    nameable.add(settings.data.key_file, settings.data.imported_weights, settings.report.fonts)
    nameable.folders |= {settings.store, settings.reports}
    return settings, card


def _known_key(settings: Config, card: Card) -> bytes:
    """Return the key if there is one, else nothing; only `run` and the stages make one."""
    from pipeline.imaging.pseudonyms import load_key

    file = settings.data.key_file
    return load_key(file, identifiers=card.identifiers) if file.exists() else b""


def _in_store(settings: Config, store: Path | None) -> Config:
    return settings if store is None else settings.model_copy(update={"store": store.resolve()})


def _stages(names: list[str] | None) -> list[str]:
    import difflib

    from pipeline.orchestration.graph import NAMES

    for name in names or []:
        if name.partition("@")[0] not in NAMES:  # whether there is such an external test set, the config says
            near = difflib.get_close_matches(name, NAMES, n=1)
            hint = f"did you mean {near[0]}?" if near else f"stages: {', '.join(NAMES)}"
            _fail(f"{name} is not a stage; {hint}", USAGE)
    return list(names or [])


@contextmanager
def _errors(
    config: Path | None = None, overrides: list[str] | None = None, store: Path | None = None, again: str = ""
) -> Iterator[Nameable]:
    """Turn what users can cause into one message and an exit code; anything else keeps its traceback.

    Neither quotes a patient's data: files are named only when they are among what is yielded. `again` is the command
    that goes on after an interruption.
    """
    from pipeline.commands import failures, typed
    from pipeline.settings.common import UsageError

    def fail(message: str, code: int) -> NoReturn:
        _fail(typed.filled(message, config, overrides, store) if config else message, code)

    nameable = failures.Nameable()
    try:
        yield nameable
    except (typer.Exit, typer.Abort, typer.BadParameter):
        raise
    except UsageError as error:
        fail(str(error), USAGE)
    except KeyboardInterrupt as error:
        how = f"; what was finished is kept; go on with: {again}" if again else ""
        fail((str(error) or "interrupted") + how, STOPPED)
    except Exception as error:
        message = failures.described(error, nameable) if isinstance(error, EXPECTED) else ""
        fail(message or failures.frames(error).rstrip(), ERROR)


@contextmanager
def _sigterm_interrupts() -> Iterator[None]:
    """Let SIGTERM end a run as Ctrl-C does. Training catches either by itself, to save first."""
    import signal
    import threading

    def interrupt(_number: int, _frame: Any) -> NoReturn:
        raise KeyboardInterrupt("stopped: SIGTERM")

    if threading.current_thread() is not threading.main_thread():  # the only one that may handle signals
        yield
        return
    before = signal.signal(signal.SIGTERM, interrupt)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)


def _fail(message: str, code: int) -> NoReturn:
    _say(message)
    raise typer.Exit(code)


def _say(message: str) -> None:
    print(message, file=sys.stderr, flush=True)


def _print_json(content: Any) -> None:
    from pipeline.store.files import finite

    print(json.dumps(finite(content), indent=1, ensure_ascii=False))


def _number(interval: dict[str, float | None], gate_failures: int) -> str:
    value, low, high = interval["value"], interval["low"], interval["high"]
    if value is None:
        return "withheld: the gate failed" if gate_failures else "not estimable"
    return f"{value:.3f}" if low is None or high is None else f"{value:.3f} ({low:.3f} to {high:.3f})"


if __name__ == "__main__":
    main()
