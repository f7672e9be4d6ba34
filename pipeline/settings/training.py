"""Settings of pretrain and finetune: networks and their training."""

from __future__ import annotations

from typing import Annotated, Any, ClassVar, Literal

from pydantic import Field, field_validator, model_validator

from pipeline.models.arm_registry import ARMS, SEGMENTING
from pipeline.settings.common import Arm, Axis, Seed, Settings, Side, distinct

ENCODER_SIZES: dict[str, dict[str, int]] = {
    # Touvron et al. 2021 (tiny, small), Dosovitskiy et al. 2021 (base, large); 5.5, 21, 86 and 303 M parameters.
    "tiny": {"width": 192, "depth": 12, "heads": 3},
    "small": {"width": 384, "depth": 12, "heads": 6},
    "base": {"width": 768, "depth": 12, "heads": 12},
    "large": {"width": 1024, "depth": 24, "heads": 16},
}


class EncoderSettings(Settings):
    """The vision transformer: a `size` by name, or width, depth and heads; what is not given is that of `small`."""

    patch_size: list[Annotated[int, Field(ge=1)]] = Field(
        [16, 16], min_length=2, max_length=3, description="pixels per axis"
    )
    # Not recorded, since width, depth and heads are: the same network has the same key, however it was named.
    size: Literal["tiny", "small", "base", "large"] | None = Field(
        None, exclude=True, description="a name for width, depth and heads, instead of them"
    )
    width: int = Field(384, ge=16, description="hidden size of the encoder")
    depth: int = Field(12, ge=1, description="transformer blocks of the encoder")
    heads: int = Field(6, ge=1, description="attention heads of the encoder")
    positions: Literal["sin_cos", "learned"] = Field(
        "sin_cos", description="position embedding: fixed waves, or learned"
    )

    @model_validator(mode="before")
    @classmethod
    def _named(cls, values: Any) -> Any:
        size = values.get("size") if isinstance(values, dict) else None
        if not isinstance(size, str) or size not in ENCODER_SIZES:
            return values
        named = ENCODER_SIZES[size]
        if twice := [name for name in named if name in values]:
            says = ", ".join(f"{name} {value}" for name, value in named.items())
            raise ValueError(f"size {size} says {says}; remove size, or {' and '.join(twice)}")
        return {**values, **named}

    @model_validator(mode="after")
    def _divides(self) -> EncoderSettings:
        if self.width % self.heads:
            raise ValueError(f"width {self.width} must be a multiple of heads {self.heads}")
        return self


class Mirroring(Settings):
    """Axes that are mirrored in half of the cases."""

    flips: list[Axis] = Field(
        default_factory=list, description="allowed where the card lists the axis in symmetric_axes; laterality matters"
    )

    _distinct = field_validator("flips")(distinct)


class PretrainAugmentation(Mirroring):
    """How images are changed for pretraining, which has to reproduce them: not in their values."""

    crop_min: float = Field(0.5, gt=0, le=1, description="smallest share of the area kept by the random crop")
    channel_dropout: float = Field(
        0.0, ge=0, le=0.9, description="of card.channels, chance of each to be made black; never all of them"
    )
    LATER: ClassVar[frozenset[str]] = frozenset({"channel_dropout"})


class FinetuneAugmentation(Mirroring):
    """How far images are changed at random for training, alike in every arm; 0 = off."""

    crop_min: float = Field(0.8, gt=0, le=1, description="smallest share of the area kept by the random crop")
    rotate_degrees: float = Field(7.0, ge=0, le=45, description="in the image's plane, either way")
    tilt_degrees: float = Field(0.0, ge=0, le=45, description="in the two other planes of a volume, either way")
    shear: float = Field(0.0, ge=0, le=0.5, description="pixels along one axis per pixel along another")
    scale: float = Field(0.0, ge=0, le=0.5, description="relative change of each axis' length, by itself")
    translate: float = Field(0.0, ge=0, le=0.5, description="along each axis, share of its side")
    contrast: float = Field(0.1, ge=0, le=0.5, description="relative change about mid grey")
    brightness: float = Field(0.1, ge=0, le=0.5, description="share of the range")
    gamma: float = Field(0.0, ge=0, le=0.9, description="distance of the exponent from 1")
    noise: float = Field(0.0, ge=0, le=0.5, description="standard deviation, share of the range; half of the images")
    blur_pixels: float = Field(0.0, ge=0, le=10, description="standard deviation; half of the images")
    cutout: float = Field(
        0.0, ge=0, le=0.9, description="side of a box made black, share of the image's; half of the images"
    )
    saturation: float = Field(0.0, ge=0, le=1, description="of colour images, relative change")
    hue: float = Field(0.0, ge=0, le=0.5, description="of colour images, turn either way, share of the circle")
    channel_brightness: float = Field(
        0.0, ge=0, le=0.5, description="of colour images, each channel by itself, share of the range"
    )
    channel_dropout: float = Field(
        0.0, ge=0, le=0.9, description="of card.channels, chance of each to be made black; never all of them"
    )
    LATER: ClassVar[frozenset[str]] = frozenset({"saturation", "hue", "channel_brightness", "channel_dropout"})


class PretrainSettings(Settings):
    """The masked autoencoder (He et al. 2021)."""

    LATER: ClassVar[frozenset[str]] = frozenset({"start"})

    seed: Seed = Field(17, description="weights, order of images, masks and augmentation")
    encoder: EncoderSettings = Field(default_factory=EncoderSettings)
    start: Literal["random", "imported"] = Field(
        "random",
        description="weights of the encoder before its first step; imported: data.imported_weights, such as the "
        "encoder.safetensors that stage pretrain left of other images",
    )
    decoder: Literal["self_attention", "cross_attention"] = Field(
        "self_attention",
        description="cross_attention: hidden patches attend to visible ones only (Fu et al. 2024); a step costs less",
    )
    decoder_width: int = Field(256, ge=16, description="size of a token in the decoder")
    decoder_depth: int = Field(4, ge=1, description="layers of the decoder")
    decoder_heads: int = Field(8, ge=1, description="attention heads in each layer of the decoder")
    mask: Literal["random", "block", "grid"] = Field(
        "random", description="hidden patches: drawn one by one, in contiguous blocks, or all but a regular lattice"
    )
    mask_ratio: float = Field(0.75, gt=0, lt=1, description="share of patches the encoder does not see")
    normalise_targets: bool = Field(True, description="predict each patch after removing its mean and spread")
    decoded_share: float = Field(1.0, gt=0, le=1, description="share of masked patches that are decoded per step")
    epochs: int = Field(200, ge=1, description="passes over the images of train and pretrain")
    batch_size: int = Field(64, ge=1, description="images per step")
    base_learning_rate: float = Field(1.5e-4, gt=0, description="per 256 images; scaled by batch size / 256")
    min_learning_rate: float = Field(1e-4, ge=0, description="floor of the scaled peak rate, for small batches")
    weight_decay: float = Field(0.05, ge=0, description="of AdamW; not of biases and normalisation")
    warmup_epochs: float = Field(10.0, ge=0, description="the learning rate rises from 0 in these")
    augmentation: PretrainAugmentation = Field(default_factory=PretrainAugmentation)
    max_steps: int | None = Field(
        None, ge=1, description="stop after so many steps, the schedule shortened to them; null = all epochs"
    )
    precision: Literal["fp32", "bf16", "fp16"] = Field(
        "fp32", description="of the forward pass; the others on a GPU only, fp16 where bf16 is missing"
    )
    checkpoint_every_epochs: int = Field(1, ge=1, description="epochs after which an interrupted training can go on")

    @model_validator(mode="after")
    def _consistent(self) -> PretrainSettings:
        problems = []
        if self.decoder_width % self.decoder_heads:
            problems.append(f"decoder_width {self.decoder_width} must be a multiple of decoder_heads")
        if self.mask == "grid" and self.mask_ratio < 0.5:
            problems.append(f"mask grid needs a mask_ratio of at least 0.5 to leave a lattice, not {self.mask_ratio:g}")
        if problems:
            raise ValueError("; ".join(problems))
        return self


class ResNetSettings(Settings):
    """The residual network of arm cnn."""

    depth: Literal[10, 18, 34] = Field(18, description="layers of the residual network of arm cnn")
    width: int = Field(64, ge=8, description="channels of its first stage; each of the three others has twice as many")


class SegmentationSettings(Settings):
    """Task segmentation."""

    image_score: Literal["lesion", "head", "mean"] = Field(
        "lesion",
        description="an image's score: the log odds of its most suspicious place, those of a head, or their mean",
    )
    decoder_width: int = Field(
        64, ge=8, multiple_of=8, description="channels of the decoder on the patch grid; halved as the grid doubles"
    )
    window: list[Side] | None = Field(
        None,
        min_length=2,
        max_length=3,
        description="pixels that a network sees at once, patches of larger images; null = the whole image",
    )
    overlap: float = Field(0.5, ge=0, lt=1, description="share of a window that the next one covers, too")
    mark_threshold: float = Field(
        0.1, gt=0, lt=1, description="probability above which connected pixels make a mark, and are scored"
    )
    marks_per_image: int = Field(20, ge=1, description="marks kept at most, the surest")


# Settings that are the business of one arm, and part of no key of a run without it.
OF_ARM = {"cnn": "cnn", "ensemble": "ensemble"}


class SearchSettings(Settings):
    """A short fixed list of recipes, tried on train and judged on tune; see models/recipes.py."""

    budget_minutes: float = Field(gt=0, le=1e5, description="a recipe that would not end within them is not begun")


class FinetuneSettings(Settings):
    """The classifiers: same patients, same budget for every arm."""

    LATER: ClassVar[frozenset[str]] = frozenset({"pooling", "search", "task"})

    task: Literal["classification", "segmentation"] = Field(
        "classification", description="what is learnt: labels of images, or structures in them, from masks"
    )
    arms: list[Arm] = Field(
        ["mae", "scratch", "linear_probe", "hog"],
        min_length=1,
        description="imported as well: the same network started from data.imported_weights; "
        "cnn: a residual network; classical: the strongest of four kinds of features; ensemble: the mean of others",
    )
    seeds: list[Seed] = Field(
        [1, 2, 3], min_length=1, description="one training per seed; an arm's score is their mean logit, an ensemble"
    )
    epochs: int = Field(50, ge=1, description="passes over the training images")
    batch_size: int = Field(32, ge=1, description="images per step")
    learning_rate: float = Field(5e-4, gt=0, description="peak rate of the networks")
    layer_decay: float = Field(
        0.75, gt=0, le=1, description="rate multiplier per block, counted from the head; arms mae and imported"
    )
    weight_decay: float = Field(0.05, ge=0, description="of AdamW; not of biases and normalisation")
    drop_path: float = Field(0.1, ge=0, lt=1, description="share of residual branches dropped in the last block")
    warmup_epochs: float = Field(5.0, ge=0, description="the learning rate rises from 0 in these")
    augmentation: FinetuneAugmentation = Field(default_factory=FinetuneAugmentation)
    loss: Literal["bce", "weighted", "focal"] = Field(
        "bce", description="weighted: classes count alike; the default keeps logits at the data's own log odds"
    )
    focal_gamma: float = Field(2.0, ge=0, le=10, description="loss focal: 0 is bce; 2 as in Lin et al. 2017")
    label_smoothing: float = Field(0.0, ge=0, lt=1, description="share of the target spread over both classes")
    sampling: Literal["natural", "balanced"] = Field(
        "natural", description="balanced: each epoch draws as many images of either class"
    )
    mixup: float = Field(0.0, ge=0, le=10, description="parameter of the Beta distribution of mixtures; 0 = none")
    ema_decay: float | None = Field(
        None, gt=0, lt=1, description="weights averaged over about the last 1 / (1 - decay) steps are kept; null = off"
    )
    early_stopping_epochs: int | None = Field(
        None, ge=1, description="stop after so many without a higher tune AUC, keep the best; null = the last epoch's"
    )
    trainable_blocks: int | None = Field(
        None, ge=0, description="arms mae and imported: last blocks trained, 0 = the head alone; null = all layers"
    )
    max_steps: int | None = Field(
        None,
        ge=1,
        description="of each training; the schedule is shortened to them; null = all epochs",
    )
    precision: Literal["fp32", "bf16", "fp16"] = Field("fp32", description="as in pretrain")
    pooling: Literal["mean", "attention", "class_token"] = Field(
        "mean",
        description="what the head of arms mae, scratch and imported is given: the mean of the patch tokens, what "
        "learned queries read of them (Psomas et al. 2026), or the class token",
    )
    search: SearchSettings | None = Field(
        None,
        description="try recipes with the first network of arms, hand on the simplest within one standard error of the "
        "best on tune, and train all networks by it; null = the settings as they are",
    )
    cnn: ResNetSettings = Field(default_factory=ResNetSettings)
    ensemble: list[Arm] = Field(
        ["mae", "hog"], min_length=2, description="arms whose standardised logits arm ensemble takes the mean of"
    )
    segmentation: SegmentationSettings = Field(default_factory=SegmentationSettings)
    hog_image_size: list[Side] = Field([64, 64], min_length=2, max_length=2, description="pixels, baseline arm")
    labelled_patients: list[Annotated[int, Field(ge=2)]] = Field(
        default_factory=list,
        description="train every arm with so many labelled patients as well, e.g. [100, 300, 1000]; empty = only all",
    )

    def _left_out(self) -> set[str]:
        other_arms = {name for name, arm in OF_ARM.items() if arm not in self.arms}
        return super()._left_out() | other_arms | ({"segmentation"} if self.task == "classification" else set())

    _distinct = field_validator("arms", "seeds", "labelled_patients", "ensemble")(distinct)

    @model_validator(mode="after")
    def _consistent(self) -> FinetuneSettings:
        problems = []
        if self.loss == "weighted" and self.sampling == "balanced":
            problems.append("loss weighted and sampling balanced correct for imbalance twice; choose one")
        if self.early_stopping_epochs is not None and self.early_stopping_epochs >= self.epochs:
            problems.append(f"early_stopping_epochs {self.early_stopping_epochs} must be below epochs {self.epochs}")
        if "ensemble" in self.arms and (others := [arm for arm in self.ensemble if arm not in self.arms]):
            problems.append(f"ensemble names {', '.join(others)}, which arms does not; add to arms, or name others")
        if "ensemble" in self.ensemble:
            problems.append("ensemble cannot be one of its own arms; remove it from ensemble")
        if self.task == "segmentation" and (others := [arm for arm in self.arms if arm not in SEGMENTING]):
            problems.append(f"arms {', '.join(others)} cannot segment; task segmentation takes {', '.join(SEGMENTING)}")
        if self.task == "segmentation" and self.mixup:
            problems.append("mixup mixes labels, not masks; set it to 0 for task segmentation")
        if self.task == "segmentation" and self.search is not None:
            problems.append("search judges recipes by the AUC of labels, not by masks; set it to null")
        if self.task == "segmentation" and self.pooling != "mean":
            problems.append("pooling is a classifier's; with task segmentation it is mean")
        if self.search is not None and not any(ARMS[arm].network for arm in self.arms):
            problems.append("search tries recipes of networks, and arms names none; add one, or set search to null")
        if self.labelled_patients and "mae" not in self.arms:
            problems.append("labelled_patients shows what pretraining is worth; add mae to arms, or leave it empty")
        if problems:
            raise ValueError("; ".join(problems))
        return self
