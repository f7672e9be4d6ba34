"""Where the studies are and how fast to work: no part of any key."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from pydantic import Field, field_validator, model_validator

from pipeline.settings.common import Settings


class Studies(Settings):
    """Where the studies and labels of one dataset are. Relative paths are relative to the config file."""

    studies: list[Path] = Field(min_length=1, description="folders, zip archives or single files")
    labels: Path = Field(description="CSV or Parquet; columns named in the card")
    card: Path = Field(description="the dataset card, a YAML file")
    include: list[str] = Field(
        default_factory=list,
        description="patterns of paths inside the studies, e.g. *.dcm or images/**; what fits none is left out and "
        "counted; empty = all. * stands for anything within a name, ** for whole folders; a pattern fits a folder "
        "with all that is in it, and without / at any depth",
    )
    exclude: list[str] = Field(default_factory=list, description="patterns of paths that are left out and counted")

    @field_validator("include", "exclude")
    @classmethod
    def _patterns(cls, value: list[str]) -> list[str]:
        from pipeline.imaging.archive.choice import Choice

        if any(not pattern.strip("./") for pattern in value):
            raise ValueError("a pattern needs at least one character of a name; all = leave the list empty")
        try:
            Choice(include=tuple(value)).takes("")
        except re.error:
            raise ValueError("a range in [...] ends before it begins") from None
        return value


class ExternalSet(Studies):
    """A test set from elsewhere: scored with the frozen model and threshold, and used for nothing else."""

    name: str = Field(pattern=r"^[a-z0-9_]+$", description="what plan and report call it")


@dataclass(frozen=True)
class Unlabelled:
    """Studies without labels, read as `Studies` are; `labels` is the table of their patients, if there is one."""

    studies: Sequence[Path]
    labels: Path | None
    include: Sequence[str] = ()
    exclude: Sequence[str] = ()


class Data(Studies):
    """The studies of the run, those that it is tested on besides, and those that it is pretrained on besides."""

    key_file: Path = Field(description="secret key of the pseudonyms; created on first use outside the data")
    imported_weights: Path | None = Field(
        None,
        description="arm imported, or pretrain.start: ViT weights in the layout of timm, facebookresearch/mae and "
        "dinov2, Hugging Face or MONAI; "
        ".safetensors or .pth. Their content is part of the key, their licence is yours to keep",
    )
    external: list[ExternalSet] = Field(
        default_factory=list, description="test sets from elsewhere: name, studies, labels and card of each"
    )
    unlabelled: list[Path] = Field(
        default_factory=list,
        description="folders, zip archives or single files of further images, without labels, for pretraining alone; "
        "whoever is, or shares a picture with, a patient of tune, calibration or test is left out and counted. "
        "identifiers, channels and expected of the card hold for them, too",
    )
    unlabelled_patients: Path | None = Field(
        None,
        description="CSV or Parquet with columns path, inside its folder, and patient_id: whose the unlabelled images "
        "are; null = as their headers say, and images of nobody are quarantined",
    )

    @field_validator("external")
    @classmethod
    def _distinct(cls, value: list[ExternalSet]) -> list[ExternalSet]:
        if len({one.name for one in value}) != len(value):
            raise ValueError("names must be distinct")
        return value

    @property
    def without_labels(self) -> Unlabelled | None:
        """The further images to pretrain on, as studies; None where there are none."""
        return Unlabelled(self.unlabelled, self.unlabelled_patients) if self.unlabelled else None

    @model_validator(mode="after")
    def _unlabelled(self) -> Data:
        if self.unlabelled_patients is not None and not self.unlabelled:
            raise ValueError("unlabelled_patients says whose images are, but unlabelled names none")
        if self.unlabelled and any(one.name == "unlabelled" for one in self.external):
            raise ValueError("external: the name unlabelled is taken by data.unlabelled; choose another")
        return self


class Tracking(Settings):
    """The MLflow server."""

    uri: str | None = Field(None, description="any MLflow tracking URI; null = SQLite inside the store")
    pictures: bool = Field(
        False,
        description="send a server pictures and rows of single patients, too: the whole report, reconstructions",
    )


class Machine(Settings):
    """Hardware to use."""

    workers: int = Field(2, ge=1, le=4096, description="processes for reading studies")
    backend: Literal["processes", "dask"] = Field("processes", description="where these workers run")
    scheduler: str | None = Field(None, description="address of the Dask scheduler; null = a local cluster")
    device: Literal["auto", "cpu", "cuda"] = Field("auto", description="auto = the GPU if there is one")
    threads: int | None = Field(None, ge=1, le=4096, description="CPU threads of torch; null = all cores")
    images_per_pass: int | None = Field(
        None, ge=1, description="most images of a training step in memory at once; null = the whole batch"
    )
    on_out_of_memory: Literal["stop", "halve"] = Field(
        "stop", description="when a training step does not fit: stop with advice, or halve images_per_pass and go on"
    )
    gradient_checkpointing: bool = Field(
        False, description="train with less memory and a third more time: inner values are computed twice"
    )
    compile: bool = Field(False, description="torch.compile; takes a minute per network, pays on a GPU in long runs")
    max_minutes: float | None = Field(
        None, gt=0, description="after so many minutes save and leave, as on SIGTERM; null = no limit"
    )
