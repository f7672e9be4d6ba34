"""The page of a study: one sheet whatever it says, everything on it, and nothing of what is withheld."""

import io
import re
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from pypdf import PdfReader

from pipeline.reporting.page_pictures import as_seen, outline
from pipeline.reporting.study_page import NO_FINDING, NOT_MADE_FOR, RESEARCH_ONLY, StudyPage, render_page

IMAGE = np.random.default_rng(0).integers(0, 256, (96, 80), dtype=np.uint8)
AREA = np.zeros((96, 80), bool)
AREA[16:48, 0:32] = True
PAGE = StudyPage(
    study="ward 3/CR_0117.dcm",
    decision="refer",
    usable=True,
    model_title="Pneumonia on chest radiographs of children",
    version="0.3.0",
    model_hash="9f2c" * 16,
    predicted_at="2026-03-04T05:06:07+00:00",
    image=IMAGE,
    outlined=AREA,
    outlined_share=0.133,
    score=1.374,
    probability=0.3402,
    probability_low=0.2911,
    probability_high=0.3879,
    interval_level=0.95,
    prevalence=0.05,
    condition="pneumonia",
    threshold="Referred when the score is at least −0.62.",
    certificate="With 95 % confidence at least 97 % of them are found.",
    typical=True,
    typicality="Its features are ordinary (p = 0.41).",
    quality=["The window is that of the header."],
    not_for=["adults", "ruling out pneumonia"],
)
NOT_ASSESSABLE = replace(
    PAGE, decision="not assessable", score=None, image=None, outlined=None, reasons=["It holds no pixels."]
)
NOT_TYPICAL = replace(PAGE, typical=False, remarks=["Modality CT, the model knows CR and DX."])
NOT_USABLE = replace(PAGE, usable=False, why_not="Test patients: the certificate is contradicted.")
VOLUME = replace(PAGE, volume=True, image=IMAGE[:60].copy(), outlined=AREA[:60].copy())


def the_page(page: StudyPage) -> tuple[str, PdfReader]:
    reader = PdfReader(io.BytesIO(render_page(page)))
    assert len(reader.pages) == 1
    text = reader.pages[0].extract_text().replace("\u00a0", " ").replace("\u200b", "")
    return re.sub(r"\s+", " ", text), reader


def alternatives(reader: PdfReader) -> list[str]:
    """Return the alternative texts of the structure tree, in order."""
    found, waiting = [], [reader.trailer["/Root"]["/StructTreeRoot"]]
    while waiting:
        node = waiting.pop(0).get_object()
        found += [str(node["/Alt"])] if "/Alt" in node else []
        below = node.get("/K", [])
        below = below if isinstance(below, list) else [below]
        waiting = [one for one in below if isinstance(one.get_object(), dict)] + waiting
    return found


def test_a_page_says_what_a_clinician_asks_in_this_order():
    text, _ = the_page(PAGE)
    sentences = [
        RESEARCH_ONLY,
        "Study ward 3/CR_0117.dcm",
        "▲ REFER",
        "score 1.37",
        "no diagnosis",
        "Left: as the network saw it, untouched.",
        "half of the network's attention, 13 % of the image",
        NO_FINDING,
        "Of 1,000 people with such a score, about 340 have pneumonia (95 % interval 291–388).",
        "where 5 % of all people examined have it: the share assumed for the model",
        PAGE.threshold,
        PAGE.certificate,
        "Yes, as far as could be checked",
        PAGE.typicality,
        PAGE.quality[0],
        *PAGE.not_for,
        PAGE.model_title,
        PAGE.model_hash,
        "maescreen: 0.3.0",
        PAGE.predicted_at,
    ]
    # Header and footer stand at either end of what pypdf extracts.
    positions = [text.index(sentence) for sentence in sentences[1:-4]]
    assert positions == sorted(positions)
    assert all(sentence in text for sentence in sentences)
    assert "Shortened" not in text


def test_the_pixels_are_untouched_and_stored_once():
    _, reader = the_page(PAGE)
    pictures = {image.indirect_reference.idnum: np.asarray(image.image) for image in reader.pages[0].images}
    (shown,) = pictures.values()
    np.testing.assert_array_equal(shown, IMAGE)


def test_pictures_have_words_for_who_cannot_see_them_and_the_file_says_what_it_is():
    _, reader = the_page(VOLUME)
    assert alternatives(reader) == [
        "The image as the network saw it, by its three planes.",
        "The same image with an outline round where half of the network's attention lay.",
        "A bar of 1,000 people, 340 of them filled.",
    ]
    assert reader.trailer["/Root"]["/MarkInfo"]["/Marked"]
    xmp = reader.trailer["/Root"]["/Metadata"].get_object().get_data().decode()
    assert ">2</pdfaid:part>" in xmp
    assert ">A</pdfaid:conformance>" in xmp
    assert ">1</pdfuaid:part>" in xmp
    assert "D:20260304050607" in reader.metadata["/CreationDate"]


def test_no_refer_does_not_say_healthy_and_rare_is_not_never():
    text, _ = the_page(replace(PAGE, decision="no refer", probability=0.0001, prevalence_is_local=True))
    assert "○ NO REFER" in text
    assert "That does not mean that nothing is there." in text
    assert "Of people with such a score, fewer than 1 of 1,000 have pneumonia" in text
    assert "the share given for this place" in text
    assert "more than 999 of 1,000" in the_page(replace(PAGE, probability=0.9999))[0]


def test_a_study_that_was_not_scored_counts_as_referred_and_has_no_number():
    text, reader = the_page(NOT_ASSESSABLE)
    assert "◆ NOT ASSESSABLE" in text
    assert "counts as referred" in text
    assert "It holds no pixels." in text
    assert "1,000 people" not in text
    assert "score 1" not in text
    assert alternatives(reader) == []


def test_the_certificate_does_not_speak_for_a_study_that_is_not_typical():
    text, _ = the_page(NOT_TYPICAL)
    assert "▲ REFER" in text
    assert NOT_MADE_FOR in text
    assert "certificate, which does not speak for this study" in text
    assert "Modality CT" in text
    assert NOT_MADE_FOR not in the_page(PAGE)[0]
    assert "Not checked" in the_page(replace(PAGE, typical=None))[0]


@pytest.mark.parametrize("decision", ["refer", "no refer", "not assessable"])
@pytest.mark.parametrize("typical", [True, False, None])
def test_an_unusable_model_gives_a_score_and_nothing_of_a_threshold(decision, typical):
    text, reader = the_page(replace(NOT_USABLE, decision=decision, typical=typical))
    assert "✕ NO DECISION" in text
    assert NOT_USABLE.why_not in text
    assert "score 1.37" in text
    for withheld in ("▲", "○", "◆", "−0.62", "95 %", "340", "0.34", "1,000 people", "counts as referred", "threshold."):
        assert withheld not in text
    assert "340" not in " ".join(alternatives(reader))
    # Nor does the decision show in what is not text: the pages of one and the other are the same.
    if decision != "not assessable":
        same = render_page(replace(NOT_USABLE, typical=typical))
        assert render_page(replace(NOT_USABLE, decision=decision, typical=typical)) == same


@pytest.mark.parametrize("page", [PAGE, NOT_ASSESSABLE, NOT_TYPICAL, NOT_USABLE, VOLUME], ids=lambda p: p.decision)
@pytest.mark.parametrize("shape", [(1, 1), (16, 900), (900, 16), (96, 80)])
def test_one_sheet_for_every_kind_and_every_shape_of_picture(page, shape):
    image = np.zeros(shape, np.uint8)
    the_page(replace(page, image=image, outlined=image > 0))


def test_long_texts_are_shortened_and_the_page_says_where_the_rest_is():
    many = [f"remark {number} " + "about this and that " * 9 for number in range(70)]
    page = replace(NOT_TYPICAL, reasons=many, remarks=many, quality=many, not_for=many, threshold="threshold " * 400)
    text, _ = the_page(page)
    assert "more, in results.json" in text
    assert "Shortened to fit one page; everything is in results.json." in text
    assert "remark 0" in text
    assert NOT_MADE_FOR in text
    assert "about 340 have pneumonia" in text


def test_a_name_keeps_the_end_that_tells_it_apart():
    text, _ = the_page(replace(PAGE, study="folder/" * 90 + "last.dcm"))
    assert "folder/last.dcm" in text


WIDEST = st.text(st.sampled_from("Wi. \n�漢\u0301ﷺ#*$_\\[<-–1"), max_size=900)


@settings(max_examples=25, deadline=None)
@given(text=WIDEST, points=st.lists(WIDEST, max_size=12), decision=st.sampled_from(["refer", "not assessable"]))
def test_one_sheet_whatever_is_written(text, points, decision):
    page = replace(
        PAGE, decision=decision, study=text, model_title=text, version=text, model_hash=text, condition=text,
        threshold=text, certificate=text, typical=False, typicality=text, reasons=points, remarks=points,
        quality=points, not_for=points,
    )  # fmt: skip
    the_page(page)


def test_text_is_never_markup():
    hostile = '#import "x" $x$ *b* _i_ <tag> @ref //c [31m'
    text, _ = the_page(replace(PAGE, study=hostile, threshold=hostile, quality=[hostile]))
    assert text.count('#import "x" $x$ *b* _i_ <tag> @ref //c [31m') == 3


def test_the_same_page_has_the_same_bytes_in_every_process_and_after_other_pages():
    first = render_page(PAGE)
    render_page(NOT_TYPICAL)
    assert render_page(PAGE) == first
    program = "import sys; from test_study_page import PAGE, render_page; sys.stdout.buffer.write(render_page(PAGE))"
    here = {"PYTHONPATH": f"{Path(__file__).parents[2]}:{Path(__file__).parent}"}
    run = subprocess.run([sys.executable, "-c", program], env=here, capture_output=True)
    assert run.stdout == first, run.stderr.decode()


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"decision": "maybe"}, "is no decision"),
        ({"predicted_at": "yesterday"}, "yesterday"),
        ({"image": IMAGE.astype(float)}, "float64"),
        ({"image": np.zeros((0, 3), np.uint8), "outlined": None}, "not \\(h, w\\)"),
        ({"outlined": AREA[:5]}, "does not fit"),
    ],
)
def test_what_is_no_page_is_refused(change, message):
    with pytest.raises(ValueError, match=message):
        render_page(replace(PAGE, **change))


# ---------------------------------------------------------------- outlines


def filled(path: str, shape: tuple[int, int]) -> np.ndarray:
    """Fill an outline again: a pixel is inside when an odd number of upright pieces lie left of it."""
    crossings = np.zeros((shape[0], shape[1] + 1), int)
    for column, top, bottom in re.findall(r"M(\d+) (\d+)V(\d+)", path):
        crossings[int(top) : int(bottom), int(column)] += 1
    return np.cumsum(crossings, axis=1)[:, :-1] % 2 == 1


@given(st.integers(1, 9), st.integers(1, 9), st.randoms(use_true_random=False))
def test_an_outline_encloses_exactly_its_area(height, width, random):
    area = np.array([[random.random() < 0.5 for _ in range(width)] for _ in range(height)])
    drawn = outline(area)
    path = re.findall(r'd="([^"]*)"', drawn)[0]
    np.testing.assert_array_equal(filled(path, area.shape), area)
    lying = {(int(y), int(a), int(b)) for a, y, b in re.findall(r"M(\d+) (\d+)H(\d+)", path)}
    framed = np.pad(area, ((1, 1), (0, 0)))
    edges = {(y, x) for y, x in zip(*np.nonzero(framed[1:] != framed[:-1]), strict=True)}
    assert {(y, x) for y, a, b in lying for x in range(a, b)} == edges


def test_a_picture_is_drawn_in_blocks():
    assert 'image-rendering="optimizeSpeed"' in as_seen(IMAGE)
