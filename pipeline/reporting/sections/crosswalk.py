"""Which item of the reporting guidelines is answered where in this report, and which is not."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence

from pipeline.reporting.checklists import GUIDELINES, Answer, Guideline, answer
from pipeline.reporting.document import APPENDIX, Block, Bullets, Paragraph, Section, Table
from pipeline.reporting.evidence import Evidence
from pipeline.reporting.numbers import count


def crosswalk(e: Evidence) -> Section:
    """Return how many items of each guideline this report speaks to; which ones is in the data."""
    answers = {guideline.name: [answer(item, e) for item in guideline.items] for guideline in GUIDELINES}
    rows = [
        [g.name, g.title, count(len(g.items)), count(sum(not a.section for a in answers[g.name]))] for g in GUIDELINES
    ]
    blocks: list[Block] = [
        Paragraph(
            "That a section speaks to an item does not say that it says enough. An item is missing when the dataset "
            "card does not state it, when the data do not hold it, or when the pipeline cannot know it; each with its "
            "section, or what is missing: report.json and data/items_*.csv. DECIDE-AI, about use on patients, does not "
            "apply yet."
        ),
        Table("guidelines", "Reporting guidelines", ["Guideline", "About", "Items", "Missing"], rows),
    ]
    published = Bullets([f"{guideline.name}: {guideline.publication}" for guideline in GUIDELINES])
    return Section("crosswalk", "Reporting guidelines", blocks, [published])


def places(sections: Sequence[Section]) -> dict[str, str]:
    """Return where a reader finds each section, by its name: in the report, or in the appendix alone."""
    found = {s.name: f"{APPENDIX}{at} {s.title} (appendix)" for at, s in enumerate(filter(_looked_up, sections), 1)}
    return found | {s.name: f"{at} {s.title}" for at, s in enumerate(filter(_read, sections), 1)}


def _looked_up(section: Section) -> bool:
    return bool(section.appendix)


def _read(section: Section) -> bool:
    return bool(section.blocks)


def items(e: Evidence, titles: Mapping[str, str]) -> list[Table]:
    """Return each guideline item by item; `titles` says where each section is, by its name."""
    return [_items(guideline, [answer(item, e) for item in guideline.items], titles) for guideline in GUIDELINES]


def _items(guideline: Guideline, answers: Sequence[Answer], titles: Mapping[str, str]) -> Table:
    rows = [
        [item.number, item.asks, titles[a.section] if a.section else f"missing: {a.missing}"]
        for item, a in zip(guideline.items, answers, strict=True)
    ]
    name = re.sub(r"[^a-z0-9]+", "_", guideline.name.lower()).strip("_")
    return Table(
        f"items_{name}",
        f"{guideline.name}: where each item is answered",
        ["Item", "What it asks for", "Answered in"],
        rows,
    )
