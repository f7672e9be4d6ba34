"""Commands around runs: what is there, what it needs, what came of it, and what can go."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from pipeline.cli.app import app
from pipeline.cli.shared import (
    ERROR,
    USAGE,
    ConfigPath,
    Json,
    Overrides,
    StoreOption,
    errors,
    fail,
    known_key,
    print_json,
    say,
    settings_of,
    store_of,
)


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

    with errors() as nameable:
        nameable.add(pdf)
        named = divide(configs)
        loaded = [None if is_report(file) else settings_of(file, more, store, nameable) for file, more in named]
        configured = [settings for settings, _ in filter(None, loaded)]
        folders = [one.store for one in configured] or [(store or Path("store")).resolve()]
        nameable.folders |= {*folders}
        runs = []
        for (file, more), known in zip(named, loaded, strict=True):
            if known is not None:
                key = known_key(*known) or None
                runs.append(comparison.of_config(comparison.name_of(file, more), *known, key))
                continue
            nameable.add(file)
            if more:
                fail(f"{more[0]} stands behind a finished report, which settings do not change", USAGE)
            runs.append(comparison.of_report(file, [Store(folder) for folder in folders]))
        first = configured[0] if configured else None
        place = pdf or comparison.beside(runs, first, named[0][0])
        result = comparison.compare(runs, place, first.report.fonts if first else None)
    for warning in result["warnings"]:
        say(warning)
    if as_json:
        print_json(result)
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

    with errors() as nameable:
        nameable.add(report)
        folder, settings = store_of(config, store, nameable)
        artifacts = Store(folder)
        result = tracing.trace(report, artifacts)
        problems = tracing.verify(report, artifacts, say) if verify else []
        if verify and settings:
            problems += tracing.verify_sources(report, artifacts, settings.data)
    if as_json:
        print_json({**result, "problems": problems if verify else None})
    else:
        for artifact in result["artifacts"]:
            code, files = artifact["git_commit"][:12] or "not in git", counted(len(artifact["files"]), "file")
            print(f"{artifact['step']:<10} {artifact['key']}  {artifact['created']}  code {code}  {files}")
        for source in result["sources"]:
            print(f"source     {source['source_id']}  sha256 {source['sha256']}  {source['verdict']}")
    for problem in problems:
        say(problem)
    if verify:
        what = "every file of its artifacts" + (" and every source file" if config else "")
        say(counted(len(problems), "difference") if problems else f"verified: {what} is as it was when it was made")
    raise typer.Exit(ERROR if problems else 0)


@app.command()
def doctor(
    store: StoreOption = None,
    config: Annotated[Path | None, typer.Option(help="look at the store and the server that it names")] = None,
    as_json: Json = False,
) -> None:
    """Look at versions, device, codecs, disk, store and tracking server."""
    from dataclasses import asdict

    from pipeline.commands import doctor as examination

    with errors() as nameable:
        folder, settings = store_of(config, store, nameable)
        checks = examination.examine(folder, settings.tracking.uri if settings else None)
    if as_json:
        print_json([asdict(check) for check in checks])
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
        fail("recall, confidence and prevalence lie strictly between 0 and 1, the AUC from 0.5 to below 1", USAGE)
    asked = planning.Question(recall, confidence, auc, prevalence, positives, groups)
    found = planning.answer(asked)
    if figure is not None:
        with errors() as nameable:
            nameable.add(figure)
            figure.write_bytes(planning.figure(asked))
    if as_json:
        print_json(found)
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
        fail("say where the labels are: --labels FILE for a table, or --classes for a folder per class", USAGE)
    from pipeline.commands import init as initialisation
    from pipeline.commands import typed

    with errors() as nameable:
        nameable.add(folder, labels, output)
        answers = initialisation.Answers(label, patient, positive or (), negative or (), unused or ())
        written = initialisation.write(folder, labels, output, name, answers, minutes)
    say("\n".join(written.lines))
    if as_json:
        print_json(written.to_dict())
        return
    print(f"fill in   {written.card}")
    print(f"then run  {typed.command('run', written.config)}")


@app.command()
def reindex(config: ConfigPath, overrides: Overrides = None, store: StoreOption = None) -> None:
    """Fill MLflow from the store again, as after a lost database or a move to a server: runs and registered models."""
    from pipeline.orchestration import run as pipeline
    from pipeline.store.wording import counted

    with errors(config, overrides, store) as nameable:
        settings, _ = settings_of(config, overrides, store, nameable)
        artifacts, runs = pipeline.reindex(settings)
        from pipeline.commands import registry as registered
        from pipeline.store.registry import Registry

        folders = sorted(settings.store.glob("package/*/model"))
        restored = registered.restore(Registry(settings.store, settings.tracking.uri), folders)
    for line in registered.restored_lines(*restored):
        say(line)
    print(f"{counted(artifacts, 'artifact')} {'is' if artifacts == 1 else 'are'} indexed")
    say(f"and {counted(runs, 'pipeline run')}, which `maescreen ui` compares")


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

    with errors(config, overrides, store) as nameable:
        settings, card = settings_of(config, overrides, store, nameable)
        found = collection.examine(settings, card, known_key(settings, card) or None, keep_last, older_than)
        gone = collection.delete(settings, found, say) if delete else []
    listed = gone if delete else found.removable
    if as_json:
        rows = {"removable" if not delete else "removed": listed, "kept": found.kept}
        shown = {name: [item.to_dict() for item in items] for name, items in rows.items()}
        print_json({**shown, "bytes": collection.total(listed), "remarks": found.remarks})
    else:
        for line in collection.lines(listed, found.kept):
            print(line)
    for remark in found.remarks:
        say(typed.filled(remark, config, overrides, store))
    size = collection.human(collection.total(listed))
    if delete or not listed:
        say(f"removed: {size}" if delete else "nothing to remove")
        return
    last, days = str(keep_last) if keep_last > 1 else None, f"{older_than:g}" if older_than else None
    again = typed.command("gc", config, overrides, keep_last=last, older_than=days, store=store, delete=True)
    say(f"nothing was removed; this frees {size}: {again}")


@app.command()
def ui(
    config: ConfigPath,
    overrides: Overrides = None,
    store: StoreOption = None,
    port: Annotated[int, typer.Option(min=1, max=65535, help="port on this machine")] = 5000,
) -> None:
    """Open the MLflow UI on this machine at the comparison of pipeline runs."""
    with errors(config, overrides, store) as nameable:
        from pipeline.store import server

        settings, _ = settings_of(config, overrides, store, nameable)
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
            say("stop with Ctrl-C")

        tracking.serve(settings.store, uri, port, announce)


def _number(interval: dict[str, float | None], gate_failures: int) -> str:
    value, low, high = interval["value"], interval["low"], interval["high"]
    if value is None:
        return "withheld: the gate failed" if gate_failures else "not estimable"
    return f"{value:.3f}" if low is None or high is None else f"{value:.3f} ({low:.3f} to {high:.3f})"
