"""Writing that DejaVu Sans lacks: from a folder of fonts, else marked, with a warning that says what to do."""

from __future__ import annotations

from pathlib import Path

import pytest
from fontTools.subset import Subsetter
from fontTools.ttLib import TTFont
from pypdf import PdfReader
from toy import Toy

from pipeline.orchestration.graph import STAGES
from pipeline.orchestration.sources import sources
from pipeline.reporting import pdf
from pipeline.reporting.document import Document, Paragraph, Section, printable
from pipeline.store.lineage import Code

HAN, HINDI = "漢字", "हि"


@pytest.fixture(scope="module")
def fonts(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a font that has two Han characters, drawn as A and B, in a folder of its own; and no font."""
    folder = tmp_path_factory.mktemp("fonts")
    for face, style in (("DejaVuSans.ttf", "Regular"), ("DejaVuSans-Bold.ttf", "Bold")):
        font = TTFont(pdf.FONTS / face)
        subset = Subsetter()
        subset.populate(text="AB")
        subset.subset(font)
        for table in font["cmap"].tables:
            table.cmap = dict(zip(map(ord, HAN), ("A", "B"), strict=True)) if table.isUnicode() else {}
        for record in font["name"].names:
            named = {1: "Test Han", 2: style, 4: f"Test Han {style}", 6: f"TestHan-{style}", 16: "Test Han"}
            if record.nameID in named:
                record.string = named[record.nameID]
        (folder / "han").mkdir(exist_ok=True)
        font.save(folder / "han" / f"{style}.ttf")
    (folder / "LICENSE.txt").write_text("no font")
    (folder / "broken.ttf").write_bytes(b"no font either")
    return folder


def content(text: str) -> dict:
    section = Section("one", text, [Paragraph(text)])
    return Document(text, text, "2025-02-03", text, text, {}, True, [section], {"hidden": "界"}).to_dict()


def shown(tmp_path: Path, text: str, fonts: Path | None) -> str:
    (tmp_path / "report.pdf").write_bytes(pdf.render(content(text), tmp_path, fonts))
    return " ".join(page.extract_text() for page in PdfReader(tmp_path / "report.pdf").pages)


def test_without_a_font_characters_are_marked_and_named(tmp_path):
    assert "��" in shown(tmp_path, HAN, None)
    said = pdf.lacking(content(HAN), None)
    assert said.startswith(
        "report.pdf shows � for 2 characters, since its font lacks them: 字 漢; name in report.fonts"
    )
    one = pdf.lacking(content("漢"), None)
    assert "for 1 character, since its font lacks it: 漢; name in report.fonts a folder with a font" in one
    assert "界" not in said, "numbers for programs are not on paper"


@pytest.mark.parametrize(
    "text", ["Lungenentzündung", "Пневмония", "πνευμονία", "التهاب رئوي", "דלקת ריאות", "≤ 5 µm – ẞ"]
)
def test_what_the_font_has_needs_nothing(tmp_path, text):
    assert pdf.lacking(content(text), None) == ""
    assert "�" not in shown(tmp_path, text, None)


def test_a_folder_of_fonts_has_what_is_lacking_in_regular_and_bold(tmp_path, fonts):
    text = shown(tmp_path, f"{HAN} Lunge", fonts)
    assert HAN in text
    assert "�" not in text
    assert pdf.lacking(content(HAN), fonts) == ""
    faces = {str(font.get_object()["/BaseFont"]) for page in PdfReader(tmp_path / "report.pdf").pages
             for font in page["/Resources"]["/Font"].values()}  # fmt: skip
    assert {face.partition("+")[2] for face in faces} >= {"TestHan-Regular", "TestHan-Bold", "DejaVuSans"}


def test_what_these_fonts_lack_too_is_named(tmp_path, fonts):
    assert "��" in shown(tmp_path, HAN + HINDI, fonts)
    said = pdf.lacking(content(HAN + HINDI), fonts)
    assert "for 2 characters, since the fonts in report.fonts, too, lack them: ह ि; add a font that has them" in said


def test_fonts_that_are_not_needed_change_no_byte(tmp_path, fonts):
    plain = content("Lunge")
    assert pdf.render(plain, tmp_path, fonts) == pdf.render(plain, tmp_path, None)


def test_joiners_stay_where_a_script_needs_them_and_nowhere_else():
    persian, family = "می\u200cخواهم", "👩\u200d👧"
    assert printable([persian, family]) == [persian, family]
    assert printable("pay\u200dpal \u200cx") == "pay�pal �x"


def test_the_report_stage_warns(tmp_path, fonts):
    from reporting import example_run

    from pipeline.settings.decision import ReportSettings
    from pipeline.stages.report import report
    from pipeline.store.runlog import RunLog

    inputs = example_run.make_run(tmp_path / "store", patients=150)
    for settings, warned in ((ReportSettings(title=HAN), True), (ReportSettings(title=HAN, fonts=fonts), False)):
        work, log = tmp_path / f"work {warned}", RunLog("report", quiet=True)
        work.mkdir()
        report(settings, inputs, work, log)
        assert any("lacks them: 字 漢" in one for one in log.warnings) == warned


def test_where_the_fonts_are_is_no_part_of_the_settings_that_are_recorded(fonts):
    from pipeline.settings.decision import ReportSettings

    assert "fonts" not in ReportSettings(title="x", fonts=fonts).model_dump(mode="json")


def test_other_fonts_make_the_report_anew_and_another_place_does_not(tmp_path):
    toy = Toy(tmp_path / "toy")
    config, card, secret = toy.load()

    def digest(folder: Path | None) -> str | None:
        named = config.model_copy(update={"report": config.report.model_copy(update={"fonts": folder})})
        return sources(named, (named.data, card), secret, Code()).get("fonts")

    for name in ("one", "two"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "a.ttf").write_bytes(b"a font")
    assert digest(None) is None
    assert digest(tmp_path / "one") == digest(tmp_path / "two")
    (tmp_path / "two" / "a.ttf").write_bytes(b"another")
    assert digest(tmp_path / "one") != digest(tmp_path / "two")
    (report,) = [stage for stage in STAGES if stage.name == "report"]
    assert "fonts" in report.sources
