"""Where the finding lies: predicted masks and marks against the reference masks of the test patients."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import pandas as pd

from pipeline.reporting.diagrams import masks
from pipeline.reporting.document import Block, Bullets, Figure, Figures, Paragraph, Section, Table
from pipeline.reporting.evidence import Evidence, Json, Localisation
from pipeline.reporting.figures import froc
from pipeline.reporting.numbers import count, limits, number, percent, plain_percent, short_interval
from pipeline.store.wording import agreeing, counted

NOTHING = "—"
PLAIN_RATE = 1.0  # false marks per image of the sentence for clinicians
LIMITS = (
    "A mark says where to look first and is no finding; a mask is no measurement that a decision may rest on unread. "
    "The certificate is about who is referred, and promises nothing about where."
)
WORDS = {"dice": "Dice", "nsd": "NSD", "sensitivity": "lesions found at one false mark per image"}


def localisation(e: Evidence) -> Section | None:
    """Return how well masks and marks agree with the reference; None where no model draws masks."""
    if e.localisation is None:
        return None
    found, s = e.localisation, e.localisation.summary
    shown = _shown(found)
    blocks: list[Block] = [
        Bullets([*(_in_frequencies(name, own, s) for _, own, name in shown), LIMITS]),
        _results(found, shown, "localisation"),
    ]
    curves = {name: rows for arm, _, name in shown if len(rows := _curve(found, arm, name))}
    figures = [*([_froc(curves, s)] if curves else []), *([_examples(found)] if found.examples else [])]
    if figures:
        blocks.append(Figures(figures))
    appendix: list[Block] = [_cases(e, found), Paragraph(_how(s)), Paragraph(_contradictions(e, s))]
    if len(s["arms"]) > 1:
        every = [(arm, own, name) for arm, structures in s["arms"].items() for name, own in structures.items()]
        appendix.insert(0, _results(found, every, "localisation_arms", e))
    if len(found.comparison):
        appendix.insert(1, _differences(e, found))
    return Section("localisation", "Where the finding lies", blocks, appendix)


def sentence(e: Evidence) -> str:
    """Return the sentences in natural frequencies of the reported arm, for the model card; empty without masks."""
    if e.localisation is None:
        return ""
    shown = _shown(e.localisation)
    return " ".join(_in_frequencies(name, own, e.localisation.summary) for _, own, name in shown)


def _shown(found: Localisation) -> list[tuple[str, Json, str]]:
    """Return arm, numbers and structure of what stands on the page: the reported arm, else the first that draws."""
    arms = found.summary["arms"]
    arm = found.summary["arm"] or next(iter(arms))
    return [(arm, own, name) for name, own in arms[arm].items()]


def _in_frequencies(name: str, own: Json, s: Json) -> str:
    """Say of how many lesions how many are found, as one says it."""
    lesions, patients = own["lesions"], counted(own["patients_with_lesions"], "patient")
    if not lesions:
        return f"{name}: no annotated test image shows one, so that nothing can be said of finding it."
    at = next(point["sensitivity"] for point in own["froc"] if point["rate"] == PLAIN_RATE)
    hits = round(at["value"] * lesions)
    never = lesions - own["lesions_found"]
    level = plain_percent(at["level"])
    return (
        f"{name}: of {counted(lesions, 'lesion')} in {patients}, {count(hits)} "
        f"{agreeing(hits, 'was', 'were')} found when on average at most one false mark per image is accepted "
        f"({counted(s['images'], 'image')}): {percent(at['value'])} ({level} interval "
        f"{limits(at['low'], at['high'], as_percent=True)}). {count(never)} "
        f"{agreeing(never, 'was', 'were')} marked at no score: an image without a mark may still hold one."
    )


def _results(
    found: Localisation, shown: Sequence[tuple[str, Json, str]], name: str, e: Evidence | None = None
) -> Table:
    s = found.summary
    unit = s["size_unit"]
    rows = [
        [
            *([] if e is None else [e.arm_name(arm)]),
            structure,
            count(own["dice"]["n"]),
            _short(own["dice"]),
            _short(own["nsd"]),
            _short(own["size_error"]),
            _short(own["relative_size_error"], 100),
            _short(own["sensitivity"], 100),
            _short(own["false_marks_per_image"], digits=2),
        ]
        for arm, own, structure in shown
    ]
    columns = ["Structure", "Patients", "Dice", f"NSD at {s['tolerance_mm']:g} mm", f"Size error, {unit}",
               "Size error, % of reference", "Lesions found by any mark, %", "False marks per image, all"]  # fmt: skip
    columns = columns if e is None else ["Arm", *columns]
    caption = (
        f"Masks and marks on {counted(s['images'], 'annotated test image')} of {counted(s['patients'], 'patient')}, "
        f"with {plain_percent(s['level'])} intervals. Dice, NSD (normalised surface distance) and size errors are "
        "means over patients. In Dice and NSD a missed or invented structure counts 0; an image without it in either "
        "mask counts nowhere. Size error: predicted minus reference; in per cent, its absolute value"
    )
    return Table(name, caption, columns, rows)


def _curve(found: Localisation, arm: str, structure: str) -> pd.DataFrame:
    rows = found.froc
    return rows[(rows["arm"] == arm) & (rows["structure"] == structure)]


def _froc(curves: Mapping[str, pd.DataFrame], s: Json) -> Figure:
    own = next(iter(next(iter(s["arms"].values())).values()))["froc"]
    rates = [point["rate"] for point in own]
    ends = "; ".join(
        f"{name}: {percent(rows['sensitivity'].iloc[-1])} of lesions at most" for name, rows in curves.items()
    )
    return Figure(
        "froc",
        f"Share of lesions found against false marks per image. {ends}.",
        "Lesions found against false marks per image (free-response ROC; logarithmic), with "
        f"{plain_percent(s['level'])} intervals. Where a curve is level to its end, there are no more marks to be had.",
        8,
        froc(curves, rates),
    )


def _examples(found: Localisation) -> Figure:
    some = found.examples
    titles = [f"case {at}: Dice {number(x.dice, 2)}" for at, x in enumerate(some, 1)]
    said = "; ".join(f"case {at}: {x.place}" for at, x in enumerate(some, 1))
    dice = ", ".join(number(x.dice, 2) for x in some)
    caption = (
        f"Reference (whole line) and predicted mask (dashed) of {counted(len(some), 'test patient')}; {said}. "
        "A line that is not there is of an empty mask."
    )
    alt = f"{counted(len(some), 'image')} with the outlines of reference and predicted mask; Dice {dice}."
    drawn = masks([x.image for x in some], [x.reference for x in some], [x.predicted for x in some], titles)
    return Figure("localisation_examples", alt, caption, 8, drawn)


def _cases(e: Evidence, found: Localisation) -> Table:
    rows = [
        [
            e.arm_name(arm),
            name,
            *(count(own["cases"][case]) for case in ("found", "missed", "invented", "both_empty")),
            count(own["lesions"]),
            count(own["lesions_found"]),
            count(own["false_marks"]),
            count(own["marks_not_annotated"]),
        ]
        for arm, structures in found.summary["arms"].items()
        for name, own in structures.items()
    ]
    columns = ["Arm", "Structure", "Images: found", "Missed", "Invented", "In neither", "Lesions", "Of these, marked",
               "False marks", "Marks where nobody annotated"]  # fmt: skip
    caption = "Images by what reference and predicted mask hold, and marks of any score"
    return Table("localisation_counts", caption, columns, rows)


def _differences(e: Evidence, found: Localisation) -> Table:
    rows = [
        [
            e.arm_name(row["arm"]),
            row["structure"],
            WORDS[row["measure"]],
            count(row["patients"]),
            short_interval(row["difference"], row["low"], row["high"]),
        ]
        for row in found.comparison.to_dict("records")
    ]
    caption = (
        f"{e.arm_name(found.summary['arm'])} minus each other arm, on the same patients who have the structure, with "
        f"{plain_percent(found.summary['level'])} intervals from patients drawn anew"
    )
    columns = ["Compared with", "Structure", "Measure", "Patients", "Difference"]
    return Table("localisation_differences", caption, columns, rows)


def _how(s: Json) -> str:
    spacing, left_out = s["images_without_spacing"], s["images_not_annotated"]
    unknown = f" {counted(spacing, 'image')} without a known spacing {agreeing(spacing, 'has', 'have')} no NSD."
    return (
        f"How it is counted: a lesion is a connected part of the reference mask; it is found when {s['hit']} (the rule "
        "of CAMELYON16), and a mark elsewhere is false. A structure is found in an image when a predicted pixel lies "
        "inside it. NSD is the share of both surfaces within the tolerance of each other (Nikolov et al. 2021). "
        "Images of one patient are averaged first. Pixels that nobody annotated count neither for nor against; "
        f"{counted(left_out, 'test image')} without an annotated pixel {agreeing(left_out, 'is', 'are')} left out."
        f"{unknown if spacing else ''}"
    )


def _contradictions(e: Evidence, s: Json) -> str:
    own, assumed = s["label"], e.ingest.get("masks", {}).get("taken_for_empty", 0)
    taken = (
        f" In all parts, {counted(assumed, 'image')} without the condition and without a mask "
        f"{agreeing(assumed, 'was', 'were')} taken to show none of the structures, as the dataset card says."
    )
    return (
        f"Label and mask: of {counted(own['positive'], 'annotated test image')} with the condition, "
        f"{count(own['positive_with_empty_mask'])} {agreeing(own['positive_with_empty_mask'], 'has', 'have')} an empty "
        f"reference mask; of {count(own['negative'])} without it, {count(own['negative_with_a_mask'])} "
        f"{agreeing(own['negative_with_a_mask'], 'has', 'have')} one that is not empty.{taken if assumed else ''}"
    )


def _short(i: Json, scale: int = 1, digits: int | None = None) -> str:
    if i["value"] is None:
        return NOTHING
    return short_interval(i["value"], i["low"], i["high"], digits=digits or (1 if scale == 100 else 3), scale=scale)
