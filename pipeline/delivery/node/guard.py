"""What pynetdicom does not limit by itself: how long a PDU may be, what a message may hold, how slowly it may come.

Its upper layer reads as many bytes as a peer announces, for as long as the peer takes, gathers the fragments of a
command without end, queues messages faster than they are served, and starts a thread for each connection and for each
N-EVENT-REPORT. All of it comes through `recv` of one socket: here each PDU is measured before it goes any further. A
peer that breaks a limit is disconnected.
"""

from __future__ import annotations

import ipaddress
import threading
import time
from collections.abc import Collection, Sequence
from dataclasses import dataclass
from typing import Any

from pynetdicom.association import Association
from pynetdicom.transport import AssociationSocket, RequestHandler, ThreadedAssociationServer

ASSOCIATE_RQ, P_DATA, HEADER_BYTES = 0x01, 0x04, 6
# 128 presentation contexts, each with all transfer syntaxes, are some 60 kB.
MOST_ASSOCIATE_BYTES = 256 * 1024
MOST_COMMAND_BYTES = 16 * 1024
MOST_QUEUED = 4
READ_BYTES = 1 << 16
WAIT_S = 0.02
COMMAND, LAST = 0x01, 0x02
COMMAND_FIELD = b"\x00\x00\x00\x01\x02\x00\x00\x00"  # (0000,0100) US, implicit little endian
C_STORE_RQ, C_ECHO_RQ = 0x0001, 0x0030


Network = ipaddress.IPv4Network | ipaddress.IPv6Network


class BrokenLimit(OSError):
    """A peer did what it may not; the connection is closed."""


@dataclass(frozen=True)
class Limits:
    """What one peer may do. `pdu_bytes` is what is negotiated, `file_bytes` what one data set may have."""

    pdu_bytes: int
    file_bytes: int
    idle_s: float
    connections: int


class Measure:
    """Follows the messages of one connection, PDU by PDU. Raises BrokenLimit."""

    def __init__(self, limits: Limits) -> None:
        self.limits = limits
        self._command = bytearray()
        self._data_bytes = 0

    def announced(self, kind: int, length: int) -> None:
        """Take the header of a PDU: its type, and the bytes that are to follow."""
        most = MOST_ASSOCIATE_BYTES if kind == ASSOCIATE_RQ else self.limits.pdu_bytes
        if length > most:
            raise BrokenLimit("PDU too long")

    def data(self, body: bytes | bytearray) -> None:
        """Take the fragments of a P-DATA-TF PDU (PS3.8 9.3.5, E.2)."""
        at = 0
        while at < len(body):
            length = int.from_bytes(body[at : at + 4], "big")
            if length < 2 or at + 4 + length > len(body):
                raise BrokenLimit("fragment that does not fit its PDU")
            control, size = body[at + 5], length - 2
            if control & COMMAND:
                self._take_command(body[at + 6 : at + 4 + length], bool(control & LAST))
            else:
                self._data_bytes += size
                if self._data_bytes > self.limits.file_bytes:
                    raise BrokenLimit("data set too long")
            at += 4 + length

    def _take_command(self, fragment: bytes | bytearray, last: bool) -> None:
        self._command += fragment
        self._data_bytes = 0
        if len(self._command) > MOST_COMMAND_BYTES:
            raise BrokenLimit("command too long")
        if last:
            at = self._command.find(COMMAND_FIELD)
            field = int.from_bytes(self._command[at + 8 : at + 10], "little") if at >= 0 else -1
            self._command = bytearray()
            if field not in (C_STORE_RQ, C_ECHO_RQ):
                raise BrokenLimit("neither C-STORE nor C-ECHO")


class GuardedSocket(AssociationSocket):
    """A connection that is read within limits."""

    def guard(self, association: Association, limits: Limits) -> None:
        """Begin to measure."""
        self._limits, self._measure, self._kind = limits, Measure(limits), 0
        self._association = association

    def recv(self, nr_bytes: int) -> bytearray:
        """Return the next bytes: first the header of a PDU, then its body, each PDU within the idle time.

        Raises BrokenLimit and TimeoutError, by which pynetdicom takes the connection for closed.
        """
        try:
            read = self._read(nr_bytes)
            if self._kind == 0:
                if len(read) == HEADER_BYTES:
                    self._measure.announced(read[0], int.from_bytes(read[2:], "big"))
                    self._kind = read[0] if int.from_bytes(read[2:], "big") else 0
            else:
                kind, self._kind = self._kind, 0
                if kind == P_DATA and len(read) == nr_bytes:
                    self._measure.data(read)
            return read
        except OSError:
            self._association._kill = True  # nobody waits for what does not come
            self.close()
            raise

    def _read(self, wanted: int) -> bytearray:
        read, until = bytearray(), time.monotonic() + self._limits.idle_s
        # What is read waits for what is served: the peer feels it, and memory does not.
        while self._association.dimse.msg_queue.qsize() >= MOST_QUEUED:
            if time.monotonic() > until:
                raise TimeoutError("nothing is taken out of the queue")
            time.sleep(WAIT_S)
        until = time.monotonic() + self._limits.idle_s
        while len(read) < wanted:
            left = until - time.monotonic()
            if left <= 0 or self.socket is None:
                raise TimeoutError("the rest of a PDU did not come in time")
            self.socket.settimeout(left)
            piece = self.socket.recv(min(READ_BYTES, wanted - len(read)))
            if not piece:
                break
            read += piece
        return read


class GuardedHandler(RequestHandler):
    """Gives each association a guarded connection."""

    def _create_association(self) -> Association:
        association = super()._create_association()
        server: Any = self.server
        connection: Any = association.dul.socket
        # A second socket object would announce the connection a second time.
        connection.__class__ = GuardedSocket
        connection.guard(association, server.limits)
        return association


class GuardedServer(ThreadedAssociationServer):
    """Takes connections from the addresses allowed, and no more of them at once than `limits` says."""

    daemon_threads = True
    request_queue_size = 64
    limits: Limits
    networks: Sequence[Network] = ()
    at_work = 0.0  # when it last looked for connections, by the monotonic clock

    def service_actions(self) -> None:
        """Note that connections are taken: the library calls this several times a second while they are."""
        super().service_actions()
        self.at_work = time.monotonic()

    def handle_error(self, request: Any, client_address: Any) -> None:
        """Say nothing: what a peer did wrong is its business, and the connection is closed."""

    def verify_request(self, request: Any, client_address: Any) -> bool:
        """Say whether a connection is taken; another one is closed without a word."""
        if len(self.active_associations) >= self.limits.connections or threading.active_count() > 512:
            return False
        return not self.networks or allowed(client_address[0], self.networks)


def server_class(limits: Limits, addresses: Collection[str]) -> type[GuardedServer]:
    """Return the server for these limits; no addresses allow every one."""
    networks = [ipaddress.ip_network(one, strict=False) for one in addresses]
    return type("Server", (GuardedServer,), {"limits": limits, "networks": networks})


def allowed(address: str, networks: Collection[Network]) -> bool:
    """Say whether an address is in one of these networks; an IPv4 address may come in the notation of IPv6."""
    found = ipaddress.ip_address(address.partition("%")[0])
    if isinstance(found, ipaddress.IPv6Address) and found.ipv4_mapped:
        found = found.ipv4_mapped
    return any(found in network for network in networks)
