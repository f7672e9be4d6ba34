"""The service under people who know the token and people who do not: right answers, and nothing of what came in."""

from __future__ import annotations

import json
import os
import re
import socket
import threading
import time
from urllib.parse import quote

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from service import BEARER, TOKEN, Running, judged, running

from pipeline.delivery.http import answers, server

SECRET = "DOE^JANE"
MB = 1024**2


@pytest.fixture(scope="module")
def service(tmp_path_factory) -> Running:
    with running(tmp_path_factory.mktemp("service") / "queue", upload_mb=2, idle_s=5) as up:
        yield up
        assert up.errors == []


# ---------------------------------------------------------------- who may ask


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


def settled(service: Running, before: list[str]) -> bool:
    """Whether nothing of a refused study stays, within a moment: the sender is answered first."""
    until = time.monotonic() + 10
    while service.files != before and time.monotonic() < until:
        time.sleep(0.01)
    return service.files == before


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
            yield b"10000\r\n" + bytes(65536) + b"\r\n"

    with pytest.raises((BrokenPipeError, ConnectionResetError)):  # who never ends cannot be told
        service.client.ask("POST", "/studies", endless(), {"Transfer-Encoding": "chunked"})
    assert 2 * MB < sent < 40 * MB
    assert service.client.ask("POST", "/studies", bytes(2 * MB + 1)).why.startswith("a study has at most 2 MB")
    assert settled(service, before)


def test_an_empty_body_and_one_that_breaks_off_leave_nothing(service):
    before = service.files
    assert service.client.ask("POST", "/studies", b"").status == 400
    with socket.create_connection(("127.0.0.1", service.client.port)) as stream:
        head = f"POST /studies HTTP/1.1\r\nHost: x\r\nAuthorization: Bearer {TOKEN}\r\nContent-Length: 1000\r\n\r\n"
        stream.sendall(head.encode() + b"half of it")
        time.sleep(0.1)
    assert settled(service, before)


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
        "/studies/{study_id}/masks.zip",
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
