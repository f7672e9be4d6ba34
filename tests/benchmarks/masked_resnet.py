"""Whether a residual network gains by masked pretraining: python tests/benchmarks/masked_resnet.py STORE/finetune/KEY

KEY is a finished run's with arm cnn. Its network learns from the images of train and pretrain, without labels, to fill
in masked patches, as SparK does (Tian et al., ICLR 2023): it never sees what is hidden, since features at masked places
are set to 0 after each block, dense convolutions in the place of sparse ones; a light decoder with a learnt feature for
masked places at each of the four scales predicts their pixels, each patch less its mean over its spread. Then it is
fine-tuned exactly as arm cnn was, by the same settings and seeds, and both are compared on the same test patients.

This reads the test images again: nothing may be chosen by it that is then reported on the same patients. Prints a table
on stderr and JSON on stdout. About as long as arm cnn took, and the pretraining.
"""

from __future__ import annotations

import argparse
import json
import math
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

sys.path.insert(0, str(Path(__file__).parents[1]))

from benchmarks.robustness import artifacts_of, test_images

from pipeline.inference.ensemble import Ensemble, member_files
from pipeline.models.arms import ArmData
from pipeline.models.augmentation import Augmentation
from pipeline.models.finetuning import Untrained, train_network
from pipeline.models.images import Images, read_images
from pipeline.models.randomness import derived_seed
from pipeline.models.resnet import ResNetClassifier, ResNetSpec
from pipeline.models.training import Hardware, adamw, batches, parameter_groups
from pipeline.models.vit import per_channel
from pipeline.settings.training import FinetuneSettings, PretrainAugmentation
from pipeline.statistics.compare import delong_test
from pipeline.statistics.discrimination import roc_auc
from pipeline.statistics.patients import aggregate_by_patient
from pipeline.store.files import read_json
from pipeline.store.runlog import RunLog

MASK_RATIO, CELLS = 0.6, 8  # of patches, at most so many along an axis; the last stage works on as many places or fewer
DECODER_WIDTH, VARIANCE_FLOOR = 32, 4e-4
CPU = torch.device("cpu")


class MaskedResNet(nn.Module):
    """A residual network's four stages with what is masked left out, and a decoder that fills it in."""

    def __init__(self, network: ResNetClassifier) -> None:
        super().__init__()
        self.network, spec = network, network.spec
        self.axes = len(spec.image_size)
        convolution: Any = nn.Conv2d if self.axes == 2 else nn.Conv3d
        widths = [spec.width * 2**stage for stage in range(4)]
        self.lateral = nn.ModuleList(convolution(width, DECODER_WIDTH, 1) for width in widths)
        self.smooth = nn.ModuleList(convolution(DECODER_WIDTH, DECODER_WIDTH, 3, padding=1) for _ in widths)
        self.tokens = nn.ParameterList(nn.Parameter(torch.zeros(1, width, *(1,) * self.axes)) for width in widths)
        for token in self.tokens:
            nn.init.normal_(token, std=0.02)
        self.scale = 4 if spec.pooled else 2
        self.to_pixels = convolution(DECODER_WIDTH, spec.channels * self.scale**self.axes, 1)

    def forward(self, pixels: Tensor, visible: Tensor) -> Tensor:
        """Return the mean squared error over masked pixels (B, C, ...); `visible` (B, 1, *cells) is 0 or 1."""
        spec, body = self.network.spec, self.network.body
        normal = (pixels - per_channel(spec.pixel_mean, pixels)) / per_channel(spec.pixel_std, pixels)
        found = normal * _at(visible, normal)
        found = body.act(body.bn1(body.conv1(found)))
        if spec.pooled:
            found = body.maxpool(found)
        found = found * _at(visible, found)
        outputs = []
        for stage in (body.layer1, body.layer2, body.layer3, body.layer4):
            for block in stage:
                found = block(found)
                found = found * _at(visible, found)
            outputs.append(found)
        decoded: Tensor | None = None
        for at in reversed(range(4)):
            seen = _at(visible, outputs[at])
            full = self.lateral[at](outputs[at] + (1 - seen) * self.tokens[at])
            if decoded is not None:
                full = full + F.interpolate(decoded, full.shape[2:], mode="nearest")
            decoded = F.gelu(self.smooth[at](full))
        predicted = _unfolded(self.to_pixels(decoded), spec.channels, self.scale)
        predicted = predicted[(..., *(slice(side) for side in normal.shape[2:]))]
        hidden = (1 - _at(visible, normal)).expand_as(normal)
        wanted = _patchwise(normal, visible.shape[2:])
        return ((predicted - wanted).square() * hidden).sum() / hidden.sum()


def _at(visible: Tensor, values: Tensor) -> Tensor:
    return F.interpolate(visible, values.shape[2:], mode="nearest")


def _unfolded(values: Tensor, channels: int, scale: int) -> Tensor:
    """Return (B, C * scale^axes, *grid) as (B, C, *grid * scale)."""
    batch, _, *grid = values.shape
    axes = len(grid)
    split = values.reshape(batch, channels, *(scale,) * axes, *grid)
    order = [0, 1, *(n for axis in range(axes) for n in (2 + axes + axis, 2 + axis))]
    return split.permute(order).reshape(batch, channels, *(side * scale for side in grid))


def _patchwise(pixels: Tensor, cells: Sequence[int]) -> Tensor:
    """Return pixels less the mean of their patch over its spread."""
    pool: Any = F.adaptive_avg_pool2d if len(cells) == 2 else F.adaptive_avg_pool3d
    mean = F.interpolate(pool(pixels, tuple(cells)), pixels.shape[2:], mode="nearest")
    variance = F.interpolate(pool((pixels - mean).square(), tuple(cells)), pixels.shape[2:], mode="nearest")
    return (pixels - mean) / (variance + VARIANCE_FLOOR).sqrt()


def pretrained(spec: ResNetSpec, pool: Images, epochs: int, batch: int, peak: float) -> dict[str, Tensor]:
    """Return the weights of the network's body after so many epochs on the images of `pool`."""
    torch.manual_seed(derived_seed(1, "masked"))
    model = MaskedResNet(ResNetClassifier(spec))
    optimiser = adamw(parameter_groups(model, 0.05, 1.0, 0), (0.9, 0.95))
    augment = Augmentation(**PretrainAugmentation().model_dump())
    cells = [min(CELLS, side // 8) for side in spec.image_size]
    hidden, generator = round(MASK_RATIO * math.prod(cells)), torch.Generator().manual_seed(1)
    orders = [batches(len(pool), batch, 1, epoch) for epoch in range(epochs)]
    steps, taken = sum(map(len, orders)), 0
    for epoch, order in enumerate(orders):
        losses = []
        for rows in order:
            warm, along = 0.05 * steps, taken / steps
            rate = peak * min((taken + 1) / warm, 0.5 * (1 + math.cos(math.pi * along)))
            for group in optimiser.param_groups:
                group["lr"] = rate
            ranks = torch.rand(len(rows), math.prod(cells), generator=generator).argsort(dim=1).argsort(dim=1)
            visible = (ranks >= hidden).float().reshape(len(rows), 1, *cells)
            loss = model(augment(pool.pixels(rows, CPU), 1, epoch, rows), visible)
            loss.backward()
            nn.utils.clip_grad_norm_(model.parameters(), 1.0)
            optimiser.step()
            optimiser.zero_grad()
            losses.append(loss.item())
            taken += 1
        if (epoch + 1) % max(1, epochs // 8) == 0:
            print(f"pretraining, epoch {epoch + 1} of {epochs}: loss {np.mean(losses):.4f}", file=sys.stderr)
    return model.network.body.state_dict()


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("run", type=Path, help="folder of an artifact of finetune, or of a later stage")
    parser.add_argument("--epochs", type=int, default=100, help="of pretraining")
    parser.add_argument("--batch", type=int, default=32)
    parser.add_argument("--peak", type=float, default=1e-3, help="highest learning rate of pretraining")
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    found = artifacts_of(options.run.resolve())
    arrays, finetune = found["preprocess"].path, found["finetune"]
    settings = FinetuneSettings.model_validate(read_json(finetune.path / "artifact.json")["settings"])
    train, tune, unlabelled = (_images(arrays, split) for split in ("train", "tune", "pretrain"))
    pool = train if unlabelled is None else read_images(
        [arrays / "index_train.parquet", arrays / "index_pretrain.parquet"],
        sorted([*arrays.glob("train-*.npy"), *arrays.glob("pretrain-*.npy")]),
    )  # fmt: skip
    records = {seed: read_json(record) for seed, (record, _) in member_files(finetune.path / "cnn").items()}
    spec = ResNetSpec.from_json(next(iter(records.values()))["resnet"])
    begun = time.perf_counter()
    body = pretrained(spec, pool, options.epochs, options.batch, options.peak)
    taken = {"pretrain_s": round(time.perf_counter() - begun)}
    data = ArmData(train.labelled(), tune.labelled(), None, {}, Hardware(CPU))
    with tempfile.TemporaryDirectory() as folder:
        for seed in records:
            torch.manual_seed(derived_seed(seed, "weights"))
            model = ResNetClassifier(spec, 1 + len(data.further))
            model.body.load_state_dict(body)
            untrained = Untrained(model, {"resnet": spec.to_json()}, {})
            place = Path(folder) / "cnn" / f"seed{seed}"
            train_network("cnn", seed, untrained, settings, data, place, RunLog("finetune", quiet=True))
        models = {
            "cnn": Ensemble.load(member_files(finetune.path / "cnn"), CPU),
            "pretrained cnn": Ensemble.load(member_files(Path(folder) / "cnn"), CPU),
        }
        result = _compared(models, test_images(arrays)) | taken | {"epochs": options.epochs, "pool": len(pool)}
    print(json.dumps(result, indent=1))


def _images(arrays: Path, split: str) -> Any:
    index = arrays / f"index_{split}.parquet"
    found = sorted(arrays.glob(f"{split}-*.npy"))
    return read_images([index], found) if index.is_file() and found else None


def _compared(models: dict[str, Ensemble], images: Images) -> dict[str, Any]:
    pixels = images.raw(np.arange(len(images))).numpy()
    patients = images.index["patient_id"]
    scores, labels = {}, np.empty(0)
    for name, ensemble in models.items():
        parts = {"all": ensemble} | {str(seed): Ensemble({seed: one}) for seed, one in ensemble.members.items()}
        for part, own in parts.items():
            logits = own.logits(pixels)[:, 0]
            labels, scores[name, part], _ = aggregate_by_patient(images.labels, logits, patients, "max")
    result: dict[str, Any] = {"patients": len(labels), "positive_patients": int(labels.sum()), "networks": {}}
    for part in dict.fromkeys(part for _, part in scores):
        plain, other = scores["cnn", part], scores["pretrained cnn", part]
        line: dict[str, float] = {}
        for name, own in (("cnn", plain), ("pretrained cnn", other)):
            auc = roc_auc(labels, own)
            line |= {name: auc.value, f"{name}, low": auc.low, f"{name}, high": auc.high}
        difference = delong_test(labels, other, plain)
        line |= {"difference": difference.diff, "low": difference.low, "high": difference.high}
        result["networks"][part] = {key: round(float(value), 4) for key, value in line.items()}
        print(f"seed {part}: {result['networks'][part]}", file=sys.stderr)
    return result


if __name__ == "__main__":
    main()
