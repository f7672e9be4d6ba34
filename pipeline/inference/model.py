"""A packaged model in Python: `Model.load(folder)`, `model.predict(paths)`; `write_results` takes what it returns."""

from __future__ import annotations

import tempfile
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from pipeline.imaging.archive.quality import Limits
from pipeline.imaging.archive.sources import Source, find_sources
from pipeline.imaging.archive.workers import Pool
from pipeline.imaging.image import MB, Policy
from pipeline.imaging.pseudonyms import normal_path
from pipeline.imaging.quarantine import FLAGS
from pipeline.imaging.transforms import Rendering
from pipeline.inference.batch import Group, Progress, Seen, Sorted, Task, read_groups, sort_files
from pipeline.inference.description import describe_found
from pipeline.inference.ensemble import Ensemble, member_files, to_pixels
from pipeline.inference.header_remarks import header_remarks
from pipeline.inference.model_folder import MEMBERS, TYPICALITY, check_golden, verified
from pipeline.inference.outline import MARKED, attention, kind_of
from pipeline.inference.placement import DrawnMask
from pipeline.inference.result import HARMLESS, Picture, Result
from pipeline.inference.rule import Rule
from pipeline.inference.study import Study, read_study
from pipeline.inference.typicality import Reference, Typicality
from pipeline.models.finished import Look
from pipeline.models.training import prepare
from pipeline.store.files import sha256_json

IMAGES_PER_BATCH = 64


class StudiesError(ValueError):
    """What was given to predict cannot be used as a whole; the message says why and what to do."""


def nothing(_what: str, _done: int, _total: int) -> None:
    """Show no progress."""


@dataclass(frozen=True)
class Model:
    """A model as `package` left it, checked in full: hashes, golden images, versions."""

    folder: Path
    content: Mapping[str, Any]
    sha256: str
    ensemble: Ensemble
    rule: Rule
    further: Mapping[str, Rule]
    device: torch.device

    @classmethod
    def load(
        cls, folder: Path | str, *, device: str = "auto", threads: int | None = None, say: Callable[[str], None] = print
    ) -> Model:
        """Return the model in a folder.

        Raises ModelError when a file is not what was packaged, or when the model scores its golden images otherwise
        than where it was made. `say` is told of packages in another version.
        """
        place = Path(folder)
        content, sha256 = verified(place)
        where = prepare(device, threads)
        ensemble = Ensemble.load(member_files(place / MEMBERS), where, flips=content["flips"])
        check_golden(place, ensemble, dict(content), say)
        further = {label_id: Rule.from_json(rule) for label_id, rule in content["further_rules"].items()}
        return cls(place, content, sha256, ensemble, Rule.from_json(content["rule"]), further, where)

    @property
    def usable(self) -> bool:
        """Whether the model may decide; otherwise it gives scores alone."""
        return self.rule.decision.usable and bool(self.rule.points)

    @property
    def scope(self) -> list[str]:
        """Of whom the certificate of the operating point in use speaks, in sentences; why there is none otherwise."""
        return self.rule.scope(self.content["card"]["intended_use"]["population"])

    @property
    def rendering(self) -> Rendering:
        """How images become arrays."""
        return Rendering.from_json(self.content["rendering"])

    @property
    def policy(self) -> Policy:
        """Which files are taken."""
        return Policy.from_json(self.content["accepts"]["policy"])

    @property
    def task(self) -> Task:
        """What a worker needs to know of the model."""
        accepts = self.content["accepts"]
        return Task(self.policy, Limits.from_json(accepts["limits"]), accepts["min_slices"], self.rendering)

    @property
    def stated(self) -> Mapping[str, Mapping[str, int]]:
        """What the headers of the training images stated, in counts."""
        return self.content["population"]["stated"]

    @cached_property
    def reference(self) -> Reference | None:
        """What tells whether a study is like those of the calibration; None when too few patients were there."""
        path = self.folder / TYPICALITY
        return Reference.load(path) if path.is_file() else None

    def read(self, paths: Sequence[Path]) -> Study:
        """Read the files of one study as this model takes them."""
        task = self.task
        return read_study(paths, task.policy, task.limits, task.min_slices)

    def predict(
        self,
        paths: Sequence[Path | str],
        *,
        studies: Mapping[str, str] | None = None,
        channels: Mapping[str, str] | None = None,
        recall_target: float | None = None,
        prevalence: float | None = None,
        workers: int = 2,
        pictures: bool = False,
        masks: bool = False,
        progress: Progress = nothing,
    ) -> Predictions:
        """Return the results of all studies under `paths`: files, folders, zip archives of any format ingest reads.

        `studies` names the study of each path relative to its root, where headers do not, `channels` which channel it
        is, where a table told that in training. `recall_target` chooses among the certified operating points,
        `prevalence` is the share with the condition where the model is used. With `pictures`, results carry the image
        that made their score, for a page; with `masks`, what was marked in each image, for files.

        Raises RuleError for a target that is not certified, StudiesError when there is no file, `studies` names paths
        that are not there, or masks are asked of a model that draws none.
        """
        if masks and not self.ensemble.structures:
            raise StudiesError("this model was not trained to segment: it has no masks to write; leave out --masks")
        rule = self.rule if recall_target is None else self.rule.at(recall_target)
        roots = [Path(path) for path in paths]
        named = {normal_path(path): study for path, study in (studies or {}).items()}
        sources = find_sources(roots)
        if not sources:
            raise StudiesError("there is no file under what was named")
        if missing := named.keys() - {normal_path(source.path) for source in sources}:
            raise StudiesError(
                f"{len(missing)} of {len(named)} paths of the table are no file under what was named, relative to it"
            )
        told = {normal_path(path): channel for path, channel in (channels or {}).items()}
        sources = [_told(source, told, named) for source in sources]
        return Predictions(replace(self, rule=rule), sources, named, prevalence, workers, pictures, progress, masks)


def _told(source: Source, channels: Mapping[str, str], studies: Mapping[str, str]) -> Source:
    path = normal_path(source.path)
    return replace(source, channel=channels[path], study=studies[path]) if path in channels else source


@dataclass(frozen=True)
class Predictions:
    """The studies found under some paths, judged when they are asked for."""

    model: Model
    sources: Sequence[Source]
    named: Mapping[str, str]
    prevalence: float | None
    workers: int
    pictures: bool
    progress: Progress
    masks: bool = False

    @cached_property
    def found(self) -> Sorted:
        """The studies, and the files that belong to none."""
        with _scratch() as folder:
            return sort_files(self.sources, self.model.task, self._pool, Path(folder), self.named, self.progress)

    @property
    def settings_sha256(self) -> str:
        """A hash of all that a result depends on besides its files."""
        points = [point.to_json() for point in self.model.rule.points]
        return sha256_json([self.model.sha256, points, self.prevalence])

    def __iter__(self) -> Iterator[Result]:
        """Yield each study's result, in the order in which they are ready."""
        return self.of(self.found.groups)

    def of(self, groups: Sequence[Group], done: Collection[str] = ()) -> Iterator[Result]:
        """Yield the results of these studies, less those whose identity is in `done`."""
        left = [group for group in groups if group.identity not in done]
        waiting: list[tuple[Group, Seen]] = []
        with _scratch() as folder:
            for pair in read_groups(left, self.model.task, self._pool, Path(folder)):
                waiting.append(pair)
                # Studies without an image count as well, so that their results do not wait for those of others.
                if sum(max(1, len(seen.arrays)) for _, seen in waiting) >= IMAGES_PER_BATCH:
                    yield from self._judged(waiting)
                    waiting = []
            yield from self._judged(waiting)

    def _judged(self, waiting: Sequence[tuple[Group, Seen]]) -> Iterator[Result]:
        model = self.model
        arrays = [seen.arrays for _, seen in waiting if len(seen.arrays)]
        logits, depths = self._look(np.concatenate(arrays)) if arrays else (np.empty((0, 1 + len(model.further))), [])
        at = 0
        for group, seen in waiting:
            own = slice(at, at + len(seen.arrays))
            yield self._result(group, seen, logits[own], [depth[own] for depth in depths])
            at = own.stop

    def _look(self, arrays: np.ndarray) -> Look:
        """Return logits and, where typicality is judged, what it is judged by, of one pass through the networks."""
        ensemble = self.model.ensemble
        return (ensemble.logits(arrays), []) if self._reference is None else ensemble.look(arrays)

    def _result(self, group: Group, seen: Seen, logits: np.ndarray, depths: Sequence[Tensor]) -> Result:
        model = self.model
        lost = sum(refusal.reason not in HARMLESS for _, refusal in seen.refused)
        judged = model.rule.of(logits[:, 0], lost=lost, prevalence=self.prevalence)
        further = {
            label_id: rule.of(logits[:, at], lost=lost) for at, (label_id, rule) in enumerate(model.further.items(), 1)
        }
        drawn = self._drawn(seen) if self.masks else ()
        return Result(
            study=group.name,
            path=group.path,
            study_uid=group.study_uid,
            images=len(seen.arrays),
            judgement=judged,
            further=further,
            threshold=_threshold(model),
            typicality=self._typicality(seen, depths),
            unusual=tuple(dict.fromkeys(r for f in seen.facts for r in header_remarks(f.stated, model.stated))),
            remarks=_remarks(seen),
            refused=seen.refused,
            model={"model_sha256": model.sha256, "threshold_sha256": model.content["threshold_sha256"]},
            identity=group.identity,
            patient=group.patient,
            picture=self._picture(seen, logits[:, 0], drawn) if self.pictures and len(seen.arrays) else None,
            drawn=drawn,
        )

    @property
    def _reference(self) -> Reference | None:
        reference = self.model.reference
        return reference if reference is not None and reference.usable else None

    def _typicality(self, seen: Seen, depths: Sequence[Tensor]) -> Typicality | None:
        if self._reference is None or not len(seen.arrays):
            return None
        return self._reference.of(describe_found(depths, to_pixels(seen.arrays)))

    def _drawn(self, seen: Seen) -> tuple[DrawnMask, ...]:
        """Return what the model marked in each image."""
        return tuple(
            DrawnMask(self.model.ensemble.segment(array[None]).masks[0], facts.placement, facts.files)
            for array, facts in zip(seen.arrays, seen.facts, strict=True)
        )

    def _picture(self, seen: Seen, logits: np.ndarray, drawn: Sequence[DrawnMask]) -> Picture:
        """Return the most suspicious image, the first of equals, and where the networks looked in it, or what they
        marked."""
        place = int(np.argmax(logits))
        array = seen.arrays[place]
        if self.model.ensemble.structures:
            mask = drawn[place].mask if drawn else self.model.ensemble.segment(array[None]).masks[0]
            return Picture(array, None, MARKED, seen.facts[place].files, mask)
        networks = self.model.ensemble.networks
        shares = attention(networks, to_pixels(array[None]).to(self.model.device))
        return Picture(array, shares, kind_of(networks), seen.facts[place].files)

    @property
    def _pool(self) -> Pool:
        accepts = self.model.content["accepts"]
        return Pool(self.workers, accepts["timeout_s"], memory_bytes=int(accepts["max_memory_mb"] * MB))


def _scratch() -> tempfile.TemporaryDirectory[str]:
    """Return a folder for the notes of workers."""
    return tempfile.TemporaryDirectory(prefix="maescreen-")


def _threshold(model: Model) -> dict[str, Any]:
    point = model.rule.points[0].to_json() if model.usable else {}
    return {name: point.get(name) for name in ("threshold", "threshold_hex", "recall_target", "confidence")}


def _remarks(seen: Seen) -> tuple[str, ...]:
    """Return what is odd about the images, each remark once, with how many it is about."""
    flags = sorted({flag for facts in seen.facts for flag in facts.flags})
    counts = {flag: sum(flag in facts.flags for facts in seen.facts) for flag in flags}
    many = len(seen.facts) > 1
    return tuple(f"{FLAGS[flag]}{f' ({n} of {len(seen.facts)} images)' if many else ''}" for flag, n in counts.items())
