"""What every answer has in common: who may ask, plain errors, strict headers, and counts of what was answered."""

from __future__ import annotations

import asyncio
import base64
import hashlib
import time
from collections import Counter
from collections.abc import Callable, Mapping
from contextlib import suppress
from http import HTTPStatus
from http.cookies import CookieError, SimpleCookie

from fastapi import FastAPI, Request
from fastapi.exceptions import RequestValidationError
from starlette.datastructures import Headers, MutableHeaders
from starlette.exceptions import HTTPException
from starlette.responses import JSONResponse, RedirectResponse, Response
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from pipeline.delivery.http.access import Access, Session
from pipeline.delivery.http.receiving import Refused
from pipeline.delivery.queue import Entry, Queue
from pipeline.store.files import json_text

OPEN = ("/healthz", "/login")
COOKIE = "maescreen_session"
BUCKETS_S = (0.005, 0.02, 0.1, 0.5, 2.0, 10.0, 60.0)
LET_ARRIVE_S, LET_ARRIVE_BYTES = 2.0, 64 * 1024**2
HEADERS = {
    "x-content-type-options": "nosniff",
    "referrer-policy": "same-origin",  # with no-referrer, browsers would not say where a form comes from
    "cross-origin-resource-policy": "same-origin",
    "x-frame-options": "DENY",
    "cache-control": "no-store",  # results of patients stay in no cache
}


def policy(style: str = "") -> str:
    """Return the Content-Security-Policy of a page with this style sheet: no script, nothing from elsewhere."""
    digest = base64.b64encode(hashlib.sha256(style.encode()).digest()).decode()
    allowed = f"style-src 'sha256-{digest}'; " if style else ""
    return (
        f"default-src 'none'; {allowed}img-src 'self' data:; form-action 'self'; base-uri 'none'; "
        "frame-ancestors 'none'"
    )


def error(status: int, why: str, headers: Mapping[str, str] | None = None) -> JSONResponse:
    """Return an error as the interface words it: `{"detail": why}`."""
    return JSONResponse({"detail": why}, status, headers=dict(headers or {}))


class Answered:
    """How many requests got which answer, by route, and how long they took."""

    def __init__(self) -> None:
        self.requests: Counter[tuple[str, str, int]] = Counter()
        self.seconds: Counter[tuple[str, float]] = Counter()
        self.total_s: Counter[str] = Counter()

    def add(self, method: str, route: str, status: int, seconds: float) -> None:
        """Count an answer; `route` is a template, so that there are few of them."""
        self.requests[method, route, status] += 1
        self.total_s[route] += seconds  # type: ignore[assignment]
        for limit in (*BUCKETS_S, float("inf")):
            if seconds <= limit:
                self.seconds[route, limit] += 1


class Guard:
    """The outermost layer: the token, the headers of every answer, and the end of every exception.

    `report` is told of what nobody expected; it must not quote what came in.
    """

    def __init__(self, app: ASGIApp, access: Access, answered: Answered, report: Callable[[Exception], None]) -> None:
        self.app, self.access, self.answered, self.report = app, access, answered, report

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer a request."""
        if scope["type"] != "http":
            await self.app(scope, receive, send)
            return
        begun, status, arrived = time.perf_counter(), 0, False

        async def receive_body() -> Message:
            nonlocal arrived
            message = await receive()
            arrived = message["type"] == "http.disconnect" or not message.get("more_body", False)
            return message

        async def let_arrive() -> None:
            """Read what a sender goes on sending, within bounds: cut off, it would not see why it was refused."""
            size = 0
            with suppress(TimeoutError):
                async with asyncio.timeout(LET_ARRIVE_S):
                    while not arrived and size < LET_ARRIVE_BYTES:
                        size += len((await receive_body()).get("body", b""))

        async def send_with_headers(message: Message) -> None:
            nonlocal status
            if message["type"] == "http.response.start":
                status = message["status"]
                if status >= HTTPStatus.BAD_REQUEST:
                    await let_arrive()
                headers = MutableHeaders(scope=message)
                for name, value in HEADERS.items():
                    headers[name] = value
                headers.setdefault("content-security-policy", policy())
                if not arrived and status >= HTTPStatus.BAD_REQUEST:
                    headers["connection"] = "close"
            await send(message)

        try:
            refusal = self._refusal(scope)
            await (refusal or self.app)(scope, receive_body, send_with_headers)
        except Exception as unexpected:
            self.report(unexpected)
            if not status:
                await error(500, "the service made an error; its log has the place")(
                    scope, receive_body, send_with_headers
                )
        finally:
            route = getattr(scope.get("route"), "path", "none")
            method = scope["method"] if scope["method"] in ("GET", "POST", "HEAD") else "other"
            self.answered.add(method, route, status, time.perf_counter() - begun)

    def _refusal(self, scope: Scope) -> Response | None:
        """Return the answer to a request that may not be made; None when it may."""
        headers = Headers(scope=scope)
        secret = cookie(headers)
        session = self.access.session(secret) if secret else None
        scope.setdefault("state", {})["session"] = session
        if scope["path"] in OPEN:
            return None
        scheme, _, token = headers.get("authorization", "").partition(" ")
        if scheme.lower() == "bearer" and self.access.allows(token.strip()):
            return None
        if "authorization" in headers:
            return _unauthorised("the token is not the right one")
        if session is not None and (scope["method"] in ("GET", "HEAD") or scope["path"] != "/studies"):
            return None
        if scope["method"] == "GET" and "text/html" in headers.get("accept", ""):
            return RedirectResponse("/login", HTTPStatus.SEE_OTHER)
        return _unauthorised("a token is needed: Authorization: Bearer TOKEN")


def cookie(headers: Headers) -> str:
    """Return the secret of the browser's session, empty when it has sent none."""
    try:
        found = SimpleCookie(headers.get("cookie", "")).get(COOKIE)
    except CookieError:
        return ""
    return found.value if found else ""


def session_of(request: Request) -> Session:
    """Return the session of a browser; Refused when there is none, as for a program that has the token."""
    session = request.scope["state"]["session"]
    if session is None:
        raise Refused(403, "a form is sent from a page that was opened after logging in")
    return session


def _unauthorised(why: str) -> Response:
    return error(401, why, {"www-authenticate": "Bearer"})


def entry_of(queue: Queue, study_id: str) -> Entry:
    """Return a study of the queue. Raises Refused when there is none with this id."""
    entry = queue.find(study_id)
    if entry is None:
        raise Refused(404, "there is no study with this id")
    return entry


def word_errors(app: FastAPI) -> None:
    """Let an app word its errors without quoting anything that came in."""

    def refused(_request: Request, found: Exception) -> Response:
        if not isinstance(found, Refused):
            raise found
        after = {} if found.retry_after_s is None else {"retry-after": str(found.retry_after_s)}
        return error(found.status, found.why, after)

    def http_error(_request: Request, found: Exception) -> Response:
        if not isinstance(found, HTTPException):
            raise found
        return error(found.status_code, HTTPStatus(found.status_code).phrase.lower(), found.headers)

    def invalid(_request: Request, _found: Exception) -> Response:
        return error(422, "a field of the request is not as openapi.json describes it")

    app.add_exception_handler(Refused, refused)
    app.add_exception_handler(HTTPException, http_error)
    app.add_exception_handler(RequestValidationError, invalid)


def takes(*fields: str) -> Callable[[Request], None]:
    """Return a check that a request's query has these fields alone, each once."""

    def check(request: Request) -> None:
        names = [name for name, _ in request.query_params.multi_items()]
        if {*names} - {*fields} or len(names) > len({*names}):
            known = f"takes {', '.join(fields)}, each once" if fields else "takes no fields"
            raise Refused(422, f"the query of this address {known}")

    return check


def pretty(content: object) -> Response:
    """Return a JSON answer that people can read, too."""
    return Response(json_text(content).encode("utf-8", "replace"), media_type="application/json")
