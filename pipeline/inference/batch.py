"""Many studies through one model: files are grouped, read in workers, scored in batches; memory does not grow."""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from monai.data import set_track_meta

from pipeline.imaging.archive.quality import Limits
from pipeline.imaging.archive.sources import Source
from pipeline.imaging.archive.workers import Pool, each_batch
from pipeline.imaging.image import Policy
from pipeline.imaging.pseudonyms import normal_path
from pipeline.imaging.quarantine import Refusal, Refused
from pipeline.imaging.transforms import Rendering, render
from pipeline.inference.grouping import Glance, glance, own_key, study_name
from pipeline.inference.placement import Placement
from pipeline.inference.study import read_study
from pipeline.store.files import sha256_json

FILES_PER_TASK = 50
STUDIES_PER_TASK = 4
# A study may hold many files; each may take the time that the model's config allows.
Progress = Callable[[str, int, int], None]


@dataclass(frozen=True)
class Task:
    """What a worker needs to turn files into arrays."""

    policy: Policy
    limits: Limits
    min_slices: int
    rendering: Rendering


@dataclass(frozen=True)
class Facts:
    """What is known of an image beside its pixels; `stated` by its header: see `header_remarks.header_values`.

    `placement` is the way back to its files.
    """

    files: tuple[str, ...]
    flags: tuple[str, ...]
    stated: Mapping[str, Any]
    placement: Placement


@dataclass(frozen=True)
class Seen:
    """A study as the network sees it: `arrays` (N, C, ...) uint8 with a fact each, and the files that are in none."""

    arrays: np.ndarray
    facts: tuple[Facts, ...]
    refused: tuple[tuple[str, Refusal], ...]


@dataclass(frozen=True)
class Group:
    """The files of one study, and how it is called. `identity` is a hash of names and contents of its files."""

    name: str
    study_uid: str
    patient: str
    sources: tuple[Source, ...]
    identity: str

    @property
    def path(self) -> str:
        """Where the study's first file lies, relative to the root that was named."""
        return self.sources[0].path


@dataclass(frozen=True)
class Sorted:
    """The studies in order of their names, and the files that are in none, with why."""

    groups: tuple[Group, ...]
    alone: tuple[tuple[str, Refusal], ...]


def sort_files(
    sources: Sequence[Source], task: Task, pool: Pool, scratch: Path, named: Mapping[str, str], progress: Progress
) -> Sorted:
    """Look at every file and group them into studies; see `grouping.glance`."""
    batches = {n: [(s,) for s in sources[n : n + FILES_PER_TASK]] for n in range(0, len(sources), FILES_PER_TASK)}
    glances: list[Glance] = [Glance("", "")] * len(sources)
    done = 0
    for start, results in each_batch(partial(_glance, task.policy, named), batches, pool, scratch):
        for at, result in enumerate(results, start):
            # A file at which a worker died is still somebody's study.
            known = isinstance(result, Glance)
            glances[at] = result if known else Glance("", own_key(sources[at], named, task.policy), refusal=result)
        done += len(results)
        progress("files looked at", done, len(sources))
    members: dict[str, list[int]] = defaultdict(list)
    alone = []
    for at, one in enumerate(glances):
        if one.key:
            members[one.key].append(at)
        else:
            alone.append((sources[at].path, one.refusal or Refusal("unknown_format")))
    groups = _groups(members, sources, glances, named, task.policy)
    return Sorted(groups, tuple(sorted(alone, key=lambda pair: pair[0])))


def _glance(policy: Policy, named: Mapping[str, str], item: tuple[Source, ...]) -> Glance:
    return glance(item[0], policy, named)


def _groups(
    members: Mapping[str, Sequence[int]],
    sources: Sequence[Source],
    glances: Sequence[Glance],
    named: Mapping[str, str],
    policy: Policy,
) -> tuple[Group, ...]:
    found = []
    for key, places in members.items():
        first = glances[places[0]]
        own = tuple(sources[at] for at in places)
        told = [[one.channel] if one.channel else [] for one in own]
        contents = [[sources[at].place, glances[at].sha256, *also] for at, also in zip(places, told, strict=True)]
        given = named.get(normal_path(own[0].path), "")
        name = given or first.study_uid or study_name(normal_path(own[0].path), policy)
        found.append((name, key, Group(name, first.study_uid, first.patient, own, sha256_json(contents))))
    groups, taken = [], defaultdict(int)
    for name, _, group in sorted(found, key=lambda one: one[:2]):
        taken[name] += 1
        # Two people under one Study Instance UID, or one name under two roots.
        again = "" if taken[name] == 1 else f" ({taken[name]})"
        groups.append(Group(name + again, group.study_uid, group.patient, group.sources, group.identity))
    return tuple(groups)


def read_groups(groups: Sequence[Group], task: Task, pool: Pool, scratch: Path) -> Iterator[tuple[Group, Seen]]:
    """Yield each study with its arrays, in the order in which workers finish.

    A study at which a decoder dies or hangs has no arrays, and each of its files the reason.
    """
    size = 1 if len(task.rendering.image_size) == 3 else STUDIES_PER_TASK
    batches = {n: groups[n : n + size] for n in range(0, len(groups), size)}
    most = max((len(group.sources) for group in groups), default=1)
    patient = Pool(pool.workers, pool.timeout_s * math.ceil(math.sqrt(most)), memory_bytes=pool.memory_bytes)
    empty = task.rendering.no_arrays()
    for start, results in each_batch(partial(_see, task), batches, patient, scratch):
        for group, result in zip(batches[start], results, strict=True):
            if isinstance(result, Refusal):
                result = Seen(empty, (), tuple((source.path, result) for source in group.sources))
            yield group, result


def _see(task: Task, group: Group) -> Seen:
    torch.set_num_threads(1)  # the processes share the cores already
    set_track_meta(False)
    study = read_study(group.sources, task.policy, task.limits, task.min_slices)
    arrays, facts, refused = [], [], dict(study.refused)
    for one in study.images:
        about = one.image.about
        try:
            rendered = render(one.image, task.rendering)
        except Refused as error:
            refused |= dict.fromkeys(one.files, error.refusal)
            continue
        arrays.append(rendered.pixels)
        whole = task.rendering.crop != "none" and not rendered.cropped
        flags = (*one.flags, *(("no_field_of_view",) if whole else ()))
        stated = {name: getattr(about, name) for name in ("modality", "view", "body_part", "age_years")}
        placement = Placement.of(one.image, rendered)
        facts.append(Facts(one.files, flags, {**stated, "spacing_mm": one.image.spacing_mm}, placement))
    stacked = np.stack(arrays) if arrays else task.rendering.no_arrays()
    return Seen(stacked, tuple(facts), tuple(sorted(refused.items())))
