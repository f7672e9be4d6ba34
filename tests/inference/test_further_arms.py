"""Arms beside the transformer, from training to the report, the page of a study and the ONNX graph."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from inference.conftest import FURTHER
from pypdf import PdfReader

from pipeline.delivery.pages import page
from pipeline.inference.export import ExportError, export
from pipeline.orchestration.run import run
from pipeline.store.files import read_json


def text_of(path) -> str:
    return " ".join(" ".join(page.extract_text() for page in PdfReader(path).pages).split())


@pytest.fixture(scope="module")
def reported(judged):
    project, _ = judged
    return run(*project.load(*FURTHER, "calibrate.arm=cnn", "machine.workers=1"), say=lambda line: None)


def test_the_report_names_every_arm_and_how_an_outline_came_about(reported):
    assert "pretrain" not in reported.artifacts
    text = reported.artifacts["report"].file("report.html").read_text("utf-8")
    assert "residual network, from scratch" in text
    assert "ensemble of cnn and classical" in text
    assert "strongest classical baseline" in text
    assert "none took place" in text
    record = read_json(reported.artifacts["finetune"].file("summary.json"))["arms"]
    assert record["classical"]["kinds"].keys() == {"hog", "principal_components", "local_binary_patterns", "statistics"}
    assert "MONAI ResNet of 10 layers" in record["cnn"]["description"]


def test_the_page_of_a_study_says_what_its_outline_is(cnn, tmp_path):
    model = cnn.load()
    predictions = model.predict([cnn.studies], workers=1, pictures=True)
    result = next(one for one in predictions if one.picture is not None)
    (tmp_path / "page.pdf").write_bytes(page(result, predictions, "2026-01-01T00:00:00+00:00"))
    text = text_of(tmp_path / "page.pdf")
    assert "an outline round half of what raised the network's score" in text
    assert "attention" not in text
    assert {"quarter", "half", "three_quarters", "full"} < set(model.reference.spaces)  # of its four stages


def test_an_attentive_probe_outlines_the_attention_of_its_queries_and_has_a_graph(attentive, tmp_path):
    pytest.importorskip("onnxruntime")
    found = export(attentive.model, tmp_path / "out", onnx=True, say=lambda line: None)
    assert found["compared"]["largest_difference"] < 1e-5
    model = attentive.load()
    predictions = model.predict([attentive.studies], workers=1, pictures=True)
    result = next(one for one in predictions if one.picture is not None)
    assert result.picture.outline == "queries"
    (network,) = model.ensemble.networks
    array = torch.from_numpy(result.picture.array[None]).float() / 255
    assert np.allclose(result.picture.shares, network.shares(array)[0], atol=1e-6)
    (tmp_path / "page.pdf").write_bytes(page(result, predictions, "2026-01-01T00:00:00+00:00"))
    assert "half of the network's attention" in text_of(tmp_path / "page.pdf")


def test_an_ensemble_with_a_classical_arm_has_no_graph_and_says_so(ensemble, tmp_path):
    with pytest.raises(ExportError, match="arm ensemble is not made of ONNX operators"):
        export(ensemble.model, tmp_path / "out", onnx=True, say=lambda line: None)
    assert not (tmp_path / "out").exists()


def test_a_residual_network_has_one_that_scores_as_it_does(cnn, tmp_path):
    pytest.importorskip("onnxruntime")
    assert (
        export(cnn.model, tmp_path / "out", onnx=True, say=lambda line: None)["compared"]["largest_difference"] < 1e-5
    )
