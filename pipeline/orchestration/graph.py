"""The pipeline as data: ten stages in order, what each may read, and who rests on whom.

Nothing here knows how a stage works. A stage is a function `stage(settings, inputs, work, log)` that meets the
others only through the files named in STAGES. A step is a stage at work: on the studies of the run, `ingest`, on those
of an external test set, `ingest@site_b`, or on the images of `data.unlabelled`, `ingest@unlabelled`.
"""

from __future__ import annotations

import importlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from pipeline.store.artifacts import Inputs
from pipeline.store.runlog import RunLog


@dataclass(frozen=True)
class Stage:
    """A stage: the files of earlier stages that it may read, and the sources from outside the store.

    A source that a run does not use is none of its key. When nothing changed but sources and inputs in `incremental`,
    the stage may take over from its previous artifact what did not. Under torchrun, all processes work on a `shared`
    stage. `of_external` are the files that it may read of each external test set, `of_unlabelled` those of the images
    of `data.unlabelled`. `external` is the set it works on; empty for the studies of the run. `function` is what works,
    where that is not the one of the stage's name; it reads steps by their full names.
    """

    name: str
    reads: Mapping[str, tuple[str, ...]] = field(default_factory=dict)
    sources: tuple[str, ...] = ()
    costly: bool = False
    incremental: tuple[str, ...] = ()
    shared: bool = False
    of_external: Mapping[str, tuple[str, ...]] = field(default_factory=dict)
    of_unlabelled: Mapping[str, tuple[str, ...]] = field(default_factory=dict)
    external: str = ""
    function: str = ""

    @property
    def step(self) -> str:
        """What the plan calls it."""
        return step_name(self.name, self.external)

    @property
    def works(self) -> str:
        """The file in `stages/`, and the function in it, that does the work."""
        return self.function or self.name

    def source(self, read: str) -> str:
        """Return the step whose artifact the stage function knows as `read`: of an external set, its own."""
        return step_name(read, self.external) if read in EXTERNAL and not self.function else read

    @property
    def needs(self) -> set[str]:
        """The steps whose artifacts it reads."""
        return {self.source(read) for read in self.reads}


def step_name(stage: str, external: str) -> str:
    """Return what the plan calls a stage that works on an external test set, or on the studies of the run."""
    return f"{stage}@{external}" if external else stage


# What stands for the images of `data.unlabelled` in the place of an external set's name.
UNLABELLED = "unlabelled"
# The stages that an external test set goes through by itself, with the settings and models of the run.
EXTERNAL = ("ingest", "split", "preprocess", "score")
STAGES = (
    Stage(
        "ingest",
        sources=("studies", "patients", "join", "expected", "key", "channels", "masks", "exam"),
        costly=True,
        incremental=("studies", "patients", "expected", "masks", "exam"),
    ),
    Stage(
        "split",
        {
            "ingest": (
                *("images.parquet", "files.parquet", "quarantine.parquet", "near_duplicates.parquet"),
                *("examined.parquet", "assembled.parquet", "summary.json"),
            )
        },
        sources=("labels", "label", "further_labels", "columns", "splits", "key", "exam"),
    ),
    Stage(
        "preprocess",
        {
            "ingest": ("images.parquet", "files.parquet", "masks.parquet", "structures.json"),
            "split": ("split.parquet", "further_labels.parquet"),
        },
        sources=("channels",),
        costly=True,
        incremental=("ingest", "split"),
    ),
    Stage(
        "pretrain",
        {"preprocess": ("summary.json", "index_train.*", "train-*", "index_pretrain.*", "pretrain-*")},
        sources=("start_weights",),
        costly=True,
        shared=True,
        of_unlabelled={"split": ("summary.json",), "preprocess": ("index_pretrain.*", "pretrain-*")},
    ),
    Stage(
        "finetune",
        {
            "pretrain": ("encoder.safetensors", "model.json"),
            "preprocess": (
                "summary.json",
                *("index_train.*", "further_labels_train.*", "train-*"),
                *("index_tune.*", "further_labels_tune.*", "tune-*"),
                *("masks-train-*", "masks-tune-*"),
            ),
        },
        sources=("imported_weights",),
        costly=True,
        shared=True,
    ),
    Stage(
        "score",
        {
            "finetune": ("*",),
            "preprocess": (
                "summary.json",
                *("index_tune.*", "tune-*", "index_calibration.*", "calibration-*", "index_test.*", "test-*"),
                *("further_labels_tune.*", "further_labels_calibration.*", "further_labels_test.*"),
            ),
        },
    ),
    Stage(
        "calibrate",
        {
            "score": ("scores_calibration.parquet", "further_scores_calibration.parquet"),
            "finetune": ("summary.json",),
            "ingest": ("images.parquet",),
            "split": ("split.parquet",),
        },
    ),
    Stage(
        "evaluate",
        {
            "score": (
                *("scores_calibration.parquet", "scores_test.parquet", "label_fractions_test.parquet"),
                *("further_scores_calibration.parquet", "further_scores_test.parquet"),
                *("marks.parquet", "predicted_masks/*-test-*"),
            ),
            "finetune": ("summary.json",),
            "calibrate": ("*",),
            "ingest": ("images.parquet", "examined.parquet", "assembled.parquet"),
            "split": ("split.parquet", "further_labels.parquet"),
            "preprocess": ("summary.json", "index_test.*", "masks-test-*", "mask_grid.parquet"),
        },
        sources=("exam",),
        of_external={
            "ingest": ("images.parquet", "examined.parquet", "assembled.parquet"),
            "split": ("split.parquet",),
            "score": ("scores_test.parquet",),
        },
        of_unlabelled={
            "ingest": ("images.parquet", "examined.parquet", "assembled.parquet"),
            "split": ("split.parquet",),
        },
    ),
    Stage(
        "package",
        {
            "ingest": ("images.parquet",),
            "split": ("split.parquet",),
            "preprocess": (
                "summary.json",
                *("index_train.*", "train-*", "index_tune.*", "tune-*", "index_calibration.*", "calibration-*"),
            ),
            "finetune": ("summary.json", "*/seed*/model.json", "*/seed*/model.safetensors"),
            "score": ("summary.json",),
            "calibrate": ("*",),
            "evaluate": ("metrics.json", "findings.json", "deployment.json", "further/*/deployment.json"),
        },
        sources=("card",),
        of_unlabelled={"split": ("summary.json",)},
    ),
    Stage(
        "report",
        {
            "ingest": ("*",),
            "split": ("*",),
            "preprocess": ("summary.json", "index_test.*", "test-*", "masks-test-*"),
            "pretrain": ("*.json", "*.png"),
            "finetune": ("*.json", "*.safetensors"),
            "score": ("summary.json", "scores_test.parquet", "predicted_masks/*-test-*"),
            "calibrate": ("*",),
            "evaluate": ("*",),
            "package": ("model/model.json", "model/SHA256SUMS"),
        },
        sources=("card", "fonts"),
        of_external=dict.fromkeys(EXTERNAL, ("summary.json",)),
        of_unlabelled=dict.fromkeys(("ingest", "split", "preprocess"), ("summary.json",)),
    ),
)
# In the place of `split`: images without labels are not divided, but kept apart from the patients of the run.
KEEP_APART = Stage(
    "split",
    {
        "ingest": ("images.parquet", "examined.parquet", "assembled.parquet"),
        "split": ("split.parquet",),
        step_name("ingest", UNLABELLED): (
            *("images.parquet", "near_duplicates.parquet", "examined.parquet", "assembled.parquet", "summary.json"),
        ),
    },
    external=UNLABELLED,
    function="keep_apart",
)
NAMES = tuple(stage.name for stage in STAGES)
# The stages that enter into the ledger which patients they read.
READERS = ("calibrate", "evaluate")


def stages_of(external: Sequence[str], *, pretrained: bool = True, unlabelled: bool = False) -> list[Stage]:
    """Return the stages in order, those in EXTERNAL once more for each external test set.

    What these leave is read by stages with `of_external` alone: nothing is trained, calibrated or chosen by it. Where
    no arm needs what is `pretrained`, there is no stage pretrain, and nobody reads of it. With `unlabelled` images,
    these are made ready for it, too.
    """
    found = []
    for stage in STAGES if pretrained else _without("pretrain"):
        more = {step_name(read, name): files for name in external for read, files in stage.of_external.items()}
        if unlabelled:
            more |= {step_name(read, UNLABELLED): files for read, files in stage.of_unlabelled.items()}
        found.append(replace(stage, reads={**stage.reads, **more}))
        found += [_of_external(stage, name) for name in external if stage.name in EXTERNAL]
        if unlabelled and stage.name == KEEP_APART.name:
            found.append(KEEP_APART)
        elif unlabelled and stage.name in ("ingest", "preprocess"):
            found.append(replace(stage, external=UNLABELLED))
    return found


def _without(name: str) -> list[Stage]:
    others = [stage for stage in STAGES if stage.name != name]
    return [replace(one, reads={read: files for read, files in one.reads.items() if read != name}) for one in others]


def _of_external(stage: Stage, name: str) -> Stage:
    # The same studies are divided otherwise as an external set, so that the artifact needs another key.
    sources = (*stage.sources, "purpose") if stage.name == "split" else stage.sources
    return replace(stage, external=name, sources=sources)


def following(stages: Sequence[Stage], names: Sequence[str]) -> set[str]:
    """Return the steps with these names and all that read what they leave, directly or not."""
    found = set(names)
    for stage in stages:
        found |= {stage.step} if found & stage.needs else set()
    return found


def needed(stages: Sequence[Stage], name: str) -> set[str]:
    """Return the step of this name and all that it rests on."""
    found = {name}
    for stage in reversed(stages):
        found |= stage.needs if stage.step in found else set()
    return found


def call_stage(name: str, settings: Any, inputs: Inputs, work: Path, log: RunLog) -> None:
    """Let a stage work in the folder `work`."""
    getattr(importlib.import_module(f"pipeline.stages.{name}"), name)(settings, inputs, work, log)
