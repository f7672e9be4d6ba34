"""The page of one study: one sheet of PDF/A-2a and PDF/UA-1 that a clinician reads in thirty seconds.

Everything on it is text and numbers that the caller hands over; nothing is computed again. Where the model may not be
used to decide, no decision, threshold, certificate or probability of the page's data reaches the sheet.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from io import BytesIO
from typing import Any, Literal

import numpy as np
from pypdf import PdfReader

from pipeline.reporting import pdf
from pipeline.reporting.document import printable, shortened
from pipeline.reporting.numbers import limits, missing, number, people, percent, plain_percent
from pipeline.reporting.outlines import WORDS
from pipeline.reporting.page_pictures import PER, as_seen, outline, people_bar

Verdict = Literal["refer", "no refer", "not assessable"]
RESEARCH_ONLY = "Research use only; no medical device"
ELSEWHERE = "results.json"
PREDICTED_AT = "Predicted at"
NAME = 110  # characters of a name that has a line of its own
UNLIKE = "This study is unlike those that the model was made and certified on."
NOT_MADE_FOR = "The certificate does not speak for it."
# What each verdict looks like and what it does not say. The sign and the words say it without colour, too.
VERDICTS: dict[str, tuple[str, str, str]] = {
    "refer": ("refer", "▲ REFER", "The score reaches the threshold. This is a reason to look, and no diagnosis."),
    "no refer": ("calm", "○ NO REFER", "The score is below the threshold. That does not mean that nothing is there."),
    "not assessable": (
        "open",
        "◆ NOT ASSESSABLE",
        "This study could not be judged and counts as referred: somebody has to look at it.",
    ),
}
NO_DECISION = ("withheld", "✕ NO DECISION", "This model may not be used to refer anyone. It gives a score, no more.")
NO_FINDING = "It is no finding, and no evidence that the answer is right. Judge the image without it first."


@dataclass(frozen=True, kw_only=True)
class StudyPage:
    """What the page of a study says. Texts are plain; those of the lists are whole sentences.

    `study` is the study as the user named it, `image` (h, w) or (h, w, 3) uint8 what the network saw, of a volume its
    three planes, `outlined` (h, w) where half of the attention lay, or of what `outline` says instead (see
    outlines.py), which is `outlined_share` of the image. The probability is at `prevalence`, its limits of confidence
    `interval_level`. `typical` is None when nobody asked. `predicted_at` is ISO 8601, `time_is` the name under which it
    is shown. When the model is not `usable`, `why_not` says why, and the decision and all that rests on a threshold
    are left out whatever they hold.
    """

    study: str
    decision: Verdict
    usable: bool
    model_title: str
    version: str
    model_hash: str
    predicted_at: str
    why_not: str = ""
    reasons: Sequence[str] = ()
    image: np.ndarray | None = None
    outlined: np.ndarray | None = None
    outlined_share: float | None = None
    outline: str = "attention"
    volume: bool = False
    channel: str = ""
    score: float | None = None
    probability: float | None = None
    probability_low: float | None = None
    probability_high: float | None = None
    interval_level: float | None = None
    prevalence: float | None = None
    prevalence_is_local: bool = False
    condition: str = "the condition"
    threshold: str = ""
    certificate: str = ""
    typical: bool | None = None
    typicality: str = ""
    remarks: Sequence[str] = ()
    quality: Sequence[str] = ()
    not_for: Sequence[str] = ()
    time_is: str = PREDICTED_AT


@dataclass(frozen=True)
class Room:
    """How much of the texts a sheet gets: points of a list, characters of a text, height of the picture in cm."""

    points: int
    characters: int
    picture_cm: float


# From how a page should look to what fits whatever is written: the first that fits on one sheet is taken.
ROOMS = (Room(6, 420, 7.8), Room(4, 260, 7.0), Room(3, 170, 6.0), Room(2, 110, 4.5), Room(1, 60, 3.0))


def render_page(page: StudyPage) -> bytes:
    """Return the page of a study as a PDF of exactly one sheet, the same bytes for the same page.

    Texts too long for it are cut, and the sheet says so. Raises ValueError when the decision, the time or a picture is
    none, typst.TypstError when Typst refuses the document.
    """
    made = moment(page.predicted_at)
    sheet = pdf.typeset("study_page.typ", _content(page), _pictures(page), made)
    if (sheets := len(PdfReader(BytesIO(sheet)).pages)) != 1:
        raise ValueError(f"a study's page became {sheets} sheets, however short its texts were made")
    return sheet


def moment(predicted_at: str) -> datetime:
    """Return a time of ISO 8601, without a zone that of UTC. Raises ValueError when it is none."""
    time = datetime.fromisoformat(predicted_at)
    return time if time.tzinfo else time.replace(tzinfo=UTC)


def tail(name: str, length: int) -> str:
    """Return a name, of one that is too long its end, which tells paths apart better than the beginning."""
    return name if len(name) <= length else f"…{name[-(length - 1) :]}"


def _content(page: StudyPage) -> dict[str, Any]:
    """Return what the template shows: what is always whole, and the other texts cut to every room."""
    if page.decision not in VERDICTS:
        raise ValueError(f"{page.decision!r} is no decision; there are {', '.join(VERDICTS)}")
    look, large, meaning = VERDICTS[page.decision] if page.usable else NO_DECISION
    free = printable({"reasons": _reasons(page), "sections": _sections(page)})
    return {
        "rooms": [_cut(free, room) for room in ROOMS],
        "look": look,
        "verdict": large,
        "meaning": meaning,
        "score": "" if page.score is None or missing(page.score) else f"score {number(page.score, 2)}",
        "people": _people(page),
        "about_people": _prevalence(page),
        "alt_bar": _bar_in_words(page),
        "warning": _warning(page),
        "caption": _caption(page),
        "alt": f"The image as the network saw it{', by its three planes' if page.volume else ''}.",
        "alt_outlined": f"The same image with an outline round {WORDS[page.outline].where}.",
        "title": tail(printable(page.study), NAME) or "unnamed",
        "identity": [
            [name, tail(printable(value), NAME)]
            for name, value in (
                ("Model", page.model_title),
                ("Model hash", page.model_hash),
                ("maescreen", page.version),
                (page.time_is, page.predicted_at),
            )
        ],
        "research_only": RESEARCH_ONLY,
    }


def _cut(free: dict[str, Any], room: Room) -> dict[str, Any]:
    cut = _Cut(room)
    texts = cut.all(free)
    note = f"Shortened to fit one page; everything is in {ELSEWHERE}." if cut.happened else ""
    return {**texts, "note": note, "picture_cm": room.picture_cm}


class _Cut:
    """Shortens texts and lists to a room, and knows whether it had to."""

    def __init__(self, room: Room) -> None:
        self.room, self.happened = room, False

    def all(self, value: Any) -> Any:
        """Return `value` with every text and list in it shortened; the names in dictionaries stay."""
        if isinstance(value, str):
            short = shortened(value, self.room.characters)
            self.happened |= short != " ".join(value.split())
            return short
        if isinstance(value, dict):
            return {name: self.all(item) for name, item in value.items()}
        if isinstance(value, list) and all(isinstance(item, str) for item in value):
            return self._points(value)
        return [self.all(item) for item in value] if isinstance(value, list) else value

    def _points(self, points: list[str]) -> list[str]:
        shown = [self.all(point) for point in points[: self.room.points]]
        if len(points) == len(shown):
            return shown
        self.happened = True
        return [*shown, f"and {len(points) - len(shown):,} more, in {ELSEWHERE}"]


def _reasons(page: StudyPage) -> list[str]:
    """Return why the verdict is what it is; without a usable model nothing that could speak of a threshold."""
    if page.usable:
        return list(page.reasons)
    why = [page.why_not or "its gate failed"]
    return [*why, *page.reasons] if page.decision == "not assessable" else why


def _warning(page: StudyPage) -> str:
    """Return what has to be said of a study that is not typical; nothing of another one."""
    if page.typical is not False:
        return ""
    return f"{UNLIKE} {NOT_MADE_FOR}" if page.usable else UNLIKE


def _probability(page: StudyPage) -> float | None:
    """Return the probability where there is one that may be shown."""
    shown = page.usable and page.decision != "not assessable" and not missing(page.probability)
    return page.probability if shown else None


def _people(page: StudyPage) -> str:
    """Return the probability as one says it: of 1,000 people with such a score, about 340 have the condition."""
    probability = _probability(page)
    if probability is None:
        return ""
    rare, nearly_all = f"fewer than 1 of {PER:,}", f"more than {PER - 1:,} of {PER:,}"
    many, condition = PER * probability, shortened(printable(page.condition), 60)
    if many < 0.5 or many >= PER - 0.5:
        return f"Of people with such a score, {rare if many < 0.5 else nearly_all} have {condition}{_between(page)}."
    return f"Of {PER:,} people with such a score, about {people(many)} have {condition}{_between(page)}."


def _between(page: StudyPage) -> str:
    """Return the limits in whole people, widened so that rounding never narrows them; nothing without limits."""
    low, high = page.probability_low, page.probability_high
    if low is None or high is None or missing(low) or missing(high):
        return ""
    level = "" if page.interval_level is None else f"{plain_percent(page.interval_level)} "
    whole = limits(max(0, math.floor(PER * low)), min(PER, math.ceil(PER * high)), digits=0)
    return f" ({level}interval {whole})"


def _prevalence(page: StudyPage) -> str:
    if page.prevalence is None or _probability(page) is None:
        return ""
    where = (
        "the share given for this place"
        if page.prevalence_is_local
        else "the share assumed for the model; where it is another, so is the number"
    )
    return f"This holds where {plain_percent(page.prevalence)} of all people examined have it: {where}."


def _sections(page: StudyPage) -> list[dict[str, Any]]:
    """Return heading, sentences and points of each part below the number of people, those without text left out."""
    parts: list[tuple[str, list[str], Sequence[str]]] = []
    if page.usable:
        limit = ", which does not speak for this study" if page.typical is False else ""
        parts.append((f"Threshold and certificate{limit}", [page.threshold, page.certificate], ()))
    parts.append((_typical(page), [page.typicality], page.remarks))
    parts.append(("Quality", [], page.quality))
    parts.append(("Not to be used for", [], page.not_for))
    return [
        {"heading": heading, "sentences": [*filter(None, sentences)], "points": list(points)}
        for heading, sentences, points in parts
        if any(sentences) or points
    ]


def _typical(page: StudyPage) -> str:
    if page.typical is None:
        return "Like the studies that the model knows? Not checked"
    return "Like the studies that the model knows? " + ("Yes, as far as could be checked" if page.typical else "No")


def _caption(page: StudyPage) -> str:
    if page.image is None:
        return ""
    channel = f" of channel {page.channel}" if page.channel else ""
    planes = f": coronal, sagittal and axial plane{channel}" if page.volume else ""
    if page.outlined is None:
        none = "The model marked nothing in it." if page.outline == "mask" else "No outline of attention is available."
        return f"The image as the network saw it, untouched{planes}. {none}"
    share = "" if page.outlined_share is None else f", {percent(page.outlined_share, 0)} of the {_whole(page)}"
    return (
        f"Left: as the network saw it, untouched{planes}. Right: the same, with an outline round "
        f"{WORDS[page.outline].half}{share}. It shows {WORDS[page.outline].looked}. {NO_FINDING}"
    )


def _whole(page: StudyPage) -> str:
    return "volume" if page.volume else "image"


def _pictures(page: StudyPage) -> dict[str, str]:
    """Return the pictures as SVG, empty where there is none."""
    shown = {"image": "", "outline": "", "bar": ""}
    if page.image is not None:
        shown["image"] = as_seen(page.image)
        if page.outlined is not None:
            if page.outlined.shape != page.image.shape[:2]:
                raise ValueError(f"an outline {page.outlined.shape} does not fit an image {page.image.shape}")
            shown["outline"] = outline(page.outlined)
    if (probability := _probability(page)) is not None:
        shown["bar"] = people_bar(probability, page.probability_low, page.probability_high)
    return shown


def _bar_in_words(page: StudyPage) -> str:
    probability = _probability(page)
    return "" if probability is None else f"A bar of {PER:,} people, {people(PER * probability)} of them filled."
