"""Sentences of the report: each is made from the setting that it speaks of, and numbers agree with their nouns."""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from reporting import example_run
from reporting.changed import an_external_set, with_external_sets, with_metrics

from pipeline.reporting.comparison import Against, Run
from pipeline.reporting.comparison import build as compared
from pipeline.reporting.content import build
from pipeline.reporting.document import Section
from pipeline.reporting.evidence import Evidence, Pretraining
from pipeline.reporting.sections.background import studies
from pipeline.reporting.sections.elsewhere import shift
from pipeline.reporting.sections.examples import examples
from pipeline.reporting.sections.further_labels import further_labels
from pipeline.reporting.sections.label_fractions import label_fractions
from pipeline.reporting.sections.model import model
from pipeline.reporting.sections.operating import operating_point
from pipeline.reporting.sections.provenance import statements
from pipeline.reporting.sections.results import calibration
from pipeline.reporting.sections.summary import summary
from pipeline.settings.decision import CalibrateSettings, EvaluateSettings, ReportSettings
from pipeline.settings.training import FinetuneSettings, PretrainSettings
from pipeline.stages.report import _evidence
from pipeline.store.results.metrics import Metrics
from pipeline.store.results.threshold import Costs, Threshold
from pipeline.store.wording import agreeing, counted


@pytest.fixture(scope="module")
def evidence(tmp_path_factory: pytest.TempPathFactory) -> Evidence:
    """A usable run of three labels, some arms of which were trained with fewer labelled patients, too."""
    further = [
        {"id": name, "column": name, "name": name, "definition": name, "reference_standard": "a reader",
         "positive": ["1"], "negative": ["0"]}
        for name in ("effusion", "nodule")
    ]  # fmt: skip
    card = example_run.card(further_labels=further)
    inputs = example_run.make_run(
        tmp_path_factory.mktemp("sentences"), cards=card, labelled=(50, 100), patients=1500,
        calibration=CalibrateSettings(recall_targets=[0.9, 0.8]),
    )  # fmt: skip
    return _evidence(ReportSettings(title="x"), inputs)


def with_settings(e: Evidence, stage: str, **settings: Any) -> Evidence:
    """Return the run as if a stage had had these settings."""
    record = e.records[stage]
    changed = {**record, "settings": {**record["settings"], **settings}}
    return replace(e, records={**e.records, stage: changed})


def said(section: Section | list[Any] | None) -> str:
    assert section is not None
    return re.sub(r"\s+", " ", str(section))


# ---------------------------------------------------------------- settings

OFF = {"crop_min": 1.0, "rotate_degrees": 0.0, "contrast": 0.0, "brightness": 0.0}
MODEL: list[tuple[str, dict[str, Any], str]] = [
    ("preprocess", {}, "grey values between percentiles 0.5 and 99.5 stretched"),
    ("preprocess", {"lower_percentile": 2.0}, "grey values between percentiles 2 and 99.5 stretched"),
    ("preprocess", {"window": [-160.0, 240.0]}, "values from -160 to 240 stretched"),
    ("preprocess", {"spacing_mm": [0.5, 0.5]}, "48 × 48 pixels of 0.5 × 0.5 mm;"),
    ("preprocess", {"spacing_mm": None}, "48 × 48 pixels; "),
    ("pretrain", {"decoder": "self_attention"}, "masked autoencoder (He et al. 2021): "),
    ("pretrain", {"decoder": "cross_attention"}, "decoder of Fu et al. 2024): "),
    ("pretrain", {"mask": "random"}, "of the patches hidden at random,"),
    ("pretrain", {"mask": "block"}, "of the patches hidden in contiguous blocks,"),
    ("pretrain", {"mask": "grid"}, "of the patches hidden but for a regular lattice,"),
    ("pretrain", {"mask_ratio": 0.6}, "60 % of the patches hidden"),
    ("pretrain", {"batch_size": 32, "seed": 5}, "batch 32, seed 5"),
    ("pretrain", {"epochs": 400, "max_steps": 1200}, "40 epochs, at most 1,200 steps, batch"),
    ("pretrain", {"decoded_share": 0.5}, "error on 50 % of the hidden patches, drawn anew at each step"),
    ("pretrain", {"decoded_share": 1.0}, "error on hidden patches,"),
    ("pretrain", {"normalise_targets": True}, "hidden patches, each patch less its mean, divided by"),
    ("pretrain", {"normalise_targets": False}, "error on hidden patches'"),
    ("pretrain", {"augmentation": {"crop_min": 0.4, "flips": []}}, "for pretraining', 'cropped to no less than 40 %'"),
    ("pretrain", {"augmentation": {"crop_min": 1.0, "flips": []}}, "for pretraining', 'not at all'"),
    ("pretrain", {"augmentation": {"crop_min": 1.0, "flips": ["horizontal"]}}, "pretraining', 'mirrored (horizontal)'"),
    ("finetune", {"augmentation": OFF}, "for training networks', 'not at all'"),
    ("finetune", {"augmentation": {**OFF, "flips": ["horizontal", "depth"]}}, "'mirrored (horizontal, depth)'"),
    ("finetune", {"augmentation": {**OFF, "rotate_degrees": 9.0}}, "'rotated by up to 9 degrees'"),
    ("finetune", {"augmentation": {**OFF, "tilt_degrees": 4.0}}, "'tilted by up to 4 degrees'"),
    ("finetune", {"augmentation": {**OFF, "shear": 0.1}}, "'sheared by up to 0.1'"),
    ("finetune", {"augmentation": {**OFF, "scale": 0.2}}, "'each axis stretched by up to 20%'"),
    ("finetune", {"augmentation": {**OFF, "translate": 0.3}}, "'moved by up to 30% of a side'"),
    ("finetune", {"augmentation": {**OFF, "contrast": 0.1}}, "'contrast changed by up to 10%'"),
    ("finetune", {"augmentation": {**OFF, "brightness": 0.2}}, "'brightness by up to 20% of the range'"),
    ("finetune", {"augmentation": {**OFF, "gamma": 0.3}}, "'gamma by up to 0.3'"),
    ("finetune", {"augmentation": {**OFF, "noise": 0.05}}, "'noise of 5% of the range in half of them'"),
    ("finetune", {"augmentation": {**OFF, "blur_pixels": 2.0}}, "'blurred by up to 2 pixels in half of them'"),
    ("finetune", {"augmentation": {**OFF, "cutout": 0.25}}, "'a box of 25% of the side made black in half of them'"),
    ("finetune", {"loss": "bce"}, "Loss of the networks', 'cross-entropy'"),
    ("finetune", {"loss": "weighted"}, "'cross-entropy, weighted by the numbers of either kind'"),
    ("finetune", {"loss": "weighted"}, "'both kinds count alike in the networks' loss; calibration"),
    ("finetune", {"loss": "focal", "focal_gamma": 1.5}, "'focal loss, gamma 1.5: "),
    ("finetune", {"label_smoothing": 0.1}, "'cross-entropy; 10 % of each target spread over both answers'"),
    ("finetune", {"mixup": 0.2}, "'cross-entropy; images and targets mixed in pairs (mixup, Beta distribution of 0.2)"),
    ("finetune", {"sampling": "balanced"}, "each epoch draws as many images of either kind; calibration"),
    ("finetune", {"loss": "bce", "sampling": "natural"}, "'not corrected for; calibration sets the probabilities'"),
    ("finetune", {"loss": "focal"}, "'not corrected for; calibration sets the probabilities'"),
    ("score", {"flips": False}, "an image's score is the mean of their logits, a patient"),
    ("score", {"flips": True}, "an image's score is the mean of their logits of it and of its mirror image, a patient"),
]  # fmt: skip


@pytest.mark.parametrize(("stage", "settings", "words"), MODEL, ids=[f"{s} {v}" for s, v, _ in MODEL])
def test_how_the_model_was_made_is_said_from_the_settings(stage, settings, words, evidence):
    assert words in said(model(with_settings(evidence, stage, **settings))).replace('"', "'").replace("\\'", "'")


def test_every_setting_that_changes_images_has_its_words(evidence):
    """A new one cannot be forgotten: with all of them on, as many changes are named as there are settings."""
    for stage, settings in (("pretrain", PretrainSettings()), ("finetune", FinetuneSettings())):
        names = type(settings.augmentation).model_fields
        every = {name: ["horizontal"] if name == "flips" else 0.5 for name in names}
        (table,) = [b for b in model(with_settings(evidence, stage, augmentation=every)).appendix
                    if getattr(b, "name", "") == "making"]  # fmt: skip
        where = {"pretrain": "pretraining", "finetune": "training networks"}[stage]
        (changes,) = [value for what, value in table.rows if what == f"Images changed at random for {where}"]
        assert len(changes.split("; ")) == len(names)


def of_metrics(**changes: Any) -> Callable[[Evidence], Evidence]:
    return lambda e: with_metrics(e, **changes)


def of_threshold(**changes: Any) -> Callable[[Evidence], Evidence]:
    return lambda e: replace(e, threshold=replace(e.threshold, **changes))


def of(stage: str, **settings: Any) -> Callable[[Evidence], Evidence]:
    return lambda e: with_settings(e, stage, **settings)


OTHERS: list[tuple[str, Any, Callable[[Evidence], Evidence], str]] = [
    ("seeds", model, of_metrics(seeds=[1]), "The reported arm is one model: an image's score is its logit, a patient"),
    ("aggregation max", model, of_metrics(aggregation="max"), "a patient's score the highest over the patient's"),
    ("aggregation mean", model, of_metrics(aggregation="mean"), "a patient's score the mean over the patient's"),
    ("shown max", examples, of_metrics(aggregation="max"), "the one that made the patient's score"),
    ("shown mean", examples, of_metrics(aggregation="mean"), "highest score; the patient's is the mean of all"),
    ("near copies", studies, of("ingest", near_duplicates=True), "share an image, exactly or nearly, are in the same"),
    ("no near copies", studies, of("ingest", near_duplicates=False), "nearly the same were not looked for"),
    ("stop", studies, of("split", shared_images="stop"), "No two patients share an image, exactly or nearly: the run"),
    ("together", studies, of("split", shared_images="keep_together"), "are in the same part."),
    ("text burned in", statements, of("ingest", burned_in_annotation="quarantine"), "says so were set aside."),
    ("text accepted", statements, of("ingest", burned_in_annotation="accept"), "says so were accepted."),
    ("prevalence", calibration, of_threshold(local_prevalence=0.03), "at the stated local prevalence of 3 %"),
    ("no prevalence", calibration, of_threshold(local_prevalence=None), "at the calibration patients' prevalence of"),
    ("calibrator auto", calibration, of("calibrate", calibrator="auto"), "chosen by cross-validation on these"),
    ("costs", operating_point, of_threshold(costs=Costs(20.0, 150.0)),
     "20 per person screened and 150 per person referred"),
    ("no costs", operating_point, of_threshold(costs=Costs(0.0, 1.0)),
     "Cost: in referrals"),
    ("target", summary, of_threshold(recall_target=0.85), "at least 85 % of those with the condition are found"),
    ("confidence", summary, of_threshold(confidence=0.99), "Promised, 99 % sure: at least"),
    ("confidence of all", summary, of_threshold(confidence=0.99), "one can be 99 % sure of all promises at once"),
    ("shared out", operating_point, of_threshold(confidence=0.99, confidence_used=0.995), "99 % (99.5 % after sh"),
    ("each alone", operating_point, of_threshold(confidence=0.99), "promise holds by itself, with 99 % confidence"),
    ("models", further_labels, of_threshold(models_compared=4), "over 3 labels and 4 models compared: each threshold"),
    ("one model", further_labels, of_threshold(models_compared=1), "over 3 labels: each threshold"),
    ("coverage", shift, of_threshold(recall_target=0.85, confidence=0.99), "at least 85 % found, with 99 % confidence"),
    ("early", label_fractions, of("finetune", early_stopping_epochs=5), "for at most as many steps as with all"),
    ("not early", label_fractions, of("finetune", early_stopping_epochs=None), "for as many steps as with all"),
]  # fmt: skip


@pytest.mark.parametrize(("section", "change", "words"), [row[1:] for row in OTHERS], ids=[row[0] for row in OTHERS])
def test_what_else_is_said_comes_from_the_settings(section, change, words, evidence):
    assert words in said(section(change(evidence)))


def test_what_is_not_set_is_not_said(evidence):
    assert "chosen by cross-validation" not in said(
        calibration(with_settings(evidence, "calibrate", calibrator="beta"))
    )
    without = said(studies(with_settings(evidence, "ingest", near_duplicates=False)))
    assert "exactly or nearly" not in without
    assert "pairs of images that show nearly the same" not in without
    assert "steps" not in said(model(with_settings(evidence, "pretrain", max_steps=None)))


def test_the_level_of_every_interval_is_that_of_the_setting(tmp_path_factory):
    """Counted over the whole report, but for what `calibrate` leaves, which knows no such setting."""
    made = example_run.make_run(
        tmp_path_factory.mktemp("level"),
        patients=700,
        evaluation=EvaluateSettings(level=0.9),
        calibration=CalibrateSettings(recall_targets=[0.8], confidence=0.97),
    )
    e = _evidence(ReportSettings(title="x"), made)
    assert e.point is not None
    of_calibrate = ("certificate", "certificate_more", "sweep", "thresholds")
    text = said([block for block in build(e).blocks if getattr(block, "name", "") not in of_calibrate])
    assert "90 % interval" in text
    assert not re.search(r"95 % (sure|confidence|interval)", text)


def test_demographics_count_patients_and_equipment_counts_images(evidence):
    """There are more images than patients in every part; each share has its own whole."""
    (table,) = [b for b in studies(evidence).appendix if getattr(b, "name", "") == "make_up"]
    parts = [part for part in evidence.split["splits"].values() if part["patients"]]
    assert all(part["images"] > part["patients"] for part in parts)
    first = evidence.assignment.merge(evidence.images, on="image_id").sort_values("image_id")
    people = first.drop_duplicates(["split", "patient_id_x"])
    rows = {row[0]: row[1:] for row in table.rows}
    for words, what in (("patients", "patients"), ("images", "images")):
        named = [cells for title, cells in rows.items() if title.endswith(f", {words}") and " of " in cells[0]]
        assert len(named) >= 2
        assert {tuple(cell.split(" of ")[1].split(" ")[0] for cell in cells) for cells in named} == {
            tuple(f"{part[what]:,}" for part in parts)
        }
    for sex, title in (("F", "Sex female, patients"), ("M", "Sex male, patients"), ("", "Sex unknown, patients")):
        counts = people[people["sex"] == sex].groupby("split").size()
        assert [int(cell.split(" ")[0]) for cell in rows[title]] == [counts[name] for name in evidence.split["splits"]]
    unknown = people[people["age_years"].isna()].groupby("split").size()
    assert rows["Age unknown, patients"] == [str(unknown[name]) for name in evidence.split["splits"]]
    ages = people.groupby("split")["age_years"].quantile(0.5)
    assert [cell.split(" ")[0] for cell in rows["Age in years, median (middle half)"]] == [
        f"{ages[name]:.0f}" for name in evidence.split["splits"]
    ]


# ---------------------------------------------------------------- numbers and nouns

ONE = re.compile(r"(?<![\d.,–/−-])1 (?:[a-z]+ )?[a-z]+s\b")
# A verb, or a word that only ends like a plural.
FINE = re.compile(r"1 (no|is|has|was|this|its|less|as|loss|series)\b|1 (with|in|at|of) ")


def everything_one(value: Any, kept: frozenset[str] = frozenset({"per", "bins", "seed", "seeds", "level"})) -> Any:
    """Return the same content with 1 for every whole number above it."""
    if isinstance(value, dict):
        return {name: item if name in kept else everything_one(item) for name, item in value.items()}
    if isinstance(value, list | tuple):
        return [everything_one(item) for item in value]
    return 1 if isinstance(value, int) and not isinstance(value, bool) and value > 1 else value


def one_of(threshold: Threshold) -> Threshold:
    return Threshold.from_dict(everything_one(threshold.to_dict()))


def plurals(text: str) -> list[str]:
    return [found[0] for found in ONE.finditer(text) if not FINE.match(found[0])]


def of_one(e: Evidence) -> Evidence:
    """Return the run as if there had been one of everything."""
    names = ("ingest", "split", "finetune", "calibrator")
    ones = {name: everything_one(getattr(e, name)) for name in names}
    made = e.pretraining
    pretraining = Pretraining(
        everything_one(made.encoder), everything_one(made.summary), made.history[:1], made.reconstructions
    )
    metrics = Metrics.from_dict(everything_one(e.metrics.to_dict()))
    b, c = (an_external_set(metrics, f"external set {name}") for name in "bc")
    groups = [replace(metrics.shift.groups[0], group=one.group) for one in (b, c)]
    e = with_external_sets(replace(e, metrics=metrics), {"b": b, "c": replace(c, judged=None)}, groups)
    frames = {"subgroups": e.subgroups.head(1), "comparison": e.comparison.assign(patients=1, positives=1, seeds=1)}
    return replace(
        e, **ones, **frames, pretraining=pretraining,
        misses=e.misses[:1], false_alarms=e.false_alarms[:1], sweep=e.sweep[e.sweep["operating_point"]],
        threshold=one_of(e.threshold), further_thresholds={name: one_of(t) for name, t in e.further_thresholds.items()},
    )  # fmt: skip


def test_numbers_agree_with_their_nouns_in_a_report_of_ones(evidence):
    document = build(of_one(evidence))
    text = said([*document.sections, *document.figures])
    assert " 1 test patient" in text
    assert "1 image of 1 patient of" in text
    assert "1 image of other patients of these parts was held out" in text
    assert "Its one labelled patient occurs in this run already" in text
    assert plurals(text) == []


def test_the_search_for_wrong_plurals_finds_them():
    assert plurals("of 1 patients, 1 images; 1 calibration patients") == [
        "1 patients",
        "1 images",
        "1 calibration patients",
    ]
    assert plurals("0.1 images, 11 images, 1 image, 1 of 1 patient, 1.1 patients") == []


def test_numbers_agree_with_their_nouns_in_a_comparison(evidence):
    e = of_one(evidence)
    run = Run("one", "set", {}, e.metrics, e.threshold, e.findings, e.curve("roc", "mae"), {"evaluate": "k"}, e.date)
    text = said(compared([run, run], [Against(1, False, None, 0.95)]).sections) + compared([run], []).footer
    assert "share 1 test patient;" in text
    assert "Comparison of 1 run," in text
    assert plurals(text) == []


def test_counted_and_agreeing():
    assert [counted(n, "image") for n in (0, 1, 2, 5216)] == ["0 images", "1 image", "2 images", "5,216 images"]
    assert counted(1, "study", "studies") == "1 study"
    assert counted(3, "study", "studies") == "3 studies"
    assert [agreeing(n, "was", "were") for n in (0, 1, 2)] == ["were", "was", "were"]


PIPELINE = Path(__file__).parents[2] / "pipeline"
SOURCES = [
    *(PIPELINE / "reporting").rglob("*.py"),
    *(PIPELINE / name for name in ("commands/compare.py", "commands/trace.py", "commands/doctor.py")),
    PIPELINE / "stages" / "report.py",
]
# A number that is put before a plural noun as it is.
NOUNS = "patients|images|files|runs|epochs|groups|seeds|labels|models|heads|parameters|steps|thresholds"
UNCOUNTED = re.compile(rf"\b(?:count|len)\([^{{}}]*\)\}} (?:[a-z]+ )?(?:{NOUNS})\b")


@pytest.mark.parametrize("source", SOURCES, ids=lambda path: path.name)
def test_no_message_puts_a_bare_number_before_a_plural(source):
    assert UNCOUNTED.findall(source.read_text("utf-8")) == []


def test_recipes_that_were_tried_are_counted_and_the_training_told_is_that_of_the_one_taken(evidence):
    assert "Recipes tried" not in said(model(evidence))
    trial = {"recipe": "as_configured", "words": "the settings as they were written", "tune_auc": 0.9}
    longer = {"recipe": "stronger", "words": "stronger augmentation", "tune_auc": 0.95}
    strong = FinetuneSettings(augmentation={"rotate_degrees": 15.0}).model_dump(mode="json")
    found = {"arm": "mae", "seed": 1, "tried": [trial, longer], "not_tried": ["longer"], "chosen": "stronger",
             "words": "stronger augmentation", "rule": "the simplest", "settings": strong}  # fmt: skip
    text = said(model(replace(evidence, finetune={**evidence.finetune, "search": found})))
    assert "2 recipes of a list fixed beforehand, trained with arm mae" in text
    assert "no calibration or test image was opened; 1 further one would not have ended within the budget" in text
    assert "stronger augmentation: 0.950" in text
    assert "rotated by up to 15 degrees" in text
    assert "rotated by up to 15 degrees" not in said(model(evidence))
