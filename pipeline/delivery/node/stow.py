"""Results to an archive by STOW-RS (PS3.18 10.5): one request of multipart/related, by the standard library alone."""

from __future__ import annotations

import hashlib
import ipaddress
import json
import ssl
from collections.abc import Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass
from http.client import HTTPConnection, HTTPException, HTTPSConnection
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

from pipeline.delivery.node.outbox import NotReached, Refused, acknowledged
from pipeline.delivery.node.receiver import ListenError

ANSWER_S = 60.0
LONGEST_ANSWER = 4 * 1024**2
FAILED, REFERENCED, UID = "00081198", "00081199", "00081155"
LATER = (408, 425, 429, 500, 502, 503, 504)
DENIED = {401: "it wants another token", 403: "it wants another token", 404: "there is nothing at this address"}


@dataclass(frozen=True)
class Stow:
    """The store service at `url`, which ends in /studies; `ca_file` holds certificates to trust beside the system's."""

    url: str
    token: str = ""
    ca_file: Path | None = None

    def __post_init__(self) -> None:
        parts = urlsplit(self.url)
        if parts.scheme not in ("https", "http") or not parts.hostname or parts.username or parts.query:
            raise ListenError("--stow takes the address of a store service, such as https://archive/dicom-web/studies")
        if parts.scheme == "http" and not _is_loopback(parts.hostname):
            raise ListenError("--stow takes http on this machine only: identities would travel in clear text")

    @property
    def name(self) -> str:
        """How messages call it."""
        parts = urlsplit(self.url)
        return f"{parts.scheme}://{parts.netloc}{parts.path}"

    def send(self, files: Sequence[Path]) -> None:
        """Store all files in one request; see Destination."""
        from pydicom import dcmread

        contents = [file.read_bytes() for file in files]
        wanted = {str(dcmread(file, stop_before_pixels=True).SOPInstanceUID): file.name for file in files}
        boundary, body = multipart(contents)
        headers = {
            "Content-Type": f'multipart/related; type="application/dicom"; boundary={boundary}',
            "Content-Length": str(sum(map(len, body))),
            "Accept": "application/dicom+json",
        }
        if self.token:
            headers["Authorization"] = f"Bearer {self.token}"
        status, answer = self._post(body, headers)
        if status in LATER:
            raise NotReached(f"it answers {status}")
        if status not in (200, 202, 409):
            if status in DENIED:
                raise NotReached(f"it answers {status}: {DENIED[status]}")
            raise Refused(f"it answers {status}")
        acknowledged(wanted, stored(answer))

    def _post(self, body: Sequence[bytes], headers: dict[str, str]) -> tuple[int, bytes]:
        parts = urlsplit(self.url)
        host = parts.hostname or ""
        if parts.scheme == "https":
            context = ssl.create_default_context(cafile=self.ca_file)
            connection: HTTPConnection = HTTPSConnection(host, parts.port, timeout=ANSWER_S, context=context)
        else:
            connection = HTTPConnection(host, parts.port, timeout=ANSWER_S)
        try:
            # A redirection is not followed: identities go where they were told to go, and nowhere else.
            connection.request("POST", parts.path, body=iter(body), headers=headers, encode_chunked=False)
            answer = connection.getresponse()
            return answer.status, answer.read(LONGEST_ANSWER)
        except ssl.SSLCertVerificationError:
            raise NotReached("its certificate is not trusted; --ca-file names the authority that signed it") from None
        except (OSError, HTTPException) as error:
            raise NotReached(f"it does not answer ({type(error).__name__})") from None
        finally:
            connection.close()


def multipart(contents: Sequence[bytes]) -> tuple[str, list[bytes]]:
    """Return a boundary that occurs in none of the files, and the pieces of the body (RFC 2387, RFC 2046 5.1)."""
    for boundary in _boundaries(contents):
        if not any(boundary.encode() in content for content in contents):
            break
    body = []
    for content in contents:
        body += [f"--{boundary}\r\nContent-Type: application/dicom\r\n\r\n".encode(), content, b"\r\n"]
    return boundary, [*body, f"--{boundary}--\r\n".encode()]


def _boundaries(contents: Sequence[bytes]) -> Iterator[str]:
    digest = hashlib.sha256(b"".join(hashlib.sha256(content).digest() for content in contents)).hexdigest()
    while True:
        yield f"maescreen-{digest[:40]}"
        digest = hashlib.sha256(digest.encode()).hexdigest()


def stored(answer: bytes) -> list[str]:
    """Return the UIDs that the answer of a store service acknowledges; none when it is no such answer."""
    with suppress(ValueError, TypeError, KeyError, AttributeError, IndexError):
        content: Any = json.loads(answer)
        content = content[0] if isinstance(content, list) else content
        failed = {item[UID]["Value"][0] for item in content.get(FAILED, {}).get("Value", ())}
        named = [item[UID]["Value"][0] for item in content[REFERENCED]["Value"]]
        return [uid for uid in named if uid not in failed]
    return []


def _is_loopback(host: str) -> bool:
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return host == "localhost"
