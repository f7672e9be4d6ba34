"""Segmentation: structures in an image, learnt from masks, with a score of the image made from what is found.

Arms with an encoder get a decoder, the classical one regresses pixels; all see the same patients, and networks the same
batches, steps and augmentation. An image without a mask teaches a classification head alone, where there is one.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

import numpy as np
import torch
from torch import Tensor

from pipeline.models.arm_registry import ARMS
from pipeline.models.arms import ArmData
from pipeline.models.augmentation import Augmentation
from pipeline.models.baseline import auc
from pipeline.models.dice import dice, mask_loss, mean_dice
from pipeline.models.encoder_test import LEAST_FALL, encoder_test
from pipeline.models.finetuning import Learning, begun, start_at_the_odds, train_network
from pipeline.models.finished import Maps
from pipeline.models.images import Images, on_device
from pipeline.models.losses import objective
from pipeline.models.masks import Masks, cut_windows, moved
from pipeline.models.pixel_regression import train_pixels
from pipeline.models.randomness import derived_seed
from pipeline.models.segmenter import SegmentationSpec, Segmenter, cut_positions, finished
from pipeline.models.training import TrainingError, autocast
from pipeline.models.windows import slabs
from pipeline.tasks.task import Task

if TYPE_CHECKING:
    from pipeline.settings.training import FinetuneSettings
    from pipeline.store.runlog import RunLog

RAREST = 1e-4  # share of pixels that a class is taken for, at least, before the first step


def train(arm: str, seed: int, settings: FinetuneSettings, data: ArmData, folder: Path, log: RunLog) -> None:
    """Train an arm to segment, and leave its files in `folder`; goes on from its checkpoints there.

    Raises TrainingError when there are no masks, a window cannot score what is asked, or the loss stops being finite.
    """
    masks = _required(data, settings)
    how = SegmentationSpec(masks.structures, **settings.segmentation.model_dump(exclude={"window"}))
    if not ARMS[arm].network:
        train_pixels(seed, settings, how, data, masks, folder, log)
        return
    data = _in_windows(data, settings.segmentation.window)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(derived_seed(seed, "weights"))
        model = Segmenter(data.spec, how, len(data.further)).to(data.device)
    content = {
        "task": "segmentation",
        "spec": data.spec.to_json(),
        "segmentation": how.to_json(),
        "windows": data.spec.image_size != data.train.shape[1:],
    }
    untrained = begun(arm, model, content, settings, data, log)
    train_network(arm, seed, untrained, settings, data, folder, log, of_masks(seed, settings, data, masks, how))


def of_masks(seed: int, settings: FinetuneSettings, data: ArmData, masks: Masks, how: SegmentationSpec) -> Learning:
    """Return how masks are learnt: cross-entropy and Dice loss, beside the labels' where there is a head for these."""
    augment = Augmentation(**settings.augmentation.model_dump())
    first = 1 if how.image_score == "lesion" else 0  # a label that is scored by its lesions needs no head
    labels = data.train.targets[:, first:]
    loss_of_labels = None
    if labels.shape[1]:
        loss_of_labels = objective(settings.loss, labels, settings.focal_gamma, settings.label_smoothing, data.device)

    def start(model: Segmenter) -> None:
        shares = masks.shares(data.train).clip(RAREST)
        cast(Tensor, model.decoder.classes.bias).data.copy_(torch.from_numpy(np.log(shares)))
        if loss_of_labels is not None:
            start_at_the_odds(model, settings, data)

    def examples(numbers: np.ndarray, _drawn: np.ndarray, epoch: int) -> tuple[Tensor, Any]:
        rows = numbers % len(data.train)
        pixels = augment(data.train.pixels(rows, data.device), seed, epoch, numbers)
        wanted = on_device(torch.from_numpy(masks.of(data.train, rows)), data.device)
        wanted = moved(wanted, augment, seed, epoch, numbers)
        if tuple(wanted.shape[1:]) != data.spec.image_size:
            pixels, wanted = cut_windows(pixels, wanted, data.spec.image_size, seed, epoch, numbers)
        return pixels, (wanted, on_device(torch.from_numpy(labels[rows]), data.device).to(pixels))

    def loss(model: Segmenter, pixels: Tensor, branch_scale: Tensor | None, targets: tuple[Tensor, Tensor]) -> Tensor:
        with autocast(data.device, data.hardware.precision):
            classes, head = model(pixels, branch_scale, maps=True)
        whole = mask_loss(classes.float(), targets[0])
        return whole if loss_of_labels is None else whole + loss_of_labels(head.float(), targets[1])

    def judge(model: Segmenter) -> dict[str, float]:
        overlaps, logits = _judged(model, data.tune, masks)
        patients = data.tune.index["patient_id"].to_numpy()
        return {"tune_dice": mean_dice(overlaps, patients), "tune_auc": auc(data.tune.labels, logits)}

    def finish(model: Segmenter) -> dict[str, Any]:
        tested = encoder_test(model, lambda tested: judge(tested)["tune_dice"], judge(model)["tune_dice"])
        return {"encoder_test": tested}

    return Learning(start, examples, loss, judge, "tune_dice", "mean Dice", finish)  # type: ignore[arg-type]


def _judged(model: Segmenter, images: Images, masks: Masks) -> tuple[np.ndarray, np.ndarray]:
    """Return the Dice of each image and structure, (N, structures), and each image's logit, (N,)."""
    model.eval()
    done = finished(model)
    maps = cast(Maps, done.maps)
    overlaps, logits = [], []
    for row in range(len(images)):
        pixels = images.pixels([row], model.encoder.cls_token.device)
        parts = slabs(maps, pixels.shape[2:], lambda box, own=pixels[0]: own[(slice(None), *box)])
        found = torch.cat([part.argmax(dim=0) for part in parts]).numpy()
        overlaps.append(dice(found, masks.of(images, [row])[0], sorted(masks.structures)))
        logits.append(done.logits(pixels)[0, 0])
    return np.stack(overlaps), np.array(logits)


def _required(data: ArmData, settings: FinetuneSettings) -> Masks:
    if data.masks is None:
        raise TrainingError(
            "finetune.task is segmentation, but the preprocessed images have no masks; say in the card where they are "
            "(label.mask)"
        )
    scored = settings.segmentation.image_score
    if settings.segmentation.window is not None and (scored != "lesion" or data.further):
        raise TrainingError(
            "a window of an image cannot say its labels: with finetune.segmentation.window, image_score has to be "
            "lesion and there can be no further labels"
        )
    return data.masks


def _in_windows(data: ArmData, window: list[int] | None) -> ArmData:
    """Return what a network is trained on that looks at windows of the images; without one, at images as they are."""
    if window is None:
        return data
    spec = replace(data.spec, image_size=tuple(window))
    starts = {
        arm: replace(start, tensors=cut_positions(dict(start.tensors), data.spec.grid, spec.grid))
        for arm, start in data.starts.items()
    }
    return replace(data, encoder=spec, starts=starts)


def remarks(arm: str, results: Mapping[str, Any]) -> list[str]:
    """Return a sentence for each seed of an arm whose network does not use its encoder."""
    whose = "encoder" if ARMS[arm].encoder == "random" else "pretraining"
    said = []
    for seed, result in results.items():
        tested = result.get("encoder_test")
        if tested is None or tested["used"]:
            continue
        numbers = f"{tested['tune_dice_with_noise']:.3f} with noise in the place of its encoder's tokens"
        if tested["tune_dice"] > 0:
            said.append(
                f"{arm} seed {seed}: its {whose} is not used: the mean Dice of the tuning images is "
                f"{tested['tune_dice']:.3f}, and {numbers}; it should fall by {LEAST_FALL:.0%} of itself or more"
            )
        else:
            said.append(
                f"{arm} seed {seed}: the mean Dice of the tuning images is 0; nothing can be said of its {whose}"
            )
    return said


SEGMENTATION = Task("segmentation", "mean Dice", train, masks=True, remarks=remarks)
