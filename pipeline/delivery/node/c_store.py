"""Results to an archive by C-STORE (PS3.4 B)."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from pipeline.delivery.node.outbox import NotReached, Refused
from pipeline.delivery.node.receiver import ListenError

CONNECT_S, ANSWER_S = 10.0, 60.0
TARGET = re.compile(r"(?P<title>[\x21-\x7e]{1,16})@(?P<host>\[[0-9a-fA-F:]+\]|[A-Za-z0-9.-]+):(?P<port>\d{1,5})")
# Stored, with something coerced or ignored (PS3.4 B.2.3).
STORED = (0x0000, 0xB000, 0xB006, 0xB007)


@dataclass(frozen=True)
class Archive:
    """An archive by its application entity title, host and port; `title` is ours."""

    peer: str
    host: str
    port: int
    title: str

    @classmethod
    def parse(cls, text: str, title: str) -> Archive:
        """Return the archive that `TITLE@HOST:PORT` names. Raises ListenError."""
        found = TARGET.fullmatch(text)
        if found is None or not 0 < int(found["port"]) < 1 << 16:
            raise ListenError("--send takes TITLE@HOST:PORT, such as ORTHANC@127.0.0.1:4242")
        return cls(found["title"], found["host"].strip("[]"), int(found["port"]), title)

    @property
    def name(self) -> str:
        """How messages call it."""
        return f"{self.peer}@{self.host}:{self.port}"

    def send(self, files: Sequence[Path]) -> None:
        """Store each file; see Destination."""
        from pydicom import dcmread
        from pynetdicom import AE

        objects = [(file.name, dcmread(file)) for file in files]
        node = AE(ae_title=self.title)
        node.connection_timeout = CONNECT_S
        node.acse_timeout = node.dimse_timeout = node.network_timeout = ANSWER_S
        for sop_class, syntax in {(one.SOPClassUID, one.file_meta.TransferSyntaxUID) for _, one in objects}:
            node.add_requested_context(sop_class, syntax)
        association = node.associate(self.host, self.port, ae_title=self.peer)
        if not association.is_established:
            raise NotReached("it rejects the association" if association.is_rejected else "it does not answer")
        try:
            accepted = {str(context.abstract_syntax) for context in association.accepted_contexts}
            for name, one in objects:
                if str(one.SOPClassUID) not in accepted:
                    raise Refused(f"{name}: it takes no {one.SOPClassUID.name}")
                status = association.send_c_store(one)
                if "Status" not in status:
                    raise NotReached("the connection ended before the acknowledgement")
                if status.Status not in STORED:
                    raise Refused(f"{name}: status {status.Status:04X}")
        finally:
            if association.is_established:
                association.release()
