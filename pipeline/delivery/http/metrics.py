"""What the service counts, in Prometheus' text format (version 0.0.4)."""

from __future__ import annotations

import shutil
from collections.abc import Iterable, Mapping
from datetime import UTC, datetime

from pipeline.delivery.http.answers import BUCKETS_S, Answered
from pipeline.delivery.queue import INCOMING, Queue
from pipeline.delivery.reading_list import ReadingList

MEDIA_TYPE = "text/plain; version=0.0.4; charset=utf-8"
Sample = tuple[Mapping[str, object], float]


def text(
    queue: Queue, studies: ReadingList, answered: Answered, arriving: int, judging: str, model: Mapping[str, object]
) -> str:
    """Return all metrics; `judging` is the state of the process that judges, `model` its labels."""
    requests = [({"method": m, "route": r, "status": s}, n) for (m, r, s), n in sorted(answered.requests.items())]
    routes = sorted(answered.total_s)
    limits = (*BUCKETS_S, float("inf"))
    buckets = [({"route": r, "le": _number(le)}, answered.seconds[r, le]) for r in routes for le in limits]
    count = [({"route": r}, answered.seconds[r, float("inf")]) for r in routes]
    name = "maescreen_http_request_seconds"
    lines = [
        *_metric("maescreen_model", "gauge", "the model in use", [(model, 1)]),
        *_metric("maescreen_judging_ready", "gauge", "1 when studies are judged", [({}, judging == "ready")]),
        *_metric(
            "maescreen_queue_studies",
            "gauge",
            "studies by state: the folders of the queue",
            [({"state": state}, n) for state, n in queue.counts().items()],
        ),
        *_metric("maescreen_queue_oldest_seconds", "gauge", "how long the oldest has waited", [({}, _oldest_s(queue))]),
        *_metric("maescreen_queue_free_bytes", "gauge", "room left", [({}, shutil.disk_usage(queue.root).free)]),
        *_metric("maescreen_uploads", "gauge", "studies that arrive at this moment", [({}, arriving)]),
        *_metric(
            "maescreen_finished_studies",
            "gauge",
            "finished studies by decision",
            [({"decision": decision}, n) for decision, n in sorted(studies.counts().items())],
        ),
        *_metric("maescreen_http_requests_total", "counter", "answers by route and status", requests),
        *_metric(name, "histogram", "how long answers took", []),
        *_samples(f"{name}_bucket", buckets),
        *_samples(f"{name}_sum", [({"route": r}, answered.total_s[r]) for r in routes]),
        *_samples(f"{name}_count", count),
    ]
    return "\n".join(lines) + "\n"


def _oldest_s(queue: Queue) -> float:
    waiting = queue.ids(INCOMING)
    entry = queue.find(waiting[0]) if waiting else None
    if entry is None:
        return 0.0
    return max(0.0, (datetime.now(UTC) - datetime.fromisoformat(entry.received)).total_seconds())


def _metric(name: str, kind: str, meaning: str, samples: Iterable[Sample]) -> list[str]:
    return [f"# HELP {name} {meaning}", f"# TYPE {name} {kind}", *_samples(name, samples)]


def _samples(name: str, samples: Iterable[Sample]) -> list[str]:
    return [f"{name}{_labels(labels)} {_number(float(value))}" for labels, value in samples]


def _labels(labels: Mapping[str, object]) -> str:
    pairs = [f'{name}="{_escaped(str(value))}"' for name, value in labels.items()]
    return f"{{{','.join(pairs)}}}" if pairs else ""


def _escaped(value: str) -> str:
    return value.replace("\\", "\\\\").replace('"', '\\"').replace("\n", "\\n")


def _number(value: float) -> str:
    return "+Inf" if value == float("inf") else repr(value) if value % 1 else str(int(value))
