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
    from pipeline.config import Card, Config
    from pipeline.run import Result

ERROR, USAGE, GATE_FAILED = 1, 2, 3
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
    until: Annotated[str, typer.Option(metavar="STEP", help="last step to run: a stage, or stage@SET")] = "report",
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
        from pipeline import dry_run as rehearsal

        with _errors():
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
    """Say which stages would run and why; run nothing."""
    from pipeline import run as pipeline

    with _errors():
        settings, card, secret = _load(config, overrides, store)
        steps = pipeline.plan(settings, card, secret, keep=_stages(keep), rebuild=_stages(rebuild))
    if as_json:
        _print_json([{"stage": s.name, "key": s.key, "action": s.action, "reason": s.reason} for s in steps])
    else:
        print("\n".join(step.line() for step in steps))


@app.command()
def compare(
    configs: Annotated[
        list[str],
        typer.Argument(metavar="CONFIG…", help="finished runs: a file, or file,section.key=value,…"),
    ],
    pdf: Annotated[
        Path | None,
        typer.Option("--pdf", metavar="FILE", help="the PDF's path; default: <reports>/<project>-compare-<digits>.pdf"),
    ] = None,
    store: StoreOption = None,
    as_json: Json = False,
) -> None:
    """Print finished runs side by side and write them as one PDF, whose path comes last."""
    from pipeline import compare as comparison

    with _errors():
        runs = []
        for text in configs:
            file, *overrides = text.split(",")
            runs.append((comparison.name_of(Path(file), overrides), *_load(Path(file), overrides, store)))
        result = comparison.compare(runs, pdf)
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
        table.add_row(name, *map(_number, values))
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
    from pipeline import trace as tracing
    from pipeline.store.artifacts import Store

    with _errors():
        loaded = _load(config, None, store) if config else None
        artifacts = Store((loaded[0].store if loaded else store or Path("store")).resolve())
        result = tracing.trace(report, artifacts)
        problems = tracing.verify(report, artifacts, _say) if verify else []
        if verify and loaded:
            problems += tracing.verify_sources(report, artifacts, loaded[0].data)
    if as_json:
        _print_json({**result, "problems": problems if verify else None})
    else:
        for artifact in result["artifacts"]:
            made = f"{artifact['created']}  code {artifact['git_commit'][:12]}  {len(artifact['files'])} files"
            print(f"{artifact['step']:<10} {artifact['key']}  {made}")
        for source in result["sources"]:
            print(f"source     {source['source_id']}  sha256 {source['sha256']}  {source['verdict']}")
    for problem in problems:
        _say(problem)
    if verify:
        _say(f"{len(problems)} differences" if problems else "verified: every file is as it was when it was made")
    raise typer.Exit(ERROR if problems else 0)


@app.command()
def doctor(
    store: StoreOption = None,
    config: Annotated[Path | None, typer.Option(help="look at the store and the server that it names")] = None,
    as_json: Json = False,
) -> None:
    """Look at versions, device, codecs, disk, store and tracking server."""
    from pipeline import doctor as examination

    with _errors():
        settings = _load(config, None, store)[0] if config else None
        folder = settings.store if settings else (store or Path("store")).resolve()
        checks = examination.examine(folder, settings.tracking.uri if settings else None)
    if as_json:
        _print_json([check.to_dict() for check in checks])
    else:
        for check in checks:
            print(f"{check.state:<8} {check.name:<20} {check.detail}")
    raise typer.Exit(ERROR if any(check.state == "problem" for check in checks) else 0)


@app.command()
def init(
    folder: Annotated[Path, typer.Argument(metavar="DIR", exists=True, help="folder or zip of studies")],
    labels: Annotated[Path, typer.Option(exists=True, dir_okay=False, help="CSV or Parquet table of labels")],
    name: Annotated[str | None, typer.Option(help="project name; default: the folder's")] = None,
    label: Annotated[str | None, typer.Option(help="label column")] = None,
    positive: Annotated[list[str] | None, typer.Option(help="value that means positive; may be repeated")] = None,
    output: Annotated[Path, typer.Option(help="where configs/ and data_manifests/ are")] = Path(),
) -> None:
    """Write a card and a config for your own folder of studies."""
    from pipeline import init as initialisation

    with _errors():
        card, config = initialisation.write(folder, labels, output, name, label, positive or [])
    print(f"fill in   {card}")
    print(f"then run  maescreen run {config}")


@app.command()
def reindex(config: ConfigPath, store: StoreOption = None) -> None:
    """Index the artifacts of the store in MLflow again, as after a lost database or a move to another server."""
    from pipeline import run as pipeline

    with _errors():
        count = pipeline.reindex(_load(config, None, store)[0])
    print(f"{count} artifacts are indexed")


@app.command()
def ui(
    config: ConfigPath,
    store: StoreOption = None,
    port: Annotated[int, typer.Option(help="port on this machine")] = 5000,
) -> None:
    """Open the MLflow UI on this machine at the comparison of pipeline runs."""
    with _errors():
        from pipeline.store import tracking

        settings, *_ = _load(config, None, store)
        experiment = tracking.experiment_id(settings.project, settings.store, settings.tracking.uri)
        if experiment is None:
            _fail(f"{settings.project} has no runs yet; run: maescreen run {config}", ERROR)
        print(f"http://127.0.0.1:{port}/{tracking.comparison_fragment(experiment)}", flush=True)
        _say("stop with Ctrl-C")
        tracking.serve(settings.store, settings.tracking.uri, port)


# ---------------------------------------------------------------- shared by the commands


def _run(
    config: Path,
    overrides: list[str] | None,
    store: Path | None,
    keep: list[str] | None,
    rebuild: list[str] | None,
    as_json: bool,
    **which: Any,
) -> None:
    from pipeline import followers
    from pipeline import run as pipeline
    from pipeline.config_file import load_settings

    with _errors(f"go on with: maescreen run {config}"):
        for name in which.values():
            _stages([name])
        if followers.follows():
            followers.follow(_in_store(load_settings(config, overrides), store))
            raise typer.Exit
        loaded = _load(config, overrides, store)
        with followers.leading(loaded[0]):
            result = pipeline.run(*loaded, keep=_stages(keep), rebuild=_stages(rebuild), say=_say, **which)
    _announce(result, loaded[0], config, as_json)
    raise typer.Exit(GATE_FAILED if result.failures else 0)


def _announce(result: Result, settings: Config, config: Path, as_json: bool) -> None:
    for failure in result.failures:
        _say(f"gate failed on {failure['on']}: {failure['code']}: {failure['message']}")
    if as_json:
        from pipeline.indexing import headline

        _print_json(
            {
                "artifacts": {name: str(artifact.path) for name, artifact in result.artifacts.items()},
                "headline": headline(result.artifacts),
                "gate_failures": list(result.failures),
                "report": str(result.report) if result.report else None,
            }
        )
        return
    _say(f"compare runs: maescreen ui {config}  (opens {result.comparison})")
    if result.report:
        print(result.report)


def _load(config: Path, overrides: list[str] | None, store: Path | None) -> tuple[Config, Card, bytes]:
    from pipeline.imaging.pseudonyms import load_key

    settings, card = _settings(config, overrides, store)
    return settings, card, load_key(settings.data.key_file, identifiers=card.identifiers)


def _settings(config: Path, overrides: list[str] | None, store: Path | None) -> tuple[Config, Card]:
    from pipeline.config_file import load

    settings, card = load(config, overrides)
    return _in_store(settings, store), card


def _in_store(settings: Config, store: Path | None) -> Config:
    return settings if store is None else settings.model_copy(update={"store": store.resolve()})


def _stages(names: list[str] | None) -> list[str]:
    import difflib

    from pipeline.run import NAMES

    for name in names or []:
        if name.partition("@")[0] not in NAMES:  # whether there is such an external test set, the config says
            near = difflib.get_close_matches(name, NAMES, n=1)
            hint = f"did you mean {near[0]}?" if near else f"stages: {', '.join(NAMES)}"
            _fail(f"{name} is not a stage; {hint}", USAGE)
    return list(names or [])


@contextmanager
def _errors(after_interrupt: str = "") -> Iterator[None]:
    """Turn what users can cause into one message and an exit code; anything else keeps its traceback."""
    from pipeline.config import UsageError

    try:
        yield
    except typer.Exit:  # a RuntimeError too
        raise
    except UsageError as error:
        _fail(str(error), USAGE)
    except (ValueError, RuntimeError, OSError) as error:
        _fail(f"{error} ({_raised_at(error)})", ERROR)
    except KeyboardInterrupt as error:
        _fail(f"{str(error) or 'interrupted'}; what was finished is kept. {after_interrupt}", STOPPED)


def _raised_at(error: Exception) -> str:
    """Return type and place of an error, for the engineer: the deepest line of this package that it passed."""
    import traceback

    ours = [f for f in traceback.extract_tb(error.__traceback__) if Path(__file__).parent in Path(f.filename).parents]
    place = f" at {Path(ours[-1].filename).relative_to(Path(__file__).parent)}:{ours[-1].lineno}" if ours else ""
    return type(error).__name__ + place


def _fail(message: str, code: int) -> NoReturn:
    _say(message)
    raise typer.Exit(code)


def _say(message: str) -> None:
    print(message, file=sys.stderr, flush=True)


def _print_json(content: Any) -> None:
    from pipeline.store.files import finite

    print(json.dumps(finite(content), indent=1, ensure_ascii=False))


def _number(interval: dict[str, float | None]) -> str:
    value, low, high = interval["value"], interval["low"], interval["high"]
    if value is None:
        return "not available"
    return f"{value:.3f}" if low is None or high is None else f"{value:.3f} ({low:.3f} to {high:.3f})"


if __name__ == "__main__":
    main()
