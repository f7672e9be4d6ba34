"""The pages for people: login, reading list, study, outcome; no script, no form that another page can send."""

from __future__ import annotations

import base64
import hashlib
import json
import re

import pytest
from service import MODEL, TOKEN, Running, browser, judged, running

from pipeline.delivery.http import pages


@pytest.fixture(scope="module")
def service(tmp_path_factory) -> Running:
    with running(tmp_path_factory.mktemp("service") / "queue", upload_mb=2, idle_s=5) as up:
        yield up
        assert up.errors == []


def test_a_browser_logs_in_and_out_without_ever_keeping_the_token(service):
    stranger = service.client.with_headers()
    assert 'type="password"' in stranger.get("/login").text
    form = {"Content-Type": "application/x-www-form-urlencoded"}
    wrong = stranger.ask("POST", "/login", "token=wrong-wrong-wrong", form)
    assert (wrong.status, "set-cookie" in wrong.headers, "wrong-wrong" in wrong.text) == (403, False, False)
    right = stranger.ask("POST", "/login", f"token={TOKEN}", form).headers["set-cookie"]
    assert TOKEN not in right
    assert {"HttpOnly", "SameSite=strict", "Path=/"} <= {part.strip() for part in right.split(";")}
    assert "Secure" not in right
    proxied = stranger.ask("POST", "/login", f"token={TOKEN}", {**form, "X-Forwarded-Proto": "https"})
    assert "Secure" in proxied.headers["set-cookie"]
    client, hidden = browser(service)
    assert client.get("/").status == client.get("/info").status == 200
    assert client.ask("POST", "/studies", b"x").status == 401  # a page of another site could send one
    assert client.ask("POST", "/logout", "form=other", form).status == 403
    assert client.ask("POST", "/logout", f"form={hidden}", form).headers["location"] == "/login"
    assert client.get("/").status == 401


@pytest.mark.parametrize(
    "body", ["", "token", f"token={TOKEN}&more=1", f"token={TOKEN}&token={TOKEN}", "x" * 5000, "&" * 90]
)
def test_a_form_with_other_fields_is_refused(service, body):
    form = {"Content-Type": "application/x-www-form-urlencoded"}
    assert service.client.ask("POST", "/login", body, form).status in (413, 422)
    multipart = {"Content-Type": "multipart/form-data; boundary=x"}
    assert service.client.ask("POST", "/login", body, multipart).status == 415


def test_an_outcome_is_recorded_from_the_page_of_the_study_alone(service):
    id_ = judged(service, "ankle")
    client, hidden = browser(service)
    table, where = service.queue.root / "outcomes.jsonl", f"/reading-list/{id_}/outcome"
    form = {"Content-Type": "application/x-www-form-urlencoded"}
    body = f"form={hidden}&outcome=condition+found"
    for refused in (
        client.ask("POST", where, "outcome=condition+found", form),
        client.ask("POST", where, "form=guess&outcome=condition+found", form),
        client.ask("POST", where, f"form={hidden}&outcome=maybe", form),
        client.ask("POST", where, body, {**form, "Origin": "https://elsewhere.example"}),
        client.ask("POST", where, body, {**form, "Sec-Fetch-Site": "cross-site"}),
        client.ask("POST", where, body, {"Content-Type": "text/plain"}),
        service.client.ask("POST", where, body, form),  # a program with the token, and no page
        client.ask("POST", "/reading-list/20260101T000000000Z-0123456789abcdef/outcome", body, form),
    ):
        assert refused.status in (403, 404, 415, 422)
    assert not table.exists()
    origin = {**form, "Origin": f"http://127.0.0.1:{client.port}", "Sec-Fetch-Site": "same-origin"}
    assert client.ask("POST", where, body, origin).headers["location"] == f"/reading-list/{id_}#outcome"
    assert client.ask("POST", where, f"form={hidden}&outcome=unknown", origin).status == 303
    lines = [json.loads(line) for line in table.read_text().splitlines()]
    assert [line["outcome"] for line in lines] == ["condition found", "unknown"]
    assert lines[0] | {"time": ""} == {
        "study": id_,
        "outcome": "condition found",
        "time": "",
        "score": 1.25,
        "model_hash": MODEL["sha256"],
        "decision": "refer",
    }
    with table.open("a") as stream:
        stream.write('{"study": "cut')
    assert "<strong>unknown</strong>" in client.get(f"/reading-list/{id_}").text
    client.ask("POST", where, f"form={hidden}&outcome=not+found", origin)
    assert "<strong>not found</strong>" in client.get(f"/reading-list/{id_}").text


def test_the_list_filters_orders_and_turns_pages(tmp_path, monkeypatch):
    monkeypatch.setattr(pages, "PER_PAGE", 5)
    with running(tmp_path / "queue") as up:
        for number in range(8):
            judged(up, f"study {number}", score=number / 10, decision="refer" if number > 3 else "no refer")
        judged(up, "lost", score=None, probability=None, typical=None, decision="not assessable")

        def shown(query: str) -> list[str]:
            return re.findall(r'<a href="/reading-list/[^"]+">([^<]+)</a>', up.client.get(f"/{query}").text)

        first = shown("")
        assert (len(first), first[:3]) == (5, ["lost", "study 7", "study 6"])
        assert shown("?page=2")[-1] == shown("?page=9")[-1] == "study 0"
        assert shown("?order=time")[:2] == ["lost", "study 7"]
        assert shown("?decision=not%20assessable") == ["lost"]
        assert shown("?decision=no%20refer&name=STUDY%20")[:2] == ["study 3", "study 2"]
        assert "page=2" in re.search(r'<a href="([^"]+)" rel="next">', up.client.get("/?order=time").text)[1]
        assert "No finished study is like that" in up.client.get("/?name=%3Cb%3E").text
        assert 'value="&lt;b&gt;"' in up.client.get("/?name=%3Cb%3E").text


def test_pages_hold_no_script_and_nothing_from_elsewhere(service):
    id_ = judged(service, "wrist")
    for path in ("/", f"/reading-list/{id_}", "/login"):
        page = browser(service)[0].get(path)
        style = re.search(r"<style>(.*?)</style>", page.text, re.DOTALL)[1]
        digest = base64.b64encode(hashlib.sha256(style.encode()).digest()).decode()
        allowed = page.headers["content-security-policy"]
        assert f"style-src 'sha256-{digest}'" in allowed
        assert allowed.startswith("default-src 'none'; ")
        assert not re.search(r"<script|javascript:|\son\w+=|style=|https?://", page.text)
        assert not re.search(r"(src|href)=\"(?!/|#|data:,)", page.text)
        assert "Shadows &amp; &lt;lights&gt;" in page.text or path == "/login"
        assert page.text.count("<h1>") == 1
        labelled = set(re.findall(r'<label for="(\w+)"', page.text))
        assert {*re.findall(r'<(?:input|select) [^>]*?id="(\w+)"', page.text)} == labelled


def test_a_model_that_may_not_decide_shows_no_decision(tmp_path):
    from pipeline.delivery.http.pages import NO_DECISION

    unusable = {**MODEL, "rule": {"usable": False, "not_usable_because": ["its gate failed"]}}
    with running(tmp_path / "queue", unusable) as up:
        id_ = judged(up)
        path = up.queue.find(id_).folder / "result.json"
        content = json.loads(path.read_text())
        path.write_text(json.dumps({**content, "model": {**content["model"], "usable": False}}))
        for page in (up.client.get("/").text, up.client.get(f"/reading-list/{id_}").text):
            assert NO_DECISION[1] in page
            assert "▲ REFER" not in page
            assert "may not be used to refer anyone: its gate failed" in page
