"""The lights on the reading list: what monitor would say of the queue, or why there are none."""

import json

import pytest
from delivery.followed import make_model
from service import BEARER, running

from pipeline.delivery.lights import StandingLights
from pipeline.delivery.queue import Queue
from pipeline.inference.model_folder import verified


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    return make_model(tmp_path_factory.mktemp("model") / "model")


def standing(model, root) -> StandingLights:
    folder, sha256 = model
    return StandingLights.of(root, folder, verified(folder)[0], sha256, None)


def judge(queue: Queue, sha256: str, number: int, decision: str) -> None:
    """Put finished studies into the queue."""
    for _ in range(number):
        queue.submit(queue.receive("http"))
    for entry in queue.take(number):
        row = {"study": entry.id, "decision": decision, "score": None, "typicality": None, "study_uid": "", "path": ""}
        content = {"schema": "study/1", "received": entry.received, "result": row | {"model_sha256": sha256}}
        queue.finish(entry, {"result.json": json.dumps(content).encode()})


def test_lights_are_those_of_the_studies_that_this_model_judged(model, tmp_path):
    queue = Queue(tmp_path)
    lights = standing(model, queue.root)
    assert (lights.seen.lights, lights.seen.why) == ((), "Not looked at yet.")
    lights.look()
    assert lights.seen.why == "No study was judged by this model yet."
    judge(queue, "0" * 64, 3, "refer")
    lights.look()
    assert lights.seen.why == "No study was judged by this model yet."
    judge(queue, model[1], 60, "not assessable")
    lights.look()
    (quality,) = [light for light in lights.seen.lights if light.kind == "quality"]
    assert (quality.level, lights.seen.why) == ("red", "")
    assert lights.seen.at


def test_a_model_without_decisions_is_watched_by_nothing_and_says_why(tmp_path):
    folder, sha256 = make_model(tmp_path / "model", usable=False)
    lights = StandingLights.of(tmp_path / "queue", folder, verified(folder)[0], sha256, None)
    lights.look()
    assert lights.seen.lights == ()
    assert lights.seen.why.startswith("Nothing can be watched: the model gives no decisions")


def test_the_list_shows_each_light_in_words_with_what_to_do(model, tmp_path):
    queue = Queue(tmp_path / "watched")
    lights = standing(model, queue.root)
    judge(queue, model[1], 60, "not assessable")
    with running(tmp_path / "list", lights=lights) as up:
        lights.look()
        text = up.client.with_headers(**BEARER).get("/").text
    assert "Is the model still what was certified?" in text
    assert "✕ alarm" in text
    assert "Look at the reasons in results.csv" in text
