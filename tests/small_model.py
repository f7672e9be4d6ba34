"""A packaged model with weights from a seed, and studies for it: made in a second, for tests of what comes after."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path

import numpy as np
import torch
from imaging.files import make_dicom

from pipeline import __version__
from pipeline.imaging.archive.quality import Limits
from pipeline.imaging.channels import Channel
from pipeline.imaging.image import Policy
from pipeline.imaging.transforms import Rendering
from pipeline.inference.decision import Decision
from pipeline.inference.ensemble import Ensemble, member_files
from pipeline.inference.model_folder import CARD, CONTENT, MEMBERS, SCHEMA, seal, write_golden
from pipeline.inference.rule import OperatingPoint, Rule
from pipeline.models.arms import finish
from pipeline.models.classifier import Classifier
from pipeline.models.segmenter import SegmentationSpec, Segmenter
from pipeline.models.vit import EncoderSpec
from pipeline.statistics.calibrators import LogisticCalibrator
from pipeline.store.files import sha256_json, write_json
from pipeline.store.versions import package_versions, runtime_versions

SIZE = (32, 32)
POLICY = Policy(max_file_bytes=20_000_000, max_pixel_bytes=20_000_000, min_side=8)


def small_model(
    folder: Path,
    *,
    threshold: float = 0.0,
    usable: bool = True,
    seed: int = 3,
    further: int = 0,
    size: tuple[int, ...] = SIZE,
    structures: Mapping[int, str] | None = None,
    channels: tuple[Channel, ...] = (),
) -> Path:
    """Write a model folder as `package` leaves it; it refers from `threshold` on, and segments `structures`."""
    count = len(channels) or 1
    spec = EncoderSpec(size, (8,) * len(size), count, 48, 2, 4, (0.5,) * count, (0.25,) * count)
    torch.manual_seed(seed)
    network, more = Classifier(spec, "norm_linear", labels=1 + further), {}
    if structures:
        how = SegmentationSpec(structures, "lesion", 16, 0.5, 0.1, 50)
        network = Segmenter(spec, how, further)
        more = {"task": "segmentation", "segmentation": how.to_json(), "windows": False}
    else:
        torch.nn.init.normal_(network.head.weight)
    labels = [{"id": "", "name": "opacity", "definition": "an opacity ≥ 1 cm", "reference_standard": "two readers"}]
    labels += [{**labels[0], "id": f"other{n}", "name": f"other {n}"} for n in range(further)]
    member = folder / MEMBERS / "seed1"
    member.mkdir(parents=True)
    record = {
        "spec": spec.to_json(),
        "head": "norm_linear",
        "further_labels": [one["id"] for one in labels[1:]],
        **more,
    }
    finish(member, "mae", network.state_dict(), [], record, {})
    ensemble = Ensemble.load(member_files(folder / MEMBERS), torch.device("cpu"), flips=False)
    write_golden(folder, np.random.default_rng(0).integers(0, 256, (2, count, *size), dtype=np.uint8), ensemble)
    point = OperatingPoint(threshold, 0.9, 0.95, 60, "calibration patients")
    decision = Decision(() if usable else ("its gate failed in this test",))
    calibrator = LogisticCalibrator(200, 60, 0.3, 1.5, -0.5)
    band = np.array([[-4.0, 0.0, 4.0], [0.01, 0.2, 0.9], [0.1, 0.5, 0.99]])
    rule = Rule("max", calibrator, (point,) if usable else (), decision, band, "opacity").to_json()
    card = {
        "name": "small",
        "title": "Opacities of the chest – Größe ≥ 1 cm",
        "source": "",
        "licence": "",
        "attribution": "",
    }
    use = {"population": "people of the tests", "user": "tests", "place": "here", "not_for": ["diagnosis"]}
    write_json(
        folder / CONTENT,
        {
            "schema": SCHEMA,
            "title": card["title"],
            "labels": labels,
            "rendering": Rendering(size, None, 1.0, 99.0, channel_names=tuple(one.name for one in channels)).to_json(),
            "accepts": {
                "policy": replace(POLICY, axes=len(size), channels=channels).to_json(),
                "limits": Limits().to_json(),
                "min_slices": 1,
                "timeout_s": 60,
                "max_memory_mb": 4000,
            },
            "flips": False,
            "rule": rule,
            "further_rules": {one["id"]: rule for one in labels[1:]},
            "prevalence": 0.3,
            "not_for": ["diagnosis"],
            "population": {"patients": 200, "images": 400, "stated": {}},
            "made_by": {"versions": {"maescreen": __version__, **runtime_versions(), **package_versions()}},
            "threshold_sha256": sha256_json(threshold),
            "card": {**card, "intended_use": use, "known_traps": [], "synthetic": True, "identifiers": "synthetic"},
        },
    )
    (folder / CARD).write_text("# small\n")
    seal(folder)
    return folder


def picture(seed: int, side: int = 64) -> np.ndarray:
    """Return a chest-like picture of uint16."""
    rng = np.random.default_rng(seed)
    y, x = np.mgrid[-1 : 1 : complex(side), -1 : 1 : complex(side)]
    lungs = np.exp(-((abs(x) - 0.45) ** 2 * 12 + y**2 * 3))
    spot = np.exp(-((x - rng.uniform(-0.5, 0.5)) ** 2 + (y - rng.uniform(-0.5, 0.5)) ** 2) * 60)
    return (1000 + 2000 * (1 - lungs) + 800 * spot + 40 * rng.random((side, side))).astype(np.uint16)


def image(study: int, number: int = 1, **elements: object) -> bytes:
    """Return a DX image of a study with a whole header; keyword arguments replace elements, None removes them."""
    standard = {
        "SOPInstanceUID": f"2.25.{study}{number:03d}1",
        "SeriesInstanceUID": f"2.25.{study}2",
        "StudyInstanceUID": f"2.25.{study}3",
        "PatientID": f"P{study}",
        "PatientName": "Muster^Erika",
        "PatientBirthDate": "19500102",
        "PatientSex": "F",
        "StudyDate": "20240305",
        "StudyTime": "101112",
        "ContentDate": "20240305",
        "ContentTime": f"1015{number:02d}",
        "AccessionNumber": f"A{study}",
        "StudyID": f"{study}",
        "ReferringPhysicianName": "Arzt^Bernd",
        "StudyDescription": "Thorax p.a.",
    }
    return make_dicom(picture(100 * study + number), **standard | elements)
