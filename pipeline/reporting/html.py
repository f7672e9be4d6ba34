"""report.html: one file that needs no other, with the same content as the PDF."""

from __future__ import annotations

import base64
from pathlib import Path

import jinja2

from pipeline.reporting.document import Document

TEMPLATES = Path(__file__).parent / "templates"
_MEDIA = {"svg": "image/svg+xml", "png": "image/png"}


def render(document: Document) -> str:
    """Return the page. Every string is escaped; pictures are data URIs, in which no script runs."""
    environment = jinja2.Environment(
        loader=jinja2.FileSystemLoader(TEMPLATES),
        autoescape=True,
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    pictures = {
        figure.file: f"data:{_MEDIA[figure.format]};base64,{base64.b64encode(figure.picture).decode()}"
        for figure in document.figures
    }
    return environment.get_template("report.html.j2").render(d=document.to_dict(), pictures=pictures)
