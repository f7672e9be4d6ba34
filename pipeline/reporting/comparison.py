"""Several finished runs side by side, as one document. Renders finished numbers; computes none."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from string import ascii_uppercase
from typing import Any

import pandas as pd

from pipeline.inference.decision import Json, decide
from pipeline.reporting.document import (
    Block,
    Box,
    Bullets,
    Document,
    Figure,
    Figures,
    Paragraph,
    Section,
    Table,
    shortened,
)
from pipeline.reporting.evidence import arm_name, first_look
from pipeline.reporting.figures import forest, roc_panels
from pipeline.reporting.numbers import (
    count,
    limits,
    missing,
    number,
    p_value,
    plain_percent,
    short,
)
from pipeline.reporting.sections.readings import verdict_of_point
from pipeline.store.results.finding import Finding
from pipeline.store.results.metrics import Metrics
from pipeline.store.results.operating_point import MainPoint
from pipeline.store.results.threshold import Threshold
from pipeline.store.wording import counted

RUNS_PER_TABLE = 4
MOST_RUNS = len(ascii_uppercase)
WITHHELD = "withheld"


@dataclass(frozen=True)
class Run:
    """A finished run: what it is called, its settings (flat), the contents of its artifacts, and their keys by step.

    `roc` is the reported arm's curve (x, y); `date` (ISO 8601) is when the run was evaluated.
    """

    name: str
    dataset: str
    settings: Mapping[str, Any]
    metrics: Metrics
    threshold: Threshold
    findings: Sequence[Finding]
    roc: pd.DataFrame
    keys: Mapping[str, str]
    date: str

    @property
    def point(self) -> MainPoint | None:
        """The operating point on the test patients, or None when it may not be used."""
        usable = decide(self.findings, self.threshold, self.metrics).usable
        return self.metrics.operating_point if usable else None


@dataclass(frozen=True)
class Against:
    """A run against the first: test patients that both have; the paired difference in AUC where they are the same.

    `difference` (diff, low, high, p) is the first run's AUC minus this one's, at `level`.
    """

    shared: int
    same: bool
    difference: Json | None
    level: float


def build(runs: Sequence[Run], others: Sequence[Against]) -> Document:
    """Return the document of at least one run; `others` compares each run but the first with the first."""
    return Document(
        title="Comparison of runs",
        subtitle=shortened(" · ".join(run.name for run in runs), 120),
        date=max(run.date for run in runs),
        contact="",
        footer=f"Comparison of {counted(len(runs), 'run')}, the latest of {max(run.date for run in runs)}",
        keys={},
        usable=all(run.point is not None for run in runs),
        sections=[
            _summary(runs, others),
            Section("settings", "Settings that differ", _settings(runs)),
            Section("roc", "ROC curves", [Figures([_curves(runs)])]),
            Section("findings", "What the automatic checks found", [_findings(runs)]),
            Section("provenance", "Artifacts", _keys(runs)),
        ],
    )


def _letters(runs: Sequence[Run]) -> list[str]:
    return [f"Run {letter}" for letter, _ in zip(ascii_uppercase, runs, strict=False)]


def _summary(runs: Sequence[Run], others: Sequence[Against]) -> Section:
    named = [
        [letter, run.name, shortened(run.dataset, 80), run.metrics.arm_title or arm_name(run.metrics.arm),
         count(run.metrics.patients), count(run.metrics.positives)]
        for letter, run in zip(_letters(runs), runs, strict=True)
    ]  # fmt: skip
    columns = ["Run", "Called", "Dataset", "Reported model", "Test patients", "With the condition"]
    blocks: list[Block] = [
        Table("runs", "The runs", columns, named),
        *_patients(runs, others),
        *_choosing(runs),
        _results(runs),
        Figures([_intervals(runs)]),
    ]
    return Section("summary", "Summary", blocks)


def _patients(runs: Sequence[Run], others: Sequence[Against]) -> list[Block]:
    """Say whether the runs can be compared at all, and compare those that can."""
    letters = _letters(runs)
    different = [
        f"{letter} and {letters[0]} share {counted(x.shared, 'test patient')}; they have "
        f"{count(run.metrics.patients)} and {count(runs[0].metrics.patients)}."
        for letter, run, x in zip(letters[1:], runs[1:], others, strict=True)
        if not x.same
    ]
    paired = [_paired(letters[0], letter, x) for letter, x in zip(letters[1:], others, strict=True) if x.same]
    blocks: list[Block] = []
    if different:
        why = (
            "A difference between these runs may come from the patients alone: no statement on the same patients is "
            "made. Patients are matched by pseudonym, so that runs with different keys share none."
        )
        blocks.append(Box("caution", "The test patients are not the same", [*different, why]))
    if paired:
        blocks.append(Box("good", "On the same test patients", paired))
    return blocks


def _choosing(runs: Sequence[Run]) -> list[Block]:
    """Say what becomes of these results when somebody chooses by them."""
    if len(runs) < 2:
        return []
    return [
        Box(
            "caution",
            "Do not choose among these runs by their test results",
            [
                "The best of several equal runs looks better than it is, more so the more there are: its interval is "
                "too high and too narrow. Choosing also uses up the promises, each of which was made for one run, and "
                "the test patients, who then judge no more. Comparisons are each at their own level, not shared out "
                f"over {counted(len(runs) - 1, 'comparison')} with the first run.",
            ],
        )
    ]


def _paired(first: str, other: str, x: Against) -> str:
    d = x.difference or {}
    if missing(d.get("low")):
        return f"{first} and {other}: the difference in AUC has no interval."
    shown = f"{plain_percent(x.level)} interval {limits(d['low'], d['high'])}, paired DeLong, p {p_value(d['p'])}"
    if d["low"] == d["high"]:
        return f"{first} and {other} rank the patients alike."
    if d["low"] > 0 or d["high"] < 0:
        better, worse = (first, other) if d["low"] > 0 else (other, first)
        return (
            f"{better} separates patients better than {worse}: AUC {first} minus {other} {number(d['diff'])} ({shown})."
        )
    return f"No difference is shown: AUC {first} minus {other} {number(d['diff'])} ({shown})."


def _results(runs: Sequence[Run]) -> Table:
    rows = [_result(letter, run) for letter, run in zip(_letters(runs), runs, strict=True)]
    levels = sorted({run.metrics.discrimination.auc.level for run in runs})
    columns = ["Run", "AUC", "Wanted", "Certified, %", "Threshold", "Sensitivity, %", "Specificity, %", "Referred, %",
               "Promise"]  # fmt: skip
    caption = (
        f"Results on each run's own test patients, with {' or '.join(map(plain_percent, levels))} intervals. Of a run "
        "whose checks failed no operating point is shown"
    )
    return Table("results", caption, columns, rows)


def _result(letter: str, run: Run) -> list[str]:
    t, point = run.threshold, run.point
    first = [letter, short(run.metrics.discrimination.auc), plain_percent(t.recall_target)]
    if point is None or t.at is None:
        return [*first, *[WITHHELD] * 5, "checks failed"]
    certified = [number(100 * t.at.certified_recall, 1), number(t.at.threshold, 3)]
    rates = [short(i, 100) for i in (point.recall, point.specificity, point.referral_rate)]
    return [*first, *certified, *rates, verdict_of_point(point, first=first_look(run.metrics, t))]


def _intervals(runs: Sequence[Run]) -> Figure:
    panels = {"auc": "AUC", "recall": "Sensitivity", "specificity": "Specificity"}
    rows = []
    for letter, run in zip(_letters(runs), runs, strict=True):
        shown = {"auc": run.metrics.discrimination.auc}
        if run.point is not None:
            shown |= {"recall": run.point.recall, "specificity": run.point.specificity}
        ends = {name: {"": i.value, "_low": i.low, "_high": i.high} for name, i in shown.items()}
        rows.append({"name": letter} | {f"{name}{end}": x for name, own in ends.items() for end, x in own.items()})
    columns = ["name", *(f"{name}{end}" for name in panels for end in ("", "_low", "_high"))]
    frame = pd.DataFrame(rows, columns=columns)
    frame = frame.astype({column: float for column in frame.columns if column != "name"})
    of = f"{', '.join(panels.values())} of {counted(len(runs), 'run')}"
    alt = f"{of} with intervals; the numbers are in the table above."
    words = "Each run with its intervals. The dotted line is the first run's value."
    overall = {name: float(frame[name].iloc[0]) for name in panels}
    return Figure("runs", alt, words, 15.5, forest(frame, panels, overall))


def _settings(runs: Sequence[Run]) -> list[Block]:
    names = sorted({name for run in runs for name in run.settings})
    differing = [name for name in names if len({str(run.settings.get(name)) for run in runs}) > 1]
    if not differing:
        return [Paragraph("The runs differ in no setting.")]
    shown = {name: [str(run.settings.get(name, "—")) for run in runs] for name in differing}
    return _side_by_side("settings", "Settings that differ", "Setting", shown, _letters(runs))


def _side_by_side(
    name: str, caption: str, of: str, rows: Mapping[str, Sequence[str]], letters: Sequence[str]
) -> list[Block]:
    """Return tables with a column per run, a few runs each, so that every table fits the page."""
    return [
        Table(
            f"{name}_{1 + start // RUNS_PER_TABLE}",
            caption,
            [of, *letters[start : start + RUNS_PER_TABLE]],
            [[what, *values[start : start + RUNS_PER_TABLE]] for what, values in rows.items()],
        )
        for start in range(0, len(letters), RUNS_PER_TABLE)
    ]


def _curves(runs: Sequence[Run]) -> Figure:
    letters = _letters(runs)
    areas = [number(run.metrics.discrimination.auc.value) for run in runs]
    titles = [f"{letter}: AUC {area}" for letter, area in zip(letters, areas, strict=True)]
    picture = roc_panels([run.roc for run in runs], [run.point for run in runs], titles)
    words = "ROC curve of each run. The cross is the operating point with both intervals, where there is a usable one."
    return Figure("roc_panels", f"ROC curves; {'; '.join(titles)}.", words, 15.5, picture)


def _findings(runs: Sequence[Run]) -> Block:
    levels = {"fail": "stop", "warn": "caution", "info": "note"}
    rows = [
        [letter, levels[f.level], f.code, f.in_words]
        for letter, run in zip(_letters(runs), runs, strict=True)
        for f in run.findings
    ]
    if not rows:
        return Bullets(["The automatic checks found nothing to remark."])
    return Table("findings", "Findings of every run", ["Run", "Level", "Code", "Finding"], rows)


def _keys(runs: Sequence[Run]) -> list[Block]:
    steps = dict.fromkeys(step for run in runs for step in run.keys)
    rows = {step: [run.keys.get(step, "—") for run in runs] for step in steps}
    rows["evaluated on"] = [run.date for run in runs]
    return _side_by_side("artifacts", "Keys of the artifacts behind each run", "Step", rows, _letters(runs))
