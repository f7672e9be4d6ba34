"""Channels in card and config: what goes together, what is said of what does not, and whose keys they are none of."""

import json
from pathlib import Path

import pytest
import yaml
from test_config_file import CARD, CONFIG

from pipeline.orchestration.graph import STAGES
from pipeline.orchestration.sources import sources
from pipeline.settings.card import Card
from pipeline.settings.common import ConfigError
from pipeline.settings.load import load
from pipeline.store.lineage import Code

TWO = [{"name": "t1", "suffix": "_t1.nii.gz"}, {"name": "t2", "suffix": "_t2.nii.gz"}]
VOLUMES = ["preprocess.image_size=[32, 32, 32]", "pretrain.encoder.patch_size=[8, 8, 8]", "finetune.arms=[mae]",
           "calibrate.arm=mae"]  # fmt: skip


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    (tmp_path / "studies").mkdir()
    (tmp_path / "labels.csv").write_text("path,label\n")
    (tmp_path / "run.yaml").write_text(CONFIG)
    return tmp_path


def written(folder: Path, channels: list, name: str = "card.yaml", **changes) -> Path:
    (folder / name).write_text(yaml.safe_dump(yaml.safe_load(CARD) | {"channels": channels} | changes))
    return folder / "run.yaml"


@pytest.mark.parametrize(
    ("channels", "message"),
    [
        ([{"name": "t1"}], "name one of description, suffix, axis and column"),
        ([{"name": "t1", "suffix": "_t1.nii", "axis": 0}], "name one of description, suffix, axis and column"),
        ([{"name": "t1", "suffix": "_t1.nii", "without": ["GD"]}], "without goes with description"),
        ([{"name": "t1", "description": ["/"]}], "every entry needs a word"),
        ([TWO[0], {"name": "t2", "axis": 1}], "all channels must be told in the same way"),
        ([TWO[0], {**TWO[1], "name": "t1"}], "names must be distinct"),
        ([{"name": "t1", "suffix": "t1.nii"}, {"name": "ct1", "suffix": "CT1.nii"}], "a suffix is the end of another"),
        ([{"name": "a", "axis": 1}, {"name": "b", "axis": 1}], "every axis may be named once"),
        ([{"name": "a", "column": "x"}, {"name": "b", "column": "x"}], "every column may be named once"),
    ],
)
def test_a_channel_is_told_in_one_way_by_which_no_other_is(folder, channels, message):
    with pytest.raises(ConfigError, match=message):
        load(written(folder, channels), VOLUMES)


@pytest.mark.parametrize(
    ("channels", "overrides", "message"),
    [
        (TWO, [], "channels are volumes, but preprocess.image_size has 2 sides"),
        (TWO, [*VOLUMES, "ingest.missing_channels=zero"], "needs finetune.augmentation.channel_dropout above 0"),
        ([], ["ingest.missing_channels=zero"], "ingest.missing_channels zero needs channels, and the card lists none"),
        ([], ["pretrain.augmentation.channel_dropout=0.1", "finetune.augmentation.channel_dropout=0.1"],
         "pretrain.augmentation.channel_dropout and finetune.augmentation.channel_dropout need channels"),
    ],
)  # fmt: skip
def test_what_contradicts_the_channels_is_said(folder, channels, overrides, message):
    with pytest.raises(ConfigError, match=message):
        load(written(folder, channels), overrides)


def test_labels_join_to_what_holds_all_channels(folder):
    card = written(folder, TWO, columns={"series_instance_uid": "uid"})
    with pytest.raises(ConfigError, match="series_instance_uid joins labels to one channel; join by study or patient"):
        load(card, VOLUMES)


def test_an_external_set_has_the_same_channels_told_in_its_own_way(folder):
    config = written(folder, TWO)
    where = {"name": "b", "studies": ["studies"], "labels": "labels.csv", "card": "other.yaml"}
    override = f"data.external={json.dumps([where])}"
    written(folder, [{**one, "suffix": f"{one['name']}.nii"} for one in TWO], "other.yaml")
    (folder / "other").mkdir()
    load(config, [*VOLUMES, override.replace('"studies"]', '"other"]')])
    written(folder, TWO[::-1], "other.yaml")
    with pytest.raises(ConfigError, match="names and order must be those of"):
        load(config, [*VOLUMES, override])


def test_another_file_in_a_column_of_channels_makes_both_stages_anew(folder):
    told = [{"name": name, "column": name} for name in ("t1", "t2")]
    found = []
    for cell in ("b", "c", "c"):
        (folder / "labels.csv").write_text(f"path,label,t1,t2\na,ill,a,{cell}\n")
        config, card = load(written(folder, told), VOLUMES)
        found.append(sources(config, (config.data, card), b"\0" * 32, Code())["channels"])
    assert found[0] != found[1] == found[2]


def test_cards_without_channels_say_nothing_of_them_and_keys_are_what_they_were(folder):
    config, card = load(written(folder, []))
    assert "channels" not in card.model_dump()
    assert not {"missing_channels", "min_overlap"} & config.ingest.model_dump().keys()
    assert "channel_dropout" not in config.finetune.augmentation.model_dump()
    code = Code()
    without = sources(config, (config.data, card), b"\0" * 32, code)
    config, card = load(written(folder, TWO), VOLUMES)
    changed = sources(config, (config.data, card), b"\0" * 32, code)
    assert {name for name in changed if changed[name] != without.get(name)} == {"channels", "card"}
    assert [stage.name for stage in STAGES if "channels" in stage.sources] == ["ingest", "preprocess"]
    assert isinstance(card, Card)
