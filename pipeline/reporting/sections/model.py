"""How the model was made: images, pretraining, training, and what of the encoder came from pretraining."""

from __future__ import annotations

import io
from collections.abc import Sequence

from PIL import Image

from pipeline.reporting.document import Block, Bullets, Figure, Figures, Paragraph, Section, Table
from pipeline.reporting.evidence import Evidence, Json, arm_name
from pipeline.reporting.figures import pretraining_loss
from pipeline.reporting.numbers import count, number, plain_percent

FIGURE_CM, MAX_HEIGHT_CM = 7.6, 9.0
DECODERS = {"self_attention": "He et al. 2021", "cross_attention": "He et al. 2021; decoder of Fu et al. 2024"}
MASKS = {"random": "at random", "block": "in contiguous blocks", "grid": "but for a regular lattice"}


def model(e: Evidence) -> Section:
    """Return architecture, pretraining, training of each arm, loss curve and reconstructions."""
    trained = e.finetune["arms"].items()
    flips = " of it and of its mirror image" if e.records["score"]["settings"].get("flips") else ""
    same = (
        f"Every arm saw the same {count(e.finetune['train_patients'])} training patients. The networks of an arm's "
        f"seeds are an ensemble: an image's score is the mean of their logits{flips}, a patient's score the "
        f"{_aggregation(e)} over the patient's images. The score of the ensemble is what was calibrated, given a "
        "threshold and tested."
    )
    blocks: list[Block] = [
        _making(e),
        _arms(e),
        Bullets([f"{arm_name(arm)}: {a['description']}; kept: {a['selection']}." for arm, a in trained]),
        Paragraph(same),
        Figures([_loss(e), _reconstructions(e)]),
    ]
    return Section("model", "Model and training", blocks)


def _aggregation(e: Evidence) -> str:
    return {"max": "highest", "mean": "mean"}[e.metrics["aggregation"]]


def _making(e: Evidence) -> Table:
    images, pre = e.records["preprocess"]["settings"], e.records["pretrain"]["settings"]
    encoder = pre["encoder"]
    spacing = f" of {_by(images['spacing_mm'])} mm" if images["spacing_mm"] else ""
    shown = f"{_by(images['image_size'])} pixels{spacing}; {_grey_values(images)} stretched to 0–255"
    network = (
        f"vision transformer: patches of {_by(encoder['patch_size'])} pixels, width {encoder['width']}, depth "
        f"{encoder['depth']}, {encoder['heads']} heads, {count(e.encoder['parameters'])} parameters"
    )
    # An artifact that was kept may be older than these two settings.
    decoder, mask = DECODERS[pre.get("decoder", "self_attention")], MASKS[pre.get("mask", "random")]
    method = (
        f"masked autoencoder ({decoder}): {plain_percent(pre['mask_ratio'])} of the patches hidden {mask}, "
        f"{count(pre['epochs'])} epochs, batch {pre['batch_size']}, seed {pre['seed']}"
    )
    on = (
        f"{count(e.pretrain['training_images'])} images of {count(e.pretrain['training_patients'])} patients of the "
        f"training and pretraining parts, without labels; {count(e.pretrain['held_out_images'])} images of other "
        "patients of these parts were held out to watch the loss"
    )
    rows = [
        ["Reported model", arm_name(e.reported_arm)],
        ["Image given to the model", shown],
        ["What else it is given", "nothing: no clinical data, no reference standard; nobody chooses or judges images"],
        ["Encoder", network],
        ["Pretraining", method],
        ["Pretraining images", on],
        ["Unequal numbers of the two kinds of patient", _imbalance(e.records["finetune"]["settings"])],
        ["Reported arm chosen", "before calibration, in the configuration"],
        ["Models compared on calibration patients", count(e.threshold["models_compared"])],
    ]
    return Table("making", "How the model was made", ["What", "Value"], rows, True)


def _grey_values(images: Json) -> str:
    if images.get("window"):  # absent from an artifact that was kept and is older than the setting
        return f"values from {images['window'][0]:g} to {images['window'][1]:g}"
    return f"grey values between percentiles {images['lower_percentile']:g} and {images['upper_percentile']:g}"


def _imbalance(training: Json) -> str:
    # An artifact that was kept may be older than these two settings.
    how = [
        *(["both kinds count alike in the networks' loss"] if training.get("loss") == "weighted" else []),
        *(["each epoch draws as many images of either kind"] if training.get("sampling") == "balanced" else []),
    ]
    return f"{'; '.join(how) or 'not corrected for'}; calibration sets the probabilities"


def _arms(e: Evidence) -> Table:
    rows = []
    for arm, a in e.finetune["arms"].items():
        seeds = list(a["seeds"].values())
        loaded, total = seeds[0]["encoder_tensors_loaded"], seeds[0]["encoder_tensors"]
        rows.append(
            [
                arm_name(arm) + (" — reported" if arm == e.reported_arm else ""),
                f"{count(a['trainable_parameters'])} of {count(a['parameters'])}",
                _epochs(a),
                ", ".join(a["seeds"]),
                ", ".join(number(seed["tune_auc"]) for seed in seeds),
                f"{loaded} of {total}" if total else "no encoder",
            ]
        )
    columns = [
        "Arm",
        "Parameters trained",
        "Epochs",
        "Seeds",
        "AUC on tuning images",
        "Encoder tensors from earlier training",
    ]
    return Table("arms", "The trainings; one value per seed", columns, rows)


def _epochs(arm: Json) -> str:
    if not arm["epochs"]:
        return "—"
    kept = [seed["best_epoch"] for seed in arm["seeds"].values()]
    early = any(epoch != arm["epochs"] for epoch in kept)
    return count(arm["epochs"]) + (f" at most; kept: {', '.join(map(count, kept))}" if early else "")


def _loss(e: Evidence) -> Figure:
    first, last = e.history[0], e.history[-1]
    return Figure(
        "pretraining_loss",
        f"Loss by epoch. Training images: from {number(first['train_loss'])} to {number(last['train_loss'])} in "
        f"{len(e.history)} epochs.",
        "Pretraining: error on hidden patches",
        FIGURE_CM,
        pretraining_loss(e.history),
    )


def _reconstructions(e: Evidence) -> Figure:
    width, height = Image.open(io.BytesIO(e.reconstructions)).size
    planes = "; each volume by its coronal, sagittal and axial middle plane" if e.volumes else ""
    return Figure(
        "reconstructions",
        "Rows of images: as they are, with patches hidden, and as the model fills them in.",
        f"Pretraining: images of patients held out, with patches hidden, and as filled in by the model{planes}",
        min(FIGURE_CM, MAX_HEIGHT_CM * width / height),
        e.reconstructions,
        "png",
    )


def _by(sizes: Sequence[float]) -> str:
    return " × ".join(f"{size:g}" for size in sizes)
