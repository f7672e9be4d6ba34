"""The most confident errors, each as the model saw it and with an outline of where its attention lay."""

from __future__ import annotations

from collections.abc import Sequence

from pipeline.reporting.diagrams import gallery
from pipeline.reporting.document import Block, Figure, Figures, Paragraph, Section, Table
from pipeline.reporting.evidence import Evidence, Example, prevalence_assumed
from pipeline.reporting.numbers import count, number, percent, probability
from pipeline.reporting.sections.operating import WITHHELD

OUTLINE = (
    "About the outlines: they enclose the fewest patches of the image that together hold half of the network's "
    "attention (attention rollout, Abnar and Zuidema 2020, mean over the seeds); attention spread evenly would give "
    "half of the image, and an outline near that tells nothing. An outline says where the network took its "
    "information from. It does not explain the decision, marks no lesion, and is no evidence that the answer is right "
    "or wrong. Judge the image without it first."
)
NO_OUTLINE = "No outline of attention is shown: the reported model has no attention."


def examples(e: Evidence) -> Section:
    """Return the most confident errors at the operating point as the model saw them."""
    if e.point is None:
        return Section("examples", "Examples of errors", [Paragraph(WITHHELD)])
    counts = e.point["counts"]
    blocks: list[Block] = []
    for name, words, found, total in (
        ("misses", "Missed although with the condition, lowest scores first", e.misses, counts["fn"]),
        ("false_alarms", "Referred although free of the condition, highest scores first", e.false_alarms, counts["fp"]),
    ):
        if found:
            blocks += _gallery(name, f"{words}: {len(found)} of {count(total)}", found)
        else:
            blocks.append(Paragraph(f"{words}: {count(total)} in all; none shown."))
    if shown := [*e.misses, *e.false_alarms]:
        blocks.append(Paragraph(NO_OUTLINE if shown[0].outlined is None else OUTLINE))
        blocks.append(Paragraph(f"Probabilities are {prevalence_assumed(e)}."))
    return Section("examples", "Examples of errors", blocks)


def _gallery(name: str, words: str, found: Sequence[Example]) -> list[Block]:
    rows = [
        [
            f"case {at}",
            x.patient,
            number(x.score, 2),
            probability(x.probability),
            x.site[:12] or "unknown",
            x.view or "unknown",
            count(x.images),
        ]
        for at, x in enumerate(found, 1)
    ]
    columns = ["Case", "Patient (pseudonym)", "Score", "Probability", "Site", "View", "Images"]
    return [Figures([_figure(name, words, found)]), Table(name, words, columns, rows)]


def _figure(name: str, words: str, found: Sequence[Example]) -> Figure:
    titles = [f"case {at}: score {number(x.score, 2)}" for at, x in enumerate(found, 1)]
    scores = ", ".join(number(x.score, 2) for x in found)
    outlined = [x.outlined for x in found if x.outlined is not None]
    alt = f"{len(found)} images as the model saw them; scores {scores}."
    which = "volumes by their middle slice"
    beside = ""
    if outlined:
        alt += (
            f" Beside each the same image with an outline, around {', '.join(percent(o.mean(), 0) for o in outlined)}."
        )
        which = "volumes by the slice with most attention"
        areas = sorted({number(100 * o.mean(), 0) for o in outlined}, key=int)
        beside = (
            " Left: untouched. Right: the same image, with an outline around half of the network's attention: "
            f"{' to '.join(sorted({areas[0], areas[-1]}, key=int))} % of the image."
        )
    caption = f"{words}. Images as the model saw them, the patient's first image; {which}.{beside}"
    picture = gallery([x.image for x in found], [x.outlined for x in found], titles)
    return Figure(name, alt, caption, 15.5, picture)
