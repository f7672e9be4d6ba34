"""How the model was made: images, pretraining, training, and what of the encoder came from pretraining."""

from __future__ import annotations

import io
from collections.abc import Mapping, Sequence

from PIL import Image

from pipeline.reporting.document import Block, Bullets, Figure, Figures, Paragraph, Section, Table
from pipeline.reporting.evidence import Evidence, Json, Pretraining
from pipeline.reporting.figures import pretraining_loss
from pipeline.reporting.numbers import count, number, plain_percent
from pipeline.reporting.sections.readings import how_often_read
from pipeline.store.wording import agreeing, counted

FIGURE_CM, MAX_HEIGHT_CM = 8.0, 9.0
DECODERS = {"self_attention": "He et al. 2021", "cross_attention": "He et al. 2021; decoder of Fu et al. 2024"}
LOSSES = {
    "bce": "cross-entropy",
    "weighted": "cross-entropy, weighted by the numbers of either kind",
    "focal": "focal loss, gamma {:g}: what is already answered well counts less",
}
CHANGES = {
    "rotate_degrees": "rotated by up to {:g} degrees",
    "tilt_degrees": "tilted by up to {:g} degrees",
    "shear": "sheared by up to {:g}",
    "scale": "each axis stretched by up to {:.0%}",
    "translate": "moved by up to {:.0%} of a side",
    "contrast": "contrast changed by up to {:.0%}",
    "brightness": "brightness by up to {:.0%} of the range",
    "gamma": "gamma by up to {:g}",
    "noise": "noise of {:.0%} of the range in half of them",
    "blur_pixels": "blurred by up to {:g} pixels in half of them",
    "cutout": "a box of {:.0%} of the side made black in half of them",
    "saturation": "saturation changed by up to {:.0%}",
    "hue": "hue turned by up to {:.0%} of the circle",
    "channel_brightness": "each channel's brightness by up to {:.0%} of the range",
    "channel_dropout": "each channel made black with a chance of {:.0%}, never all",
}
NOT_PRETRAINED = [["Pretraining", "none took place: no arm starts from an encoder that was pretrained here"]]
MASKS = {"random": "at random", "block": "in contiguous blocks", "grid": "but for a regular lattice"}


def model(e: Evidence) -> Section:
    """Return architecture, pretraining, training of each arm, loss curve and reconstructions, all in the appendix."""
    trained = e.finetune["arms"].items()
    blocks: list[Block] = [
        _making(e),
        _arms(e),
        Bullets([f"{e.arm_name(arm)}: {a['description']}; kept: {a['selection']}." for arm, a in trained]),
        Paragraph(_scored(e)),
        *([Figures([_loss(e, e.pretraining), _reconstructions(e, e.pretraining)])] if e.pretraining else []),
    ]
    return Section("model", "Model and training", [], blocks)


def _scored(e: Evidence) -> str:
    """Say whom the arms saw, and how a patient's score comes from the logits of images."""
    patients = counted(e.finetune["train_patients"], "training patient")
    flips = " of it and of its mirror image" if e.records["score"]["settings"].get("flips") else ""
    if len(e.metrics.seeds) > 1:
        ensemble, whose = "The networks of an arm's seeds are an ensemble: an", f"the mean of their logits{flips}"
        what = "The score of the ensemble"
    else:
        whose = f"the mean of its logits{flips}" if flips else "its logit"
        ensemble, what = "The reported arm is one model: an", "This score"
    return (
        f"Every arm saw the same {patients}. {ensemble} image's score is {whose}, a patient's score the "
        f"{_aggregation(e)} over the patient's images. {what} is what was calibrated, given a threshold and tested."
    )


def _aggregation(e: Evidence) -> str:
    return {"max": "highest", "mean": "mean"}[e.metrics.aggregation]


def _making(e: Evidence) -> Table:
    images = e.records["preprocess"]["settings"]
    spacing = f" of {_by(images['spacing_mm'])} mm" if images["spacing_mm"] else ""
    shown = f"{_by(images['image_size'])} pixels{_channels(e)}{spacing}; {_grey_values(e)} stretched to 0–255"
    search = e.finetune.get("search")
    training = search["settings"] if search else e.records["finetune"]["settings"]
    rows = [
        ["Reported model", e.arm_name(e.reported_arm)],
        ["Image given to the model", shown],
        ["What else it is given", "nothing: no clinical data, no reference standard; nobody chooses or judges images"],
        *(_pretraining(e, e.pretraining) if e.pretraining else NOT_PRETRAINED),
        ["Images changed at random for training networks", _changes(training.get("augmentation"))],
        ["Loss of the networks", _loss_of(training)],
        ["Unequal numbers of the two kinds of patient", _imbalance(training)],
        *([["Recipes tried for the networks", _recipes(search)]] if search else []),
        ["Reported arm chosen", _chosen(e)],
        ["Models calibrated on calibration patients, as counted or stated", count(e.threshold.models_compared)],
    ]
    return Table("making", "How the model was made", ["What", "Value"], rows, True)


def _recipes(search: Json) -> str:
    """Say how many recipes were tried, where, and which was taken."""
    tried = search["tried"]
    aucs = ", ".join(f"{one['words']}: {number(one['tune_auc'], 3)}" for one in tried)
    left = search["not_tried"]
    more = f"; {counted(len(left), 'further one')} would not have ended within the budget" if left else ""
    return (
        f"{counted(len(tried), 'recipe')} of a list fixed beforehand, trained with arm {search['arm']} on the training "
        f"images and judged by the AUC on the tuning images ({aucs}); no calibration or test image was opened{more}. "
        f"Taken: {search['words']}, by the rule: {search['rule']}"
    )


def _pretraining(e: Evidence, made: Pretraining) -> list[list[str]]:
    """Return what was pretrained, how, and on which images."""
    pre = e.records["pretrain"]["settings"]
    encoder = pre["encoder"]
    network = (
        f"vision transformer: patches of {_by(encoder['patch_size'])} pixels, width {encoder['width']}, depth "
        f"{encoder['depth']}, {counted(encoder['heads'], 'head')}, {counted(made.encoder['parameters'], 'parameter')}"
    )
    # An artifact that was kept may be older than some of the settings.
    decoder, mask = DECODERS[pre.get("decoder", "self_attention")], MASKS[pre.get("mask", "random")]
    steps = f", at most {counted(pre['max_steps'], 'step')}" if pre.get("max_steps") else ""
    method = (
        f"masked autoencoder ({decoder}): {plain_percent(pre['mask_ratio'])} of the patches hidden {mask}, "
        f"{counted(len(made.history), 'epoch')}{steps}, batch {pre['batch_size']}, seed {pre['seed']}"
    )
    if pre.get("start") == "imported":
        method += "; started from weights that were trained elsewhere (data.imported_weights)"
    images_of, held_out = made.summary["training_images"], made.summary["held_out_images"]
    on = (
        f"{counted(images_of, 'image')} of {counted(made.summary['training_patients'], 'patient')} of the training and "
        f"pretraining parts, without labels; {counted(held_out, 'image')} of other patients of these parts "
        f"{agreeing(held_out, 'was', 'were')} held out to watch the loss"
    )
    unlabelled = made.summary.get("unlabelled")
    return [
        ["Encoder", network],
        ["Pretraining", method],
        ["Pretraining images", on],
        *([["Of these, without labels (data.unlabelled)", _unlabelled(unlabelled)]] if unlabelled else []),
        ["Images changed at random for pretraining", _changes(pre.get("augmentation"))],
    ]


def _unlabelled(counts: Json) -> str:
    """Say what came of the folders of images without labels: taken, set aside, left out and why."""
    aside, left_out = (_by_reason(counts[name]) for name in ("quarantined", "left_out"))
    return (
        f"{counted(counts['images'], 'image')} of {counted(counts['patients'], 'patient')}, from "
        f"{counted(counts['received'], 'file')}. Files set aside by the quality checks: {aside}. Images left out: "
        f"{left_out}; that is whoever is, or has the same or nearly the same picture as, a patient of tuning, "
        "calibration or test, whoever shares a picture with them in turn, and what the run has already"
    )


def _by_reason(counts: Mapping[str, int]) -> str:
    """Return a sum and what it is made of: `3 (blank 1, no patient 2)`."""
    reasons = ", ".join(f"{reason.replace('_', ' ')} {count(n)}" for reason, n in sorted(counts.items()))
    return f"{count(sum(counts.values()))} ({reasons})" if counts else "none"


def _chosen(e: Evidence) -> str:
    """Say how the reported arm was chosen, as far as that is known."""
    if e.read_first:
        return (
            "before calibration, in the configuration; the ledger knows of no other model calibrated on these patients"
        )
    return f"in the configuration. {how_often_read(e)}"


def _channels(e: Evidence) -> str:
    if e.channels:
        *others, last = e.channels
        return f" in the channels {', '.join(others)} and {last}" if others else f" of channel {last}"
    return " in three channels" if e.records["preprocess"]["settings"].get("channels") == "colour" else ""


def _grey_values(e: Evidence) -> str:
    images = e.records["preprocess"]["settings"]
    if images.get("window"):  # absent from an artifact that was kept and is older than the setting
        return f"values from {images['window'][0]:g} to {images['window'][1]:g}"
    what = "values of all channels" if images.get("channels") == "colour" else "grey values"
    what = "grey values of each channel" if e.channels else what
    return f"{what} between percentiles {images['lower_percentile']:g} and {images['upper_percentile']:g}"


def _changes(augmentation: Json | None) -> str:
    """Say how far images are changed at random; settings that change nothing are not named."""
    if augmentation is None:
        return "not recorded"  # an artifact that was kept and is older than these settings
    crop, flips = augmentation.get("crop_min", 1), augmentation.get("flips", [])
    by = [f"{words.format(augmentation[name])}" for name, words in CHANGES.items() if augmentation.get(name)]
    how = [
        *([f"cropped to no less than {plain_percent(crop)}"] if crop < 1 else []),
        *([f"mirrored ({', '.join(flips)})"] if flips else []),
        *by,
    ]
    return "; ".join(how) or "not at all"


def _loss_of(training: Json) -> str:
    # An artifact that was kept may be older than these settings.
    name = LOSSES[training.get("loss", "bce")].format(training.get("focal_gamma", 2.0))
    smoothing, mixup = training.get("label_smoothing", 0), training.get("mixup", 0)
    return name + "".join(
        [
            f"; {plain_percent(smoothing)} of each target spread over both answers" if smoothing else "",
            f"; images and targets mixed in pairs (mixup, Beta distribution of {mixup:g})" if mixup else "",
        ]
    )


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
                e.arm_name(arm) + (" — reported" if arm == e.reported_arm else ""),
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


def _loss(e: Evidence, made: Pretraining) -> Figure:
    first, last, pre = made.history[0], made.history[-1], e.records["pretrain"]["settings"]
    # Artifacts that were kept may be older than these two settings.
    decoded = pre.get("decoded_share", 1)
    on = (
        "hidden patches" if decoded == 1 else f"{plain_percent(decoded)} of the hidden patches, drawn anew at each step"
    )
    against = ", each patch less its mean, divided by its spread" if pre.get("normalise_targets", True) else ""
    return Figure(
        "pretraining_loss",
        f"Loss by epoch. Training images: from {number(first['train_loss'])} to {number(last['train_loss'])} in "
        f"{counted(len(made.history), 'epoch')}.",
        f"Pretraining: error on {on}{against}",
        FIGURE_CM,
        pretraining_loss(made.history),
    )


def _reconstructions(e: Evidence, made: Pretraining) -> Figure:
    width, height = Image.open(io.BytesIO(made.reconstructions)).size
    planes = f"; each volume by its coronal, sagittal and axial middle plane{e.planes_shown}" if e.volumes else ""
    return Figure(
        "reconstructions",
        "Rows of images: as they are, with patches hidden, and as the model fills them in.",
        f"Pretraining: images of patients held out, with patches hidden, and as filled in by the model{planes}",
        min(FIGURE_CM, MAX_HEIGHT_CM * width / height),
        made.reconstructions,
        "png",
    )


def _by(sizes: Sequence[float]) -> str:
    return " × ".join(f"{size:g}" for size in sizes)
