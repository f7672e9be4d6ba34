"""Export: a copy that is the model, and an ONNX graph that gives its arrays and scores, or nothing at all."""

from __future__ import annotations

import json
import shutil
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from typer.testing import CliRunner

from pipeline.cli import app
from pipeline.imaging.image import About, Image
from pipeline.imaging.transforms import Rendering, render, window_of
from pipeline.inference import export as exporting
from pipeline.inference.export import ExportError, drawings, export, open_graph, run_graph
from pipeline.inference.model import Model
from pipeline.inference.model_folder import verified
from pipeline.models.classifier import Classifier
from pipeline.models.finished import Network, Weighted
from pipeline.models.resnet import ResNetClassifier, ResNetSpec
from pipeline.models.vit import EncoderSpec


def invoke(*words: str | Path):
    return CliRunner().invoke(app, ["model", "export", *(str(word) for word in words)])


def test_without_onnx_it_is_a_checked_copy(hog, tmp_path):
    done = invoke(hog.model, tmp_path / "out")
    assert done.exit_code == 0, done.output
    assert done.stdout.strip() == str(tmp_path / "out" / "model")
    assert [path.name for path in (tmp_path / "out").iterdir()] == ["model"]
    assert verified(tmp_path / "out" / "model")[1] == verified(hog.model)[1]


def test_what_cannot_be_exported_is_refused_and_leaves_nothing(hog, tmp_path):
    broken = shutil.copytree(hog.model, tmp_path / "broken")
    (broken / "MODEL_CARD.md").write_text("another")
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "file").write_text("")
    for words, told in [
        ((broken, tmp_path / "a"), "MODEL_CARD.md is not the file that was packaged"),
        ((hog.model, tmp_path / "full"), "is not empty"),
        ((hog.model, tmp_path / "b", "--int8"), "--int8 is not built"),
    ]:
        done = invoke(*words)
        assert done.exit_code == 1
        assert told in done.output
    assert sorted(path.name for path in tmp_path.iterdir()) == ["broken", "full"]


def test_a_model_without_a_network_has_no_graph(hog, tmp_path):
    pytest.importorskip("onnx")
    pytest.importorskip("onnxruntime")
    done = invoke(hog.model, tmp_path / "out", "--onnx")
    assert (done.exit_code, "arm hog is not made of ONNX operators" in done.output) == (1, True)
    assert not (tmp_path / "out").exists()


def test_without_the_packages_it_says_what_to_install(mae, tmp_path, monkeypatch):
    monkeypatch.setitem(__import__("sys").modules, "onnxruntime", None)
    with pytest.raises(ExportError, match=r"maescreen\[onnx\]"):
        export(mae.model, tmp_path / "out", onnx=True)
    assert not (tmp_path / "out").exists()


def test_the_graph_scores_real_studies_as_the_model_does(mae, tmp_path):
    """From the display pixels of radiographs of many sizes: equal arrays, byte for byte, and equal scores."""
    pytest.importorskip("onnx")
    pytest.importorskip("onnxruntime")
    done = invoke(mae.model, tmp_path / "out", "--onnx", "--json")
    assert done.exit_code == 0, done.output
    compared = json.loads(done.stdout)["compared"]
    assert compared["largest_difference"] < 1e-5
    assert compared["pixels_that_differ"] == 0
    note = json.loads((tmp_path / "out" / "onnx.json").read_text())
    assert note["model_sha256"] == verified(mae.model)[1]
    model = Model.load(tmp_path / "out" / "model", device="cpu", threads=1, say=lambda line: None)
    session = open_graph(tmp_path / "out" / "model.onnx")
    images = [one.image for one in model.read([mae.studies]).images][:20]
    # The radiographs of the demo are all of one size; parts of them are not.
    parts = [replace(image, pixels=image.pixels[: 224 - 9 * n, 5 * n :]) for n, image in enumerate(images)]
    for image in [*images, *parts]:
        low, high = window_of(image, model.rendering)
        array, logits = run_graph(session, image.pixels, low, high, image.spacing_mm or (1.0, 1.0))
        wanted = render(image, model.rendering).pixels
        assert (array == wanted).all()
        assert np.abs(logits - model.ensemble.logits(wanted[None])[0]).max() < 1e-5


def test_a_graph_that_scores_otherwise_is_not_left(mae, tmp_path, monkeypatch):
    pytest.importorskip("onnx")
    pytest.importorskip("onnxruntime")
    from pipeline.inference import onnx_graph

    monkeypatch.setattr(onnx_graph, "FULL_SCALE", 254.0)
    with pytest.raises(ExportError, match="scores differ by"):
        export(mae.model, tmp_path / "out", onnx=True, say=lambda line: None)
    assert list(tmp_path.iterdir()) == []


CASES = [
    ((32, 32), None, False, "norm_linear"),
    ((48, 32), (1.5, 1.5), True, "linear"),
    ((16, 16, 16), None, True, "norm_linear"),
    ((16, 16, 16), (2.0, 2.0, 2.0), False, "norm_linear"),
    ((32, 40), None, True, "resnet"),
    ((128, 128), None, False, "resnet"),
    ((16, 20, 16), None, False, "resnet"),
    ((32, 32), None, True, "attention"),
    ((16, 16, 16), None, False, "attention"),
    ((32, 32), None, False, "class_token"),
    ((32, 32), None, False, "registers"),
]


@pytest.mark.parametrize(("size", "spacing", "flips", "head"), CASES)
def test_resizing_padding_and_cropping_are_those_of_render(size, spacing, flips, head, tmp_path):
    onnx = pytest.importorskip("onnx")
    pytest.importorskip("onnxruntime")
    from pipeline.inference.onnx_graph import build

    networks = [_network(seed, size, head) for seed in (1, 2)]
    how = Rendering(size, spacing, 1, 99)
    onnx.save_model(build(_weighted(networks), how, flips, {}), str(tmp_path / "model.onnx"))
    session = open_graph(tmp_path / "model.onnx")
    rng = np.random.default_rng(1)
    shapes = [tuple(rng.integers(5, 90, len(size))) for _ in range(12)]
    others = [
        Image(
            rng.integers(0, 65536, shape).astype(np.float32),
            About("drawn", 16),
            spacing_mm=tuple(rng.uniform(0.3, 3, len(size))),
        )
        for shape in shapes
    ]
    for image in [*drawings(how), *others]:
        low, high = window_of(image, how)
        array, logits = run_graph(session, image.pixels, low, high, image.spacing_mm or (1.0,) * len(size))
        wanted = render(image, how).pixels
        off = np.abs(array.astype(int) - wanted)
        # Pixels cut to a percentile are no whole numbers: a sum on the border of two greys may fall to either.
        assert off.max() <= 1
        assert (off > 0).mean() < 1e-3
        assert np.abs(logits - _expected(_weighted(networks), array, flips)).max() < 1e-5


def _network(seed, size, head) -> Network:
    torch.manual_seed(seed)
    network: Network
    if head == "resnet":
        network = ResNetClassifier(ResNetSpec(size, 1, 10, 8, (0.4,), (0.25,)), labels=2)
    else:
        registers = 3 if head == "registers" else 0
        spec = EncoderSpec(size, (8,) * len(size), 1, 48, 2, 4, (0.4,), (0.25,), registers=registers)
        if head in ("norm_linear", "linear"):
            network = Classifier(spec, head, labels=2)
        else:
            network = Classifier(spec, "norm_linear", 2, "mean" if registers else head)
            if network.pool is not None:
                torch.nn.init.normal_(network.pool.queries)
    torch.nn.init.normal_(network.head.weight, std=0.3)
    torch.nn.init.normal_(network.head.bias)
    return network.eval()


def _weighted(networks) -> Weighted:
    labels = networks[0].head.out_features
    shares = np.linspace(0.3, 0.7, labels * len(networks)).reshape(-1, labels)
    return Weighted(tuple(networks), shares, np.linspace(-1, 1, labels))


@torch.no_grad()
def _expected(weighted, array, flips) -> np.ndarray:
    pixels = torch.from_numpy(array[None]).float() / 255
    views = [pixels, pixels.flip(-1)] if flips else [pixels]
    each = [np.mean([network(view)[0].double().numpy() for view in views], axis=0) for network in weighted.networks]
    return (np.stack(each) * weighted.weights).sum(axis=0) + weighted.offset


def test_a_constant_image_is_black(tmp_path):
    onnx = pytest.importorskip("onnx")
    pytest.importorskip("onnxruntime")
    from pipeline.inference.onnx_graph import build

    how = Rendering((32, 32), None, 1, 99)
    onnx.save_model(build(_weighted([_network(1, (32, 32), "linear")]), how, False, {}), str(tmp_path / "model.onnx"))
    array, logits = run_graph(open_graph(tmp_path / "model.onnx"), np.full((40, 50), 7.0), 7.0, 7.0, (1.0, 1.0))
    assert not array.any()
    assert np.isfinite(logits).all()


def test_what_a_graph_cannot_be_is_refused(monkeypatch):
    pytest.importorskip("onnx")
    from pipeline.inference import onnx_graph
    from pipeline.inference.onnx_graph import GraphError, build

    how = Rendering((32, 32), None, 1, 99)
    colour = Classifier(EncoderSpec((32, 32), (8, 8), 3, 48, 2, 4, (0.4,) * 3, (0.25,) * 3), "linear")
    with pytest.raises(GraphError, match="3 channels"):
        build(_weighted([colour]), how, False, {})
    with pytest.raises(GraphError, match="field of view"):
        build(_weighted([colour]), replace(how, channels="colour", crop="field_of_view"), False, {})
    monkeypatch.setattr(onnx_graph, "LARGEST_BYTES", 1000)
    with pytest.raises(GraphError, match="2 GB"):
        build(_weighted([_network(1, (32, 32), "linear")]), how, False, {})


def test_the_note_names_every_input_and_output(tmp_path):
    pytest.importorskip("onnx")
    from pipeline.inference.onnx_graph import build

    made = build(_weighted([_network(1, (32, 32), "linear")]), Rendering((32, 32), None, 1, 99), False, {"a": "b"})
    names = [one.name for one in (*made.graph.input, *made.graph.output)]
    assert names == list(exporting.MEANINGS)
