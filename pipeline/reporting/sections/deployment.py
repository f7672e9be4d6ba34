"""The threshold to use from now on, what it is expected to cost, and whether the packaged model has it."""

from __future__ import annotations

from collections.abc import Sequence

from pipeline.reporting.document import Block, Paragraph, Section, Table
from pipeline.reporting.evidence import Evidence
from pipeline.reporting.numbers import count, interval, number, people_interval, percent, plain_percent, scaled
from pipeline.store.results.deployment import Certified, Deployment, Group
from pipeline.store.results.interval import Interval
from pipeline.store.results.threshold import AtThreshold
from pipeline.store.wording import counted

PER = 1000
NOTHING = "—"


def deployment(e: Evidence) -> Section | None:
    """Return the certificate to use, beside that of the calibration patients; None without a usable one."""
    d = e.deployment
    if e.point is None or e.at is None or d is None or d.made is None:
        return None
    blocks: list[Block] = [Paragraph(_meaning(e, d)), _certificates(e, e.at, d, d.made), Paragraph(packaged(e))]
    groups = [_groups(e, d, d.made.subgroups)] if d.made.subgroups else []
    return Section("deployment", "The threshold to use", blocks, groups)


def lowered(d: Deployment) -> bool:
    """Return whether the threshold to use is that of a group, since it is lower than everybody's."""
    if d.made is None or d.subgroup_threshold != "minimum":
        return False
    certified = [group.threshold for group in d.made.subgroups if group.threshold is not None]
    return bool(certified) and min(certified) == d.made.to_use.threshold


def _meaning(e: Evidence, d: Deployment) -> str:
    by_group = (
        " It is the lowest that a group of patients needs, so that the promise holds for each certified group as well."
        if lowered(d)
        else ""
    )
    if d.rule == "calibration":
        which = (
            "The threshold to use was certified on the calibration patients alone; the configuration says so."
            if by_group
            else "The threshold to use is the one that the calibration patients certified; the configuration says so."
        )
        return (
            f"{which}{by_group} "
            "Specificity is taken from all patients without the condition whom the model had not seen."
        )
    if e.read_first:
        beforehand = "That this would be done was recorded before the test patients were read."
    else:
        known = "The test patients had been read, or several models compared, before"
        unknown = "Whether the test patients had been read before is not known"
        beforehand = (
            f"{unknown if e.metrics.readings is None else known}: of this threshold the promise holds for one who did "
            "not choose by them."
        )
    return (
        "The threshold to use is certified anew on calibration and test patients with the condition together, by the "
        f"same rule: more patients allow more misses, and fewer people are referred. {beforehand} What the test "
        "patients say of the promise is about the first threshold; no others are left to judge this one. It is made of "
        f"patients with the condition alone, so that specificity stays an honest estimate.{by_group}"
    )


def _certificates(e: Evidence, at: AtThreshold, d: Deployment, made: Certified) -> Table:
    """Return both certificates side by side, with what each refers at the prevalence of page one."""
    t, own, pooled = e.threshold, made.to_use, d.rule == "pooled"
    lower = lowered(d) and own.threshold_hex != at.threshold_hex
    assumed = plain_percent(own.prevalence)
    columns = ["What", "Certified on calibration patients"]
    rows = [
        ["Patients with the condition", count(t.positives)],
        ["Misses allowed", count(at.misses_allowed)],
        ["Promised: share found", f"at least {plain_percent(t.recall_target)}"],
        ["Threshold on the score", number(at.threshold, 4)],
        [
            f"Referred of {count(PER)} at {assumed} prevalence (assumed)",
            _referred(made.referral_of_calibration_alone),
        ],
    ]
    if pooled or lower:
        on = "calibration and test patients" if pooled else "calibration patients"
        columns.append(f"Certified on {on}{', the lowest of groups' if lower else ''}: to use")
        # So many misses are those that everybody's threshold may make, not those of a lower one.
        allowed = NOTHING if lower else count(own.misses_allowed)
        cells = [count(own.positives), allowed, f"at least {plain_percent(own.recall_target)}",
                 number(own.threshold, 4), _referred(own.referral)]  # fmt: skip
        rows = [[*row, cell] for row, cell in zip(rows, cells, strict=True)]
    caption = (
        f"Both referrals from {counted(own.negatives, 'patient')} without the condition, in calibration and test, "
        f"whom the model had not seen, with {plain_percent(own.referral.level)} intervals; specificity of the "
        f"threshold to use: {interval(own.specificity, as_percent=True)}"
    )
    return Table("deployment", caption, columns, rows)


def _referred(i: Interval) -> str:
    return people_interval(scaled(i, PER), PER)


def packaged(e: Evidence) -> str:
    """Say which threshold the packaged model has, by its bits, and how the model is known again."""
    if e.packaged is None:
        return "No model was packaged with this run."
    known = (
        f"The command maescreen predict uses the packaged model with SHA-256 {e.model_sha256} (that of its SHA256SUMS)."
    )
    points = e.packaged["rule"]["operating_points"]
    if not points:
        return f"{known} It has no threshold and refers by none."
    own = points[0]["threshold_hex"]
    if e.to_use is not None and own == e.to_use.threshold_hex:
        return f"{known} It has the threshold to use."
    if e.at is not None and own == e.at.threshold_hex:
        return f"{known} It has the threshold that the calibration patients certified."
    return f"{known} Its threshold is none of this report: do not use the two together."


def _groups(e: Evidence, d: Deployment, groups: Sequence[Group]) -> Table:
    rows, lowest = [_group(one) for one in groups], lowered(d)
    caption = (
        f"Promises by group, all of which hold at once with {plain_percent(e.threshold.confidence)} confidence. "
        f"The threshold to use is {'the lowest of these groups' if lowest else 'everybody'}'s. Where a group is too "
        "small, what can be promised of it"
    )
    columns = ["Group", "With the condition", "Needed", "Promised: at least, %", "Highest that can be promised, %"]
    return Table("deployment_groups", caption, columns, rows)


def _group(one: Group) -> list[str]:
    promised = percent(one.certified_recall) if one.certified else NOTHING
    return [f"{one.attribute}: {one.group}", count(one.positives), count(one.positives_needed), promised,
            percent(one.certifiable_recall)]  # fmt: skip
