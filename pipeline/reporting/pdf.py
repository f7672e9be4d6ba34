"""Documents by Typst: PDF/A-2a and PDF/UA-1, the same bytes for the same document, no network, no system fonts."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Mapping
from datetime import datetime
from functools import cache
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import matplotlib
import typst
from fontTools.ttLib import TTFont, TTLibError
from pypdf import PdfReader

from pipeline.reporting.document import APPENDIX, Document
from pipeline.store.files import write_bytes
from pipeline.store.wording import agreeing, counted

TEMPLATE = Path(__file__).parent / "templates" / "report.typ"
FONTS = Path(matplotlib.get_data_path()) / "fonts" / "ttf"
FACES = ("DejaVuSans.ttf", "DejaVuSans-Bold.ttf")
_JOINED_SYMBOL = re.compile("\u200d(?=[\u2190-\u2bff\U0001f000-\U0001faff])")
NAMED = 12  # characters that a message names


def render(content: dict[str, Any], folder: Path, fonts: Path | None = None) -> bytes:
    """Return the PDF of a document as `Document.to_dict` gives it; `folder` holds the figures that it names.

    Typst gets the document as data, never as markup, and refuses a figure without alternative text. Characters that
    DejaVu Sans lacks come from the fonts in the folder `fonts`; those that no font has are shown as �. Its appendix is
    left out: see `appendix_of`. Raises typst.TypstError.
    """
    families = _families(_foreign(content), fonts)
    known = _characters().union(*(has for _, has in families))
    shown = json.dumps({name: _drawable(text, known) for name, text in _shown(content).items()}, ensure_ascii=False)
    folders = [str(FONTS), *([str(fonts)] if families else [])]
    compiler = typst.Compiler(
        TEMPLATE.read_bytes(),
        root=str(folder),
        font_paths=typst.Fonts(include_system_fonts=False, include_embedded_fonts=False, font_paths=folders),
        sys_inputs={"document": shown, "fonts": json.dumps([name for name, _ in families])},
    )
    return _compiled(compiler)


def write(path: Path, document: Document, fonts: Path | None = None) -> str:
    """Write the PDF of a document without an appendix; return what `lacking` says of it. `fonts` as in `render`."""
    content = document.to_dict()
    with TemporaryDirectory() as folder:
        for figure in document.figures:
            write_bytes(Path(folder) / figure.file, figure.picture)
        write_bytes(path, render(content, Path(folder), fonts))
    return lacking(content, fonts)


def appendix_of(content: dict[str, Any]) -> dict[str, Any]:
    """Return the appendix of a document, as `Document.to_dict` gives it, as a document of its own."""
    title = f"{content['title']} — appendix"
    return {**content, "title": title, "sections": content["appendix"], "appendix": [], "prefix": APPENDIX}


def typeset(template: str, content: dict[str, Any], pictures: Mapping[str, str], made: datetime) -> bytes:
    """Return the PDF of a template in templates/, which reads no file.

    It finds `content` as `sys.inputs.document` and each of the pictures, which are SVG, by its name. `made`, with its
    time zone, is the date of the document. Compiler and fonts serve every document of this process, which saves most
    of the time that a page takes. Raises typst.TypstError.
    """
    shown = json.dumps(_drawable(content, _characters()), ensure_ascii=False)
    source = (TEMPLATE.parent / template).read_bytes()
    return _compiled(_compiler(), input=source, sys_inputs={"document": shown, **pictures}, timestamp=made)


@cache
def _fonts() -> typst.Fonts:
    return typst.Fonts(include_system_fonts=False, include_embedded_fonts=False, font_paths=[str(FONTS)])


@cache
def _compiler() -> typst.Compiler:
    # Typst may read no file but fonts: nothing lies in the folder of templates that a document could not show.
    return typst.Compiler(root=str(TEMPLATE.parent), font_paths=_fonts())


def _compiled(compiler: typst.Compiler, **given: Any) -> bytes:
    pdf = compiler.compile(format="pdf", pdf_standards=["a-2a", "ua-1"], **given)
    if not isinstance(pdf, bytes):
        raise TypeError("typst returned pages instead of one PDF")
    return pdf


def read_keys(path: Path) -> dict[str, str]:
    """Return the artifact keys by stage from a report's metadata, earliest stage first; empty if it has none."""
    return read_metadata(path)[0]


def read_metadata(path: Path) -> tuple[dict[str, str], str]:
    """Return the artifact keys by stage, earliest stage first, and the subtitle from a report's metadata."""
    metadata = PdfReader(path).metadata or {}
    pairs = [word.strip().partition("=") for word in str(metadata.get("/Keywords", "")).split(",")]
    return {stage: key for stage, equals, key in pairs if equals}, str(metadata.get("/Subject", ""))


def lacking(content: dict[str, Any], fonts: Path | None = None) -> str:
    """Return which characters of a document the PDFs show as �, and what to do; nothing when there are none."""
    foreign = _foreign(content) | _foreign(appendix_of(content))
    found = sorted(foreign.difference(*(has for _, has in _families(foreign, fonts))))
    if not found:
        return ""
    named = " ".join(map(chr, found[:NAMED])) + (" …" if len(found) > NAMED else "")
    where = "the fonts in report.fonts, too, lack" if fonts else "its font lacks"
    todo = "add a font that has" if fonts else "name in report.fonts a folder with a font, such as Noto Sans, that has"
    them = agreeing(len(found), "it", "them")
    return (
        f"report.pdf shows � for {counted(len(found), 'character')}, since {where} {them}: {named}; {todo} {them}. "
        f"report.html shows {them} where the reader's machine can"
    )


@cache
def _characters() -> frozenset[int]:
    """Return the code points that every face used has a glyph for."""
    return frozenset.intersection(*(_charmap(FONTS / face) for face in FACES))


@cache
def _charmap(file: Path, index: int = 0) -> frozenset[int]:
    """Return the code points that a font has; none when it cannot be read."""
    try:
        with TTFont(file, fontNumber=index, lazy=True) as font:
            return frozenset(font.getBestCmap() or ())
    except (TTLibError, OSError):
        return frozenset()


def _families(wanted: frozenset[int], fonts: Path | None) -> list[tuple[str, frozenset[int]]]:
    """Return the families of a folder that have some of the characters wanted, those that have most of them first.

    Beside each family stands what all its faces have: in bold as in regular type, nothing may be missing.
    """
    if fonts is None or not wanted:
        return []
    faces: dict[str, list[frozenset[int]]] = {}
    for font in typst.Fonts(include_system_fonts=False, include_embedded_fonts=False, font_paths=[str(fonts)]).fonts():
        if font.path is not None:
            faces.setdefault(font.family, []).append(_charmap(Path(font.path), font.index))
    having = {name: frozenset.intersection(*found) & wanted for name, found in faces.items()}
    ordered = sorted(having.items(), key=lambda one: (-len(one[1]), one[0]))
    return [(name, has) for name, has in ordered if has]


def _shown(content: dict[str, Any]) -> dict[str, Any]:
    return {name: value for name, value in content.items() if name not in ("numbers", "more", "appendix")}


def _foreign(content: dict[str, Any]) -> frozenset[int]:
    """Return the code points in a document that DejaVu Sans lacks."""
    return frozenset(ord(c) for text in _texts(_shown(content)) for c in text) - _characters()


def _texts(value: Any) -> Iterator[str]:
    if isinstance(value, str):
        yield value
    elif isinstance(value, dict | list):
        for item in value.values() if isinstance(value, dict) else value:
            yield from _texts(item)


def _drawable(value: Any, known: frozenset[int]) -> Any:
    if isinstance(value, str):
        # Emoji that are joined may need glyphs of two fonts, and then some would be left out: one beside the other.
        apart = _JOINED_SYMBOL.sub("", value)
        return "".join(c if ord(c) in known else "�" for c in apart)
    if isinstance(value, dict):
        return {key: _drawable(item, known) for key, item in value.items()}
    return [_drawable(item, known) for item in value] if isinstance(value, list) else value
