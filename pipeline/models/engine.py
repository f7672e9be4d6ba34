"""The steps of a training: from batches to weights, whatever the memory, the precision and the number of processes.

The loops over epochs stand in stages/pretrain.py and finetuning.py, to be read there. Order of images, augmentation,
masks and dropped branches are functions of (seed, epoch, image), so that a resume needs the weights, the optimiser and
how many steps were taken; it is exact, in the middle of an epoch, too.
"""

from __future__ import annotations

import math
import signal
import statistics
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path
from types import FrameType
from typing import TYPE_CHECKING, Any

import numpy as np
import psutil
import torch
from torch import Tensor, nn

from pipeline.models import distributed
from pipeline.models.checkpoints import load_checkpoint, save_checkpoint
from pipeline.models.images import Images
from pipeline.models.training import Hardware, Schedule, TrainingError
from pipeline.models.vit import recompute_blocks

if TYPE_CHECKING:
    from pipeline.store.runlog import RunLog

GRADIENT_NORM_LIMIT = 1.0
# A GPU would have to be waited for at each step; a fault is found late, and still named rightly.
STEPS_BETWEEN_READS = {"cpu": 1, "cuda": 50}
IDS_NAMED = 4
TRIALS = 3  # steps timed to judge compilation

# Returns the mean, over the images at `rows`, of a loss that depends on nothing but each image: parts of a batch are
# computed one after the other, and by different processes.
BatchLoss = Callable[[np.ndarray], Tensor]


class Stopped(KeyboardInterrupt):
    """Training was asked to stop, by a signal or by its time limit, and has saved where it was."""


@dataclass
class Training:
    """A training under way: what is trained, how, and how far it has come."""

    model: nn.Module
    optimiser: torch.optim.Optimizer
    schedule: Schedule
    hardware: Hardware
    images: Images
    folder: Path  # of checkpoints
    log: RunLog
    signals: list[str]  # asked to stop by
    extra: Callable[[], dict[str, Any]]  # further state for the checkpoint
    scaler: torch.amp.GradScaler
    images_per_pass: int | None
    compiled: bool = False
    history: list[dict[str, float]] = field(default_factory=list)
    steps: list[tuple[float, float]] = field(default_factory=list)  # loss and gradient norm, of the epoch under way
    restored: dict[str, Any] = field(default_factory=dict)  # what `extra` gave when the checkpoint was saved


@dataclass(frozen=True)
class Epoch:
    """What came of an epoch: mean loss per image, last learning rate, each step's loss.

    `measured` says how fast it went; it differs from run to run and belongs in no artifact.
    """

    loss: float
    learning_rate: float
    losses: Sequence[float]
    measured: dict[str, float]


# ---------------------------------------------------------------- a training


@contextmanager
def begin(
    model: nn.Module,
    optimiser: torch.optim.Optimizer,
    schedule: Schedule,
    hardware: Hardware,
    images: Images,
    folder: Path,
    log: RunLog,
    what: str,
    extra: Callable[[], dict[str, Any]] = dict,
) -> Iterator[Training]:
    """Yield a training that goes on from its newest checkpoint in `folder`, if there is one.

    Inside, SIGTERM and Ctrl-C save and leave at the next step; a second one acts at once. `images` are those that rows
    of batches name, modulo their number. `extra` gives further state to save, found again in `restored`.
    Raises Stopped, and TrainingError when processes do not start from the same step.
    """
    recompute_blocks(model, hardware.gradient_checkpointing)
    scaler = torch.amp.GradScaler(hardware.device.type, enabled=hardware.precision == torch.float16)
    with _signals() as signals:
        training = Training(
            model, optimiser, schedule, hardware, images, folder, log, signals, extra, scaler, hardware.images_per_pass
        )
        _resume(training, what)
        yield training
        if distributed.any_process(len(signals) > 0):
            _leave(training)


def epochs_left(training: Training, what: str) -> Iterator[int]:
    """Yield the numbers of the epochs that are left, from 0, and show how far it is."""
    done, total = len(training.history), training.schedule.begun_epochs
    return training.log.track(range(done, total), what, total, done)


def train_epoch(training: Training, order: Sequence[np.ndarray], batch_loss: BatchLoss) -> Epoch:
    """Take one step per batch of `order`, those already taken left out. Gradients are clipped to norm 1.

    Raises TrainingError at the first loss that is not finite, or when memory does not suffice; Stopped when asked to.
    """
    epoch = len(training.history)
    order = order[: training.schedule.steps_in(epoch, len(order))]
    rates = [training.schedule.rate(epoch + (position + 1) / len(order)) for position in range(len(order))]
    training.model.train()
    if training.hardware.compile and not training.compiled:
        _compile(training, order, batch_loss)
    first, pending = len(training.steps), list[Tensor]()
    with _measured(training, order[first:]) as measured:
        for position in range(first, len(order)):
            for group in training.optimiser.param_groups:
                group["lr"] = rates[position] * group["scale"]
            pending.append(_step(training, order[position], batch_loss))
            if len(pending) == STEPS_BETWEEN_READS[training.hardware.device.type]:
                _read(training, pending, order)
            if distributed.any_process(_asked_to_stop(training) != ""):
                _read(training, pending, order)
                _leave(training)
        _read(training, pending, order)
    losses = [loss for loss, _ in training.steps]
    total = sum(loss * len(rows) for loss, rows in zip(losses, order, strict=True))
    return Epoch(total / sum(map(len, order)), rates[-1], losses, measured | _gradient_norm(training))


def record(training: Training, values: dict[str, float]) -> None:
    """Add what came of an epoch to the history; all processes take the leader's numbers."""
    training.history.append({"epoch": len(training.history) + 1, **distributed.from_leader(values)})
    training.steps.clear()


def save(training: Training) -> None:
    """Save all that a resume needs."""
    if not distributed.leads():
        return
    state = {
        "model": training.model.state_dict(),
        "optimiser": training.optimiser.state_dict(),
        "scaler": training.scaler.state_dict(),
        "history": training.history,
        "steps": training.steps,
        **training.extra(),
    }
    save_checkpoint(training.folder, len(training.history), state, len(training.steps))


def _resume(training: Training, what: str) -> None:
    if (state := load_checkpoint(training.folder, training.hardware.device, training.log.warn)) is not None:
        training.model.load_state_dict(state["model"])
        training.optimiser.load_state_dict(state["optimiser"])
        training.scaler.load_state_dict(state["scaler"])
        training.history, training.steps = state["history"], state["steps"]
        training.restored = {name: state[name] for name in training.extra()}
        inside = f" and {len(training.steps)} steps" if training.steps else ""
        total = training.schedule.begun_epochs
        training.log.info(f"{what} goes on after epoch {len(training.history)}{inside} of {total} epochs")
    place = [len(training.history), len(training.steps)]
    if distributed.any_process(distributed.from_leader(place) != place):
        raise TrainingError(
            "processes would go on from different checkpoints; all machines must see the same store, under its path"
        )


def _leave(training: Training) -> None:
    save(training)
    why = _asked_to_stop(training) or "another process was asked to stop"
    done = f"{len(training.history)} epochs and {len(training.steps)} steps"
    raise Stopped(f"stopped: {why}; saved after {done} of {training.schedule.begun_epochs} epochs")


def _asked_to_stop(training: Training) -> str:
    """Return why training has to stop now, or an empty text."""
    if training.signals:
        return training.signals[0]
    return "machine.max_minutes have passed" if time.monotonic() > training.hardware.deadline else ""


@contextmanager
def _signals() -> Iterator[list[str]]:
    """Collect the names of SIGTERM and Ctrl-C as they arrive; the second one does what it would do without us."""
    asked: list[str] = []
    if threading.current_thread() is not threading.main_thread():  # the only one that may handle signals
        yield asked
        return
    before = {number: signal.getsignal(number) or signal.SIG_DFL for number in (signal.SIGTERM, signal.SIGINT)}

    def note(number: int, _frame: FrameType | None) -> None:
        asked.append(signal.Signals(number).name)
        signal.signal(number, before[signal.Signals(number)])

    for number in before:
        signal.signal(number, note)
    try:
        yield asked
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


# ---------------------------------------------------------------- a step


def _step(training: Training, rows: np.ndarray, batch_loss: BatchLoss) -> Tensor:
    """Take one step; return the batch's mean loss and the norm of its gradient, (2,), still on the device."""
    loss = _gradients(training, rows, batch_loss)
    trained = [parameter for group in training.optimiser.param_groups for parameter in group["params"]]
    if distributed.processes() > 1:
        distributed.add_up([loss, *map(_gradient, trained)])
    training.scaler.unscale_(training.optimiser)
    norm = nn.utils.clip_grad_norm_(trained, GRADIENT_NORM_LIMIT)
    # With fp16, a step whose gradient overflows is left out and the next loss is scaled less.
    training.scaler.step(training.optimiser)
    training.scaler.update()
    return torch.stack((loss, norm))


def _gradient(parameter: nn.Parameter) -> Tensor:
    """Return the parameter's gradient, zeros where the images of this process gave it none."""
    if parameter.grad is None:
        parameter.grad = torch.zeros_like(parameter)
    return parameter.grad


def _gradients(training: Training, rows: np.ndarray, batch_loss: BatchLoss) -> Tensor:
    """Leave this process's part of the gradient of the batch's mean loss; return its part of the loss, a scalar."""
    if len(rows) < distributed.processes():
        raise TrainingError(
            f"a batch of {len(rows)} images cannot be shared by {distributed.processes()} processes; "
            "raise batch_size or start fewer"
        )
    own = distributed.own_share(rows)
    while True:
        try:
            return _passes(training, own, len(rows), batch_loss)
        except (RuntimeError, MemoryError) as error:
            if not _out_of_memory(error):
                raise
            largest = min(training.images_per_pass or len(own), len(own))
            if largest == 1 or not training.hardware.halve_when_out_of_memory:
                raise TrainingError(_no_memory(training.hardware.device, largest)) from None
        # Outside of the handler, whose traceback keeps the tensors of the failed pass.
        training.images_per_pass = largest // 2
        training.optimiser.zero_grad(set_to_none=True)
        if training.hardware.device.type == "cuda":
            torch.cuda.empty_cache()
        training.log.warn(
            f"not enough memory for {largest} images at once: machine.images_per_pass is {largest // 2} from here on"
        )


def _passes(training: Training, own: np.ndarray, batch_images: int, batch_loss: BatchLoss) -> Tensor:
    """Accumulate the gradient over parts that fit into memory, each weighted by its share of the whole batch."""
    training.optimiser.zero_grad(set_to_none=True)
    total = torch.zeros((), device=training.hardware.device)
    for part in np.array_split(own, math.ceil(len(own) / (training.images_per_pass or len(own)))):
        loss = batch_loss(part) * (len(part) / batch_images)
        training.scaler.scale(loss).backward()
        total += loss.detach()
    return total


def _out_of_memory(error: BaseException) -> bool:
    # On a CPU, torch raises a plain RuntimeError.
    return isinstance(error, torch.OutOfMemoryError | MemoryError) or "can't allocate memory" in str(error)


def _no_memory(device: torch.device, images: int) -> str:
    advice = f"set machine.images_per_pass to {images // 2} or less" if images > 1 else "use a smaller network"
    return (
        f"the {device.type} has not enough memory for {images} images at once; {advice} (the result stays the same but "
        "for rounding), machine.on_out_of_memory to halve, or machine.gradient_checkpointing to true"
    )


def _read(training: Training, pending: list[Tensor], order: Sequence[np.ndarray]) -> None:
    """Fetch losses and norms of the last steps from the device, and stop at the first that is not finite."""
    for loss, norm in torch.stack(pending).tolist() if pending else ():
        number = len(training.steps)
        if not math.isfinite(loss) or not (math.isfinite(norm) or training.scaler.is_enabled()):
            what = f"the loss is {loss}" if not math.isfinite(loss) else f"the gradient's norm is {norm}"
            epoch = len(training.history)
            raise TrainingError(
                f"{what} at step {epoch * len(order) + number} (epoch {epoch + 1}, batch {number + 1} of {len(order)}: "
                f"{_named(training.images, order[number])}); lower the learning rate, or look for damaged images"
            )
        training.steps.append((loss, norm))
    pending.clear()


def _named(images: Images, rows: np.ndarray) -> str:
    ids = images.index["image_id"].to_numpy()[rows % len(images)]
    more = f" and {len(ids) - IDS_NAMED} more" if len(ids) > IDS_NAMED else ""
    return f"images {', '.join(ids[:IDS_NAMED])}{more}"


# ---------------------------------------------------------------- how fast it goes


def _compile(training: Training, order: Sequence[np.ndarray], batch_loss: BatchLoss) -> None:
    """Compile the model's forward and backward pass; warn when this costs more time than the steps left will save.

    Both are timed on the first batch without taking a step, so that results do not depend on where a run began.
    """
    training.compiled = True
    rows = order[0]

    def trial() -> float:
        started = time.perf_counter()
        _gradients(training, rows, batch_loss).item()
        return time.perf_counter() - started

    def typical() -> float:
        return statistics.median(trial() for _ in range(TRIALS))

    trial()
    before = typical()
    torch.use_deterministic_algorithms(True, warn_only=True)  # the compiler, too
    torch.compiler.reset()  # it gives up after a few models otherwise
    # Sizes of batches differ by one at most: a version for each is faster than one for any size.
    training.model.compile(dynamic=False)
    try:
        cost = trial()
    except torch._dynamo.exc.TorchDynamoException as error:
        raise TrainingError(
            f"torch.compile failed ({type(error).__name__}); set machine.compile to false, or install a C++ compiler"
        ) from error
    after = typical()
    training.optimiser.zero_grad(set_to_none=True)
    epochs_left = training.schedule.epochs - len(training.history)
    left = round(epochs_left * len(order)) - len(training.steps)
    training.log.info(f"compiled in {cost:.0f} s: a step takes {after * 1e3:.0f} instead of {before * 1e3:.0f} ms")
    if (saved := (before - after) * left) < cost:
        training.log.warn(
            f"machine.compile took {cost:.0f} s and saves about {max(saved, 0):.0f} s in the {left} steps left; "
            "false is faster here"
        )


@contextmanager
def _measured(training: Training, order: Sequence[np.ndarray]) -> Iterator[dict[str, float]]:
    """Fill in, at the end of the block, images per second, peak memory and the share of time spent on fetching data."""
    device, images = training.hardware.device, sum(map(len, order))
    values: dict[str, float] = {}
    if device.type == "cuda":
        torch.cuda.reset_peak_memory_stats(device)
    waited, started = training.images.waited.seconds, time.perf_counter()
    yield values
    seconds = time.perf_counter() - started
    values["images_per_second"] = images / seconds
    values["data_wait_share"] = (training.images.waited.seconds - waited) / seconds
    if device.type == "cuda":
        values["peak_memory_mb"] = torch.cuda.max_memory_allocated(device) / 1e6
        # Needs nvidia-ml-py and a driver that lets it ask.
        with suppress(ModuleNotFoundError, RuntimeError, OSError):
            values["gpu_utilisation_percent"] = torch.cuda.utilization(device)
    else:
        values["peak_memory_mb"] = psutil.Process().memory_info().rss / 1e6


def _gradient_norm(training: Training) -> dict[str, float]:
    """Return the mean norm before clipping, of the steps whose gradient was finite; nothing when none was."""
    norms = [norm for _, norm in training.steps if math.isfinite(norm)]
    return {"gradient_norm": statistics.fmean(norms)} if norms else {}
