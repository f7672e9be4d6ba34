"""Train the arms on a task: the same patients, epochs, batches and augmentation for each.

Rules that hold for all arms alike:

- **Last epoch.** The weights after the last epoch are kept. The rate has come down to 0 by then, and with the few
  tuning patients of a small study the best of many epochs is picked by noise and its AUC is flattering. The tuning
  AUC is recorded after every epoch, for the reader. Early stopping, a setting, keeps the epoch with the highest one.
- **Class imbalance.** By default the loss is plain binary cross-entropy and images are drawn as they come. Weighting
  or resampling would mainly shift the logits by a constant, which neither the ranking nor the threshold sees and which
  calibration undoes; the head starts at the training patients' log odds instead.
- **Further labels** are further outputs of the same network, each a yes or no of its own, and further fits of the
  logistic regressions. The loss is the mean over labels; one that an image lacks adds nothing.
- **Layer decay and frozen blocks** protect what pretraining found, so they apply to arms `mae` and `imported` alone.
- **Fewer labelled patients** (`labelled_patients`) are the same for every arm and seed: an arm's score is the mean over
  its seeds, which must not know more patients than it says. Networks get as many steps as with all patients. The tune
  split stays whole: its labels choose the regularisation of the logistic regressions, and are not counted.
- **Task segmentation** learns structures from masks beside the labels. Its measure on the tuning images is the mean
  Dice, and a score of the image is made from what is found; see `tasks/`.
- **Seeds.** An arm with several seeds is an ensemble: its score is the mean logit of its networks. That score is what
  is calibrated, certified and evaluated.

There is no masked-image loss beside the label's: it would need a decoder in every arm and a weight to be chosen, for a
gain that was not measured here.
"""

from __future__ import annotations

import shutil
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pipeline.models.arm_registry import ARMS
from pipeline.models.arms import ArmData, Start
from pipeline.models.checkpoints import fit_positions, read_weights
from pipeline.models.distributed import from_leader, leads
from pipeline.models.formats import import_encoder, read_foreign
from pipeline.models.images import Images, read_images
from pipeline.models.labelled_patients import labelled_subsets, same_steps
from pipeline.models.masks import Masks, masks_of
from pipeline.models.training import TrainingError, hardware
from pipeline.models.vit import EncoderSpec
from pipeline.store.files import read_json, sha256_file, write_json
from pipeline.store.tables.masks import mask_name
from pipeline.tasks.registry import TASKS

if TYPE_CHECKING:
    from pipeline.settings.training import FinetuneSettings
    from pipeline.store.artifacts import Inputs
    from pipeline.store.runlog import RunLog


def finetune(settings: FinetuneSettings, inputs: Inputs, work: Path, log: RunLog) -> None:
    """Train every arm and seed; leave each model in `<arm>/seed<k>/` and what came of it in summary.json.

    Models of n labelled patients go to `labelled<n>/<arm>/seed<k>/`. Raises TrainingError when a class has no training
    or tuning image, a number of labelled patients cannot be had or the loss stops being finite, WeightsError when the
    pretrained encoder does not fit.
    """
    data = _read(settings, inputs, log)
    subsets = labelled_subsets(data.train, settings.labelled_patients, settings.seeds[0])
    arms: dict[str, Any] = {}
    for arm in _in_order(settings):
        results = _results(arm, settings, data, work, log)
        first = next(iter(results.values()))
        arms[arm] = {
            **_named(arm, first),
            "description": _description(arm, settings, data, first),
            "selection": first.get("selection") or _selection(arm, settings),
            "score": "the logit of its one model" if len(results) == 1 else _ensemble(len(results)),
            "parameters": first["parameters"],
            "trainable_parameters": first["trainable_parameters"],
            "epochs": max(result.get("epochs_trained", 0) for result in results.values()),
            "seeds": {seed: _of_seed(result) for seed, result in results.items()},
        }
        for remark in TASKS[settings.task].remarks(arm, results):
            log.warn(remark)
    fewer = {str(count): _with_fewer(settings, data, count, part, work, log) for count, part in subsets.items()}
    if not leads():
        return
    write_json(
        work / "summary.json",
        {
            "arms": arms,
            "labelled_patients": fewer,
            "further_labels": data.further,
            **_encoder_sha256(inputs),
            **_structures(data),
            **{f"{name}_{what}": n for name, part in (("train", data.train), ("tune", data.tune))
               for what, n in _counts(part).items()},
        },
    )  # fmt: skip


_PER_SEED = ("tune_auc", "best_epoch", "model_sha256", "encoder_tensors_loaded", "encoder_tensors")
_OF_MASKS = ("tune_dice", "encoder_test")


def _of_seed(result: Mapping[str, Any]) -> dict[str, Any]:
    return {key: result[key] for key in (*_PER_SEED, *(name for name in _OF_MASKS if name in result))}


def _structures(data: ArmData) -> dict[str, Any]:
    """Return what a task with masks has learnt to segment, by its number in them."""
    if data.masks is None:
        return {}
    return {"task": "segmentation", "structures": {str(n): name for n, name in data.masks.structures.items()}}


def _in_order(settings: FinetuneSettings) -> list[str]:
    """Return the arms, those that are made of others last."""
    return sorted(settings.arms, key=lambda arm: ARMS[arm].of_others)


def _named(arm: str, result: Mapping[str, Any]) -> dict[str, Any]:
    """Return what later stages call an arm, and as what it is compared with the pretrained one.

    An arm that is one of several kinds says in its result which it became.
    """
    kind = ARMS[arm]
    own = {name: result.get(name) or getattr(kind, name) for name in ("title", "compared_as")}
    return {**own, "role": kind.role, **{name: result[name] for name in ("kinds",) if name in result}}


def _description(arm: str, settings: FinetuneSettings, data: ArmData, result: Mapping[str, Any]) -> str:
    if not ARMS[arm].network or arm not in data.starts:
        return result.get("description") or ARMS[arm].description
    blocks = settings.trainable_blocks
    trained = {None: "all layers", 0: "the head alone", 1: "the last block and the head"}
    return f"{ARMS[arm].description}, {trained.get(blocks, f'the last {blocks} blocks and the head')} trained"


def _encoder_sha256(inputs: Inputs) -> dict[str, str]:
    if "pretrain" not in inputs.artifacts:
        return {}
    return {"encoder_sha256": sha256_file(inputs.file("pretrain", "encoder.safetensors"))}


def _selection(arm: str, settings: FinetuneSettings) -> str:
    """Say which of the fitted models an arm's is, and by what rule."""
    measured = TASKS[settings.task].measured
    if not ARMS[arm].network:
        return f"regularisation with the highest {measured} on the tuning images; one convex fit, so no seeds"
    decay, patience = settings.ema_decay, settings.early_stopping_epochs
    mean = "" if decay is None else f", averaged over the steps (exponential moving average, decay {decay:g})"
    if patience is None:
        return f"weights after the last epoch{mean}"
    return (
        f"weights{mean} after the epoch with the highest {measured} on the tuning images, the earlier of equals; "
        f"training stopped after {patience} epochs without a higher one"
    )


def _ensemble(seeds: int) -> str:
    return f"the mean logit of {seeds} networks that differ in their seed: an ensemble, calibrated and evaluated as one"


def _read(settings: FinetuneSettings, inputs: Inputs, log: RunLog) -> ArmData:
    def images(split: str) -> Images:
        arrays = inputs.files("preprocess", f"{split}-*.npy")
        further = inputs.files("preprocess", f"further_labels_{split}.parquet")
        return read_images(inputs.files("preprocess", f"index_{split}.parquet"), arrays, further).labelled()

    train, tune = images("train"), images("tune")
    for name, part in (("train", train), ("tune", tune)):
        missing = [word for value, word in ((1, "positive"), (0, "negative")) if value not in part.labels]
        if missing:
            raise TrainingError(f"split {name} has no {' and no '.join(missing)} image; check labels and fractions")
    spec, starts = None, {}
    if "pretrain" in inputs.artifacts:
        spec, starts = _encoders(settings, inputs, train.shape, log)
    masks = _masks(inputs, (train, tune), log) if TASKS[settings.task].masks else None
    prepared = hardware(inputs.machine, settings.precision, inputs.deadline, log.warn)
    train, tune = (part.cached(prepared.device) for part in (train, tune))
    return ArmData(train, tune, spec, starts, prepared, masks)


def _masks(inputs: Inputs, images: Sequence[Images], log: RunLog) -> Masks | None:
    """Return the masks of train and tune; None when preprocess left none. Says how many images teach no structure.

    Raises TrainingError when a split has no structure in any mask, ImagesError when masks do not fit their pixels.
    """
    summary = read_json(inputs.file("preprocess", "summary.json"))
    if "masks" not in summary:
        return None
    arrays = [path for name in ("train", "tune") for path in inputs.files("preprocess", mask_name(f"{name}-*.npy"))]
    masks = masks_of(arrays, summary["masks"]["structures"], images)
    for name, part in zip(("train", "tune"), images, strict=True):
        if not masks.shares(part)[1:].any():
            raise TrainingError(
                f"split {name} has no image in whose mask there is a structure; check masks and fractions"
            )
    train = images[0]
    unseen = ~masks.annotated(train)
    counts = [f"{int((unseen & (train.labels == value)).sum())} of {int((train.labels == value).sum())} {word}"
              for value, word in ((1, "positive"), (0, "negative"))]  # fmt: skip
    if unseen.any():
        log.warn(
            f"{' and '.join(counts)} training images have no mask and teach no structure; "
            "where there is none to be seen, an empty mask says so"
        )
    return masks


def _encoders(
    settings: FinetuneSettings, inputs: Inputs, shape: tuple[int, ...], log: RunLog
) -> tuple[EncoderSpec, dict[str, Start]]:
    """Return the network that was pretrained, for images of `shape`, and what each arm's encoder starts from."""
    pretrained = EncoderSpec.from_json(read_json(inputs.file("pretrain", "model.json")))
    spec = replace(pretrained, image_size=shape[1:])
    if spec.channels != shape[0]:
        raise TrainingError(f"the encoder takes {spec.channels} channels; the images have {shape[0]}")
    encoder = read_weights(inputs.file("pretrain", "encoder.safetensors"))
    encoder = fit_positions(encoder, pretrained.grid, spec.grid)
    own = Start(encoder, f"pretraining {inputs.key('pretrain')}", len(encoder))
    from_where = {arm: ARMS[arm].encoder for arm in settings.arms}
    starts = {arm: own for arm, where in from_where.items() if where == "pretrained"}
    for arm in (arm for arm, where in from_where.items() if where == "imported"):
        starts[arm] = _imported(inputs, spec, log)
    return spec, starts


def _imported(inputs: Inputs, spec: EncoderSpec, log: RunLog) -> Start:
    """Read and convert the public weights, and say what became of each tensor.

    Their positions are learned on or stay as they are as `pretrain.encoder.positions` says of the network.
    """
    path = inputs.imported_weights
    if path is None:
        raise TrainingError("arm imported needs data.imported_weights: the file with the weights to start from")
    sha256 = sha256_file(path)
    if sha256 != inputs.hashes.as_planned(path):
        raise TrainingError(f"{path.name} was changed while the run was going on; start the run again")
    converted = import_encoder(read_foreign(path), spec)
    log.info(f"imported weights, {converted.account}")
    loaded = len(converted.tensors) - len(converted.account.made)
    return Start(converted.tensors, f"imported weights, SHA-256 {sha256[:16]}", loaded)


def _counts(images: Images) -> dict[str, int]:
    positive = images.index[images.labels == 1]
    return {
        "patients": images.index["patient_id"].nunique(),
        "images": len(images),
        "positive_patients": positive["patient_id"].nunique(),
        "positive_images": len(positive),
    }


def _with_fewer(
    settings: FinetuneSettings, data: ArmData, count: int, part: Images, work: Path, log: RunLog
) -> dict[str, Any]:
    """Train every arm and seed on the images of `count` labelled patients; return the record of them all."""
    repeated, longer = same_steps(part, data.train, settings)
    repeated = repeated.cached(data.device)
    name = f"labelled{count}"

    def sink(values: Mapping[str, float], step: int) -> None:
        log.metrics({f"{name}.{metric}": value for metric, value in values.items()}, step)

    own = replace(log, stage=f"{log.stage} with {count:,} labelled patients", sink=sink)
    arms = {}
    for arm in _in_order(settings):
        # Repeats would weaken the regularisation of a logistic regression.
        images, chosen = (repeated, longer) if ARMS[arm].network else (part, settings)
        results = _results(arm, chosen, replace(data, train=images), work / name, own)
        kept = ("tune_auc", *(name for name in _OF_MASKS if TASKS[settings.task].masks), "model_sha256")
        seeds = {seed: {key: result[key] for key in kept if key in result} for seed, result in results.items()}
        arms[arm] = {"seeds": seeds}
    return {**_counts(part), "epochs": longer.epochs, "repeats": len(repeated) // len(part), "arms": arms}


def _results(arm: str, settings: FinetuneSettings, data: ArmData, folder: Path, log: RunLog) -> dict[str, Any]:
    """Return the record of every seed's training."""
    # Logistic regression has one optimum: a second seed would give the same model again.
    seeds = settings.seeds if ARMS[arm].network else settings.seeds[:1]
    return {str(seed): _result(arm, seed, settings, data, folder / arm / f"seed{seed}", log) for seed in seeds}


def _result(
    arm: str, seed: int, settings: FinetuneSettings, data: ArmData, folder: Path, log: RunLog
) -> dict[str, Any]:
    """Return the record of one training, done now or found finished; processes that follow write nothing."""
    if from_leader((folder / "model.json").is_file()):
        log.info(f"{arm} seed {seed}: already trained")
    elif ARMS[arm].network or leads():
        TASKS[settings.task].train(arm, seed, settings, data, folder, log)
    if leads():
        # A kill may fall between the last file and the clearing away of checkpoints.
        shutil.rmtree(folder / "checkpoints", ignore_errors=True)
    record = from_leader(read_json(folder / "model.json") if leads() else None)
    return {**record, "model_sha256": record["sha256"]}
