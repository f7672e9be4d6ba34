"""The settings that suit these studies, these labels and this machine within a budget of time, each with its reason.

From a ladder of image sizes and networks the highest rung is taken whose run, by the same model as `maescreen plan`
uses, fits the budget with at least two seeds and half of the usual epochs; time that is left goes into epochs and a
third seed. Where not even the lowest rung fits, seeds, epochs and arms are given up in this order, and it is said.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from typing import Any

from pipeline.commands.fingerprint import Fingerprint
from pipeline.commands.label_capacity import Capacity
from pipeline.commands.ladder import SOME_TRAINING, Rung, pretrain_settings, residual_width, rungs
from pipeline.commands.machine_speed import MachineSpeed
from pipeline.models.arm_registry import ARMS
from pipeline.orchestration.estimate import duration, timed_factor
from pipeline.orchestration.graph import NAMES
from pipeline.orchestration.work import Items, Job, seconds
from pipeline.settings.decision import EvaluateSettings
from pipeline.settings.training import FinetuneSettings

# Of the budget; the rest is for what a busy machine takes longer.
USED_SHARE = 0.8
POOL_VIEWS, LEAST_EPOCHS, MOST_EPOCHS = 600_000, 60, 300
LABELLED_VIEWS, LEAST_TUNING, MOST_TUNING = 60_000, 20, 60
MOST_WORKERS = 8
GPU_BATCH = 128
USUAL_ARMS = ("mae", "scratch", "cnn", "linear_probe", "hog", "classical", "ensemble")
# Two networks of different kinds err on different patients: see "What init proposes" in docs/benchmarks.md.
MEMBERS = ("mae", "cnn")


@dataclass(frozen=True)
class Chosen:
    """A setting, `section.key`, its value as YAML has it, and why it is that."""

    key: str
    value: Any
    reason: str


@dataclass(frozen=True)
class Proposal:
    """The settings in the order of a config, the seconds expected of each stage, and what had to be given up."""

    settings: Sequence[Chosen]
    stage_seconds: Mapping[str, float]
    minutes: float
    given_up: Sequence[str]

    @property
    def total_s(self) -> float:
        """Seconds of the whole run."""
        return sum(self.stage_seconds.values())

    def to_dict(self) -> dict[str, Any]:
        """Return it as plain data."""
        return {
            "minutes": self.minutes,
            "seconds": round(self.total_s, 1),
            "stage_seconds": {name: round(value, 1) for name, value in self.stage_seconds.items()},
            "given_up": list(self.given_up),
            "settings": [asdict(one) for one in self.settings],
        }

    def lines(self) -> list[str]:
        """Return what is expected, for people."""
        longest = sorted(self.stage_seconds, key=lambda name: -self.stage_seconds[name])[:3]
        parts = ", ".join(f"{name} {duration(self.stage_seconds[name])}" for name in longest)
        said = [f"the run is expected to take {duration(self.total_s)} of {self.minutes:g} min ({parts})"]
        said += [f"given up to fit: {one}" for one in self.given_up]
        if self.total_s > 60 * self.minutes:
            said.append("even the smallest plan does not fit; it is written all the same: allow more with --minutes")
        return said


# ---------------------------------------------------------------- the choice


@dataclass(frozen=True)
class _Plan:
    rung: Rung
    seeds: int
    share: float
    arms: tuple[str, ...]

    def epochs(self, items: Items) -> tuple[int, int]:
        pool, train = max(1, items.train + items.pretrain), max(1, items.train)
        pretrain = min(max(POOL_VIEWS / pool, LEAST_EPOCHS), MOST_EPOCHS)
        finetune = min(max(LABELLED_VIEWS / train, LEAST_TUNING), MOST_TUNING)
        return max(2, round(self.share * pretrain)), max(2, round(self.share * finetune))


def propose(studies: Fingerprint, capacity: Capacity, items: Items, speed: MachineSpeed, minutes: float) -> Proposal:
    """Choose for a budget of `minutes`."""
    ladder = rungs(studies, bool(speed.gpu), items.train)
    arms = _arms(studies.axes)
    without_scratch = tuple(name for name in arms if name != "scratch")
    lean = tuple(name for name in without_scratch if name not in MEMBERS[1:] and not ARMS[name].of_others)
    plans = [_Plan(rung, 3, 1.0, arms) for rung in ladder[:1]]
    for rung in ladder:
        plans += [_Plan(rung, seeds, share, arms) for share in (1.0, 0.75, 0.5) for seeds in (3, 2)]
    last = ladder[-1]
    plans += [_Plan(last, 1, share, kept) for kept in (arms, without_scratch) for share in (0.5, 0.25)]
    plans += [_Plan(last, 1, share, lean) for share in (0.5, 0.25, 0.1, 0.05)]
    timed = ((plan, _seconds(plan, items, speed)) for plan in plans)
    budget = 60 * minutes * USED_SHARE
    chosen, taken = next((one for one in timed if sum(one[1].values()) <= budget), (plans[-1], {}))
    taken = taken or _seconds(chosen, items, speed)
    given_up = _given_up(chosen, ladder[0], arms)
    return Proposal(_settings(chosen, studies, capacity, items, speed, minutes), taken, minutes, given_up)


def _arms(axes: int) -> tuple[str, ...]:
    return tuple(name for name in USUAL_ARMS if axes in ARMS[name].axes)


def job(plan: _Plan, items: Items, speed: MachineSpeed) -> Job:
    """Return the job of a plan on this machine."""
    pretrain_epochs, epochs = plan.epochs(items)
    pretrain_batch, batch = _batches(plan, items, speed)
    finetune = FinetuneSettings.model_validate(
        {
            "arms": list(plan.arms),
            "ensemble": list(MEMBERS),
            "seeds": list(range(1, plan.seeds + 1)),
            "epochs": epochs,
            "batch_size": batch,
        }
    )
    pretrain = pretrain_settings(plan.rung, pretrain_epochs, pretrain_batch)
    own = Job(items, plan.rung.image_size, pretrain, finetune, speed.cores, min(speed.cores, MOST_WORKERS))
    residual = finetune.cnn.model_copy(update={"width": residual_width(own)})
    return replace(own, finetune=finetune.model_copy(update={"cnn": residual}))


def _seconds(plan: _Plan, items: Items, speed: MachineSpeed) -> dict[str, float]:
    own, known = job(plan, items, speed), asdict(speed)
    return {name: speed.busy * timed_factor(name, own, known)[0] * seconds(name, own) for name in NAMES}


def _batches(plan: _Plan, items: Items, speed: MachineSpeed) -> tuple[int, int]:
    """Return the batch of pretraining and of fine-tuning: some ten steps per epoch at least."""
    if speed.gpu and items.train >= 10 * GPU_BATCH:
        return 2 * GPU_BATCH, GPU_BATCH
    most = 16 if len(plan.rung.image_size) == 3 else 64
    pool = items.train + items.pretrain
    pretrain = max(16, min(most, 2 ** int(math.log2(max(pool / 10, 1)))))
    finetune = max(8, min(most // 2 if most > 16 else 16, 2 ** int(math.log2(max(items.train / 10, 1)))))
    return pretrain, finetune


def _given_up(plan: _Plan, largest: Rung, arms: Sequence[str]) -> list[str]:
    said = []
    if plan.rung != largest:
        said.append(f"images of {largest.sides} for {plan.rung.sides}")
    if plan.seeds < 3:
        said.append(f"{3 - plan.seeds} of 3 seeds")
    if plan.share < 1:
        said.append(f"{100 * (1 - plan.share):.0f} % of the usual epochs")
    if dropped := [name for name in arms if name not in plan.arms]:
        said.append(f"arms {', '.join(dropped)}")
    return said


# ---------------------------------------------------------------- the reasons


def _settings(
    plan: _Plan, studies: Fingerprint, capacity: Capacity, items: Items, speed: MachineSpeed, minutes: float
) -> list[Chosen]:
    rung, (pretrain_epochs, epochs) = plan.rung, plan.epochs(items)
    pretrain_batch, batch = _batches(plan, items, speed)
    own = pretrain_settings(rung, pretrain_epochs, pretrain_batch)
    workers, volumes = min(speed.cores, MOST_WORKERS), studies.axes == 3
    few = items.train < SOME_TRAINING
    pool = items.train + items.pretrain
    native = " × ".join(map(str, studies.median_size)) or "unknown"
    more = "; small sets want more passes" if few else ""
    fits = f"fits {minutes:g} min on this machine"
    found = [Chosen("machine.workers", workers, f"of {speed.cores} cores; processes that read studies")]
    if studies.colour and studies.channels == "grey":
        found.append(
            Chosen("ingest.colour", "luminance", "some pictures are in colour; networks take their brightness")
        )
    if not volumes and min(studies.median_size, default=32) < 32:
        found.append(Chosen("ingest.min_side", 16, "pictures are smaller than the usual 32 pixels"))
    found += [
        Chosen("split.fractions", dict(capacity.fractions), _why_fractions(capacity)),
        Chosen("preprocess.image_size", list(rung.image_size), f"of a median {native}; the largest that {fits}"),
    ]
    if studies.channels == "colour":
        found.append(Chosen("preprocess.channels", "colour", "pictures are in colour, and networks see it"))
    if rung.volume_spacing_mm is not None:
        spacing = [rung.volume_spacing_mm] * 3
        why = "mm; alike for all, so that sizes can be compared; 95 % of the volumes fit into image_size"
        found.append(Chosen("preprocess.spacing_mm", spacing, why))
    elif volumes:
        found.append(Chosen("preprocess.spacing_mm", None, "not all volumes state one; each is scaled to fit"))
    patches = math.prod(s // p for s, p in zip(rung.image_size, rung.patch_size, strict=True))
    found += [
        Chosen("pretrain.encoder.patch_size", list(rung.patch_size), f"{patches} patches; smaller see finer detail"),
        Chosen("pretrain.encoder.width", rung.width, f"for {items.train:,} training images; larger networks want more"),
        Chosen("pretrain.encoder.depth", rung.depth, f"blocks; {fits}"),
        Chosen("pretrain.encoder.heads", own.encoder.heads, "32 numbers each"),
        Chosen("pretrain.decoder", own.decoder, "a step costs less than with self_attention (Fu et al. 2024)"),
        Chosen("pretrain.decoder_width", own.decoder_width, "half of the encoder's, about"),
        Chosen("pretrain.decoder_depth", own.decoder_depth, "the decoder is thrown away; a small one does"),
        Chosen("pretrain.decoder_heads", own.decoder_heads, "32 numbers each"),
        Chosen("pretrain.decoded_share", own.decoded_share, "of the masked patches per step: time, for little"),
        Chosen(
            "pretrain.epochs",
            pretrain_epochs,
            f"{pretrain_epochs * pool:,} pictures seen"
            + ("" if plan.share == 1 else f"; {100 * plan.share:.0f} % of the usual, to fit"),
        ),
        Chosen(
            "pretrain.batch_size",
            pretrain_batch,
            f"{math.ceil(pool / pretrain_batch)} steps per epoch",
        ),
        Chosen(
            "pretrain.base_learning_rate",
            own.base_learning_rate,
            f"per 256 images; {rung.pretrain_peak:g} at this batch",
        ),
        Chosen("pretrain.warmup_epochs", own.warmup_epochs, "a twentieth"),
        Chosen("pretrain.checkpoint_every_epochs", own.checkpoint_every_epochs, "lost at most when a run is killed"),
        Chosen("pretrain.augmentation.flips", [], "as below"),
        Chosen("finetune.arms", list(plan.arms), _why_arms(plan, volumes)),
        Chosen("finetune.seeds", list(range(1, plan.seeds + 1)), "an arm's score is the mean over its seeds"),
        Chosen("finetune.epochs", epochs, f"{epochs * items.train:,} pictures seen{more}"),
        Chosen("finetune.batch_size", batch, f"{math.ceil(items.train / batch)} steps per epoch"),
        Chosen("finetune.learning_rate", rung.finetune_peak, "smaller networks bear higher rates"),
        Chosen("finetune.warmup_epochs", float(max(1, round(0.15 * epochs))), "a sixth, about"),
        *_augmentation(few, volumes),
        *_combined(plan, job(plan, items, speed)),
        Chosen("calibrate.recall_targets", [capacity.target or 0.95], _why_target(capacity)),
        Chosen(
            "evaluate.headline_prevalence",
            EvaluateSettings.model_fields["headline_prevalence"].default,
            "ASSUMED: write the share of people with the condition where the model is to be used; page one is for it",
        ),
    ]
    return found


def _combined(plan: _Plan, job: Job) -> list[Chosen]:
    """Return what is reported, and what it is made of."""
    if "ensemble" not in plan.arms:
        return [Chosen("calibrate.arm", "mae", "the one network that fits; named before calibration")]
    width, named = job.finetune.cnn.width, " and ".join(MEMBERS)
    return [
        Chosen("finetune.cnn.width", width, "channels of its first stage; a step costs about a transformer's"),
        Chosen("finetune.ensemble", list(MEMBERS), "two kinds of networks err on different patients"),
        Chosen("calibrate.arm", "ensemble", f"the mean of {named}; named before calibration, whatever comes out"),
    ]


def _augmentation(few: bool, volumes: bool) -> list[Chosen]:
    section = "finetune.augmentation"
    strong = "few training images: more variety" if few else "many training images: a little is enough"
    values: dict[str, tuple[Any, str]] = {
        "crop_min": (0.9 if volumes else 0.8, "share kept; findings at the edge must stay in"),
        "rotate_degrees": (10.0 if few else 7.0, strong),
        "scale": (0.1 if few else 0.0, strong),
        "translate": (0.05 if few else 0.0, strong),
        "contrast": (0.2 if few else 0.1, "machines and exposures differ"),
        "brightness": (0.1, "machines and exposures differ"),
        "flips": (
            [],
            "organs have sides; axes must stand here and in symmetric_axes of the card",
        ),
    }
    return [Chosen(f"{section}.{name}", value, why) for name, (value, why) in values.items()]


def _why_fractions(capacity: Capacity) -> str:
    n = capacity.positives_per_split["calibration"]
    if capacity.target is None:
        return f"{n} calibration patients with the condition are too few for any certificate"
    return f"{n} calibration patients with the condition expected, enough to certify recall {capacity.target:g}"


def _why_target(capacity: Capacity) -> str:
    if capacity.target is None:
        return "cannot be certified with so few patients; the report withholds the threshold and says so"
    chance = f"the test set confirms it in {100 * (capacity.chance_confirmed or 0):.0f} of 100 cases"
    if capacity.target == 0.95:
        return chance
    return f"0.95 cannot be had with these labels (see split.fractions); {chance}"


def _why_arms(plan: _Plan, volumes: bool) -> str:
    networks = sum(ARMS[name].network for name in plan.arms)
    dimensions = "; those that take volumes" if volumes else ""
    return f"{networks} trained as networks, the others in seconds{dimensions}"
