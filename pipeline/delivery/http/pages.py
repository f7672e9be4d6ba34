"""The pages for people: login, the reading list, and the page of a study, where a reader records what became of it."""

from __future__ import annotations

import asyncio
from collections import Counter
from collections.abc import Mapping
from functools import cache
from http import HTTPStatus
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal
from urllib.parse import parse_qsl, quote, urlsplit

import jinja2
from fastapi import Depends, FastAPI, Query, Request
from starlette.concurrency import run_in_threadpool
from starlette.responses import FileResponse, HTMLResponse, RedirectResponse, Response

from pipeline.delivery.http.access import SESSION_S, sent_by
from pipeline.delivery.http.answers import COOKIE, cookie, entry_of, policy, session_of, takes
from pipeline.delivery.http.receiving import Refused
from pipeline.delivery.outcomes import OUTCOMES
from pipeline.delivery.queue import FAILED, FINISHED, Entry
from pipeline.delivery.reading_list import MASKS, RESULT, ReadingList, Row, chosen
from pipeline.imaging.quarantine import REASONS as REFUSALS
from pipeline.reporting.html import environment
from pipeline.reporting.numbers import number, probability
from pipeline.reporting.outlines import WORDS
from pipeline.reporting.study_page import NO_DECISION, NO_FINDING, NOT_MADE_FOR, RESEARCH_ONLY, UNLIKE, VERDICTS
from pipeline.store.files import read_json

if TYPE_CHECKING:
    from pipeline.delivery.http.app import Service

TEMPLATES = Path(__file__).parent / "templates"
PER_PAGE, MOST_SHOWN = 50, 200
MOST_FORM_BYTES, FORM_S = 4096, 10.0
NO_NUMBER = "–"
Decision = Literal["", "refer", "not assessable", "no refer"]
PICTURES = ("image.svg", "outline.svg")


@cache
def _environment() -> jinja2.Environment:
    made = environment(TEMPLATES)
    made.filters |= {"moment": _moment}
    return made


@cache
def _style() -> str:
    return (TEMPLATES / "style.css").read_text("utf-8")


def _moment(time: str) -> str:
    """Return a time of ISO 8601, UTC, as people read it, to the minute."""
    return f"{time[:10]} {time[11:16]} UTC"


def _html(template: str, content: Mapping[str, Any], status: int = 200) -> HTMLResponse:
    shared = {"style": _style(), "research_only": RESEARCH_ONLY}
    text = _environment().get_template(template).render({**shared, **content})
    return HTMLResponse(text, status, headers={"content-security-policy": policy(_style())})


def add_pages(app: FastAPI, service: Service, studies: ReadingList) -> None:
    """Add the pages to an app."""
    _add_login(app, service)
    _add_list(app, service, studies)
    _add_study(app, service, studies)


def _add_login(app: FastAPI, service: Service) -> None:
    @app.get("/login", include_in_schema=False, dependencies=[Depends(takes())])
    async def login() -> Response:
        return _html("login.html.j2", {"problem": ""})

    @app.post("/login", include_in_schema=False, dependencies=[Depends(takes())])
    async def log_in(request: Request) -> Response:
        form = await _form(request, "token")
        if not service.access.allows(form["token"].strip()):
            return _html("login.html.j2", {"problem": "That is not the token of this service."}, 403)
        answer = RedirectResponse("/", HTTPStatus.SEE_OTHER)
        secure = request.url.scheme == "https"
        answer.set_cookie(
            COOKIE, service.access.open(), max_age=SESSION_S, path="/", secure=secure, httponly=True, samesite="strict"
        )
        return answer

    @app.post("/logout", include_in_schema=False, dependencies=[Depends(takes())])
    async def log_out(request: Request) -> Response:
        _from_page(request, await _form(request, "form"))
        service.access.close(cookie(request.headers))
        answer = RedirectResponse("/login", HTTPStatus.SEE_OTHER)
        answer.delete_cookie(COOKIE, path="/", httponly=True, samesite="strict")
        return answer


def _add_list(app: FastAPI, service: Service, studies: ReadingList) -> None:
    @app.get("/", include_in_schema=False, dependencies=[Depends(takes("decision", "order", "name", "page"))])
    def reading_list(
        request: Request,
        decision: Decision = "",
        order: Literal["suspicion", "time"] = "suspicion",
        name: Annotated[str, Query(max_length=200)] = "",
        page: Annotated[int, Query(ge=1, le=10_000)] = 1,
    ) -> Response:
        finished = studies.settled(FINISHED)
        failed = chosen(studies.settled(FAILED).values(), order="time")
        waiting = studies.waiting()
        rows = chosen(finished.values(), decision, name, order)
        pages = max(1, -(-len(rows) // PER_PAGE))
        page = min(page, pages)
        asked = {"decision": decision, "order": order, "name": name}
        recorded = studies.latest_outcomes()
        content = {
            **_shared(request, service),
            "rows": [_shown(row, recorded) for row in rows[(page - 1) * PER_PAGE : page * PER_PAGE]],
            "found": len(rows),
            "finished": len(finished),
            "counts": Counter(row.decision for row in finished.values()),
            "none_yet": NO_NUMBER,
            "asked": asked,
            "page": page,
            "pages": pages,
            "link": {n: _link(asked, n) for n in (page - 1, page + 1)},
            "waiting": waiting[:MOST_SHOWN],
            "waits": len(waiting),
            "failed": failed[:MOST_SHOWN],
            "fails": len(failed),
            "seen": service.lights.seen,
        }
        return _html("reading_list.html.j2", content)


def _link(asked: Mapping[str, str], page: int) -> str:
    return "/?" + "&".join(f"{name}={quote(value, safe='')}" for name, value in {**asked, "page": str(page)}.items())


def _add_study(app: FastAPI, service: Service, studies: ReadingList) -> None:
    @app.get("/reading-list/{study_id}", include_in_schema=False, dependencies=[Depends(takes())])
    def study(request: Request, study_id: str) -> Response:
        entry = entry_of(service.queue, study_id)
        shared = {**_shared(request, service), "entry": entry, "outcomes": OUTCOMES}
        if entry.state != FINISHED:
            rows = studies.settled(FAILED)
            why = rows[entry.id].why if entry.id in rows else ()
            return _html("study.html.j2", {**shared, "content": None, "why": why})
        content = read_json(entry.folder / RESULT)
        recorded = studies.latest_outcomes().get(entry.id)
        return _html("study.html.j2", {**shared, **_study(entry, content), "recorded": recorded})

    @app.get("/reading-list/{study_id}/{picture}", include_in_schema=False, dependencies=[Depends(takes())])
    def picture(study_id: str, picture: str) -> Response:
        path = entry_of(service.queue, study_id).folder / picture if picture in PICTURES else None
        if path is None or not path.is_file():
            raise Refused(404, "there is no such picture")
        return FileResponse(path, media_type="image/svg+xml")

    @app.post("/reading-list/{study_id}/outcome", include_in_schema=False, dependencies=[Depends(takes())])
    async def record(request: Request, study_id: str) -> Response:
        form = await _form(request, "form", "outcome")
        _from_page(request, form)
        entry = entry_of(service.queue, study_id)
        if entry.state != FINISHED:
            raise Refused(409, "the study has no result yet, whose outcome could be recorded")
        if form["outcome"] not in OUTCOMES:
            raise Refused(422, f"an outcome is one of: {', '.join(OUTCOMES)}")
        row = read_json(entry.folder / RESULT)["result"]
        await run_in_threadpool(studies.outcomes.record, form["outcome"], row)
        return RedirectResponse(f"/reading-list/{entry.id}#outcome", HTTPStatus.SEE_OTHER)


def _shared(request: Request, service: Service) -> dict[str, Any]:
    """Return what each page says: the model, how judging goes, and what the forms of this session hold."""
    session = request.scope["state"]["session"]
    rule = service.model["rule"]
    return {
        "form": session.form if session else "",
        "judging": service.judging(),
        "model": service.model,
        "usable": rule["usable"],
        "why_not": list(rule["not_usable_because"]),
    }


def _shown(row: Row, recorded: Mapping[str, Mapping[str, Any]]) -> dict[str, Any]:
    look, words, _ = VERDICTS[row.decision] if row.usable else NO_DECISION
    return {
        "id": row.id,
        "called": row.called,
        "look": look,
        "words": words,
        "score": NO_NUMBER if row.score is None else number(row.score, 2),
        "probability": NO_NUMBER if row.probability is None or not row.usable else probability(row.probability),
        "like": {None: "not checked", True: "yes", False: "no"}[row.typical],
        "received": row.received,
        "outcome": recorded[row.id]["outcome"] if row.id in recorded else NO_NUMBER,
    }


def _study(entry: Entry, content: Mapping[str, Any]) -> dict[str, Any]:
    found, usable = content["result"], content["model"]["usable"]
    look, words, meaning = VERDICTS[found["decision"]] if usable else NO_DECISION
    unlike = f"{UNLIKE} {NOT_MADE_FOR} {found['most_unusual']}." if found["typical"] is False else ""
    refused = Counter(row["reason"] for row in content["quarantine"])
    shown = _shown(Row.of(entry, content), {})
    return {
        "content": content,
        "why": content["why"],
        "look": look,
        "words": words,
        "meaning": meaning,
        "shown": shown,
        "unlike": unlike,
        "limits": [
            probability(found[name]) if usable and found[name] is not None else ""
            for name in ("probability_low", "probability_high")
        ],
        "refused": [(REFUSALS[reason], n) for reason, n in sorted(refused.items())],
        "pictures": {name.removesuffix(".svg"): (entry.folder / name).is_file() for name in PICTURES},
        "page": (entry.folder / "page.pdf").is_file(),
        "masks": (entry.folder / MASKS).is_file(),
        "outline": WORDS[content.get("outline") or "attention"],
        "no_finding": NO_FINDING,
    }


async def _form(request: Request, *fields: str) -> dict[str, str]:
    """Return the fields of a small form, which must be these. Raises Refused."""
    if request.headers.get("content-type", "").partition(";")[0].strip() != "application/x-www-form-urlencoded":
        raise Refused(415, "a form is sent as application/x-www-form-urlencoded")
    content = b""
    try:
        async with asyncio.timeout(FORM_S):
            async for piece in request.stream():
                content += piece
                if len(content) > MOST_FORM_BYTES:
                    raise Refused(413, "the form is too large")
    except TimeoutError:
        raise Refused(408, "the form came too slowly") from None
    _same_origin(request)
    try:
        pairs = parse_qsl(content.decode("ascii"), keep_blank_values=True, strict_parsing=True, max_num_fields=9)
    except ValueError:
        pairs = []
    if sorted(name for name, _ in pairs) != sorted(fields):
        raise Refused(422, f"this form has the fields {', '.join(fields)}, each once")
    return dict(pairs)


def _same_origin(request: Request) -> None:
    """Raise Refused when a browser says that another site sent the form."""
    site, origin = request.headers.get("sec-fetch-site", "none"), request.headers.get("origin")
    if site not in ("same-origin", "none") or (origin and urlsplit(origin).netloc != request.headers.get("host", "")):
        raise Refused(403, "a form is sent from a page of this service alone")


def _from_page(request: Request, form: Mapping[str, str]) -> None:
    if not sent_by(session_of(request), form["form"]):
        raise Refused(403, "a form is sent from a page that was opened after logging in; open the page again")
