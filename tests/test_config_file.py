"""A configuration is right as a whole, or every mistake in it is named with its line."""

from pathlib import Path

import pytest
import yaml

from pipeline.config import Config, ConfigError, Settings
from pipeline.config_file import flatten, load

CARD = """
name: tiny
title: Tiny
source: made up
licence: none
attribution: none
identifiers: synthetic
label: {name: x, definition: x, reference_standard: x, positive: ['1'], negative: ['0']}
columns: {path: path, label: label}
intended_use: {condition: x, population: x, user: x, place: x}
"""
CONFIG = """\
project: tiny
data:
  studies: [studies]
  labels: labels.csv
  card: card.yaml
  key_file: key
pretrain:
  mask_ratio: 0.75
  base_learning_rate: 1e-3
report:
  title: Tiny
"""


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    (tmp_path / "studies").mkdir()
    (tmp_path / "labels.csv").write_text("path,label\n")
    (tmp_path / "card.yaml").write_text(CARD)
    (tmp_path / "run.yaml").write_text(CONFIG)
    return tmp_path


def problems(folder: Path, text: str, *overrides: str) -> list[str]:
    (folder / "run.yaml").write_text(text)
    with pytest.raises(ConfigError) as error:
        load(folder / "run.yaml", list(overrides))
    return str(error.value).splitlines()


def test_relative_paths_are_relative_to_the_config_file(folder, monkeypatch):
    monkeypatch.chdir("/")
    config, card = load(folder / "run.yaml")
    assert config.data.studies == [folder / "studies"]
    assert card.label.positive == ["1"]


def test_scientific_notation_is_a_number(folder):
    assert load(folder / "run.yaml")[0].pretrain.base_learning_rate == 1e-3


def external(folder: Path, **changes: str) -> str:
    """Write the studies of an external set; return the override that names it, with `changes`."""
    (folder / "b").mkdir(exist_ok=True)
    (folder / "b.yaml").write_text(
        CARD.replace("identifiers: synthetic", f"identifiers: {changes.pop('is_', 'synthetic')}")
    )
    where = {"name": "site_b", "studies": "[b]", "labels": "labels.csv", "card": "b.yaml", **changes}
    return "{" + ", ".join(f"{name}: {value}" for name, value in where.items()) + "}"


def test_an_external_set_has_places_of_its_own(folder):
    config, _ = load(folder / "run.yaml", [f"data.external=[{external(folder)}]"])
    (one,) = config.data.external
    assert (one.name, one.studies, one.card) == ("site_b", [folder / "b"], folder / "b.yaml")


def test_what_is_wrong_with_an_external_set_is_said(folder):
    wrong = external(folder, labels="no.csv")
    (missing,) = problems(folder, CONFIG, f"data.external=[{wrong}]")
    assert "data.external.0.labels: no such file or folder" in missing
    (twice,) = problems(folder, CONFIG, f"data.external=[{external(folder)}, {external(folder)}]")
    assert "names must be distinct" in twice
    (public,) = problems(folder, CONFIG, f"data.external=[{external(folder, is_='real')}]")
    assert "identifiers are real, but the key of a run on synthetic ones may be public" in public


def test_override_replaces_one_setting(folder):
    config, _ = load(folder / "run.yaml", ["pretrain.mask_ratio=0.6", "finetune.seeds=[4, 5]"])
    assert (config.pretrain.mask_ratio, config.finetune.seeds) == (0.6, [4, 5])


def further(label_id: str, name: str, positive: str = "['2']") -> str:
    values = f"positive: {positive}, negative: ['1', '0']"
    return f"{{id: {label_id}, name: {name}, definition: x, reference_standard: x, {values}}}"


def test_further_labels_have_a_column_of_their_own_or_share_that_of_the_main_one(folder):
    (folder / "card.yaml").write_text(CARD + f"further_labels: [{further('b', '<b>')}]\n")
    _, card = load(folder / "run.yaml")
    (label,) = card.further_labels
    assert (label.id, label.name, label.column, label.positive) == ("b", "<b>", None, ["2"])


def test_every_mistake_in_further_labels_is_reported_at_once(folder):
    labels = [further("B b", "x"), further("b", "y", "['0', '2']"), further("c", "z", "[]")]
    (folder / "card.yaml").write_text(CARD + f"further_labels: [{', '.join(labels)}]\nspelt: wrong\n")
    found = "\n".join(problems(folder, CONFIG))
    assert "further_labels.0.id" in found
    assert "further_labels.1: values listed as positive and as negative: ['0']" in found
    assert "further_labels.2.positive" in found
    assert "spelt is not a setting" in found
    for twice in ([further("b", "x"), further("b", "y")], [further("b", "x"), further("c", "x")]):
        (folder / "card.yaml").write_text(CARD + f"further_labels: [{', '.join(twice)}]\n")
        assert "ids and names must be distinct" in "\n".join(problems(folder, CONFIG))


def test_every_mistake_is_reported_at_once_with_its_line_and_what_is_allowed(folder):
    text = (
        CONFIG.replace("mask_ratio: 0.75", "mask_ratoi: 0.75\n  epochs: many\n  precision: fp8")
        + "split:\n  seed: 1.5\n"
    )
    found = problems(folder, text, "calibrate.confidence=2")
    assert len(found) == 5
    assert any(":8: pretrain.mask_ratoi is not a setting; did you mean mask_ratio?" in line for line in found)
    assert any(":9: pretrain.epochs: input should be a valid integer (got 'many')" in line for line in found)
    assert any(":10: pretrain.precision: input should be 'fp32', 'bf16' or 'fp16'" in line for line in found)
    assert any(":15: split.seed" in line for line in found)
    assert any(line.startswith("command line: calibrate.confidence: input should be less than 1") for line in found)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (("mask_ratio: 0.75", "mask_ratio: 1.0"), "less than 1"),
        (("mask_ratio: 0.75", "mask_ratio: yes"), "valid number"),
        (("title: Tiny", "titel: Tiny"), "did you mean title?"),
        (("project: tiny", "project: Tiny Project"), "pattern"),
        (("labels: labels.csv", "labels: lables.csv"), "no such file"),
        (("mask_ratio: 0.75", "mask_ratio: 0.75\n  mask_ratio: 0.6"), "stands twice"),
        (("mask_ratio: 0.75", "encoder: {patch_size: [15, 15]}"), "must be a multiple of"),
        (("mask_ratio: 0.75", "encoder: {width: 100, heads: 3}"), "multiple of heads"),
        (("mask_ratio: 0.75", "encoder: {size: huge}"), "'tiny', 'small', 'base' or 'large'"),
        (
            ("mask_ratio: 0.75", "encoder: {size: tiny, depth: 4, heads: 2}"),
            "size tiny says width 192, depth 12, heads 3; remove size, or depth and heads",
        ),
        (("mask_ratio: 0.75", "mask_ratio: 0.4\n  mask: grid"), "at least 0.5 to leave a lattice, not 0.4"),
        (("mask_ratio: 0.75", "decoder: cross"), "'self_attention' or 'cross_attention'"),
        (("mask_ratio: 0.75", "mask_ratio: *anchor"), "aliases are not allowed"),
    ],
)
def test_impossible_values_are_refused(folder, change, message):
    assert message in "\n".join(problems(folder, CONFIG.replace(*change)))


@pytest.mark.parametrize(
    ("size", "width", "depth", "heads"),
    [("tiny", 192, 12, 3), ("small", 384, 12, 6), ("base", 768, 12, 12), ("large", 1024, 24, 16)],
)
def test_a_size_by_name_and_the_same_numbers_are_the_same_network(folder, size, width, depth, heads):
    named = load(folder / "run.yaml", [f"pretrain.encoder.size={size}"])[0].pretrain.encoder
    free = load(folder / "run.yaml", [f"pretrain.encoder={{width: {width}, depth: {depth}, heads: {heads}}}"])[0]
    assert (named.width, named.depth, named.heads) == (width, depth, heads)
    assert named.model_dump() == free.pretrain.encoder.model_dump()


def test_what_a_free_definition_leaves_open_is_that_of_small(folder):
    encoder = load(folder / "run.yaml", ["pretrain.encoder.depth=4"])[0].pretrain.encoder
    assert (encoder.width, encoder.depth, encoder.heads) == (384, 4, 6)


def test_settings_of_training_that_contradict_each_other_are_all_told_at_once(folder):
    overrides = ["finetune.loss=weighted", "finetune.sampling=balanced", "finetune.early_stopping_epochs=50"]
    (line,) = problems(folder, CONFIG, *overrides)
    assert "correct for imbalance twice" in line
    assert "early_stopping_epochs 50 must be below epochs 50" in line
    overrides = ["score.flips=true", "finetune.trainable_blocks=13", "finetune.arms=[mae, imported]"]
    (line,) = problems(folder, CONFIG, *overrides)
    assert "score.flips needs horizontal among finetune.augmentation.flips" in line
    assert "finetune.trainable_blocks 13 is above pretrain.encoder.depth 12" in line
    assert "data.imported_weights must say which weights" in line
    (folder / "card.yaml").write_text(CARD + "symmetric_axes: [horizontal]\n")
    allowed = ["score.flips=true", "finetune.augmentation.flips=[horizontal]", "finetune.trainable_blocks=12",
               "finetune.mixup=0.2", "finetune.sampling=balanced", "finetune.ema_decay=0.99"]  # fmt: skip
    load(folder / "run.yaml", allowed)


def test_imported_weights_must_exist_only_where_an_arm_starts_from_them(folder):
    assert load(folder / "run.yaml", ["data.imported_weights=w.pth"])[0].data.imported_weights == folder / "w.pth"
    overrides = ["data.imported_weights=w.pth", "finetune.arms=[mae, imported]"]
    (line,) = problems(folder, CONFIG, *overrides)
    assert f"data.imported_weights: no such file or folder: {folder / 'w.pth'}" in line


def test_hog_and_volumes_are_refused_before_anything_runs(folder):
    text = CONFIG.replace("mask_ratio: 0.75", "encoder: {patch_size: [8, 8, 8]}")
    text += "preprocess: {image_size: [32, 32, 32]}\n"
    assert "finetune.arms names hog, which needs 2-D images" in "\n".join(problems(folder, text))
    (folder / "run.yaml").write_text(text + "finetune: {arms: [mae]}\n")
    assert load(folder / "run.yaml")[0].finetune.arms == ["mae"]


def test_a_mistake_in_the_card_names_the_card(folder):
    (folder / "card.yaml").write_text(CARD.replace("positive: ['1']", "positive: ['0']"))
    (line,) = problems(folder, CONFIG)
    assert "card.yaml:8: label: values listed as positive and as negative: ['0']" in line


def test_empty_split_is_refused(folder):
    text = CONFIG + "split:\n  fractions: {train: 0.8, tune: 0.0, calibration: 0.1, test: 0.1}\n"
    assert "tune has share 0" in "\n".join(problems(folder, text))


def test_flips_need_the_cards_word_and_an_axis_that_images_have(folder):
    text = CONFIG + "finetune:\n  augmentation:\n    flips: [horizontal]\n"
    (found,) = problems(folder, text, "pretrain.augmentation.flips=[]")
    assert ":14: finetune.augmentation.flips: the card does not list horizontal in symmetric_axes" in found
    (folder / "card.yaml").write_text(CARD + "symmetric_axes: [horizontal]\n")
    assert load(folder / "run.yaml")[0].finetune.augmentation.flips == ["horizontal"]
    flat = problems(folder, CONFIG, "pretrain.augmentation.flips=[depth]", "finetune.augmentation.tilt_degrees=5")
    assert "pretrain.augmentation.flips has depth" in flat[0]
    assert "tilt_degrees is for volumes" in flat[0]
    twice = problems(folder, CONFIG, "finetune.augmentation.flips=[vertical, vertical]")
    assert "values must be distinct" in twice[0]


def test_every_setting_has_a_meaning_in_the_committed_configs():
    """Committed configs name only real settings, and the large ones name every setting of every stage."""
    for path in sorted(Path(__file__).parents[1].glob("configs/*.yaml")):
        config = yaml.safe_load(path.read_text())
        assert set(config) <= set(Config.model_fields), path.name
        assert path.read_text().startswith("#"), f"{path.name}: command, hardware, time and result stand at its top"
        for section, given in config.items():
            model = Config.model_fields[section].annotation
            if isinstance(model, type) and issubclass(model, Settings):
                assert set(given) == set(model.model_fields), f"{path.name}: {section}"


def test_flatten_names_every_leaf():
    assert flatten({"a": {"b": 1, "c": [1, 2]}, "d": "x"}) == {"a.b": 1, "a.c": "[1, 2]", "d": "x"}


@pytest.mark.parametrize("second", ["studies", "./studies/", "studies/a.dcm", "."])
def test_studies_that_would_be_read_twice_are_refused_with_their_line(folder, second):
    (folder / "studies/a.dcm").write_text("x")
    found = problems(folder, CONFIG.replace("[studies]", f"[studies, {second}]"))
    assert found == [f"{folder / 'run.yaml'}:3: data.studies: entry 2 and entry 1 hold the same files; leave one out"]
