"""A study while it arrives: to disk in pieces, under limits that hold while it arrives and not after."""

from __future__ import annotations

import asyncio
import shutil
from collections.abc import AsyncIterator
from dataclasses import dataclass

from starlette.concurrency import run_in_threadpool
from starlette.requests import ClientDisconnect

from pipeline.delivery.queue import INCOMING, PROCESSING, Entry, Queue
from pipeline.delivery.uploads import settled
from pipeline.store.wording import counted

PIECE_BYTES = 1024**2
SOURCE = "http"
MB = 1024**2


class Refused(Exception):
    """A request is refused: the status of HTTP, why, and where it helps in how many seconds to come again."""

    def __init__(self, status: int, why: str, retry_after_s: int | None = None) -> None:
        super().__init__(why)
        self.status, self.why, self.retry_after_s = status, why, retry_after_s


@dataclass(frozen=True, kw_only=True)
class Limits:
    """What one sender may ask of the machine.

    `most_waiting` studies wait or are judged, `most_uploads` arrive at a time; each has `upload_mb`, must bring
    something every `idle_s` and be there after `upload_s`. `free_mb` of the disk stay free.
    """

    upload_mb: int = 1024
    upload_s: float = 600.0
    idle_s: float = 20.0
    most_uploads: int = 64
    most_waiting: int = 1000
    free_mb: int = 1024


class Receiver:
    """Takes studies into the queue, as many at a time as the limits allow."""

    def __init__(self, queue: Queue, limits: Limits) -> None:
        self.queue, self.limits = queue, limits
        self.arriving = 0

    async def receive(self, body: AsyncIterator[bytes], stated_bytes: int | None, name: str) -> Entry:
        """Return the study that `body` brought, waiting for its turn.

        Raises Refused: 429 when too much waits or arrives, 503 without room on the disk, 413 for one that is too large,
        408 for one too slow, 400 for an empty or broken one. Nothing of a refused study stays.
        """
        most = self.limits.upload_mb * MB
        if stated_bytes is not None and stated_bytes > most:
            raise self._too_large()
        if self.arriving >= self.limits.most_uploads:
            raise Refused(429, f"{counted(self.arriving, 'upload')} arrive at this moment; come again", 2)
        self.arriving += 1
        try:
            entry = await run_in_threadpool(self._begin, stated_bytes or 0, name)
            try:
                await self._write(body, entry, most)
                return await run_in_threadpool(self._submit, entry)
            except BaseException:
                # Also when the server is stopped: what is not complete is nobody's study.
                await asyncio.shield(run_in_threadpool(self.queue.discard, entry))
                raise
        except ClientDisconnect:
            raise Refused(400, "the connection ended before the study did") from None
        except OSError:
            raise Refused(503, "the study could not be written to disk; come again later", 60) from None
        finally:
            self.arriving -= 1

    def _begin(self, stated_bytes: int, name: str) -> Entry:
        waiting = len(self.queue.ids(INCOMING)) + len(self.queue.ids(PROCESSING))
        if waiting >= self.limits.most_waiting:
            # At some ten studies a second, a tenth of them is gone then.
            after = max(2, min(60, self.limits.most_waiting // 100))
            raise Refused(429, f"{counted(waiting, 'study waits', 'studies wait')}; come again later", after)
        if shutil.disk_usage(self.queue.root).free - stated_bytes < self.limits.free_mb * MB:
            raise Refused(503, "the disk of the queue has no room for more studies; come again later", 60)
        return self.queue.receive(SOURCE, name, flushed=False)  # answered once it is complete

    async def _write(self, body: AsyncIterator[bytes], entry: Entry, most: int) -> None:
        clock = asyncio.get_running_loop().time
        until, total, pieces, held = clock() + self.limits.upload_s, 0, [], 0
        with (entry.files / "upload").open("wb") as stream:
            while True:
                try:
                    async with asyncio.timeout(min(self.limits.idle_s, max(until - clock(), 0))):
                        piece = await anext(body, None)
                except TimeoutError:
                    raise Refused(
                        408,
                        f"a study must bring something every {self.limits.idle_s:g} s and be complete after "
                        f"{self.limits.upload_s:g} s",
                    ) from None
                if piece is None:
                    break
                total, held = total + len(piece), held + len(piece)
                if total > most:
                    raise self._too_large()
                pieces.append(piece)
                if held >= PIECE_BYTES:
                    await run_in_threadpool(stream.write, b"".join(pieces))
                    pieces, held = [], 0
            await run_in_threadpool(stream.write, b"".join(pieces))
        if not total:
            raise Refused(
                400, "the body is empty; send the bytes of the study: one file, or a zip archive of its files"
            )

    def _submit(self, entry: Entry) -> Entry:
        settled(entry.files / "upload")
        return self.queue.submit(entry)

    def _too_large(self) -> Refused:
        return Refused(
            413, f"a study has at most {self.limits.upload_mb} MB here; send it compressed, or by its series"
        )
