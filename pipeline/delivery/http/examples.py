"""The words and examples of openapi.json."""

from __future__ import annotations

from typing import Any

ID = "20261129T124512123Z-3f9a1c02d4e5f601"
NAME = "how the study is called in the list, in place of its id; also as header X-Study-Name, percent-encoded"
BINARY = {"schema": {"type": "string", "format": "binary", "minLength": 1}}
BODY: dict[str, Any] = {
    "required": True,
    "description": "the bytes of one file, of whatever format, or of a zip archive of all files of one study; no form",
    "content": {"application/octet-stream": BINARY, "application/dicom": BINARY, "application/zip": BINARY},
}
PROBLEM = {
    "application/json": {
        "schema": {"type": "object", "required": ["detail"], "properties": {"detail": {"type": "string"}}},
        "example": {"detail": "there is no study with this id"},
    }
}


def problem(why: str, **more: Any) -> dict[str, Any]:
    """Return the description of an error."""
    return {"description": why, "content": PROBLEM, **more}


ERRORS: dict[int | str, dict[str, Any]] = {
    401: problem("no token, or a wrong one"),
    404: problem("there is no such thing; detail says what is missing"),
    422: problem("the request has a field that this address does not take"),
}
RETRY = {"Retry-After": {"description": "seconds", "schema": {"type": "integer"}}}
WAITING = {"id": ID, "state": "incoming", "location": f"/studies/{ID}"}
ACCEPTED: dict[int | str, dict[str, Any]] = {
    202: {
        "description": "the study is on disk and waits for its turn",
        "content": {"application/json": {"example": WAITING}},
        "headers": {"Location": {"description": "where it is found", "schema": {"type": "string"}}},
    },
    400: problem("the body is empty or broke off"),
    408: problem("the body came too slowly"),
    413: problem("the body is too large"),
    429: problem("too many studies wait or arrive", headers=RETRY),
    503: problem("there is no room on the disk", headers=RETRY),
}
RESULT = {
    "study": ID,
    "images": 1,
    "decision": "refer",
    "reasons": [],
    "score": 1.417,
    "probability": 0.81,
    "threshold": -0.62,
    "recall_target": 0.95,
    "confidence": 0.95,
    "typical": True,
}
SENT = {"id": ID, "name": "chest 7", "received": "2026-11-29T12:45:12.123+00:00"}
FINISHED = {
    **SENT,
    "state": "finished",
    "why": [],
    "judged": "2026-11-29T12:45:14+00:00",
    "model": {"title": "Pneumonia on chest films", "usable": True},
    "result": RESULT,
}
WAITS = {**SENT, "state": "incoming", "why": [], "judged": None, "model": None, "result": None}
STUDY: dict[int | str, dict[str, Any]] = {
    200: {
        "description": "a study; `result` as docs/reference/results.md explains its fields, null until it is finished",
        "content": {"application/json": {"examples": {"finished": {"value": FINISHED}, "waits": {"value": WAITS}}}},
    }
}


def secured(schema: dict[str, Any]) -> dict[str, Any]:
    """Return the description with the token that every address but /healthz asks for."""
    schema.setdefault("components", {})["securitySchemes"] = {"token": {"type": "http", "scheme": "bearer"}}
    for path, methods in schema["paths"].items():
        for described in methods.values():
            described["security"] = [] if path == "/healthz" else [{"token": []}]
    return schema
