"""`maescreen model …`, and how any command opens a model that is named."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from pipeline.cli.app import app
from pipeline.cli.shared import (
    ERROR,
    Json,
    StoreOption,
    errors,
    known_key,
    print_json,
    say,
    settings_of,
    store_of,
)

if TYPE_CHECKING:
    from pipeline.commands.failures import Nameable
    from pipeline.inference.model import Model
    from pipeline.store.registry import Registry, Version


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


def load_model(folder: Path, nameable: Nameable, device: str = "cpu", threads: int | None = None) -> Model:
    from pipeline.inference.model import Model

    nameable.folders.add(folder.resolve())
    return Model.load(folder, device=device, threads=threads, say=say)


@contextmanager
def opened(
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
    elif not Path(reference).is_file():
        nameable.add(Path(reference))
        models.check_there(Path(reference))
        yield Path(reference), _registry(store, config, nameable) if registry and (store or config) else None, None
    else:
        settings, card = settings_of(Path(reference), None, store, nameable)
        folder = models.folder_of_run(settings, card, known_key(settings, card) or None)
        yield folder, _registry(store, config or Path(reference), nameable) if registry else None, None


def _registry(store: Path | None, config: Path | None, nameable: Nameable) -> Registry:
    """Return the registered models of a config's store and MLflow, or of a store and the MLflow inside it."""
    from pipeline.store.registry import Registry

    folder, settings = store_of(config, store, nameable)
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
        errors() as nameable,
        opened(reference, store, config, nameable, registry=True) as (folder, registry, version),
    ):
        found = models.info(*verified(folder))
        said = models.lines(found)
        if registry is not None:
            from pipeline.commands import registry as registered

            forced = registered.forced(registry, found["sha256"], version)
            found |= {"registered": registered.of_version(version) if version else None, "forced": forced}
            said += registered.forced_lines(forced)
    if as_json:
        print_json(found)
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

    with errors() as nameable, opened(reference, store, config, nameable, registry=True) as (folder, registry, _):
        version = registered.register(registry or _registry(store, config, nameable), folder, name)
    if as_json:
        print_json({"reference": version.reference, "sha256": version.sha256, "usable": version.usable})
    else:
        print(version.reference)
    if not version.usable:
        say("the model is not usable: it gives scores, never decisions; maescreen model info says why")


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

    with errors() as nameable:
        move = registered.promote(_registry(store, config, nameable), name, version, alias, why, force)
    if as_json:
        print_json(asdict(move))
    else:
        print(f"models:/{name}@{alias}")


@model_app.command("history")
def model_history(
    name: ModelName, store: StoreOption = None, config: RegistryConfig = None, as_json: Json = False
) -> None:
    """Say which version each alias led to, since when, by whom and why; exit code 1 when the history was changed."""
    from pipeline.commands import registry as registered

    with errors() as nameable:
        history = _registry(store, config, nameable).history(name)
    if as_json:
        print_json(registered.history_json(history, name))
    else:
        print("\n".join(registered.history_lines(history, name)))
    for problem in history.problems:
        say(problem)
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

    with errors() as nameable:
        nameable.add(out)
        nameable.folders.add(out.resolve())
        if int8:
            raise exporting.ExportError(exporting.NO_INT8)
        with opened(reference, store, config, nameable) as (folder, _, _):
            exported = exporting.export(folder, out, onnx=onnx, say=say)
    if as_json:
        print_json(exported)
    else:
        print("\n".join(exported["files"]))
