"""The most confident errors, each as the model saw it and with an outline of where its attention lay."""

from __future__ import annotations

from collections.abc import Sequence

from pipeline.reporting.diagrams import gallery
from pipeline.reporting.document import Block, Figure, Figures, Paragraph, Section, Table
from pipeline.reporting.evidence import Evidence, Example, prevalence_assumed
from pipeline.reporting.numbers import count, number, percent, probability
from pipeline.reporting.outlines import WORDS
from pipeline.reporting.sections.operating import WITHHELD
from pipeline.store.wording import agreeing, counted

ON_PAGE = 2  # of either kind; the others are in the appendix
KEY = "cases.csv of the report's artifact, which is not delivered with the report"
NO_OUTLINE = "No outline of attention is shown: the reported model has no attention."


def examples(e: Evidence) -> Section:
    """Return the most confident errors at the operating point as the model saw them."""
    if e.point is None:
        return Section("examples", "Examples of errors", [Paragraph(WITHHELD)])
    counts = e.point.counts
    blocks: list[Block] = []
    appendix: list[Block] = []
    for name, words, found, total in (
        ("misses", "Missed although with the condition, lowest scores first", e.misses, counts.fn),
        ("false_alarms", "Referred although free of the condition, highest scores first", e.false_alarms, counts.fp),
    ):
        if found:
            said, first = f"{words}: {len(found)} of {count(total)}", found[:ON_PAGE]
            blocks.append(Figures([_figure(e, name, f"{words}: {len(first)} of {count(total)}", first)]))
            if more := found[ON_PAGE:]:
                appendix.append(Figures([_figure(e, f"{name}_more", f"{words}: {len(more)} more", more, ON_PAGE + 1)]))
            appendix.append(_table(name, said, found))
        else:
            blocks.append(Paragraph(f"{words}: {count(total)} in all; none shown."))
    if shown := [*e.misses, *e.false_alarms]:
        blocks.append(Paragraph(NO_OUTLINE if shown[0].outlined is None else WORDS[e.outline].about))
        appendix.append(Paragraph(f"Probabilities are {prevalence_assumed(e)}. Whose the images are is in {KEY}."))
    return Section("examples", "Examples of errors", blocks, appendix)


def _table(name: str, words: str, found: Sequence[Example]) -> Table:
    rows = [
        [
            f"case {at}",
            number(x.score, 2),
            probability(x.probability),
            x.site or "unknown",
            x.view or "unknown",
            count(x.images),
        ]
        for at, x in enumerate(found, 1)
    ]
    return Table(name, words, ["Case", "Score", "Probability", "Site", "View", "Images"], rows)


def _figure(e: Evidence, name: str, words: str, found: Sequence[Example], first: int = 1) -> Figure:
    titles = [f"case {at}: score {number(x.score, 2)}" for at, x in enumerate(found, first)]
    scores = ", ".join(number(x.score, 2) for x in found)
    alt = f"What the model saw, {counted(len(found), 'image')}; {agreeing(len(found), 'score', 'scores')} {scores}."
    which = (
        "the one that made the patient's score"
        if e.metrics.aggregation == "max"
        else ("the one of the patient's with the highest score; the patient's is the mean of all")
    )
    as_seen = agreeing(len(found), "The image as the model saw it", "Images as the model saw them")
    caption = f"{words}. {as_seen}, {which}{_planes(e, found)}."
    shares = [x.outlined_share for x in found if x.outlined_share is not None]
    if shares:
        beside = agreeing(len(found), "it", "each")
        alt += f" Beside {beside} the same image with an outline, around {', '.join(percent(s, 0) for s in shares)}."
        caption += (
            " Left: untouched. Right: the same image, with an outline around "
            f"{WORDS[e.outline].half}: {_range(shares)} % of the {'volume' if e.volumes else 'image'}."
        )
    picture = gallery([x.image for x in found], [x.outlined for x in found], titles)
    return Figure(name, alt, caption, 16, picture)


def _planes(e: Evidence, found: Sequence[Example]) -> str:
    """Say which planes of a volume are shown; nothing of images that have but one."""
    if not e.volumes:
        return ""
    through = "the middle" if found[0].outlined is None else f"the middle of {WORDS[e.outline].most}"
    return f", by its coronal, sagittal and axial plane{e.planes_shown} through {through}"


def _range(shares: Sequence[float]) -> str:
    """Return shares in percent from least to most, or the one number that they all are."""
    return " to ".join(dict.fromkeys(number(100 * share, 0) for share in (min(shares), max(shares))))
