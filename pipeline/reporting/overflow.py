"""Nine pages, whatever a run has many of: what does not fit goes on in the appendix."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from io import BytesIO

from pypdf import PdfReader

from pipeline.reporting.document import Block, Document, Figures, Section, Table

MOST_PAGES = 9
# What leaves the pages first where there are too many: of tables the page shows a figure or says the same in words.
EXPENDABLE = (
    *((Table, name) for name in ("decision_curve", "comparison", "calibration", "definitions", "deployment")),
    *((Figures, name) for name in ("false_alarms", "arms", "subgroups", "misses")),
    *((Table, name) for name in ("external", "coverage", "findings")),
)


def fitting(document: Document, render: Callable[[Document], bytes]) -> tuple[Document, bytes]:
    """Return the document with as much moved to its appendix as it takes for nine pages, and its PDF by `render`."""
    made = render(document)
    for kind, name in EXPENDABLE:
        if len(PdfReader(BytesIO(made)).pages) <= MOST_PAGES:
            break
        if (shorter := moved(document, kind, name)) != document:
            document, made = shorter, render(shorter)
    return document, made


def moved(document: Document, kind: type[Table | Figures], name: str) -> Document:
    """Return the document with the tables or figures of this name in the appendix of their section, not on its pages.

    A section that stands on the pages keeps something there.
    """
    return replace(document, sections=[_without(section, kind, name) for section in document.sections])


def _without(section: Section, kind: type[Table | Figures], name: str) -> Section:
    leaving = [block for block in section.blocks if isinstance(block, kind) and name in _names(block)]
    staying = [block for block in section.blocks if block not in leaving]
    return replace(section, blocks=staying, appendix=[*leaving, *section.appendix]) if leaving and staying else section


def _names(block: Block) -> set[str]:
    if isinstance(block, Figures):
        return {figure.name for figure in block.figures}
    return {block.name} if isinstance(block, Table) else set()
