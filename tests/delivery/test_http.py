"""The service under people who know the token and people who do not: right answers, and nothing of what came in."""

from __future__ import annotations

import json
import re
import socket
import threading
import time
from urllib.parse import quote

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from service import BEARER, MODEL, TOKEN, Running, running

from pipeline.delivery.http import answers, pages, server
from pipeline.delivery.http.access import Access, TokenError, read_token

SECRET = "DOE^JANE"
MB = 1024**2
ROW = {
    "study": "",
    "images": 1,
    "decision": "refer",
    "reasons": [],
    "score": 1.25,
    "probability": 0.8,
    "probability_low": 0.7,
    "probability_high": 0.9,
    "threshold": 0.5,
    "typical": False,
    "most_unusual": "size",
    "remarks": [],
    "header_unlike_training": [],
    "model_sha256": MODEL["sha256"],
}


@pytest.fixture(scope="module")
def service(tmp_path_factory) -> Running:
    with running(tmp_path_factory.mktemp("service") / "queue", upload_mb=2, idle_s=5) as up:
        yield up
        assert up.errors == []


def judged(up: Running, name: str = "", **row) -> str:
    """Put a finished study into the queue, as the process that judges does."""
    entry = up.queue.receive("http", name)
    up.queue.submit(entry)
    for taken in up.queue.take(99):
        model = {"title": MODEL["title"], "sha256": MODEL["sha256"], "usable": True}
        content = {"id": taken.id, "name": taken.name, "received": taken.received, "judged": taken.received}
        content |= {"model": model, "why": [], "quarantine": [], "result": {**ROW, "study": taken.id, **row}}
        picture = b'<svg xmlns="http://www.w3.org/2000/svg" width="8" height="8" viewBox="0 0 8 8"></svg>'
        results = {"result.json": json.dumps(content).encode(), "page.pdf": b"%PDF-1.7", "image.svg": picture}
        up.queue.finish(taken, results)
    return entry.id


def browser(up: Running):
    """Return a client that has logged in as a browser does, and what its forms hold."""
    form = {"Content-Type": "application/x-www-form-urlencoded"}
    answer = up.client.with_headers().ask("POST", "/login", f"token={TOKEN}", form)
    assert (answer.status, answer.headers["location"]) == (303, "/")
    client = up.client.with_headers(Cookie=answer.headers["set-cookie"].partition(";")[0])
    return client, re.search(r'name="form" value="([^"]+)"', client.get("/").text)[1]


# ---------------------------------------------------------------- who may ask


@pytest.mark.parametrize("mode", [0o644, 0o640, 0o620, 0o601])
def test_a_token_that_others_can_read_or_write_is_refused(tmp_path, mode):
    file = tmp_path / "token"
    file.write_text(TOKEN)
    file.chmod(mode)
    with pytest.raises(TokenError, match="read or changed by others"):
        read_token(file)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"short", "32 characters or more"),
        (b"", "32 characters"),
        (b"x" * 2000, "one line"),
        (b"a b" * 20, "spaces"),
        (("ä" * 40).encode(), "ASCII"),
        (b"x" * 40 + b"\n" + b"y" * 40, "one line"),
    ],
)
def test_what_is_no_token_is_refused_without_being_shown(tmp_path, content, message):
    file = tmp_path / "token"
    file.write_bytes(content)
    file.chmod(0o600)
    with pytest.raises(TokenError, match=message) as refused:
        read_token(file)
    assert not content or content.decode() not in str(refused.value)
    with pytest.raises(TokenError, match="no such file"):
        read_token(tmp_path / "elsewhere")


def test_every_address_but_healthz_needs_the_token(service):
    described = service.client.get("/openapi.json").json
    stranger, id_ = service.client.with_headers(), judged(service)
    assert stranger.get("/healthz").body == b"ok\n"
    asked = [(m.upper(), path) for path, methods in described["paths"].items() for m in methods] + [
        *(("GET", path) for path in ("/", "/openapi.json", "/reading-list/{study_id}", "/none")),
        ("POST", "/reading-list/{study_id}/outcome"),
    ]
    assert len(asked) > 10
    for method, path in asked:
        where = path.replace("{study_id}", id_)
        for headers in (
            {},
            {"Authorization": "Bearer wrong"},
            {"Authorization": f"Basic {TOKEN}"},
            {"Authorization": f"Bearer {TOKEN}x"},
            {"Cookie": f"maescreen_session={TOKEN}"},
        ):
            answer = stranger.ask(method, where, b"x" if method == "POST" else None, headers)
            assert (answer.status == 401) == (path != "/healthz"), (method, where, headers)
            assert TOKEN not in answer.text
    assert stranger.get("/", Accept="text/html").headers["location"] == "/login"
    assert described["paths"]["/healthz"]["get"]["security"] == []


def test_the_token_is_compared_in_constant_time(monkeypatch):
    from pipeline.delivery.http import access

    compared = []
    monkeypatch.setattr(access.hmac, "compare_digest", lambda a, b: compared.append((a, b)) or a == b)
    known = Access(TOKEN)
    assert (known.allows(TOKEN), known.allows("x"), known.allows("")) == (True, False, False)
    assert [(len(a), len(b)) for a, b in compared] == [(32, 32)] * 3


# ---------------------------------------------------------------- studies in


def test_a_study_is_on_disk_before_its_sender_is_told(service):
    content = bytes(range(256)) * 8000
    answer = service.client.ask("POST", "/studies?name=chest%207", content)
    assert answer.status == 202
    entry = service.queue.find(answer.json["id"])
    assert (entry.state, entry.name, entry.source) == ("incoming", "chest 7", "http")
    assert (entry.files / "upload").read_bytes() == content
    found = service.client.get(answer.headers["location"]).json
    assert (found["state"], found["result"], found["name"]) == ("incoming", None, "chest 7")
    later = service.client.get(f"{answer.headers['location']}/page.pdf")
    assert (later.status, later.why) == (404, "the study is incoming: it has no result yet")


@pytest.mark.parametrize(
    "name",
    [
        "../../../etc/passwd",
        "..\\..\\x",
        "/abs",
        "a\0b\r\nSet-Cookie: x",
        "\x1b[31mred",
        "<script>alert(1)</script>",
        "x" * 110,
        "胸部 7",
        "'\"; DROP",
        "%2e%2e%2f",
        "\u202egnp",
    ],
)
def test_a_name_is_shown_and_never_a_path(service, name):
    before = service.files
    by_query = service.client.ask("POST", f"/studies?name={quote(name)}", b"x").json["id"]
    by_header = service.client.ask("POST", "/studies", b"x", {"X-Study-Name": quote(name)}).json["id"]
    new = [path for path in service.files if path not in before]
    assert {path.split("/")[1] for path in new} == {by_query, by_header}
    assert {path.split("/", 2)[2] for path in new if path.count("/") > 1} == {"entry.json", "files", "files/upload"}
    shown = service.queue.find(by_query).name
    assert shown == service.queue.find(by_header).name
    assert not re.search(r"[/\\\x00-\x1f<>\"']", shown)
    page = service.client.get("/").text
    assert "<script" not in page
    assert "\u202e" not in page


def test_too_much_is_refused_while_it_arrives_and_leaves_nothing(service, monkeypatch):
    before = service.files
    stated = service.client.raw(
        b"POST /studies HTTP/1.1\r\nHost: x\r\nAuthorization: Bearer "
        + TOKEN.encode()
        + b"\r\nContent-Length: 99999999999\r\n\r\n"
    )
    assert stated.startswith(b"HTTP/1.1 413")

    monkeypatch.setattr(answers, "LET_ARRIVE_BYTES", 8 * MB)
    sent = 0

    def endless():
        nonlocal sent
        while True:
            sent += 65536
            yield bytes(65536)

    with pytest.raises((BrokenPipeError, ConnectionResetError)):  # who never ends cannot be told
        service.client.ask("POST", "/studies", endless(), {"Transfer-Encoding": "chunked"})
    assert sent < 40 * MB
    assert service.client.ask("POST", "/studies", bytes(2 * MB + 1)).why.startswith("a study has at most 2 MB")
    assert service.files == before


def test_an_empty_body_and_one_that_breaks_off_leave_nothing(service):
    before = service.files
    assert service.client.ask("POST", "/studies", b"").status == 400
    with socket.create_connection(("127.0.0.1", service.client.port)) as stream:
        head = f"POST /studies HTTP/1.1\r\nHost: x\r\nAuthorization: Bearer {TOKEN}\r\nContent-Length: 1000\r\n\r\n"
        stream.sendall(head.encode() + b"half of it")
        time.sleep(0.1)
    until = time.monotonic() + 5
    while service.files != before and time.monotonic() < until:
        time.sleep(0.01)
    assert service.files == before


def test_slow_senders_are_let_go(tmp_path, monkeypatch):
    monkeypatch.setattr(server, "HEAD_S", 0.3)
    monkeypatch.setattr(answers, "LET_ARRIVE_S", 0.2)
    head = (
        f"POST /studies HTTP/1.1\r\nHost: x\r\nAuthorization: Bearer {TOKEN}\r\nContent-Length: 1000\r\n\r\n".encode()
    )
    with running(tmp_path / "queue", idle_s=0.3, upload_s=0.8) as up:
        assert up.client.raw(head + b"x").startswith(b"HTTP/1.1 408")
        with socket.create_connection(("127.0.0.1", up.client.port), timeout=5) as stream:
            stream.sendall(head)
            with pytest.raises((BrokenPipeError, ConnectionResetError)):  # noqa: PT012 - until it is let go
                for _ in range(100):
                    stream.sendall(b"x")
                    time.sleep(0.1)
        assert up.client.raw(b"GET / HTTP/1.1\r\nHost: x\r\nX-Slow: ") == b""
        assert up.client.raw(b"") == b""
        # Also when the body of a request that takes none never ends.
        asked = b"GET /healthz HTTP/1.1\r\nHost: x\r\nContent-Length: 100\r\n\r\n"
        assert up.client.raw(asked, timeout_s=0.5).endswith(b"ok\n")
        assert up.queue.counts()["receiving"] == 0


def test_who_comes_too_often_is_told_when_to_come_again(tmp_path):
    with running(tmp_path / "queue", most_waiting=2, most_uploads=2, idle_s=20) as up:
        slow = [socket.create_connection(("127.0.0.1", up.client.port)) for _ in range(2)]
        for stream in slow:
            stream.sendall(
                f"POST /studies HTTP/1.1\r\nHost: x\r\nAuthorization: Bearer {TOKEN}\r\n"
                "Content-Length: 9\r\n\r\n12345678".encode()
            )
        until = time.monotonic() + 10
        while up.queue.counts()["receiving"] < 2 and time.monotonic() < until:
            time.sleep(0.01)
        refused = up.client.ask("POST", "/studies", b"x")
        assert (refused.status, refused.headers["retry-after"]) == (429, "2")
        for stream in slow:
            stream.sendall(b"9")
            assert stream.recv(12) == b"HTTP/1.1 202"
            stream.close()
        refused = up.client.ask("POST", "/studies", b"x")
        assert (refused.status, refused.headers["retry-after"]) == (429, "2")
        assert refused.why == "2 studies wait; come again later"
        up.queue.take(1)
        assert up.client.ask("POST", "/studies", b"x").status == 429  # it is being judged, and may come back
        assert len(up.queue.ids("incoming")) == 1


def test_without_room_nothing_is_taken(tmp_path):
    with running(tmp_path / "queue", free_mb=10**9) as up:
        refused = up.client.ask("POST", "/studies", b"x")
        assert (refused.status, refused.headers["retry-after"]) == (503, "60")
        assert not up.queue.ids("incoming")


def test_uploads_that_nobody_finished_go_when_the_service_starts(tmp_path):
    from pipeline.delivery.queue import Queue

    before = Queue(tmp_path / "queue")
    entry, dicom = before.receive("http"), before.receive("dicom")
    for descriptor in before._held.values():
        import os

        os.close(descriptor)
    with running(tmp_path / "queue") as up:
        assert up.client.get("/healthz").status == 200
        assert not entry.folder.exists()
        assert dicom.folder.exists()


# ---------------------------------------------------------------- results out


def test_a_finished_study_has_its_result_and_page(service):
    id_ = judged(service, "knee")
    found = service.client.get(f"/studies/{id_}").json
    assert (found["state"], found["result"]["score"], found["why"]) == ("finished", 1.25, [])
    page = service.client.get(f"/studies/{id_}/page.pdf")
    assert (page.body, page.headers["content-type"]) == (b"%PDF-1.7", "application/pdf")
    report = service.client.get(f"/studies/{id_}/sr.dcm")
    assert (report.status, "no Structured Report" in report.why) == (404, True)
    (service.queue.find(id_).folder / "sr.dcm").write_bytes(b"DICM")
    assert service.client.get(f"/studies/{id_}/sr.dcm").body == b"DICM"


def test_a_failed_study_says_why(service):
    service.queue.submit(service.queue.receive("http", "odd"))
    failed = [service.queue.fail(taken, "it holds no file") for taken in service.queue.take(99)][-1]
    found = service.client.get(f"/studies/{failed.id}").json
    assert (found["state"], found["why"]) == ("failed", ["it holds no file"])
    assert service.client.get(f"/studies/{failed.id}/page.pdf").status == 404
    assert "it holds no file" in service.client.get("/").text
    assert "look at it yourself. it holds no file" in service.client.get(f"/reading-list/{failed.id}").text


def test_ready_and_metrics_tell_what_is_judged(tmp_path):
    with running(tmp_path / "queue") as up:
        assert up.client.get("/readyz").body == b"ready\n"
        judged(up)
        up.judging[0] = "stalled"
        assert up.client.get("/readyz").status == 503
        assert "Nothing is judged at this moment" in up.client.get("/").text
        lines = up.client.get("/metrics").text.splitlines()
        samples = dict(line.rsplit(" ", 1) for line in lines if not line.startswith("#"))
        assert samples['maescreen_finished_studies{decision="refer"}'] == "1"
        assert samples["maescreen_judging_ready"] == "0"
        assert samples['maescreen_http_requests_total{method="GET",route="/readyz",status="503"}'] == "1"
        assert all(re.fullmatch(r"[a-z_]+(\{[^}]*\})? [0-9.e+-]+", line) for line in lines if not line.startswith("#"))


@pytest.mark.parametrize(
    "path",
    [
        "/studies/..%2f..%2fetc%2fpasswd",
        "/studies/../../etc/passwd",
        "/studies/%00",
        "/studies/....//",
        "//etc/passwd",
        "/studies/\\..\\..",
        "/reading-list/x/..%2fresult.json",
        "/reading-list/%2e%2e/x",
        "/studies/" + "a" * 9000,
        "/static/x",
        "/studies/{id}/../../entry.json",
        "/studies/{id}/result.json",
        "/reading-list/{id}/entry.json",
        "/reading-list/{id}/%2e%2e%2fentry.json",
        "/%c0%ae%c0%ae/",
        "/docs",
    ],
)
def test_no_address_leads_out(service, path):
    where = path.replace("{id}", judged(service))
    said = service.client.raw(f"GET {where} HTTP/1.1\r\nHost: x\r\n{_lines()}Connection: close\r\n\r\n".encode())
    assert said[9:12] in (b"404", b"400"), said[:100]
    assert b"root:" not in said
    assert b"received" not in said


def _lines() -> str:
    return "".join(f"{name}: {value}\r\n" for name, value in BEARER.items())


@pytest.mark.parametrize(
    "path", ["/studies/{id}", "/info", "/healthz", "/readyz", "/metrics", "/", "/reading-list/{id}"]
)
def test_unknown_fields_are_errors_that_quote_nothing(service, path):
    where = path.replace("{id}", judged(service))
    answer = service.client.get(f"{where}?{quote(SECRET)}={quote(SECRET)}")
    assert answer.status == 422
    assert SECRET not in answer.text


@pytest.mark.parametrize(
    "query", ["nam=x", "name=a&name=b", f"name={'x' * 230}", "decision=perhaps", "page=0", "page=x"]
)
def test_fields_that_are_wrong_are_errors(service, query):
    for method, path in (("POST", "/studies"), ("GET", "/")):
        assert service.client.ask(method, f"{path}?{query}", b"x").status == 422


def test_what_breaks_inside_is_an_error_without_a_trace(tmp_path):
    with running(tmp_path / "queue") as up:
        id_ = judged(up)
        (up.queue.find(id_).folder / "result.json").write_text(f'{{"{SECRET}": ')
        answer = up.client.get(f"/studies/{id_}")
        assert (answer.status, answer.why) == (500, "the service made an error")
        until = time.monotonic() + 5
        while not up.errors and time.monotonic() < until:  # the answer goes out first
            time.sleep(0.01)
        assert [type(error).__name__ for error in up.errors] == ["JSONDecodeError"]
        assert up.client.get("/").status == 200  # the list leaves it out


@settings(max_examples=25, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    st.sampled_from(["GET", "POST", "PUT", "DELETE", "HEAD", "OPTIONS", "TRACE", "CONNECT", "\x00"]),
    st.one_of(st.sampled_from(["/", "/studies", "/login", "/info", "*", "http://x/"]), st.text(max_size=20)),
    st.dictionaries(
        st.sampled_from(
            [
                "Authorization",
                "Cookie",
                "Content-Length",
                "Content-Type",
                "Accept",
                "Origin",
                "Transfer-Encoding",
                "Expect",
                "Upgrade",
            ]
        ),
        st.text(max_size=20),
        max_size=4,
    ),
    st.binary(max_size=50),
)
def test_garbage_is_answered_and_never_breaks_anything(service, method, path, headers, body):
    lines = "".join(f"{name}: {value}\r\n" for name, value in {**BEARER, **headers}.items())
    said = service.client.raw(
        f"{method} {path} HTTP/1.1\r\nHost: x\r\nConnection: close\r\n{lines}\r\n".encode() + body, timeout_s=0.2
    )
    assert not said or re.match(rb"HTTP/1\.1 [1234]\d\d", said), said[:200]


def test_openapi_describes_what_is_there_with_examples(service):
    described = service.client.get("/openapi.json").json
    text = json.dumps(described)
    assert set(described["paths"]) == {
        "/studies",
        "/studies/{study_id}",
        "/studies/{study_id}/page.pdf",
        "/studies/{study_id}/sr.dcm",
        "/info",
        "/healthz",
        "/readyz",
        "/metrics",
    }
    assert "application/dicom" in text
    assert {"200", "401", "404", "422"} <= described["paths"]["/studies/{study_id}"]["get"]["responses"].keys()
    assert {"202", "408", "413", "429", "503"} <= described["paths"]["/studies"]["post"]["responses"].keys()
    assert described["paths"]["/studies"]["post"]["responses"]["202"]["content"]["application/json"]["example"]


def test_many_clients_at_once_each_get_their_own_study(service):
    ids: list[str] = []

    def send(number: int) -> None:
        for turn in range(3):
            ids.append(service.client.ask("POST", "/studies", f"{number} {turn}".encode() * 2000).json["id"])

    threads = [threading.Thread(target=send, args=(number,)) for number in range(12)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    contents = {(service.queue.find(id_).files / "upload").read_bytes() for id_ in ids}
    assert (len({*ids}), len(contents)) == (36, 36)


# ---------------------------------------------------------------- people


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
    import base64
    import hashlib

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
