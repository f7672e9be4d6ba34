"""The document model: plain printable text, numbered tables and figures."""

import json

from pipeline.reporting.document import Document, Figure, Figures, Paragraph, Section, Table, printable, shortened


def a_document(text: str) -> Document:
    figure = Figure("curve", text, "a caption", 7, b"<svg/>")
    table = Table("facts", text, [text, "b"], [[text, "1"]])
    section = Section("one", "One", [Paragraph(text), Figures([figure, figure]), table, table])
    return Document(text, "", "2025-02-03", "", "", {"split": "00ff"}, True, [section, section])


def test_unprintable_characters_are_shown_as_such():
    hostile = "a\x1b[31mb\u202ec\x00d\ue000e\ud800f\ufdd0"
    content = a_document(hostile).to_dict()
    assert content["title"] == "a�[31mb�c�d�e�f�"
    assert json.dumps(content, ensure_ascii=False).encode()  # no lone surrogate is left


def test_text_stays_on_one_line_and_is_otherwise_untouched():
    assert printable(['#import "x"\r\n$x$\t<b>']) == ['#import "x"  $x$ <b>']
    assert printable({"n": 1.5, "none": None, "yes": True}) == {"n": 1.5, "none": None, "yes": True}


def test_tables_and_figures_are_numbered_through_the_document():
    blocks = [b for s in a_document("x").to_dict()["sections"] for b in s["blocks"]]
    assert [b["number"] for b in blocks if b["kind"] == "table"] == [1, 2, 3, 4]
    assert [f["number"] for b in blocks if b["kind"] == "figures" for f in b["figures"]] == [1, 2, 3, 4]


def test_pictures_travel_as_files_not_in_the_json():
    figure = a_document("x").to_dict()["sections"][0]["blocks"][1]["figures"][0]
    assert figure["file"] == "figures/curve.svg"
    assert "picture" not in figure


def test_long_text_is_cut_at_a_word():
    assert shortened("short") == "short"
    cut = shortened("word " * 100, 60)
    assert len(cut) <= 60
    assert cut.endswith("word…")
    assert len(shortened("x" * 500, 60)) == 60
