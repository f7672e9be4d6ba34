"""How long the steps of a plan will take on this machine, and what memory and disk they need, before anything runs.

`work` says how many seconds a stage takes on its reference machine. What this machine takes is a factor of that: the
median over the newest artifacts of the stage that were made on such a device, since their records hold seconds and
settings; for trainings without any, the factor of the step that `maescreen init` timed; otherwise 1. The last two are
those of an idle machine, and are multiplied by how busy it has been with other programs in the last quarter of an hour.
"""

from __future__ import annotations

import math
import os
import shutil
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from statistics import median
from typing import Any

from pipeline.orchestration.graph import UNLABELLED
from pipeline.orchestration.items import counted_items, counted_unlabelled, items_of
from pipeline.orchestration.plan import Step
from pipeline.orchestration.work import Items, Job, disk_mb, forward_flops, memory_mb, seconds, wall_seconds
from pipeline.settings.config import Config
from pipeline.settings.training import FinetuneSettings, PretrainSettings
from pipeline.settings.where import Machine
from pipeline.store.artifacts import Artifact, Store, StoreError
from pipeline.store.files import read_json

SPEED_FILE = "machine_speed.json"
HOUR_S = 3600
TRAININGS = ("pretrain", "finetune", "score")
LOOKED_AT = 5
# Shorter ones say more about starting than about working, and a resumed one holds its last leg alone.
LEAST_S = 1.0
BUSY = 1.5
# Of the others not all want a core all the time: in one run at a load of 20 on two cores, work took 5 times as long.
BUSY_EXPONENT = 0.7
GB = 1e9


@dataclass(frozen=True)
class Estimate:
    """What a step is expected to take; `basis` says where the seconds come from."""

    step: str
    seconds: float
    memory_mb: float
    disk_mb: float
    basis: str

    def to_dict(self) -> dict[str, Any]:
        """Return the figures as plain data."""
        values = {"seconds": self.seconds, "memory_mb": self.memory_mb, "disk_mb": self.disk_mb}
        return {**{name: float(f"{value:.3g}") for name, value in values.items()}, "basis": self.basis}


def estimates(config: Config, steps: Sequence[Step]) -> dict[str, Estimate]:
    """Return, by name, what each step that is to be made will take; nothing when nothing is.

    Empty, too, when studies or label table cannot be looked at: the run itself says why.
    """
    due = [step for step in steps if step.action != "reuse"]
    if not due:
        return {}
    store = Store(config.store)
    try:
        counted = _counted(config)
        items = {name: _items(own, name, steps, store) for name, own in counted.items()}
    except OSError:
        return {}
    speed = read_speed(config.store)
    found = {}
    for step in due:
        job = job_of(config, items[step.stage.external])
        if step.stage.name == "pretrain" and UNLABELLED in items:
            job = _with_more(job, items[UNLABELLED].pretrain)
        own, basis = _factor(step.stage.name, job, _Known(config, store, counted), speed)
        name = step.stage.name
        time_s = own * seconds(name, job) + wall_seconds(name, job)
        found[step.name] = Estimate(step.name, time_s, memory_mb(name, job), disk_mb(name, job), basis)
    return found


def job_of(config: Config, items: Items) -> Job:
    """Return the job of a config on so many items."""
    machine = config.machine
    return Job(
        items,
        config.preprocess.image_size,
        config.pretrain,
        config.finetune,
        threads_of(machine.model_dump()),
        min(machine.workers, cores()),
    )


def cores() -> int:
    """Return how many processor cores this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def threads_of(machine: Mapping[str, Any]) -> int:
    """Return how many threads torch takes by settings of `machine`."""
    return min(machine.get("threads") or cores(), cores())


def _counted(config: Config) -> dict[str, Items]:
    """Return what there is to do for the studies of the run, by an empty name, for those of each external test set,
    and for those without labels, as UNLABELLED. Raises OSError."""
    data = config.data
    found = {"": counted_items(config, data)}
    found |= {one.name: counted_items(config, one, test_only=True) for one in data.external}
    if data.without_labels:
        found[UNLABELLED] = counted_unlabelled(data.without_labels)
    return found


def _with_more(job: Job, unlabelled: int) -> Job:
    return replace(job, items=replace(job.items, pretrain=job.items.pretrain + unlabelled))


def _items(counted: Items, external: str, steps: Sequence[Step], store: Store) -> Items:
    """Return what there is to do for the studies of the run, or of the external test set of this name."""
    made = {
        step.stage.name: store.find(step.stage.name, step.key)
        for step in steps
        if step.stage.external == external and step.action == "reuse"
    }
    return items_of(counted, made.get("ingest"), made.get("split"))


# ---------------------------------------------------------------- what this machine takes


@dataclass(frozen=True)
class _Known:
    """What earlier artifacts are looked at with: the config, its store, and the files counted by dataset."""

    config: Config
    store: Store
    counted: Mapping[str, Items]


def read_speed(store: Path) -> Mapping[str, Any]:
    """Return what `maescreen init` measured on this machine, as it wrote it into the store; empty without that."""
    try:
        found = read_json(store / SPEED_FILE)
    except (OSError, ValueError):
        return {}
    return found if found.get("cores") == cores() else {}


def _factor(stage: str, job: Job, known: _Known, speed: Mapping[str, Any]) -> tuple[float, str]:
    """Return how many seconds this machine takes for one of the reference machine, and where that is known from."""
    learnt = _learnt(stage, known)
    if learnt:
        return median(learnt), f"{len(learnt)} earlier {'artifact' if len(learnt) == 1 else 'artifacts'}"
    factor, basis = timed_factor(stage, job, speed)
    return factor * busyness(job.threads), basis


def busyness(threads: int = 1) -> float:
    """Return how many times longer work takes beside other programs, if they go on as in the last 15 minutes."""
    return max(1.0, (load() + threads) / cores()) ** BUSY_EXPONENT


def load() -> float:
    """Return the mean number of processes that wanted a core in the last 15 minutes."""
    return os.getloadavg()[2]


def timed_factor(stage: str, job: Job, speed: Mapping[str, Any]) -> tuple[float, str]:
    """Return the factor of the network of the nearest size that `maescreen init` timed, in work per image."""
    if stage in speed.get("factors", {}):
        return float(speed["factors"][stage]), "files timed by init"
    steps = speed.get("steps", []) if stage in TRAININGS else []
    if not steps:
        return 1.0, "the reference machine"
    wanted = math.log(forward_flops(job))
    nearest = min(steps, key=lambda one: abs(math.log(one["forward_flops"]) - wanted))
    return float(nearest["pretrain" if stage == "pretrain" else "finetune"]), "a step timed by init"


def _learnt(stage: str, known: _Known) -> list[float]:
    """Return the factors of earlier artifacts of a stage on such a device, those of the project if it has any."""
    usable = [one for one in known.store.all(stage)[: 4 * LOOKED_AT] if _is_of_here(one, known.config.machine)]
    own = [one for one in usable if one.record.get("project") == known.config.project]
    found = [_factor_of(one, known) for one in (own or usable)[:LOOKED_AT]]
    return [factor for factor in found if factor is not None]


def _is_of_here(artifact: Artifact, machine: Machine) -> bool:
    record = artifact.record
    made = record.get("machine", {})
    on_cpu = record.get("device", "cpu") == "cpu"
    wanted = machine.device == "cpu" or (machine.device == "auto" and not _has_gpu())
    same = on_cpu == wanted or artifact.stage not in TRAININGS
    return same and made.get("cores", cores()) == cores() and record.get("seconds", 0) >= LEAST_S


def _has_gpu() -> bool:
    return any(Path(node).exists() for node in ("/dev/nvidiactl", "/dev/dxg", "/dev/kfd", "/dev/nvmap"))


def _factor_of(artifact: Artifact, known: _Known) -> float | None:
    """Return the seconds that an artifact took over those of the reference machine; None where that is not known."""
    try:
        job = _job_of(artifact, known)
    except (StoreError, OSError, ValueError, KeyError, TypeError):  # made by code that counted otherwise
        return None
    if wall_seconds(artifact.stage, job):  # how much of it was the search is not in the record
        return None
    return float(artifact.record["seconds"]) / seconds(artifact.stage, job)


def _job_of(artifact: Artifact, known: _Known) -> Job:
    line, config = _ancestors(artifact, known.store), known.config
    settings = {stage: one.record["settings"] for stage, one in line.items()}
    made = artifact.record.get("machine", {})
    external = artifact.record.get("step", artifact.stage).partition("@")[2]
    counted = known.counted.get(external, known.counted[""])
    job = job_of(config, items_of(counted, line.get("ingest"), line.get("split")))
    if artifact.stage == "pretrain" and (key := artifact.record["inputs"].get(f"split@{UNLABELLED}")):
        unlabelled = known.store.find("split", key)
        job = _with_more(job, items_of(job.items, None, unlabelled).pretrain if unlabelled else 0)
    return replace(
        job,
        image_size=settings.get("preprocess", {}).get("image_size", job.image_size),
        pretrain=PretrainSettings.model_validate(settings["pretrain"]) if "pretrain" in settings else job.pretrain,
        finetune=FinetuneSettings.model_validate(settings["finetune"]) if "finetune" in settings else job.finetune,
        threads=threads_of(made or config.machine.model_dump()),
        workers=min(made.get("workers", job.workers), cores()),
    )


def _ancestors(artifact: Artifact, store: Store) -> dict[str, Artifact]:
    """Return an artifact and all that it rests on, by stage, external test sets left out."""
    found = {artifact.stage: artifact}
    for read, key in artifact.record["inputs"].items():
        one = None if "@" in read or read in found else store.find(read, key)
        if one is not None:
            found = _ancestors(one, store) | found
    return found


# ---------------------------------------------------------------- in words


def lines(found: Mapping[str, Estimate], store: Path) -> list[str]:
    """Return the table of estimates, its sum, and what is too much for this machine."""
    if not found:
        return []
    rows = [f"{'estimate':<22}{'time':>10}{'memory':>10}{'disk':>10}   by"]
    rows += [
        f"{name:<22}{duration(one.seconds):>10}{size(one.memory_mb):>10}{size(one.disk_mb):>10}   {one.basis}"
        for name, one in found.items()
    ]
    everything = list(found.values())
    total, most = sum(one.seconds for one in everything), max(one.memory_mb for one in everything)
    rows.append(f"{'all':<22}{duration(total):>10}{size(most):>10}{size(sum(one.disk_mb for one in everything)):>10}")
    if busyness() >= BUSY:
        rows.append(
            f"other programs keep this machine busy (load {load():.0f} on {cores()} cores): what is not learnt from "
            f"earlier artifacts is multiplied by {busyness():.1f}"
        )
    return rows + warnings(found, store)


def warnings(found: Mapping[str, Estimate], store: Path) -> list[str]:
    """Return what to know before a run starts: more than an hour, more memory or more disk than there is."""
    if not found:
        return []
    everything = list(found.values())
    total, most = sum(one.seconds for one in everything), max(everything, key=lambda one: one.memory_mb)
    said = []
    if total > HOUR_S:
        longest = max(everything, key=lambda one: one.seconds)
        said.append(
            f"this will take about {duration(total)} on this machine, {longest.step} alone {duration(longest.seconds)} "
            f"(by {longest.basis}); it can be stopped at any time and goes on where it was. `maescreen init --minutes` "
            "writes a config that fits a budget"
        )
    memory = memory_gb()
    if most.memory_mb > 1e3 * memory:
        said.append(
            f"{most.step} needs about {size(most.memory_mb)} of memory, and this machine has {memory:.0f} GB: lower "
            f"machine.images_per_pass, or machine.workers"
        )
    needed = sum(one.disk_mb for one in everything)
    place = next(one for one in (store, *store.parents) if one.exists())
    if needed * 1e6 > (free := shutil.disk_usage(place).free):
        said.append(f"the store needs about {size(needed)}, and its disk has {free / GB:.0f} GB free")
    return said


def memory_gb() -> float:
    """Return the memory of this machine, in GB."""
    return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / GB


def duration(time_s: float) -> str:
    """Return a time as a person says it."""
    if time_s < 90:
        return f"{time_s:.0f} s"
    return f"{time_s / 60:.0f} min" if time_s < 1.5 * HOUR_S else f"{time_s / HOUR_S:.1f} h"


def size(megabytes: float) -> str:
    """Return a size as a person says it."""
    return f"{megabytes:.0f} MB" if megabytes < 1000 else f"{megabytes / 1000:.1f} GB"
