"""report.html: one file that needs no other, with the same content as the PDF."""

from __future__ import annotations

import base64
from hashlib import sha256
from pathlib import Path
from typing import Any

import jinja2

from pipeline.reporting.document import Block, Document, Slider

TEMPLATES = Path(__file__).parent / "templates"
LONGEST_WORD = 40  # characters; what is longer, such as a hash, may break anywhere
_MEDIA = {"svg": "image/svg+xml", "png": "image/png"}


def _no_words(text: Any) -> bool:
    """Return whether something in a text is too long to be a word."""
    return any(len(word) > LONGEST_WORD for word in str(text).split())


def environment(folder: Path) -> jinja2.Environment:
    """Return what renders the templates of a folder: every string is escaped, and a name that is not given an error."""
    return jinja2.Environment(
        loader=jinja2.FileSystemLoader(folder),
        autoescape=True,
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )


def render(document: Document) -> str:
    """Return the page. Every string is escaped; pictures are data URIs, in which no script runs.

    The only script is slider.js, and only in a page with a slider: the policy names its hash and allows no other.
    """
    pictures = {
        figure.file: f"data:{_MEDIA[figure.format]};base64,{base64.b64encode(figure.picture).decode()}"
        for figure in document.figures
    }
    script = (TEMPLATES / "slider.js").read_text("utf-8") if any(map(_slides, document.blocks)) else ""
    digest = base64.b64encode(sha256(script.encode()).digest()).decode()
    template = environment(TEMPLATES).get_template("report.html.j2")
    return template.render(
        d=document.to_dict(), pictures=pictures, no_words=_no_words, script=script, script_sha256=digest
    )


def _slides(block: Block) -> bool:
    return isinstance(block, Slider)
