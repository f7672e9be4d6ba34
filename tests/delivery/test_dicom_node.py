"""listen: images become studies, results reach the archive, and no crash loses or doubles anything."""

from __future__ import annotations

import datetime
import email
import email.policy
import ipaddress
import json
import random
import shutil
import signal
import socket
import ssl
import subprocess
import sys
import threading
import time
from contextlib import suppress
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pydicom
import pytest
from delivery.dicom_files import errors_of
from hypothesis import given
from hypothesis import strategies as st
from small_model import image, small_model
from typer.testing import CliRunner

from pipeline.cli import app
from pipeline.commands.listen import check
from pipeline.delivery.dicom.studies import DELIVERED, OBJECTS, UNDELIVERED
from pipeline.delivery.node.c_store import Archive
from pipeline.delivery.node.outbox import NotReached, Outbox, Refused
from pipeline.delivery.node.receiver import ListenError, Receiving, spool_of
from pipeline.delivery.node.sorting import Sorter
from pipeline.delivery.node.stow import Stow, multipart, stored
from pipeline.delivery.queue import Queue

pytest.importorskip("pynetdicom")


class Clock:
    now = 0.0

    def __call__(self) -> float:
        return self.now


# ---------------------------------------------------------------- studies


@pytest.fixture
def node(tmp_path):
    clock = Clock()
    queue = Queue(tmp_path / "queue")
    return queue, Sorter(queue, quiet_s=10, keep_hours=1, clock=clock), clock


def arrive(queue: Queue, *contents: bytes) -> None:
    for content in contents:
        (spool_of(queue.root) / f"{time.time_ns():020d}-0.dcm").write_bytes(content)


def images_of(queue: Queue, entry_id: str) -> set[str]:
    entry = queue.find(entry_id)
    return {pydicom.dcmread(path, stop_before_pixels=True).SOPInstanceUID for path in entry.files.iterdir()}


def test_a_study_is_whole_when_no_more_of_it_comes(node):
    queue, sorter, clock = node
    arrive(queue, image(1, 1), image(2, 1), image(1, 2))
    assert sorter.step() == []
    assert (sorter.receiving, queue.counts()["incoming"]) == (2, 0)
    clock.now = 9
    arrive(queue, image(1, 3))
    assert sorter.step() == []
    clock.now = 12
    (second,) = sorter.step()
    clock.now = 20
    (first,) = sorter.step()
    assert images_of(queue, first) == {"2.25.10011", "2.25.10021", "2.25.10031"}
    assert images_of(queue, second) == {"2.25.20011"}
    assert not list(spool_of(queue.root).glob("*.dcm"))


def test_an_image_that_is_sent_again_is_one_image(node):
    queue, sorter, _ = node
    arrive(queue, image(1, 1), image(1, 1))
    sorter.step()
    (entry_id,) = sorter.step(everything=True)
    assert len(list(queue.find(entry_id).files.iterdir())) == 1
    arrive(queue, image(1, 1))  # the sender has not seen that it was acknowledged
    sorter.step()
    assert sorter.step(everything=True) == []
    assert queue.counts() == {"receiving": 0, "incoming": 1, "processing": 0, "finished": 0, "failed": 0}


def test_a_late_image_brings_the_whole_study_again(node):
    queue, sorter, _ = node
    arrive(queue, image(1, 1), image(1, 2))
    (first,) = sorter.step(everything=True)
    (entry,) = queue.take(1)
    queue.finish(entry, {}, keep_files=True)
    arrive(queue, image(1, 3))
    (second,) = sorter.step(everything=True)
    assert images_of(queue, second) == {*images_of(queue, first), "2.25.10031"}
    sorter.keep_hours = 0
    sorter.clean()
    assert not queue.find(first).files.exists()
    assert queue.find(second).files.exists()


def test_what_has_no_header_is_a_study_of_its_own(node):
    queue, sorter, _ = node
    arrive(queue, b"\0" * 128 + b"DICM" + b"rubbish", image(1, StudyInstanceUID=None), image(2, PatientID=None))
    assert len(sorter.step(everything=True)) == 3


def test_two_patients_under_one_study_uid_are_two_studies(node):
    queue, sorter, _ = node
    arrive(queue, image(1, 1), image(1, 2, PatientID="somebody else"))
    assert len(sorter.step(everything=True)) == 2


# ---------------------------------------------------------------- the way out


class Told:
    """A destination that does as it is told."""

    name = "ARCHIVE"

    def __init__(self) -> None:
        self.got: list[str] = []
        self.error: dict[str, Exception] = {}

    def send(self, files):
        entry_id = files[0].parent.name
        if error := self.error.get(entry_id, self.error.get("")):
            raise error
        self.got.append(entry_id)


def finished(queue: Queue, count: int) -> list[str]:
    for _ in range(count):
        queue.submit(queue.receive("dicom"))
    ids = []
    for entry in queue.take(count):
        queue.finish(entry, {"sr.dcm": b"", UNDELIVERED: b'{"attempts": 0, "last": ""}'})
        ids.append(entry.id)
    return ids


def test_results_wait_until_the_archive_has_acknowledged_them(tmp_path):
    queue, told, clock, said = Queue(tmp_path / "queue"), Told(), Clock(), []
    outbox = Outbox(queue, told, said.append, clock, pauses_s=(5, 50))
    first, second = finished(queue, 2)
    told.error[""] = NotReached("it does not answer")
    tried = []
    for now in range(0, 60, 2):
        clock.now = now
        before = len(said)
        outbox.step()
        tried += [now] * (len(said) - before)
    assert tried == [0, 6, 56]
    assert "2 studies not delivered: ARCHIVE: it does not answer; again in 5 s" in said[0]
    assert json.loads((queue.root / "finished" / first / UNDELIVERED).read_text())["last"] == "it does not answer"
    again = Outbox(queue, told, said.append, clock)  # after a restart
    told.error = {first: Refused("sr.dcm: status A900")}
    again.step()
    assert told.got == [second]
    assert again.waiting() == [first]
    told.error = {}
    clock.now += 4
    again.step()
    assert told.got == [second]
    clock.now += 2
    again.step()
    assert told.got == [second, first]
    assert again.waiting() == []
    assert json.loads((queue.root / "finished" / first / DELIVERED).read_text())["to"] == "ARCHIVE"


def test_a_study_without_objects_is_not_met_with_silence(tmp_path):
    queue, said = Queue(tmp_path / "queue"), []
    outbox = Outbox(queue, Told(), said.append)
    for files in ({OBJECTS: b'{"missing": ["no header"]}'}, {}):
        queue.submit(queue.receive("dicom"))
        queue.finish(queue.take(1)[0], files)
    queue.submit(queue.receive("dicom"))
    queue.fail(queue.take(1)[0], "it is too large")
    outbox.step()
    outbox.step()
    assert [line.partition(": ")[2].partition("study ")[2].partition(" ")[2] for line in said] == [
        "could not be judged and has no result: it is too large",
        "has a result and no DICOM object: no header",
        "has a result and no DICOM object: its objects could not be written; result.json says what was",
    ]


@given(st.lists(st.binary(max_size=200), max_size=4))
def test_a_body_of_several_parts_is_read_by_another_parser(contents):
    first, _ = multipart(contents)
    contents = [*contents, f"\r\n--{first}--\r\n".encode()]
    boundary, body = multipart(contents)
    header = f'Content-Type: multipart/related; boundary="{boundary}"\r\n\r\n'.encode()
    message = email.message_from_bytes(header + b"".join(body), policy=email.policy.HTTP)
    assert [part.get_content_type() for part in message.iter_parts()] == ["application/dicom"] * len(contents)
    split = b"".join(body).split(f"--{boundary}".encode())
    assert [part.partition(b"\r\n\r\n")[2][:-2] for part in split[1:-1]] == contents


@pytest.mark.parametrize("answer", [b"", b"[]", b"{}", b"<xml/>", b'{"00081199": {"Value": [{}]}}', b"\xff"])
def test_an_answer_that_names_no_object_acknowledges_none(answer):
    assert stored(answer) == []


class Store(BaseHTTPRequestHandler):
    """A store service: it answers with what it got, or as the test says."""

    def do_POST(self):
        content = self.rfile.read(int(self.headers["Content-Length"]))
        self.server.requests.append((self.path, dict(self.headers), content))
        header = f"Content-Type: {self.headers['Content-Type']}\r\n\r\n".encode()
        boundary = email.message_from_bytes(header).get_param("boundary").encode()
        uids = []
        for part in content.split(b"--" + boundary)[1:-1]:
            name = f"{len(uids)}.dcm"
            (self.server.folder / name).write_bytes(part.partition(b"\r\n\r\n")[2][:-2])
            uids.append(str(pydicom.dcmread(self.server.folder / name).SOPInstanceUID))
        named = {"00081199": {"vr": "SQ", "Value": [{"00081155": {"vr": "UI", "Value": [uid]}} for uid in uids]}}
        status, body = self.server.answer(named)
        self.send_response(status)
        if status in (301, 307):
            self.send_header("Location", "/elsewhere")
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, *_):
        pass


@pytest.fixture
def store(tmp_path):
    server = ThreadingHTTPServer(("127.0.0.1", 0), Store)
    server.requests, server.folder = [], tmp_path / "stored"
    server.folder.mkdir()
    server.answer = lambda named: (200, json.dumps(named).encode())
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.02})
    thread.start()
    yield server
    server.shutdown()
    thread.join()
    server.server_close()


@pytest.fixture
def results(tmp_path) -> list[Path]:
    paths = []
    for number in (1, 2):
        paths.append(tmp_path / f"r{number}.dcm")
        paths[-1].write_bytes(image(number))
    return paths


def test_stow_stores_every_byte_and_believes_only_what_is_named(store, results, tmp_path):
    stow = Stow(f"http://127.0.0.1:{store.server_address[1]}/dicom-web/studies", token="s3cret")
    stow.send(results)
    assert [(store.folder / f"{n}.dcm").read_bytes() for n in (0, 1)] == [path.read_bytes() for path in results]
    path, headers, _ = store.requests[0]
    assert (path, headers["Authorization"]) == ("/dicom-web/studies", "Bearer s3cret")
    for answer, error, said in (
        ((200, b"{}"), Refused, "r1.dcm, r2.dcm not acknowledged"),
        ((503, b""), NotReached, "503"),
        ((401, b""), NotReached, "another token"),
        ((400, b""), Refused, "400"),
        ((307, b""), Refused, "307"),
    ):
        store.answer = lambda _named, answer=answer: answer
        with pytest.raises(error, match=said):
            stow.send(results)
    assert {path for path, _, _ in store.requests} == {"/dicom-web/studies"}

    def partly(named):
        (first, *_) = named["00081199"]["Value"]
        return 202, json.dumps([{"00081199": {"Value": [first]}, "00081198": {"Value": []}}]).encode()

    store.answer = partly
    with pytest.raises(Refused, match=r"^r2\.dcm not acknowledged"):
        stow.send(results)


def test_stow_trusts_no_certificate_that_nobody_named(store, results, tmp_path):
    certificate, key = certified(tmp_path)
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(certificate, key)
    store.socket = context.wrap_socket(store.socket, server_side=True)
    url = f"https://127.0.0.1:{store.server_address[1]}/studies"
    with pytest.raises(NotReached, match="not trusted"):
        Stow(url).send(results)
    assert store.requests == []
    Stow(url, ca_file=certificate).send(results)
    with pytest.raises(NotReached, match="not trusted"):
        Stow(url.replace("127.0.0.1", "localhost"), ca_file=certificate).send(results)


def certified(folder: Path) -> tuple[Path, Path]:
    """A certificate for 127.0.0.1 and its key."""
    from cryptography import x509
    from cryptography.hazmat.primitives import hashes, serialization
    from cryptography.hazmat.primitives.asymmetric import ec

    key, name = ec.generate_private_key(ec.SECP256R1()), x509.Name([])
    start = datetime.datetime(2020, 1, 1)
    builder = x509.CertificateBuilder(name, name, key.public_key(), x509.random_serial_number())
    builder = builder.not_valid_before(start).not_valid_after(start.replace(year=2120))
    address = x509.SubjectAlternativeName([x509.IPAddress(ipaddress.ip_address("127.0.0.1"))])
    made = builder.add_extension(address, True).add_extension(x509.BasicConstraints(True, 0), True)
    certificate = made.sign(key, hashes.SHA256()).public_bytes(serialization.Encoding.PEM)
    form = (serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption())
    (folder / "certificate.pem").write_bytes(certificate)
    (folder / "key.pem").write_bytes(key.private_bytes(*form))
    return folder / "certificate.pem", folder / "key.pem"


def test_an_archive_that_is_not_there_is_not_reached(results):
    with pytest.raises(NotReached):
        Archive.parse(f"ARCHIVE@127.0.0.1:{free_port()}", "NODE").send(results)
    with pytest.raises(NotReached):
        Stow(f"http://127.0.0.1:{free_port()}/studies").send(results)


@pytest.mark.parametrize(
    ("asked", "said"),
    [
        ([], "--send TITLE@HOST:PORT or --stow URL"),
        (["--send", "A@h:1", "--stow", "https://a/"], "--send TITLE@HOST:PORT or --stow URL"),
        (["--send", "no archive"], "--send takes TITLE@HOST:PORT"),
        (["--stow", "http://archive/studies"], "http on this machine only"),
        (["--stow", "ftp://archive/studies"], "--stow takes the address"),
        (["--send", "A@h:1", "--host", "0.0.0.0"], "--allow-address who may send"),
        (["--send", "A@h:1", "--allow-address", "somewhere"], "IP addresses or networks"),
        (["--send", "A@h:1", "--aet", "x" * 17], "AE title"),
    ],
)
def test_what_cannot_be_used_is_said_before_anything_starts(tmp_path_factory, tmp_path, asked, said):
    (tmp_path / "model").mkdir()
    done = CliRunner().invoke(app, ["listen", str(tmp_path / "model"), "--out", str(tmp_path / "out"), *asked])
    assert done.exit_code in (1, 2)
    assert said in " ".join(done.output.split())
    assert not (tmp_path / "out").exists()


def test_networks_of_the_house_may_send():
    check(Receiving(host="0.0.0.0", port=1, title="NODE", addresses=("10.0.0.0/8",)))
    with pytest.raises(ListenError):
        check(Receiving(host="0.0.0.0", port=1, title="NODE"))


# ---------------------------------------------------------------- the whole, with peers of others


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


class Running:
    """`maescreen listen` as a process, with dcmtk's storescp as the archive."""

    def __init__(self, folder: Path, quiet_s: float = 3) -> None:
        self.folder, self.port, archive = folder, free_port(), free_port()
        self.got = folder / "archive"
        self.got.mkdir()
        small_model(folder / "model", threshold=-12.5)
        self.archive = subprocess.Popen(["storescp", "-aet", "ARCHIVE", "-od", self.got, str(archive)])
        self.command = [
            *(sys.executable, "-c", "from pipeline.cli import main; main()"),
            *("listen", folder / "model", "--out", folder / "queue"),
            *("--send", f"ARCHIVE@127.0.0.1:{archive}", "--port", str(self.port), "--quiet-seconds", str(quiet_s)),
            *("--workers", "1", "--threads", "1", "--device", "cpu", "--aet", "NODE"),
        ]
        self.start()

    def start(self) -> None:
        self.process = subprocess.Popen(list(map(str, self.command)), stdout=subprocess.PIPE, text=True)
        assert self.process.stdout.readline().strip() == f"NODE@127.0.0.1:{self.port}"

    def kill(self) -> None:
        self.process.kill()
        self.process.wait()

    def send(self, *contents: bytes) -> bool:
        folder = self.folder / f"sent{random.random()}"
        folder.mkdir()
        for number, content in enumerate(contents):
            (folder / f"{number}.dcm").write_bytes(content)
        command = ["storescu", "-to", "5", "-aec", "NODE", "127.0.0.1", str(self.port), *sorted(folder.iterdir())]
        return subprocess.run(command, check=False, capture_output=True, timeout=120).returncode == 0

    def wait(self, images: dict[str, int]) -> None:
        """Wait until the archive has one report that holds for each study, about so many of its images, and no other.

        A sender that is slower than the quiet time leaves earlier reports; each is the predecessor of the next.
        """
        for _ in range(1200):
            pending = list((self.folder / "queue").glob("finished/*/undelivered.json"))
            with suppress(EOFError, AttributeError, pydicom.errors.InvalidDicomError):  # storescp still writes it
                if not pending and self.held() == images:
                    break
            time.sleep(0.2)
        assert self.held() == images
        objects = [pydicom.dcmread(path) for path in self.got.iterdir()]
        kinds = [one.Modality for one in objects]
        assert kinds.count("SR") == kinds.count("DOC") == kinds.count("OT")

    def held(self) -> dict[str, int]:
        """Images by study, of the reports that nothing replaces."""
        reports = [pydicom.dcmread(path) for path in self.got.glob("SR*")]
        replaced = set()
        for one in reports:
            for study in one.get("PredecessorDocumentsSequence", ()):
                (series,) = study.ReferencedSeriesSequence
                replaced |= {item.ReferencedSOPInstanceUID for item in series.ReferencedSOPSequence}
        found: dict[str, int] = {}
        for one in reports:
            if one.SOPInstanceUID not in replaced:
                assert one.StudyInstanceUID not in found, "two reports hold"
                (series,) = one.CurrentRequestedProcedureEvidenceSequence[0].ReferencedSeriesSequence
                found[one.StudyInstanceUID] = len(series.ReferencedSOPSequence)
        return found

    def end(self) -> None:
        self.process.send_signal(signal.SIGTERM)
        assert self.process.wait(240) == 0
        self.archive.kill()
        self.archive.wait()


@pytest.fixture
def running(tmp_path):
    made = Running(tmp_path)
    yield made
    made.process.kill()
    made.archive.kill()


@pytest.mark.slow
@pytest.mark.skipif(shutil.which("storescp") is None, reason="dcmtk is not installed")
def test_killed_at_random_moments_nothing_is_lost_and_nothing_doubled(running):
    """A sender sends until it is acknowledged, as senders do; the node dies at any moment until the archive has it."""
    rng, kills = random.Random(time.time_ns()), 2
    for study in range(1, kills + 1):
        contents = [image(study, number) for number in (1, 2, 3)]
        sender = threading.Thread(target=_sent, args=(running, contents))
        sender.start()
        time.sleep(rng.uniform(0.1, 8))
        running.kill()
        running.start()
        sender.join()
    running.wait({f"2.25.{study}3": 3 for study in range(1, kills + 1)})
    for path in running.got.iterdir():
        assert errors_of(path) == []
    # A late image: the whole study again, and a report that names the one before.
    assert running.send(image(1, 4))
    running.wait({"2.25.13": 4, **{f"2.25.{study}3": 3 for study in range(2, kills + 1)}})
    running.end()


def _sent(running: Running, contents: list[bytes]) -> None:
    while not running.send(*contents):
        time.sleep(0.3)
