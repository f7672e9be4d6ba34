"""The routes for programs: studies in, results out, what the model is, and how the service is."""

from __future__ import annotations

import asyncio
import io
import zipfile
from collections.abc import AsyncIterator, Callable, Mapping
from contextlib import asynccontextmanager, suppress
from dataclasses import dataclass
from http import HTTPStatus
from pathlib import Path as FilePath
from typing import Annotated, Any, Literal
from urllib.parse import unquote

from fastapi import Depends, FastAPI, Path, Query, Request
from pydantic import BaseModel
from starlette.concurrency import run_in_threadpool
from starlette.responses import FileResponse, JSONResponse, PlainTextResponse, Response

from pipeline import __version__
from pipeline.delivery.http import examples, metrics
from pipeline.delivery.http.access import Access
from pipeline.delivery.http.answers import Answered, Guard, entry_of, error, pretty, takes, word_errors
from pipeline.delivery.http.pages import add_pages
from pipeline.delivery.http.receiving import SOURCE, Limits, Receiver, Refused
from pipeline.delivery.lights import REFRESH_S, StandingLights
from pipeline.delivery.queue import FAILED, FINISHED, Entry, Queue
from pipeline.delivery.reading_list import MASKS, RESULT, ReadingList, why_failed
from pipeline.delivery.uploads import LONGEST_NAME, sanitised
from pipeline.store.files import read_json

LOOK_S = 1.0
# FastAPI would hand requests, with what is in them, to OpenTelemetry, which MLflow brings.
NO_TELEMETRY: Any = {"tracing": False, "metrics": False, "logs": False, "auto_configure": False}
State = Literal["receiving", "incoming", "processing", "finished", "failed"]
StudyId = Annotated[str, Path(description="the id that POST /studies gave", examples=[examples.ID])]


@dataclass(frozen=True, kw_only=True)
class Service:
    """What is served: a queue, the model as `maescreen model info --json` has it, who may ask, how much.

    `judging` returns what the process that judges does now; `watch`, called every second, looks after it. `lights` say
    whether the model still does what was certified. `report` is told of errors that nobody expected.
    """

    queue: Queue
    model: Mapping[str, Any]
    access: Access
    limits: Limits
    judging: Callable[[], str]
    watch: Callable[[], object]
    lights: StandingLights
    report: Callable[[Exception], None]


class Accepted(BaseModel):
    """A study that was received."""

    id: str
    state: State
    location: str


class Study(BaseModel):
    """A study in the queue; `result` is its row of results.json, once it is finished."""

    id: str
    name: str
    received: str
    state: State
    why: list[str]
    judged: str | None
    model: dict[str, Any] | None
    result: dict[str, Any] | None


def create_app(service: Service) -> Guard:
    """Return the service as an ASGI application."""
    studies, answered, receiver = ReadingList(service.queue), Answered(), Receiver(service.queue, service.limits)

    @asynccontextmanager
    async def lifespan(_app: FastAPI) -> AsyncIterator[None]:
        for entry in service.queue.unfinished(SOURCE):  # of a process that was killed: its sender got no answer
            service.queue.discard(entry)
        again = ((service.watch, LOOK_S), (service.lights.look, REFRESH_S))
        tasks = [asyncio.create_task(_repeat(what, every_s, service.report)) for what, every_s in again]
        yield
        for task in tasks:
            task.cancel()
            with suppress(asyncio.CancelledError):
                await task

    app = FastAPI(
        title="maescreen",
        version=__version__,
        description="Judges medical images: refer, no refer or not assessable. Research use only; no medical device.",
        lifespan=lifespan,
        docs_url=None,  # they fetch scripts from elsewhere
        redoc_url=None,
        redirect_slashes=False,
        telemetry=NO_TELEMETRY,
        responses=examples.ERRORS,
    )
    word_errors(app)
    app.add_exception_handler(Exception, lambda _request, _found: error(500, "the service made an error"))
    _add_studies(app, service, receiver)
    _add_state(app, service, studies, answered, receiver)
    add_pages(app, service, studies)
    schema = app.openapi

    def with_token() -> dict[str, Any]:
        return examples.secured(schema())

    app.openapi = with_token  # type: ignore[method-assign]
    return Guard(app, service.access, answered, service.report)


async def _repeat(what: Callable[[], object], every_s: float, report: Callable[[Exception], None]) -> None:
    """Call it again and again, for as long as the service is up."""
    while True:
        try:
            await run_in_threadpool(what)
        except Exception as unexpected:  # to be tried again, rather than never
            report(unexpected)
        await asyncio.sleep(every_s)


def _add_studies(app: FastAPI, service: Service, receiver: Receiver) -> None:
    @app.post(
        "/studies",
        status_code=HTTPStatus.ACCEPTED,
        tags=["studies"],
        dependencies=[Depends(takes("name"))],
        openapi_extra={"requestBody": examples.BODY},
        responses=examples.ACCEPTED,
    )
    async def send(
        request: Request,
        name: Annotated[str, Query(max_length=LONGEST_NAME, description=examples.NAME, examples=["chest 7"])] = "",
    ) -> Accepted:
        """Send one study: a file of any format that the model takes, or a zip archive of its files."""
        stated = request.headers.get("content-length", "")
        called = name or unquote(request.headers.get("x-study-name", ""))[:LONGEST_NAME]
        body = request.stream()
        entry = await receiver.receive(body, int(stated) if stated.isdigit() else None, sanitised(called))
        location = f"/studies/{entry.id}"
        content = Accepted(id=entry.id, state="incoming", location=location)
        return JSONResponse(content.model_dump(), HTTPStatus.ACCEPTED, headers={"location": location})  # type: ignore[return-value]

    @app.get("/studies/{study_id}", tags=["studies"], dependencies=[Depends(takes())], responses=examples.STUDY)
    def study(study_id: StudyId) -> Study:
        """Say what became of a study."""
        return _study(entry_of(service.queue, study_id))

    @app.get(
        "/studies/{study_id}/page.pdf",
        tags=["studies"],
        dependencies=[Depends(takes())],
        response_class=Response,
        responses={200: {"content": {"application/pdf": {}}, "description": "the page of the study"}},
    )
    def page(study_id: StudyId) -> Response:
        """Return the page of a finished study as PDF."""
        return _file(entry_of(service.queue, study_id), "page.pdf", "application/pdf", "it has no page")

    @app.get(
        "/studies/{study_id}/sr.dcm",
        tags=["studies"],
        dependencies=[Depends(takes())],
        response_class=Response,
        responses={200: {"content": {"application/dicom": {}}, "description": "the result as a DICOM SR"}},
    )
    def structured_report(study_id: StudyId) -> Response:
        """Return the result of a finished study that came as DICOM as a DICOM Structured Report."""
        why = "it has no Structured Report: none is written for a study that did not come as DICOM"
        return _file(entry_of(service.queue, study_id), "sr.dcm", "application/dicom", why)

    @app.get(
        "/studies/{study_id}/masks.zip",
        tags=["studies"],
        dependencies=[Depends(takes())],
        response_class=Response,
        responses={200: {"content": {"application/zip": {}}, "description": "what the model marked, by image"}},
    )
    def masks(study_id: StudyId) -> Response:
        """Return what a model that segments marked in a finished study: a mask per image, and masks.json."""
        entry = entry_of(service.queue, study_id)
        why = "it has no masks: the model does not segment, or no image of the study was scored"
        content = _zipped(_path(entry, MASKS, why))
        headers = {"content-disposition": f'inline; filename="{entry.id}-masks.zip"'}
        return Response(content, media_type="application/zip", headers=headers)


def _add_state(app: FastAPI, service: Service, studies: ReadingList, answered: Answered, receiver: Receiver) -> None:
    @app.get("/info", tags=["service"], dependencies=[Depends(takes())], response_model=dict[str, Any])
    def info() -> Response:
        """Say what the model judges, for whom it is certified and what it was made from, as `maescreen model info`."""
        return pretty(service.model)

    @app.get("/healthz", tags=["service"], dependencies=[Depends(takes())], response_class=PlainTextResponse)
    async def alive() -> str:
        """Say that the service answers. Needs no token."""
        return "ok\n"

    @app.get(
        "/readyz",
        tags=["service"],
        dependencies=[Depends(takes())],
        response_class=PlainTextResponse,
        responses={503: examples.problem("studies only wait", headers=examples.RETRY)},
    )
    def ready() -> str:
        """Say whether studies are judged; 503 with the reason when they only wait."""
        if (state := service.judging()) != "ready":
            raise Refused(503, f"studies are received and wait: the process that judges is {state}", 10)
        return "ready\n"

    @app.get(
        "/metrics",
        tags=["service"],
        dependencies=[Depends(takes())],
        response_class=Response,
        responses={200: {"content": {metrics.MEDIA_TYPE: {}}, "description": "counts and states"}},
    )
    def measured() -> Response:
        """Return what Prometheus reads."""
        labels = {"sha256": service.model["sha256"], "usable": str(service.model["rule"]["usable"]).lower()}
        state = service.judging()
        said = metrics.text(service.queue, studies, answered, receiver.arriving, state, labels)
        return Response(said, media_type=metrics.MEDIA_TYPE)


def _study(entry: Entry) -> Study:
    content: dict[str, Any] = {"why": [], "judged": None, "model": None, "result": None}
    if entry.state == FAILED:
        content["why"] = [why_failed(entry)]
    elif entry.state == FINISHED:
        stored = read_json(entry.folder / RESULT)
        content = {name: stored[name] for name in content}
    shared = {"id": entry.id, "name": entry.name, "received": entry.received, "state": entry.state}
    return Study.model_validate(shared | content)


def _zipped(listed: FilePath) -> bytes:
    """Return masks.json of a study and the files that it names as a zip archive."""
    stream = io.BytesIO()
    with zipfile.ZipFile(stream, "w", zipfile.ZIP_DEFLATED) as archive:
        for name in [listed.name, *read_json(listed)["files"]]:
            archive.writestr(zipfile.ZipInfo(name), (listed.parent / name).read_bytes(), zipfile.ZIP_DEFLATED)
    return stream.getvalue()


def _path(entry: Entry, name: str, why: str) -> FilePath:
    if entry.state != FINISHED:
        raise Refused(404, f"the study is {entry.state}: it has no result yet" if entry.state != FAILED else FAILED_WHY)
    path = entry.folder / name
    if not path.is_file():
        raise Refused(404, why)
    return path


def _file(entry: Entry, name: str, media_type: str, why: str) -> Response:
    path = _path(entry, name, why)
    return FileResponse(path, media_type=media_type, filename=f"{entry.id}-{name}", content_disposition_type="inline")


FAILED_WHY = "the study has failed: it has no result; GET /studies/ID says why"
