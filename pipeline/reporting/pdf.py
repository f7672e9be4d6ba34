"""Documents by Typst: PDF/A-2a and PDF/UA-1, the same bytes for the same document, no network, no system fonts."""

from __future__ import annotations

import json
from collections.abc import Mapping
from datetime import datetime
from functools import cache
from pathlib import Path
from typing import Any

import matplotlib
import typst
from matplotlib.ft2font import FT2Font
from pypdf import PdfReader

TEMPLATE = Path(__file__).parent / "templates" / "report.typ"
FONTS = Path(matplotlib.get_data_path()) / "fonts" / "ttf"
FACES = ("DejaVuSans.ttf", "DejaVuSans-Bold.ttf")


def render(content: dict[str, Any], folder: Path) -> bytes:
    """Return the PDF of a document as `Document.to_dict` gives it; `folder` holds the figures that it names.

    Typst gets the document as data, never as markup, and refuses a figure without alternative text. Characters that
    the font lacks are shown as �. Raises typst.TypstError.
    """
    shown = json.dumps({name: drawable(content[name]) for name in content if name != "numbers"}, ensure_ascii=False)
    compiler = typst.Compiler(
        TEMPLATE.read_bytes(),
        root=str(folder),
        font_paths=_fonts(),
        sys_inputs={"document": shown},
    )
    return _compiled(compiler)


def typeset(template: str, content: dict[str, Any], pictures: Mapping[str, str], made: datetime) -> bytes:
    """Return the PDF of a template in templates/, which reads no file.

    It finds `content` as `sys.inputs.document` and each of the pictures, which are SVG, by its name. `made`, with its
    time zone, is the date of the document. Compiler and fonts serve every document of this process, which saves most
    of the time that a page takes. Raises typst.TypstError.
    """
    shown = json.dumps(drawable(content), ensure_ascii=False)
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
    metadata = PdfReader(path).metadata
    words = str((metadata or {}).get("/Keywords", "")).split(",")
    pairs = [word.strip().partition("=") for word in words]
    return {stage: key for stage, equals, key in pairs if equals}


@cache
def _characters() -> frozenset[int]:
    """Return the code points that every face used has a glyph for."""
    return frozenset.intersection(*(frozenset(FT2Font(str(FONTS / face)).get_charmap()) for face in FACES))


def drawable(value: Any) -> Any:
    """Return `value` with every character that the fonts lack shown as �."""
    if isinstance(value, str):
        return "".join(c if ord(c) in _characters() else "�" for c in value)
    if isinstance(value, dict):
        return {key: drawable(item) for key, item in value.items()}
    return [drawable(item) for item in value] if isinstance(value, list) else value
