"""The one document that PDF, HTML and JSON show: sections of paragraphs, lists, boxes, tables and figures.

What a reader needs stands on its pages; what somebody looks up stands in its appendix, a document of its own on paper.
Everything in it is plain text. Text from studies, cards and labels is never markup, in no output.
"""

from __future__ import annotations

import unicodedata
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field, replace
from itertools import pairwise
from typing import Any, Literal

from pipeline.inference.plain_text import RESEARCH_USE
from pipeline.inference.plain_text import ended as ended
from pipeline.inference.plain_text import shortened as shortened

Level = Literal["stop", "caution", "result", "good"]
SCHEMA = "1.2"
APPENDIX = "A"  # stands before the numbers of its sections, tables and figures

# What a reader must never meet as such: control, format (text direction included), unassigned and private characters.
_UNPRINTABLE = {"Cc", "Cf", "Cs", "Co", "Cn"}


@dataclass(frozen=True)
class Heading:
    """A heading inside a section."""

    text: str
    kind: Literal["heading"] = "heading"


@dataclass(frozen=True)
class Paragraph:
    """A paragraph."""

    text: str
    kind: Literal["paragraph"] = "paragraph"


@dataclass(frozen=True)
class Bullets:
    """A list of short statements."""

    items: Sequence[str]
    kind: Literal["bullets"] = "bullets"


@dataclass(frozen=True)
class Box:
    """A framed statement: `stop` says that nothing may be used, `caution` warns, `result` carries the result."""

    level: Level
    title: str
    lines: Sequence[str]
    kind: Literal["box"] = "box"


@dataclass(frozen=True)
class Table:
    """A table. `name` is also the name of its CSV file; `facts` tables are two columns, what and value.

    `leads_to` names, for each row, the section that its last cell speaks of, or nothing: a link, and a page on paper.
    """

    name: str
    caption: str
    columns: Sequence[str]
    rows: Sequence[Sequence[str]]
    facts: bool = False
    leads_to: Sequence[str] = ()
    kind: Literal["table"] = "table"


@dataclass(frozen=True)
class Figure:
    """A figure: its picture as SVG or PNG bytes, and the text that replaces it for who cannot see it."""

    name: str
    alt: str
    caption: str
    width_cm: float
    picture: bytes
    format: Literal["svg", "png"] = "svg"

    @property
    def file(self) -> str:
        """The path of the picture inside the report's folder."""
        return f"figures/{self.name}.{self.format}"


@dataclass(frozen=True)
class Figures:
    """One figure, or several side by side."""

    figures: Sequence[Figure]
    kind: Literal["figures"] = "figures"


@dataclass(frozen=True)
class Slider:
    """Rows of numbers of which report.html shows the one that a reader picks; nothing on paper.

    `sentences` are what is said of each row. `chosen` is the row shown first; `table` names the table of this document
    that says the same where no script runs.
    """

    name: str
    caption: str
    label: str
    sentences: Sequence[str]
    chosen: int
    table: str
    kind: Literal["slider"] = "slider"


Block = Heading | Paragraph | Bullets | Box | Table | Figures | Slider


@dataclass(frozen=True)
class Section:
    """A numbered section; `appendix` is what of it stands in the appendix, which has all of one without blocks."""

    name: str
    title: str
    blocks: Sequence[Block]
    appendix: Sequence[Block] = ()


@dataclass(frozen=True)
class Document:
    """A report. `date` is ISO 8601; `keys` are the artifacts that it rests on, by stage; `numbers` all its numbers.

    `more` are tables that no page shows: they are in report.json and in data/ as CSV.
    """

    title: str
    subtitle: str
    date: str
    contact: str
    footer: str
    keys: dict[str, str]
    usable: bool
    sections: Sequence[Section]
    numbers: dict[str, Any] = field(default_factory=dict)
    more: Sequence[Table] = ()

    @property
    def body(self) -> list[Section]:
        """The sections of the report itself, as far as they stand there."""
        return [s for s in self.sections if s.blocks]

    @property
    def appendix(self) -> list[Section]:
        """The sections of the appendix."""
        return [replace(s, blocks=s.appendix, appendix=()) for s in self.sections if s.appendix]

    @property
    def blocks(self) -> list[Block]:
        """All blocks in order, those of the appendix last."""
        return [block for section in (*self.body, *self.appendix) for block in section.blocks]

    @property
    def figures(self) -> list[Figure]:
        """All figures in order."""
        return [f for b in self.blocks if isinstance(b, Figures) for f in b.figures]

    @property
    def tables(self) -> list[Table]:
        """All tables that pages show, in order."""
        return [b for b in self.blocks if isinstance(b, Table)]

    def to_dict(self) -> dict[str, Any]:
        """Return the document for report.json: pictures as file names, figures and tables numbered, text printable.

        `more` of a section is the number of its continuation in the appendix, empty where it has none.
        """
        content = asdict(replace(self, sections=()))
        content["sections"], content["appendix"] = _numbered(self.body), _numbered(self.appendix, APPENDIX)
        looked_up = {section["name"]: section["number"] for section in content["appendix"]}
        for section in content["sections"]:
            section["more"] = looked_up.get(section["name"], "")
        return {"schema": SCHEMA, "research_use": RESEARCH_USE, **printable(content)}


def _block(block: Block) -> dict[str, Any]:
    if not isinstance(block, Figures):
        return asdict(block)
    figures = [
        {"name": f.name, "file": f.file, "alt": f.alt, "caption": f.caption, "width_cm": f.width_cm}
        for f in block.figures
    ]
    return {"kind": block.kind, "figures": figures}


def _numbered(sections: Sequence[Section], prefix: str = "") -> list[dict[str, Any]]:
    """Return sections with tables and figures numbered through, as Typst does; with a prefix numbers are text."""

    def number(n: int) -> int | str:
        return f"{prefix}{n}" if prefix else n

    found, tables, figures = [], 0, 0
    for at, section in enumerate(sections, 1):
        blocks = [_block(b) for b in section.blocks]
        for block in blocks:
            if block["kind"] == "table":
                tables += 1
                block["number"] = number(tables)
            for figure in block.get("figures", []):
                figures += 1
                figure["number"] = number(figures)
        found.append({"number": number(at), "name": section.name, "title": section.title, "blocks": blocks})
    return found


# Persian and Hindi are spelt with joiners, and emoji are put together by them.
_JOINERS = "\u200c\u200d"
_FIRST_JOINED = "\u0590"  # before it stand Latin, Greek and Cyrillic, which have no use for them


def printable(value: Any) -> Any:
    """Return `value` with every string on one line and unprintable characters shown as �."""
    if isinstance(value, str):
        return "".join(
            c if c in _JOINERS and before >= _FIRST_JOINED else _printable(c) for before, c in pairwise(f" {value}")
        )
    if isinstance(value, dict):
        return {printable(key): printable(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [printable(item) for item in value]
    return value


def _printable(character: str) -> str:
    if character in "\n\r\t\u2028\u2029":
        return " "
    return "�" if unicodedata.category(character) in _UNPRINTABLE else character
