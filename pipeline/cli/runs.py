"""Commands that run the pipeline, or say what would run."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from pipeline.cli.app import app
from pipeline.cli.shared import (
    GATE_FAILED,
    LAST,
    NO_KEY,
    USAGE,
    ConfigPath,
    Json,
    Keep,
    Overrides,
    Rebuild,
    StoreOption,
    Workers,
    errors,
    fail,
    in_store,
    known_key,
    print_json,
    say,
    settings_of,
    sigterm_interrupts,
    stages,
)
from pipeline.orchestration.graph import NAMES

if TYPE_CHECKING:
    from pipeline.orchestration.run import Result


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
def inspect(
    folder: Annotated[Path, typer.Argument(metavar="DIR", help="the studies, as for data.studies")],
    workers: Workers = 2,
    as_json: Json = False,
) -> None:
    """Look at a folder of studies: what is in it, and what would be refused and why. Needs nothing, keeps nothing."""
    _inspect(folder, workers, as_json)


@app.command()
def ingest(
    config: Annotated[Path | None, typer.Argument(metavar="CONFIG", help="YAML file of the run")] = None,
    overrides: Overrides = None,
    dry_run: Annotated[
        Path | None, typer.Option("--dry-run", metavar="DIR", hidden=True, help="now `inspect DIR`")
    ] = None,
    workers: Annotated[int, typer.Option(min=1, hidden=True, help="with --dry-run")] = 2,
    store: StoreOption = None,
    keep: Keep = None,
    rebuild: Rebuild = None,
    as_json: Json = False,
) -> None:
    """Read, check and pseudonymise the studies. Runs this stage alone."""
    if (config is None) == (dry_run is None):
        fail("name a CONFIG; `maescreen inspect DIR` looks at a folder without one", USAGE)
    if config is not None:
        _run(config, overrides, store, keep, rebuild, as_json, only="ingest")
    if dry_run is not None:  # the name of `inspect` until it was a command
        _inspect(dry_run, workers, as_json)


def _inspect(folder: Path, workers: int, as_json: bool) -> None:
    from pipeline.commands.inspect import inspect_folder, lines

    with errors() as nameable:
        nameable.add(folder)
        found = inspect_folder(folder, workers)
    if as_json:
        print_json(found)
    else:
        print("\n".join(lines(found)))


# What the stages but ingest are for, in the list of commands; one that is not here is called by its name.
_SUMMARIES = {
    "split": "Divide patients into train, tune, calibration and test",
    "preprocess": "Turn images into arrays",
    "pretrain": "Fit the masked autoencoder",
    "finetune": "Fit the classifiers",
    "score": "Score tune, calibration and test images",
    "calibrate": "Fit the calibrator and certify the threshold",
    "evaluate": "Measure on the locked test set",
    "package": "Make the finished model a folder that predict takes",
    "report": "Render PDF, HTML and JSON",
}
for _name in NAMES[1:]:
    app.command(_name)(_stage_command(_name, _SUMMARIES.get(_name, f"Make {_name}")))


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

    with errors(config, overrides, store) as nameable:
        settings, card = settings_of(config, overrides, store, nameable)
        secret = known_key(settings, card)
        steps = planned(settings, card, secret, keep=stages(keep), rebuild=stages(rebuild))
        expected = estimate.estimates(settings, steps)
    if not secret:
        real = "`run` makes a new one, and with it everything anew"
        todo = real if card.identifiers == "real" else "`run` needs the public one of such data: restore it"
        say(f"{settings.data.key_file}: no such key file; {todo}")
        steps = [replace(step, key=NO_KEY) for step in steps]
    if as_json:
        rows = [{"stage": s.name, "key": s.key, "action": s.action, "reason": s.reason} for s in steps]
        figures = {name: one.to_dict() for name, one in expected.items()}
        rows = [row | {"estimate": figures.get(row["stage"])} for row in rows]
        print_json([row | {"key": None if row["key"] == NO_KEY else row["key"]} for row in rows])
    else:
        print("\n".join(step.line() for step in steps))
        for line in estimate.lines(expected, settings.store):
            print(line)
    if stopped := [step.name for step in steps if step.action == "stop"]:
        kept = typed.command("run", config, overrides, store=store, keep=[*(keep or ()), *stopped], rebuild=rebuild)
        say(f"to use what earlier code made: {kept}")


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
    with errors(config, overrides, store, again) as nameable, sigterm_interrupts():
        stages([only or until])
        if torchrun.follows():
            torchrun.follow(in_store(load_settings(config, overrides), store))
            raise typer.Exit
        settings, card = settings_of(config, overrides, store, nameable)
        secret = load_key(settings.data.key_file, identifiers=card.identifiers)
        chosen = {"keep": stages(keep), "rebuild": stages(rebuild), "only": only, "until": until}
        with torchrun.leading(settings):
            result = pipeline.run(settings, card, secret, say=say, **chosen)
    _announce(result, typed.command("ui", config, _of_tracking(overrides), store=store), as_json)
    raise typer.Exit(GATE_FAILED if result.failures else 0)


def _of_tracking(overrides: list[str] | None) -> list[str]:
    """Return the overrides that say where the runs are found in MLflow."""
    return [one for one in overrides or () if one.startswith(("project=", "store=", "tracking"))]


def _announce(result: Result, ui_command: str, as_json: bool) -> None:
    for failure in result.failures:
        say(f"gate failed on {failure.on}: {failure.code}: {failure.message}")
    if as_json:
        from pipeline.orchestration.mlflow_runs import headline

        print_json(
            {
                "artifacts": {name: str(artifact.path) for name, artifact in result.artifacts.items()},
                "headline": headline(result.artifacts),
                "gate_failures": [failure.to_dict() for failure in result.failures],
                "report": str(result.report) if result.report else None,
            }
        )
        return
    say(f"compare runs: {ui_command}  (opens {result.comparison})")
    if result.report:
        print(result.report)
