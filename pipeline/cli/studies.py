"""Commands that take new studies: predict, serve, listen, and monitor, which watches them."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

import typer

from pipeline.cli.app import app
from pipeline.cli.models import ModelRef, RegistryConfig, load_model, opened
from pipeline.cli.shared import (
    GATE_FAILED,
    USAGE,
    Json,
    StoreOption,
    Workers,
    errors,
    fail,
    print_json,
    say,
    sigterm_interrupts,
)

if TYPE_CHECKING:
    from datetime import date


# What predict, serve and listen have in common.
Target = Annotated[
    float | None, typer.Option(metavar="RECALL", help="another certified operating point; default: the first")
]
Prevalence = Annotated[
    float | None, typer.Option(min=1e-6, max=0.999999, help="share with the condition here, for local_probability")
]
Threads = Annotated[int | None, typer.Option(min=1, help="CPU threads of the network; default: all cores")]
Device = Annotated[Literal["auto", "cpu", "cuda"], typer.Option(help="auto, cpu or cuda")]
Table = Annotated[
    Path | None,
    typer.Option(
        exists=True,
        dir_okay=False,
        help="columns path and study, for files without headers; channel, if a table told it",
    ),
]


@app.command()
def predict(
    model: ModelRef,
    paths: Annotated[list[Path], typer.Argument(metavar="PATH…", exists=True, help="files, folders and zip archives")],
    out: Annotated[Path, typer.Option("--out", metavar="DIR", help="folder of the results; nothing else is written")],
    table: Table = None,
    target: Target = None,
    prevalence: Prevalence = None,
    workers: Workers = 2,
    threads: Threads = None,
    device: Device = "auto",
    pages: Annotated[bool, typer.Option("--pages/--no-pages", help="a PDF page per study")] = True,
    identified: Annotated[
        bool, typer.Option("--identified", help="write the headers' patient identifiers, too; DIR becomes private")
    ] = False,
    dicom: Annotated[
        str, typer.Option("--dicom", metavar="KINDS", help="sr,pdf,sc: objects for the archive; DIR becomes private")
    ] = "",
    masks: Annotated[
        bool, typer.Option("--masks", help="what the model marked, on the grid of each image; DIR becomes private")
    ] = False,
    store: StoreOption = None,
    config: RegistryConfig = None,
    as_json: Json = False,
) -> None:
    """Judge new studies: refer, no refer or not assessable, with score, probability and reasons."""
    from pipeline.commands import predict as prediction
    from pipeline.commands import typed
    from pipeline.delivery.dicom import kinds

    words = [*map(str, paths), *(["--config", str(config)] if config else [])]
    again = typed.command("predict", Path(model), words, out=out, table=table, store=store)
    with errors(again=f"{again} …") as nameable, sigterm_interrupts():
        nameable.add(out, table, *paths)
        nameable.folders.add(out.resolve())
        with opened(model, store, config, nameable) as (folder, _, _):
            loaded = load_model(folder, nameable, device, threads)
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
                dicom=kinds(dicom),
                masks=masks,
                say=say,
            )
    if as_json:
        print_json(
            {"out": str(out), "counts": written.counts(), "usable": loaded.usable, "model_sha256": loaded.sha256}
        )
    else:
        for line in prediction.lines(loaded, written, out):
            say(line)
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
    dicom: Annotated[
        str, typer.Option("--dicom", metavar="KINDS", help="sr,pdf,sc: objects beside each result, with identities")
    ] = "",
    target: Target = None,
    prevalence: Prevalence = None,
    upload_mb: Annotated[int, typer.Option(min=1, help="MB that one study may have as it is sent")] = 1024,
    upload_seconds: Annotated[float, typer.Option(min=1, help="seconds in which it must have arrived")] = 600.0,
    unpacked_mb: Annotated[int, typer.Option(min=1, help="MB that one study may have unpacked")] = 4096,
    most_waiting: Annotated[int, typer.Option(min=1, help="studies that may wait before others are put off")] = 1000,
    keep_images: Annotated[
        bool, typer.Option("--keep-images", help="keep what was received of a finished study, too")
    ] = False,
    workers: Workers = 2,
    threads: Threads = None,
    device: Device = "auto",
    store: StoreOption = None,
    config: RegistryConfig = None,
) -> None:
    """Judge studies that come over HTTP, and show them as a reading list in the browser."""
    from pipeline.commands import serve as serving
    from pipeline.delivery.dicom import kinds
    from pipeline.delivery.http.receiving import Limits
    from pipeline.delivery.worker_process import Options

    with errors() as nameable:
        nameable.add(queue, token_file, certificate, key)
        nameable.folders.add(queue.resolve())
        with opened(model, store, config, nameable) as (folder, _, _):
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
                dicom=kinds(dicom),
            )
            serving.serve(
                serving.Place(host=host, port=port, token_file=token_file, certificate=certificate, key=key),
                queue,
                options,
                Limits(upload_mb=upload_mb, upload_s=upload_seconds, most_waiting=most_waiting),
                say,
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
    since: Annotated[
        str | None, typer.Option(metavar="DATE", help="watch anew from this day, written as 2026-11-29")
    ] = None,
    store: StoreOption = None,
    config: RegistryConfig = None,
    as_json: Json = False,
) -> None:
    """Watch a model in use: referrals, scores, typicality, quality, and recall where outcomes allow it."""
    from pipeline.commands import monitor as watching

    with errors() as nameable:
        nameable.add(out, outcomes, *(Path(place.partition("=")[2] or place) for place in places))
        nameable.folders.add(out.resolve())
        with opened(model, store, config, nameable) as (folder, _, _):
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
        print_json(found.content)
    else:
        for line in watching.lines(found.lights):
            say(line)
        print(out / watching.PDF)
    raise typer.Exit(GATE_FAILED if found.alarm else 0)


def _date(text: str) -> date:
    from datetime import date

    try:
        return date.fromisoformat(text)
    except ValueError:
        fail("a date is written as 2026-11-29", USAGE)


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
            "--allow-address",
            metavar="ADDRESS",
            help="who may send, by address or network; needed beside another --host than this machine",
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
    target: Target = None,
    prevalence: Prevalence = None,
    workers: Workers = 2,
    threads: Threads = None,
    device: Device = "auto",
    store: StoreOption = None,
    config: RegistryConfig = None,
) -> None:
    """Judge studies that come by DICOM, and send results as DICOM objects to the archive."""
    from pipeline.commands import listen as listening
    from pipeline.delivery.dicom import kinds
    from pipeline.delivery.node.c_store import Archive
    from pipeline.delivery.node.receiver import Receiving
    from pipeline.delivery.node.stow import Stow
    from pipeline.delivery.worker_process import Options

    if (send is None) == (stow is None):
        fail("name the archive that takes the results: either --send TITLE@HOST:PORT or --stow URL", USAGE)
    with errors() as nameable:
        nameable.add(out, stow_token_file, ca_file)
        nameable.folders.add(out.resolve())
        with opened(model, store, config, nameable) as (folder, _, _):
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
                    dicom=kinds(dicom),
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
                say,
                lambda where: print(where, flush=True),
            )
