"""A card and a config for a user's own folder: studies, labels and machine are looked at before they are written.

What the files state is in `fingerprint`, what the labels mean in `label_table`, what they can carry in
`label_capacity`, how fast the machine is in `machine_speed`, and what follows for the settings in `proposal`.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from pipeline.commands.card_and_config import card_text, config_text
from pipeline.commands.class_folders import read_class_folders
from pipeline.commands.fingerprint import Fingerprint, fingerprint
from pipeline.commands.label_capacity import Capacity, capacity
from pipeline.commands.label_table import Answers, Described, InitError, LabelCounts, counts, describe
from pipeline.commands.ladder import PICTURES, pretrain_settings, rungs
from pipeline.commands.machine_speed import MachineSpeed, measure, remember
from pipeline.commands.proposal import Proposal, propose
from pipeline.commands.studies_glance import glance
from pipeline.imaging.archive.choice import has_images
from pipeline.labels.table_file import LabelsError, encoding_remark
from pipeline.orchestration.estimate import busyness, cores
from pipeline.orchestration.work import Items, Job, seconds
from pipeline.settings.load import load
from pipeline.settings.training import FinetuneSettings, PretrainSettings

__all__ = ["Answers", "InitError", "Written", "describe", "write"]
TIMED_BATCH = 16


@dataclass(frozen=True)
class Written:
    """The files that were written, what was found, and lines about it for people."""

    card: Path
    config: Path
    labels: Path
    studies: Fingerprint
    label_counts: LabelCounts
    capacity: Capacity
    speed: MachineSpeed
    proposal: Proposal
    lines: Sequence[str]

    def to_dict(self) -> dict[str, Any]:
        """Return fingerprint and plan as plain data, for programs."""
        return {
            "card": str(self.card),
            "config": str(self.config),
            "labels": str(self.labels),
            "fingerprint": {
                "studies": self.studies.to_dict(),
                "labels": asdict(self.label_counts),
                "machine": asdict(self.speed),
            },
            "labels_carry": asdict(self.capacity),
            "plan": self.proposal.to_dict(),
        }


def write(
    folder: Path,
    labels: Path | None,
    output: Path,
    name: str | None,
    answers: Answers,
    minutes: float = 60,
) -> Written:
    """Write `data_manifests/<name>/card.yaml` and `configs/<name>.yaml` under `output`, for a budget of `minutes`.

    Without `labels`, the folders under `folder` are classes, and their table, `labels.csv`, is written beside the
    config. Raises InitError when a file exists already or the labels are not understood.
    """
    name = name or re.sub(r"[^a-z0-9]+", "_", folder.resolve().name.lower()).strip("_") or "project"
    card, config = output / "data_manifests" / name / "card.yaml", output / "configs" / f"{name}.yaml"
    made = labels is None
    table = labels or output / "configs" / f"{name}_labels.csv"
    if existing := [str(path) for path in (card, config, *([table] if made else [])) if path.exists()]:
        raise InitError(f"not overwritten: {', '.join(existing)}; choose another --name")
    said = []
    if has_images(table) and folder.resolve() in table.resolve().parents:
        folder = table
        said = ["the label table holds the images, too; data.studies names it alone, not the folder around it"]
    seen = glance(folder, labels)
    if made:
        classes = read_class_folders(folder, any(one.patient for one in seen.identities))
        classes.write(table)
        said += classes.lines()
    remark = encoding_remark(table)
    try:
        described = describe(table, answers, seen)
        found = counts(table, described)
    except (InitError, LabelsError) as error:
        if made:
            table.unlink()
        raise InitError(f"{error}{remark and f'; {remark}'}") from None
    said += [*([f"warning: {remark}"] if remark else []), *described.lines()]
    studies = fingerprint(folder, seen)
    if not studies.images:
        reasons = ", ".join(f"{reason} {count}" for reason, count in studies.quarantined.items()) or "no file is there"
        raise InitError(f"none of {studies.examined} files would be accepted: {reasons}; see `maescreen inspect`")
    patients = _per_patient(found, studies)
    carried = capacity(*patients)
    items = _items(found, studies, carried)
    speed = _timed(studies, items)
    proposal = propose(studies, carried, items, speed, minutes)
    said += [*_nameless(described, found, studies), *seen.lines(), *studies.lines(), *carried.lines()]
    said += [*speed.lines(), *proposal.lines()]
    remarks = [*carried.lines(), *(f"given up to fit: {one}" for one in proposal.given_up)]
    texts = {
        card: card_text(name, described, studies),
        config: config_text(name, folder, table, card, config, proposal, remarks, bool(seen.ct)),
    }
    for path, text in texts.items():
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text, "utf-8")
    remember(speed, load(config)[0].store)
    return Written(card, config, table, studies, found, carried, speed, proposal, said)


def _nameless(described: Described, found: LabelCounts, studies: Fingerprint) -> list[str]:
    """Say what is missing when neither table nor files name patients: every image would be refused."""
    if found.by_patient or studies.patients is not None:
        return []
    return [
        "nothing names the patients, neither a column of the label table nor a header, so that `run` would refuse "
        "every image (no_patient): name the column with --patient; if each image is of another person, say "
        f"--patient {described.joins.get('path', 'path')}"
    ]


def _per_patient(found: LabelCounts, studies: Fingerprint) -> tuple[int, int]:
    """Return patients with and without the condition; where rows are about images, by the images per patient seen."""
    if found.by_patient or studies.patients is None or not studies.images:
        return found.positive, found.negative
    share = min(1.0, studies.patients / studies.images)
    return round(found.positive * share), round(found.negative * share)


def _items(found: LabelCounts, studies: Fingerprint, carried: Capacity) -> Items:
    """Return what a run will have to do with."""
    images = max(1, studies.images_of_all)
    labelled = images if found.of_patients and found.rows < images else max(1, min(images, found.answered))
    train, tune, calibration = (round(labelled * carried.fractions[name]) for name in ("train", "tune", "calibration"))
    test = max(0, labelled - train - tune - calibration)
    unlabelled = max(0, images - labelled)
    return Items(studies.files, studies.megabytes, images, train, tune, calibration, test, unlabelled)


def _timed(studies: Fingerprint, items: Items) -> MachineSpeed:
    """Time the largest network that may be chosen and a small one, and compare the examination with what it cost."""
    ladder = rungs(studies, gpu=False, training_images=items.train)
    likely = ladder[-2] if len(ladder) > 2 else ladder[-1]
    if likely == ladder[0] and studies.axes == 2:
        likely = next(one for one in reversed(PICTURES) if one != ladder[0])
    candidates = [
        (rung.image_size, pretrain_settings(rung, 1, TIMED_BATCH)) for rung in dict.fromkeys((ladder[0], likely))
    ]
    share = studies.examined / max(studies.files, 1)
    looked = Items(studies.examined, studies.megabytes * share, studies.images, 0, 0, 0, 0)
    examined = Job(looked, (64, 64), PretrainSettings(), FinetuneSettings(), workers=min(cores(), 8))
    return measure(candidates, {"ingest": studies.seconds / busyness() / seconds("ingest", examined)})
