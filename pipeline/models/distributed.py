"""Several processes training together under torchrun, usually one per GPU. The only module that uses torch.distributed.

Process 0 leads: it alone plans, locks, writes and talks to MLflow. The others follow: they wait for its word and take
their share of every batch. All that torchrun tells through the environment is used, and nothing else, so that one
machine and many are the same. Without torchrun every function here is that of a single process.

Tensors on a GPU travel by NCCL, those on the CPU by gloo. Words travel as JSON, never as pickle.
"""

from __future__ import annotations

import json
import os
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from datetime import timedelta
from typing import Any

import numpy as np
import torch
import torch.distributed as dist

# Its functions take the group of the moment of its import as a default. torch's optimisers import it: after the group
# was made, it would live on to the end of the interpreter, where its threads abort the process now and then.
import torch.distributed.nn.functional
from torch import Tensor
from torch.distributed.rendezvous import rendezvous

# Followers wait while the leader reads archives, which may take days; a process that dies is noticed at once all the
# same, since its connections close.
PATIENCE = timedelta(days=30)
RENDEZVOUS = timedelta(minutes=15)
BUCKET_VALUES = 8_000_000  # 32 MB; a larger one is no faster and needs as much memory again
LAST_WORD = "last_word"


class PeerError(RuntimeError):
    """Another process of this training ended; the message says why, if it could say so."""


@contextmanager
def joined(device: str) -> Iterator[None]:
    """Meet the other processes that torchrun started; leave them, with the reason when it is an error.

    `device` is what all will use: "auto", "cpu" or "cuda". Raises PeerError when another process ends early.
    """
    gpu = device != "cpu" and torch.cuda.is_available()
    store, rank, world = next(rendezvous("env://", timeout=RENDEZVOUS))
    dist.init_process_group(
        "cpu:gloo,cuda:nccl" if gpu else "gloo", store=store, rank=rank, world_size=world, timeout=PATIENCE
    )
    try:
        yield
    except PeerError as error:
        raise PeerError(f"{error}{_last_word(store)}") from None
    except BaseException as error:
        if not store.check([LAST_WORD]):
            # A library's message can quote a file's name, and this one goes to every process.
            own = type(error).__module__.startswith("pipeline.")
            store.set(LAST_WORD, f"process {rank}: {(own and str(error)) or type(error).__name__}")
        raise
    # Not after an error: others may never answer, and the end of this process closes its connections.
    dist.destroy_process_group()


def _last_word(store: dist.Store) -> str:
    try:
        return f" ({store.get(LAST_WORD).decode()})" if store.check([LAST_WORD]) else " without a word; was it killed?"
    except RuntimeError:  # the store's own process is gone
        return ""


@contextmanager
def _listening() -> Iterator[None]:
    try:
        yield
    except RuntimeError as error:
        raise PeerError("another process of this training has ended") from error


# ---------------------------------------------------------------- who is who


def processes() -> int:
    """Return how many processes train together."""
    return dist.get_world_size() if dist.is_initialized() else 1


def leads() -> bool:
    """Return whether this process writes the files."""
    return not dist.is_initialized() or dist.get_rank() == 0


def local_rank() -> int:
    """Return the number of this process on its machine, and so of its GPU."""
    return int(os.environ["LOCAL_RANK"]) if dist.is_initialized() else 0


def own_share(rows: np.ndarray) -> np.ndarray:
    """Return this process's part of a batch; parts differ by at most one image."""
    return np.array_split(rows, processes())[dist.get_rank()] if dist.is_initialized() else rows


# ---------------------------------------------------------------- words and sums


def from_leader(word: Any) -> Any:
    """Return the leader's `word`, plain data that JSON can hold; waits for it as long as it takes."""
    if processes() == 1:
        return word
    text = torch.frombuffer(bytearray(json.dumps(word).encode()), dtype=torch.uint8)
    length = torch.tensor([len(text)])
    with _listening():
        dist.broadcast(length, 0)
        if not leads():
            text = torch.empty(int(length), dtype=torch.uint8)
        dist.broadcast(text, 0)
    return json.loads(text.numpy().tobytes())


def any_process(flag: bool) -> bool:
    """Return whether `flag` is true anywhere; does not wait for the GPU."""
    if processes() == 1:
        return flag
    raised = torch.tensor([int(flag)])
    with _listening():
        dist.all_reduce(raised, dist.ReduceOp.MAX)
    return bool(raised)


def add_up(tensors: Sequence[Tensor]) -> None:
    """Replace each tensor by its sum over all processes; all are of one type and on one device."""
    if processes() == 1:
        return
    sent = []
    with _listening(), torch.no_grad():
        for bucket in _buckets(tensors):
            flat = torch.cat([tensor.flatten() for tensor in bucket])
            sent.append((bucket, flat, dist.all_reduce(flat, async_op=True)))
        for bucket, flat, work in sent:
            work.wait()
            sums = flat.split([tensor.numel() for tensor in bucket])
            for tensor, total in zip(bucket, sums, strict=True):
                tensor.copy_(total.view_as(tensor))


def _buckets(tensors: Sequence[Tensor]) -> Iterator[list[Tensor]]:
    bucket: list[Tensor] = []
    for tensor in tensors:
        if bucket and sum(t.numel() for t in bucket) + tensor.numel() > BUCKET_VALUES:
            yield bucket
            bucket = []
        bucket.append(tensor)
    yield bucket
