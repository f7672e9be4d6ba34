"""A configuration is right as a whole, or every mistake in it is named with its line."""

from pathlib import Path
from typing import get_args

import pytest
import yaml
from pydantic import BaseModel

from pipeline.settings.common import ConfigError, Settings
from pipeline.settings.config import Config
from pipeline.settings.load import divide, flatten, later_defaults, load

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
    assert "further_labels.1: values listed more than once among positive, negative and unused: 0" in found
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
        (("mask_ratio: 0.75", "epochs: 010"), "010 can be read in two ways; write the number without leading zeros"),
        (("mask_ratio: 0.75", "epochs: 1:30"), "1:30 can be read in two ways"),
        (("mask_ratio: 0.75", "mask_ratio: 0:0.5"), "0:0.5 can be read in two ways"),
        (("mask_ratio: 0.75", f"batch_size: {10**20}"), "a whole number of more than 64 bits"),
        (("project: tiny", "project: NO"), "valid string (got False): write it in quotes"),
        (("mask_ratio: 0.75", "mask_ratio: " + "[" * 3000), "nested too deeply"),
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


def test_pretraining_from_weights_needs_their_file(folder):
    (line,) = problems(folder, CONFIG, "pretrain.start=imported")
    assert "pretrain.start is imported; data.imported_weights must say which weights" in line
    (line,) = problems(folder, CONFIG, "pretrain.start=imported", "data.imported_weights=w.pth")
    assert f"data.imported_weights: no such file or folder: {folder / 'w.pth'}" in line


def test_images_without_labels_have_places_of_their_own_and_a_table_only_with_them(folder):
    (folder / "more").mkdir()
    (folder / "people.csv").write_text("path,patient_id\n")
    words = ["data.unlabelled=[more]", "data.unlabelled_patients=people.csv"]
    data = load(folder / "run.yaml", words)[0].data
    assert (data.unlabelled, data.unlabelled_patients) == ([folder / "more"], folder / "people.csv")
    (line,) = problems(folder, CONFIG, words[1])
    assert "unlabelled_patients says whose images are, but unlabelled names none" in line
    (line,) = problems(folder, CONFIG, words[0], f"data.external=[{external(folder, name='unlabelled')}]")
    assert "external: the name unlabelled is taken by data.unlabelled" in line
    found = problems(folder, CONFIG, "data.unlabelled=[more, more, gone]", "data.unlabelled_patients=who.csv")
    assert [line.split(": ", 1)[1] for line in found] == [
        f"data.unlabelled.2: no such file or folder: {folder / 'gone'}",
        f"data.unlabelled_patients: no such file or folder: {folder / 'who.csv'}",
        "data.unlabelled: entry 2 and entry 1 hold the same files; leave one out",
    ]


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
    assert "card.yaml:8: label: values listed more than once among positive, negative and unused: 0" in line


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


def test_windows_that_do_not_fit_the_images_are_refused(folder):
    chosen = ("finetune.task=segmentation", "finetune.arms=[mae, classical]", "calibrate.arm=mae")
    (said,) = problems(folder, CONFIG, *chosen, "finetune.segmentation.window=[4096, 24]")
    assert "finetune.segmentation.window [4096, 24] is larger than preprocess.image_size" in said
    assert "must be a multiple of pretrain.encoder.patch_size" in said
    (said,) = problems(folder, CONFIG, *chosen, "finetune.segmentation.window=[16, 16, 16]")
    assert "has 3 axes, preprocess.image_size 2" in said


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


@pytest.mark.parametrize(
    "title",
    ["A: B # c, d=e", "2024", "yes", "2024-13-45", "[x] y", "{", "*x", '"a" and b', "it's", "a, b", "=", "- x", "@"],
)
def test_a_text_on_the_command_line_is_taken_as_it_is_typed(folder, title):
    assert load(folder / "run.yaml", [f"report.title={title}"])[0].report.title == title


def test_a_quoted_text_and_null_on_the_command_line_are_yaml(folder):
    overrides = ["report.title='null'", "tracking.uri=null", "finetune.ema_decay=null"]
    config, _ = load(folder / "run.yaml", overrides)
    assert (config.report.title, config.tracking.uri, config.finetune.ema_decay) == ("null", None, None)


def test_a_path_on_the_command_line_may_have_any_name(folder):
    for name in ("a, b: c=d #1.csv", "[x].csv", "a?b%20c&d.csv", "-.csv"):
        (folder / name).write_text("path,label\n")
        assert load(folder / "run.yaml", [f"data.labels={name}"])[0].data.labels == folder / name
    assert load(folder / "run.yaml", ["data.studies=[studies, labels.csv]"])[0].data.studies[1].name == "labels.csv"


@pytest.mark.parametrize(
    ("override", "words"),
    [
        ("data.labels=no.csv", "data.labels: no such file or folder"),
        ("data.studies=[studies, none]", "data.studies.1: no such file or folder"),
        ("pretrian.epochs=3", "pretrian is not a setting; did you mean pretrain?"),
        ("pretrain.epocs=3", "pretrain.epocs is not a setting; did you mean epochs?"),
        ("pretrain.epochs=[3", "'pretrain.epochs=[3': the value is not YAML"),
        ("pretrain.epochs=2024-13-45", "the value is not YAML"),
        ("pretrain.epochs", "expected section.key=value"),
        ("pretrain..epochs=3", "expected section.key=value"),
        ("=3", "expected section.key=value"),
        ("pretrain.mask_ratio.x=3", "pretrain.mask_ratio has no settings of its own"),
        ("pretrain={mask_ratio: 2}", "pretrain.mask_ratio: input should be less than 1"),
    ],
)
def test_a_mistake_on_the_command_line_is_laid_to_the_command_line(folder, override, words):
    found = problems(folder, CONFIG, override)
    assert found
    assert all(line.startswith("command line: ") for line in found)
    assert words in "\n".join(found)


def test_what_yaml_cannot_make_anything_of_is_a_mistake_in_the_config(folder):
    assert problems(folder, CONFIG.replace("Tiny", "2024-13-45")) == [f"{folder / 'run.yaml'}: not YAML"]


def test_overrides_belong_to_the_file_before_them(folder, monkeypatch):
    monkeypatch.chdir(folder)
    for name in ("a,b.yaml", "x=1.yaml"):
        (folder / name).write_text(CONFIG)
    words = ["run.yaml", "a,b.yaml", "finetune.arms=[mae,hog]", "report.title=a,b.c", "x=1.yaml"]
    assert divide(words) == [
        (Path("run.yaml"), []),
        (Path("a,b.yaml"), ["finetune.arms=[mae,hog]", "report.title=a,b.c"]),
        (Path("x=1.yaml"), []),
    ]
    one_word = "run.yaml,finetune.arms=[mae,hog],project=b,split.seed=3"
    assert divide([one_word]) == [(Path("run.yaml"), ["finetune.arms=[mae,hog]", "project=b", "split.seed=3"])]
    with pytest.raises(ConfigError, match=r"'split\.seed=3' stands before any config file"):
        divide(["split.seed=3", "run.yaml"])


@pytest.mark.parametrize("second", ["studies", "./studies/", "studies/a.dcm", "."])
def test_studies_that_would_be_read_twice_are_refused_with_their_line(folder, second):
    (folder / "studies/a.dcm").write_text("x")
    found = problems(folder, CONFIG.replace("[studies]", f"[studies, {second}]"))
    assert found == [f"{folder / 'run.yaml'}:3: data.studies: entry 2 and entry 1 hold the same files; leave one out"]


@pytest.mark.parametrize(
    ("setting", "values"),
    {
        "preprocess.spacing_mm": "[1.0] [0.0,1.0] [1.0,-1.0] [1.0,.inf] [.nan,1.0] [1.0,1.0,1.0] [] [1e-9,1e-9]",
        "preprocess.window": "[0.0,.inf] [-.inf,0.0] [.nan,1.0] [1.0,1.0] [2.0,1.0] [1.0] [-1e300,1e300]",
        "preprocess.image_size": "[0,0] [-224,224] [224] [15,16] [1000000,1000000]",
        "preprocess.lower_percentile": ".nan -1.0 50.0 .inf",
        "preprocess.upper_percentile": ".nan 50.0 100.5",
        "pretrain.base_learning_rate": ".inf .nan 0.0 -1e-3 -.inf",
        "pretrain.min_learning_rate": ".inf .nan",
        "pretrain.weight_decay": ".inf .nan",
        "pretrain.warmup_epochs": ".inf .nan -1.0",
        "pretrain.mask_ratio": ".nan 0.0 1.0",
        "pretrain.seed": "-1 4294967296 0.5 .inf",
        "pretrain.encoder.patch_size": "[0,16] [-16,16] [.inf,16] [224,224]",
        "finetune.learning_rate": ".inf .nan 0.0",
        "finetune.seeds": "[-1] [1,1] []",
        "finetune.hog_image_size": "[8,8] [0,0]",
        "finetune.ema_decay": ".nan 1.0",
        "finetune.augmentation.contrast": ".nan .inf",
        "ingest.timeout_s": ".inf .nan 0.0 1e30",
        "ingest.max_memory_mb": ".inf 1e300 0.0",
        "ingest.max_file_mb": ".inf .nan",
        "ingest.max_aspect": ".inf .nan",
        "ingest.max_spacing_mm": "0.01 .inf",
        "split.fractions": "{train: .nan} {train: .inf} {train: 2.0}",
        "calibrate.cost_per_person": ".inf .nan",
        "calibrate.models_compared": "0 1000000000000000000000",
        "calibrate.local_prevalence": ".nan 0.0 1.0",
        "evaluate.prevalences": "[.nan] [0.1,0.1] [1.0] []",
        "evaluate.seed": "-1",
        "evaluate.level": ".nan 1.0",
        "machine.max_minutes": ".inf .nan 0.0",
        "machine.threads": "0 100000000000",
    }.items(),
)
def test_numbers_that_would_fail_later_are_refused_by_the_name_of_their_setting(folder, setting, values):
    for value in values.split(" ") if "{" not in values else values.replace("} {", "}|{").split("|"):
        found = problems(folder, CONFIG, f"{setting}={value}")
        assert setting in found[0], (value, found)


def test_wrong_numbers_are_listed_with_all_other_mistakes(folder):
    wrong = ["preprocess.spacing_mm=[1.0]", "finetune.learning_rate=.inf", "evaluate.seed=-1", "pretrain.epocs=1"]
    found = "\n".join(problems(folder, CONFIG.replace("project: tiny", "project: Tiny"), *wrong))
    for words in (
        "spacing_mm: one spacing per axis",
        "learning_rate",
        "evaluate.seed",
        "did you mean epochs",
        "project",
    ):
        assert words in found


def test_every_number_of_the_config_must_be_finite():
    """Whatever model a number stands in."""

    def models(model: type[BaseModel]) -> set[type[BaseModel]]:
        inner = {arg for field in model.model_fields.values() for arg in arguments(field.annotation)}
        return {model}.union(*(models(one) for one in inner))

    def arguments(annotation) -> list[type[BaseModel]]:
        if isinstance(annotation, type) and issubclass(annotation, BaseModel):
            return [annotation]
        return [one for inner in get_args(annotation) for one in arguments(inner)]

    found = models(Config)
    assert len(found) > 15
    assert all(model.model_config.get("allow_inf_nan") is False for model in found)


def test_a_colour_task_keeps_colour_and_leaves_the_keys_of_grey_ones(folder):
    grey, _ = load(folder / "run.yaml")
    assert "channels" not in grey.preprocess.model_dump(), "stores of before know no such setting"
    assert grey.ingest.colour == "quarantine"
    colour, _ = load(folder / "run.yaml", ["preprocess.channels=colour"])
    assert colour.preprocess.model_dump()["channels"] == "colour"
    assert colour.ingest.colour == "keep"
    assert later_defaults()["preprocess.channels"] == "grey", "where a dump is shown, what it leaves out is there"
    assert not flatten(grey.model_dump(mode="json")).keys() & later_defaults().keys()


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        (["preprocess.channels=colour", "ingest.colour=luminance"], "ingest.colour luminance takes the colours"),
        (["ingest.colour=keep"], "ingest.colour keep needs preprocess.channels: colour"),
        (
            ["preprocess.channels=colour", "preprocess.image_size=[32,32,32]"],
            "preprocess.channels colour is for pictures",
        ),
        (["finetune.augmentation.hue=0.1"], "finetune.augmentation.hue needs preprocess.channels: colour"),
    ],
)
def test_channels_and_colour_that_contradict_each_other(folder, overrides, message):
    with pytest.raises(ConfigError, match=message):
        load(folder / "run.yaml", overrides)
