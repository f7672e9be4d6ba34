"""The process that receives: what peers may do, and what a hostile one does in vain.

Attacks are those that pynetdicom's open reports describe: lengths that are believed, fragments without end, threads and
queues without bound, names of files that a sender chooses.
"""

from __future__ import annotations

import os
import shutil
import socket
import struct
import subprocess
import time
from contextlib import ExitStack, closing
from pathlib import Path

import psutil
import pytest
from delivery.stuck import receive_until_stuck
from hypothesis import given, settings
from hypothesis import strategies as st
from small_model import image

from pipeline.delivery.node.guard import MOST_COMMAND_BYTES, BrokenLimit, Limits, Measure, allowed, server_class
from pipeline.delivery.node.receiver import RECEIVING, SPOOL, ListenError, Receiver, Receiving

pytest.importorskip("pynetdicom")

MB = 1024**2
STORE = "1.2.840.10008.5.1.4.1.1.1.1"
VERIFICATION, EXPLICIT = "1.2.840.10008.1.1", "1.2.840.10008.1.2.1"
IDLE_S, CONNECTIONS, MEMORY_MB = 2.0, 8, 300


@pytest.fixture(scope="module")
def root(tmp_path_factory) -> Path:
    return tmp_path_factory.mktemp("node")


@pytest.fixture(scope="module")
def receiver(root):
    limits = {"most_file_mb": 1, "most_memory_mb": MEMORY_MB, "connections": CONNECTIONS, "idle_s": IDLE_S}
    receiving = Receiving(host="127.0.0.1", port=0, title="NODE", calling=("PEER",), **limits)
    made = Receiver(root, receiving, print)
    made.start()
    yield made
    made.stop()


@pytest.fixture(autouse=True)
def _alive(request):
    """After each attack it is the same process, within its memory, and it answers."""
    if "receiver" not in request.fixturenames:
        yield
        return
    receiver = request.getfixturevalue("receiver")
    before = receiver.pid
    yield
    receiver.look()
    assert receiver.pid == before
    assert psutil.Process(before).memory_info().rss < (MEMORY_MB + 150) * MB
    for _ in range(100):  # places of connections that were cut are free soon
        if echo(receiver.port):
            break
        time.sleep(0.2)
    else:
        pytest.fail("it does not answer any more")


# ---------------------------------------------------------------- a peer in raw bytes (PS3.8 9.3)


def item(kind: int, content: bytes) -> bytes:
    return struct.pack(">BBH", kind, 0, len(content)) + content


def pdu(kind: int, content: bytes) -> bytes:
    return struct.pack(">BBL", kind, 0, len(content)) + content


def associate(called: str = "NODE", calling: str = "PEER") -> bytes:
    contexts = b"".join(
        item(0x20, bytes([number, 0, 0, 0]) + item(0x30, uid.encode()) + item(0x40, EXPLICIT.encode()))
        for number, uid in ((1, VERIFICATION), (3, STORE))
    )
    user = item(0x50, item(0x51, struct.pack(">L", 16384)) + item(0x52, b"2.25.1"))
    titles = called.ljust(16).encode() + calling.ljust(16).encode()
    return pdu(1, b"\0\1\0\0" + titles + b"\0" * 32 + item(0x10, b"1.2.840.10008.3.1.1.1") + contexts + user)


def command(**elements: int | str) -> bytes:
    """A command set in implicit little endian."""
    numbers = {"sop_class": 0x0002, "field": 0x0100, "message": 0x0110, "priority": 0x0700, "data": 0x0800}
    numbers["sop_instance"] = 0x1000
    body = b""
    for name, value in sorted(elements.items(), key=lambda pair: numbers[pair[0]]):
        text = isinstance(value, str)
        raw = (value.encode() + b"\0" * (len(value) % 2)) if text else struct.pack("<H", value)
        body += struct.pack("<HHL", 0, numbers[name], len(raw)) + raw
    return struct.pack("<HHLL", 0, 0, 4, len(body)) + body


def fragment(context: int, control: int, content: bytes) -> bytes:
    return struct.pack(">LBB", len(content) + 2, context, control) + content


def store_request(uid: str = "2.25.7") -> bytes:
    return command(sop_class=STORE, field=1, message=1, priority=0, data=0, sop_instance=uid)


def data_set(number: int = 1) -> bytes:
    """The data set of an image, without its file meta information."""
    content = image(number)
    length = int.from_bytes(content[140:144], "little")
    return content[144 + length :]


def read(connection: socket.socket, length: int) -> bytes:
    found = b""
    while len(found) < length and (piece := connection.recv(length - len(found))):
        found += piece
    return found


def answer(connection: socket.socket) -> tuple[int, bytes]:
    """Type and content of the next PDU; type 0 when the connection has ended."""
    try:
        head = read(connection, 6)
        return (head[0], read(connection, int.from_bytes(head[2:], "big"))) if len(head) == 6 else (0, b"")
    except ConnectionError:
        return 0, b""


def connected(port: int) -> socket.socket:
    return socket.create_connection(("127.0.0.1", port), timeout=30)


def associated(port: int) -> socket.socket:
    for _ in range(100):  # places of connections that were cut are free soon
        connection = connected(port)
        connection.sendall(associate())
        if answer(connection)[0] == 2:
            return connection
        connection.close()
        time.sleep(0.2)
    raise AssertionError("no association in 20 seconds")


def echo(port: int) -> bool:
    with closing(connected(port)) as connection:
        connection.sendall(associate())
        if answer(connection)[0] != 2:
            return False
        connection.sendall(pdu(4, fragment(1, 3, command(sop_class=VERIFICATION, field=0x30, message=1, data=0x101))))
        kind, content = answer(connection)
        connection.sendall(pdu(5, b"\0" * 4))
        return kind == 4 and content.endswith(struct.pack("<H", 0))


def is_cut(connection: socket.socket) -> bool:
    """Whether the peer is disconnected, by an abort or without a word."""
    with closing(connection):
        return answer(connection)[0] in (0, 7)


def flood(connection: socket.socket, content: bytes, most: int, pause_s: float = 0) -> None:
    """Send the same again and again, until the other side has had enough."""
    sent = 0
    try:
        while sent < most:
            connection.sendall(content)
            sent += len(content)
            time.sleep(pause_s)
    except OSError:
        return
    pytest.fail(f"{most} bytes were taken")


def waiting(root: Path) -> list[Path]:
    return sorted((root / SPOOL).glob("*.dcm"))


# ---------------------------------------------------------------- what is to work


def test_an_image_lies_in_the_spool_before_it_is_acknowledged(receiver, root):
    with closing(associated(receiver.port)) as connection:
        content = data_set()
        connection.sendall(pdu(4, fragment(3, 3, store_request()) + fragment(3, 0, content[:100])))
        connection.sendall(pdu(4, fragment(3, 2, content[100:])))
        kind, said = answer(connection)
        assert (kind, said[-2:]) == (4, b"\0\0") or struct.pack("<HHLH", 0, 0x0900, 2, 0) in said
        (path,) = waiting(root)
        assert path.read_bytes().endswith(content)
        path.unlink()


@pytest.mark.skipif(shutil.which("storescu") is None, reason="dcmtk is not installed")
def test_dcmtk_is_understood(receiver, root, tmp_path):
    (tmp_path / "one.dcm").write_bytes(image(1))
    where = ["-aet", "PEER", "-aec", "NODE", "127.0.0.1", str(receiver.port)]
    subprocess.run(["echoscu", *where], check=True, timeout=60)
    subprocess.run(["storescu", *where, tmp_path / "one.dcm"], check=True, timeout=60)
    (path,) = waiting(root)
    path.unlink()


# ---------------------------------------------------------------- attacks


@pytest.mark.parametrize("kind", [1, 4, 7])
def test_a_length_that_is_announced_is_not_believed(receiver, kind):
    connection = connected(receiver.port) if kind == 1 else associated(receiver.port)
    connection.sendall(struct.pack(">BBL", kind, 0, 0xFFFFFFFF))
    flood(connection, b"\0" * MB, 512 * MB)
    connection.close()


def test_a_command_without_end_is_cut(receiver):
    connection = associated(receiver.port)
    flood(connection, pdu(4, fragment(1, 1, b"\0" * 8000)), 64 * MB)
    connection.close()


def test_an_image_without_end_is_cut_and_leaves_nothing(receiver, root):
    connection = associated(receiver.port)
    connection.sendall(pdu(4, fragment(3, 3, store_request())))
    flood(connection, pdu(4, fragment(3, 0, b"\0" * 16000)), 64 * MB)
    connection.close()
    for _ in range(100):
        if not any((root / SPOOL / RECEIVING).iterdir()):
            break
        time.sleep(0.1)
    assert list((root / SPOOL / RECEIVING).iterdir()) == []
    assert waiting(root) == []


@pytest.mark.parametrize("body", [b"\xff\xff\xff\xff\x01\x03", b"\0\0\0\1\1", b"\0\0\0\0\1\3"])
def test_fragments_that_do_not_fit_are_cut(receiver, body):
    connection = associated(receiver.port)
    connection.sendall(pdu(4, body))
    assert is_cut(connection)


def test_other_services_start_no_thread(receiver):
    threads = psutil.Process(receiver.pid).num_threads()
    report = command(sop_class=VERIFICATION, field=0x0100, message=1, data=0x101)
    for _ in range(3):
        connection = associated(receiver.port)
        connection.sendall(pdu(4, fragment(1, 3, report)))
        assert is_cut(connection)
    assert psutil.Process(receiver.pid).num_threads() <= threads + 3 * 2


@pytest.mark.parametrize("begun", [b"", b"\1", struct.pack(">BBL", 1, 0, 200) + b"\0" * 10])
def test_who_says_nothing_more_is_cut(receiver, begun):
    connection = connected(receiver.port)
    connection.sendall(begun)
    assert is_cut(connection)


def test_who_drips_is_cut(receiver):
    connection = associated(receiver.port)
    connection.sendall(struct.pack(">BBL", 4, 0, 10_000))
    flood(connection, b"\0", 600, pause_s=0.05)
    connection.close()


def test_peers_beyond_the_limit_are_turned_away(receiver):
    peers = [connected(receiver.port) for _ in range(40)]
    for peer in peers:
        assert is_cut(peer)


def test_connections_reserve_little_of_the_memory_allowed(receiver):
    process = psutil.Process(receiver.pid)
    with ExitStack() as stack:
        before = process.memory_info().vms
        for _ in range(CONNECTIONS // 2):
            stack.enter_context(closing(associated(receiver.port)))
        assert process.memory_info().vms - before < CONNECTIONS // 2 * 8 * MB


def test_a_process_that_takes_no_more_connections_ends_and_is_started_again(tmp_path, monkeypatch):
    said: list[str] = []
    made = Receiver(tmp_path, Receiving(host="127.0.0.1", port=0, title="NODE"), said.append)
    with monkeypatch.context() as patch:
        patch.setattr("pipeline.delivery.node.receiver.receive", receive_until_stuck)
        made.start()
    try:
        first = made.pid
        with closing(connected(made.port)):
            for _ in range(300):
                made.look()
                if made.pid not in (None, first):
                    break
                time.sleep(0.1)
        assert echo(made.port)
        assert said == ["listen: the process that receives has ended (1); again in 1 s"]
    finally:
        made.stop()


def test_messages_that_nobody_waits_for_do_not_pile_up(receiver, root):
    with closing(associated(receiver.port)) as connection:
        one = pdu(4, fragment(1, 3, command(sop_class=VERIFICATION, field=0x30, message=1, data=0x101)))
        connection.settimeout(0.5)
        try:
            for _ in range(20_000):
                connection.sendall(one)
        except OSError:
            pass  # the other side stopped reading, which is what bounds its memory


def test_a_sender_chooses_no_name(receiver, root):
    names = ["../../../../tmp/evil", "/etc/passwd", "..", "a\0b", "2.25.1/../../x", "x" * 60]
    with closing(associated(receiver.port)) as connection:
        for name in names:
            connection.sendall(pdu(4, fragment(3, 3, store_request(name)) + fragment(3, 2, data_set())))
            if answer(connection)[0] != 4:
                break
    for path in waiting(root):
        assert path.stem.replace("-", "").isalnum()
        path.unlink()
    assert {path.name for path in root.iterdir()} == {SPOOL}
    assert not Path("/tmp/evil").exists()


@pytest.mark.parametrize(("called", "calling"), [("OTHER", "PEER"), ("NODE", "STRANGER")])
def test_titles_that_are_not_allowed_are_rejected(receiver, called, calling):
    with closing(connected(receiver.port)) as connection:
        connection.sendall(associate(called, calling))
        assert answer(connection)[0] == 3


def test_addresses_that_are_not_allowed_are_not_heard(tmp_path):
    receiving = Receiving(host="127.0.0.1", port=0, title="NODE", addresses=("10.0.0.0/8", "::1"))
    made = Receiver(tmp_path, receiving, print)
    made.start()
    try:
        assert is_cut(connected(made.port))
        with pytest.raises(ListenError, match=f"cannot listen on port {made.port}"):
            Receiver(tmp_path / "other", Receiving(host="127.0.0.1", port=made.port, title="NODE"), print).start()
    finally:
        made.stop()


def test_a_process_that_dies_is_started_again_on_its_port(tmp_path):
    said: list[str] = []
    made = Receiver(tmp_path, Receiving(host="127.0.0.1", port=0, title="NODE"), said.append)
    made.start()
    try:
        port, first = made.port, made.pid
        (tmp_path / SPOOL / RECEIVING / "half.dcm").write_bytes(b"half")
        os.kill(first, 9)
        for _ in range(300):
            made.look()
            if made.pid not in (None, first):
                break
            time.sleep(0.1)
        assert echo(port)
        assert "has ended (-9)" in said[0]
        assert not list((tmp_path / SPOOL / RECEIVING).iterdir())
    finally:
        made.stop()


# ---------------------------------------------------------------- the measure itself


@settings(max_examples=300, deadline=None)
@given(st.lists(st.tuples(st.integers(0, 3), st.binary(max_size=600)), max_size=60))
def test_nothing_passes_a_limit(fragments):
    limits = Limits(pdu_bytes=1000, file_bytes=5000, idle_s=1, connections=1)
    measure, passed = Measure(limits), 0
    for control, content in fragments:
        try:
            measure.data(fragment(1, control, content))
        except BrokenLimit:
            return
        passed = 0 if control & 1 else passed + len(content)
        assert passed <= limits.file_bytes
        assert len(measure._command) <= MOST_COMMAND_BYTES


def test_addresses_are_compared_as_addresses():
    networks = server_class(Limits(1, 1, 1, 1), ["10.1.2.0/24", "::1"]).networks
    assert [allowed(one, networks) for one in ("10.1.2.200", "::ffff:10.1.2.3", "::1", "10.1.3.1", "fe80::1%eth0")] == [
        *(True, True, True),
        *(False, False),
    ]
