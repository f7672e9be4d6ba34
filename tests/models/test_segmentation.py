"""The parts of a segmentation: decoder, loss, masks that move, windows, marks; and the contracts of its arms."""

from __future__ import annotations

import subprocess
import sys
from collections import Counter
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import pytest
import torch
from models.segmented_images import CPU, SIDE, STRUCTURES, data_of, images_of, settings_of

from pipeline.inference.ensemble import Ensemble
from pipeline.inference.segmentation import segment
from pipeline.models.arms import ArmData
from pipeline.models.augmentation import Augmentation
from pipeline.models.checkpoints import WeightsError, fit_positions, read_weights, save_weights
from pipeline.models.dice import dice, mask_loss, mean_dice
from pipeline.models.encoder_test import encoder_test
from pipeline.models.finished import Finished, Maps
from pipeline.models.images import ImagesError
from pipeline.models.marks import Suspects, marks_of
from pipeline.models.masks import cut_windows, masks_of, moved
from pipeline.models.reading import read_model
from pipeline.models.segmentation_decoder import Decoder, levels_of
from pipeline.models.segmenter import SegmentationSpec, Segmenter, cut_positions
from pipeline.models.training import TrainingError
from pipeline.models.vit import EncoderSpec, build_encoder
from pipeline.models.windows import lesion_logit, slabs, starts
from pipeline.store.files import read_json, sha256_file, write_json
from pipeline.store.runlog import RunLog
from pipeline.store.tables.masks import NOT_ANNOTATED
from pipeline.tasks.segmentation import remarks, train

# ---------------------------------------------------------------- decoder


@pytest.mark.parametrize(
    ("size", "patch"), [((32, 48), (16, 16)), ((24, 36), (12, 12)), ((16, 16), (4, 4)), ((8, 16, 16), (4, 8, 8))]
)
def test_the_decoder_gives_logits_on_the_pixels(size, patch):
    spec = EncoderSpec(size, patch, 1, 48, 8, 2, (0.5,), (0.2,))
    decoder = Decoder(spec, 3, 32)
    depths = [torch.rand(2, spec.tokens, 48, requires_grad=True) for _ in range(4)]
    found = decoder(depths, torch.rand(2, 1, *size))
    assert found.shape == (2, 3, *size)
    found.square().sum().backward()
    assert all(tokens.grad is not None and tokens.grad.abs().sum() > 0 for tokens in depths)
    assert all(parameter.grad is not None for parameter in decoder.parameters())
    assert levels_of(spec)[0] == spec.grid
    assert levels_of(spec)[-1] == size


# ---------------------------------------------------------------- loss and overlap


def test_the_loss_is_cross_entropy_and_dice_of_annotated_pixels():
    masks = torch.tensor([[[0, 1], [1, NOT_ANNOTATED]]], dtype=torch.uint8)
    logits = torch.zeros(1, 2, 2, 2)
    # Everything is 1/2: cross-entropy log 2, Dice (2 x 1 + 1) / (1.5 + 2 + 1).
    assert mask_loss(logits, masks).item() == pytest.approx(np.log(2) + 1 - 3 / 4.5)
    logits[0, :, 1, 1] = torch.tensor([9.0, -9.0])
    assert mask_loss(logits, masks).item() == pytest.approx(np.log(2) + 1 - 3 / 4.5)


def test_a_batchs_loss_is_the_mean_of_its_images_and_nothing_annotated_is_nothing():
    generator = torch.Generator().manual_seed(0)
    logits = torch.randn(3, 3, 6, 6, 6, generator=generator, requires_grad=True)
    masks = torch.randint(0, 3, (3, 6, 6, 6), generator=generator).to(torch.uint8)
    masks[2] = NOT_ANNOTATED
    each = [mask_loss(logits[n : n + 1], masks[n : n + 1]) for n in range(3)]
    assert mask_loss(logits, masks).item() == pytest.approx(torch.stack(each).mean().item(), rel=1e-6)
    assert each[2].item() == 0
    mask_loss(logits, masks).backward()
    assert logits.grad is not None
    assert logits.grad[2].abs().max() == 0


def test_overlap_counts_a_missed_and_an_invented_structure_as_nothing_and_two_empty_ones_not_at_all():
    reference = np.array([[1, 1, 0, 0], [0, 0, 2, NOT_ANNOTATED]])
    found = np.array([[1, 0, 0, 0], [3, 0, 0, 1]])
    each = dice(found, reference, [1, 2, 3, 4])
    assert each[:3] == pytest.approx([2 / 3, 0, 0])
    assert np.isnan(each[3])
    # Person a: (1 + 0.5 + 0) / 3 over two images; person b: 0.
    table = np.array([[1, 0.5], [0, np.nan], [0, 0]])
    assert mean_dice(table, np.array(["a", "a", "b"])) == pytest.approx((0.5 + 0) / 2)


# ---------------------------------------------------------------- masks


@pytest.mark.parametrize("axes", [2, 3])
@pytest.mark.parametrize(
    "change",
    [
        {"flips": ("horizontal",)},
        {"rotate_degrees": 20},
        {"crop_min": 0.6, "translate": 0.1, "scale": 0.1},
        {"shear": 0.1},
    ],
)
def test_masks_go_where_their_images_go(axes, change):
    size = (24, 40) if axes == 2 else (16, 24, 32)
    masks = torch.zeros(6, *size, dtype=torch.uint8)
    masks[(slice(None), *(slice(side // 4, side // 2) for side in size))] = 1
    numbers = np.arange(6)
    augment = Augmentation(**change)
    pixels = augment(masks[:, None].float(), 3, 1, numbers)[:, 0]
    after = moved(masks, replace(augment, noise=0.3, cutout=0.5, gamma=0.4), 3, 1, numbers)
    assert after.dtype == torch.uint8
    assert {*after.unique().tolist()} <= {0, 1, NOT_ANNOTATED}
    if "flips" in change:
        assert torch.equal(after, pixels.to(torch.uint8))
        assert not torch.equal(after, masks)
    for one, other in zip(after.numpy(), pixels.numpy(), strict=True):
        assert dice(one, (other > 0.5).astype(np.uint8), [1])[0] > 0.85


def test_what_comes_from_outside_is_not_annotated():
    augment = Augmentation(translate=0.4)
    masks = torch.ones(4, 20, 20, dtype=torch.uint8)
    after, seen = moved(masks, augment, 1, 0, np.arange(4)), augment(masks[:, None].float(), 1, 0, np.arange(4))[:, 0]
    assert (after == NOT_ANNOTATED).any()
    assert (seen[after == NOT_ANNOTATED] < 1).all()
    assert (after[seen == 1] == 1).all()


def test_windows_are_cut_alike_and_half_of_them_round_a_structure():
    masks = torch.zeros(200, 40, 40, dtype=torch.uint8)
    masks[:, 2, 37] = 2
    pixels = masks[:, None].float()
    cut, own = cut_windows(pixels, masks, (16, 16), 5, 2, np.arange(200))
    assert cut.shape == (200, 1, 16, 16)
    assert torch.equal(cut[:, 0], own.float())
    hit = (own == 2).flatten(1).any(dim=1).float().mean().item()
    assert 0.45 < hit < 0.7
    again = cut_windows(pixels[7:9], masks[7:9], (16, 16), 5, 2, np.array([7, 8]))[0]
    assert torch.equal(again, cut[7:9])


def test_masks_that_do_not_fit_their_images_are_named(tmp_path):
    images = images_of("train", np.zeros((3, 1, 8, 8), np.uint8), np.array([0, 1, 0]))
    path = tmp_path / "masks-train-000.npy"

    def read(array: np.ndarray):
        np.save(path, array)
        return masks_of([path], {"1": "ball"}, [images])

    assert read(np.ones((3, 8, 8), np.uint8)).structures == {1: "ball"}
    with pytest.raises(ImagesError, match=r"masks-train-000.npy is uint8 \(3, 8, 9\), its images are \(3, 1, 8, 8\)"):
        read(np.ones((3, 8, 9), np.uint8))
    with pytest.raises(ImagesError, match=r"hold numbers that are no structure: masks-train-000.npy"):
        read(np.full((3, 8, 8), 2, np.uint8))
    with pytest.raises(ImagesError, match=r"masks-train-000.npy is missing"):
        masks_of([], {"1": "ball"}, [images])


# ---------------------------------------------------------------- windows and scores


def by_value(window: tuple[int, ...] | None, overlap: float = 0.5) -> Maps:
    """A model that judges each pixel by its value alone, so that windows must change nothing."""

    def log_probabilities(pixels: torch.Tensor) -> torch.Tensor:
        assert window is None or tuple(pixels.shape[2:]) == window
        value = 8 * pixels[0, 0] - 4
        return torch.stack((-value, value)).log_softmax(dim=0)

    return Maps(log_probabilities, {1: "bright"}, window, overlap, 0.1, 3)


@pytest.mark.parametrize(("size", "window"), [((50, 37), (16, 16)), ((21, 20, 33), (8, 16, 16)), ((16, 16), (16, 16))])
@pytest.mark.parametrize("overlap", [0.0, 0.5, 0.75])
def test_windows_change_nothing_of_what_a_pixel_says_by_itself(size, window, overlap):
    image = torch.rand(1, *size, generator=torch.Generator().manual_seed(1))

    def read(box):
        return image[(slice(None), *box)]

    whole = by_value(None).log_probabilities(image[None])
    parts = list(slabs(by_value(window, overlap), size, read))
    assert torch.allclose(torch.cat(parts, dim=1), whole, atol=1e-5)
    assert lesion_logit(parts) == pytest.approx(lesion_logit([whole]), abs=1e-4)


def test_windows_reach_the_end_in_steps_that_overlap_enough():
    for side, window, overlap in ((100, 32, 0.5), (33, 32, 0.0), (400, 96, 0.25)):
        places = starts(side, window, overlap)
        assert places[0] == 0
        assert places[-1] == side - window
        assert max(np.diff(places), default=0) <= window * (1 - overlap)


def test_an_image_smaller_than_a_window_is_refused():
    with pytest.raises(ValueError, match=r"an image of \(8, 20\) pixels is smaller than what the model looks at"):
        segment([by_value((16, 16))], np.zeros((1, 1, 8, 20), np.uint8))


def test_an_images_score_is_the_log_odds_of_its_surest_neighbourhood():
    log_odds = torch.full((1, 9, 9), -5.0)
    log_odds[0, 2, 2] = 40.0  # alone
    log_odds[0, 5:8, 5:8] = torch.arange(9.0).view(3, 3)
    both = torch.cat((torch.zeros(1, 9, 9), log_odds)).log_softmax(dim=0)
    assert lesion_logit([both]) == pytest.approx(4.0, abs=1e-4)
    # As sure as can be, and still in order: probabilities would both be 1.
    scores = [
        lesion_logit([torch.stack((torch.zeros(5, 5), torch.full((5, 5), odds))).log_softmax(dim=0)])
        for odds in (40.0, 41.0)
    ]
    assert scores == pytest.approx([40, 41])


def test_marks_are_connected_pieces_by_their_highest_probability():
    values = np.zeros((4, 6))
    values[0, 0], values[1, 1], values[3, 2:5] = 0.3, 0.6, (0.2, 0.9, 0.9)
    places = np.flatnonzero(values > 0.1)
    found = marks_of([Suspects(places, values.ravel()[places]), Suspects(places[:1], np.array([0.7]))], values.shape)
    assert [(m.mark, m.structure, m.score, m.peak, m.voxels) for m in found] == [
        (1, 1, 0.9, (3, 3), 3), (2, 2, 0.7, (0, 0), 1), (3, 1, 0.6, (1, 1), 2),
    ]  # fmt: skip


def test_masks_and_marks_are_of_the_models_mean_and_surplus_marks_are_counted():
    image = np.zeros((1, 1, 20, 20), np.uint8)
    image[0, 0, ::5, ::5] = 255
    unsure = replace(by_value(None), log_probabilities=lambda x: torch.zeros(2, *x.shape[2:]).log_softmax(0))
    found = segment([by_value((16, 16))], image)
    assert np.array_equal(found.masks[0], (image[0, 0] > 127).astype(np.uint8))
    assert len(found.marks[0]) == 3
    assert found.left_out == 13
    both = segment([by_value(None), unsure], image)
    assert both.marks[0][0].score == pytest.approx((1 / (1 + np.exp(-8)) + 0.5) / 2, abs=1e-6)


LONG = """
import resource, sys
import numpy as np
sys.path[:0] = sys.argv[3:]
from models.test_segmentation import by_value
from pipeline.inference.segmentation import segment
array = np.lib.format.open_memmap(sys.argv[1], mode="w+", dtype=np.uint8, shape=(1, 1, int(sys.argv[2]), 64, 64))
before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
segment([by_value((16, 64, 64))] * 2, array)
print((resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) / 1024)
"""


@pytest.mark.slow
def test_memory_does_not_grow_with_the_length_of_a_volume(tmp_path):
    """2,560 planes are 10 million voxels: 84 MB for the probabilities of each model, if they were kept."""
    added = []
    for planes in (160, 2560):
        command = [
            sys.executable,
            "-c",
            LONG,
            str(tmp_path / "volume.npy"),
            str(planes),
            *map(str, (Path(__file__).parents[1],)),
        ]
        done = subprocess.run(command, capture_output=True, text=True, check=True, cwd=Path(__file__).parents[2])
        added.append(float(done.stdout))
    assert added[1] - added[0] < 45  # the mask and the volume itself are 21 MB


# ---------------------------------------------------------------- positions of windows


def test_windows_have_the_positions_of_a_grid_of_their_own_size():
    spec = EncoderSpec((32, 48), (8, 8), 1, 16, 1, 2, (0.5,), (0.2,))
    window = replace(spec, image_size=(16, 24))
    cut = cut_positions(build_encoder(spec).state_dict(), spec.grid, window.grid)
    own = build_encoder(window).state_dict()
    name = "patch_embedding.position_embeddings"
    assert torch.equal(cut[name], own[name])
    assert not torch.equal(fit_positions(build_encoder(spec).state_dict(), spec.grid, window.grid)[name], own[name])


# ---------------------------------------------------------------- the arms


@dataclass(frozen=True)
class Trained:
    folder: Path
    data: ArmData

    def read(self) -> Finished:
        return read_model(self.folder / "model.json", self.folder / "model.safetensors", CPU)

    def pixels(self) -> torch.Tensor:
        return self.data.tune.pixels(np.arange(len(self.data.tune)), CPU)


CASES = {
    "mae lesion": ("mae", 2, {"decoder_width": 32}),
    "scratch mean": ("scratch", 2, {"image_score": "mean"}),
    "classical head": ("classical", 2, {"image_score": "head"}),
    "mae windows": ("mae", 2, {"window": [16, 16]}),
    "mae volumes": ("mae", 3, {"image_score": "head"}),
    "classical volumes": ("classical", 3, {}),
}


def trained_as(name: str, folder: Path) -> Trained:
    arm, axes, section = CASES[name]
    data = data_of(axes) if axes == 2 else data_of(axes, train=4, tune=4)
    epochs = {"epochs": 14 if name == "mae lesion" else 2} if axes == 2 else {"epochs": 1, "warmup_epochs": 0.5}
    settings = settings_of(**epochs, segmentation={"decoder_width": 16, **section}, drop_path=0.1)
    train(arm, 1, settings, data, folder, RunLog("finetune", quiet=True))
    return Trained(folder, data)


@pytest.fixture(scope="module")
def every(tmp_path_factory) -> dict[str, Trained]:
    return {name: trained_as(name, tmp_path_factory.mktemp("arm")) for name in CASES}


@pytest.fixture(params=CASES)
def trained(request, every) -> Trained:
    return every[request.param]


def test_logits_and_masks_of_a_batch_are_those_of_its_images_in_any_order(trained: Trained):
    model, pixels = trained.read(), trained.pixels()
    together = model.logits(pixels)
    assert together.shape == (len(pixels), 1)
    assert together.dtype == np.float64
    assert np.array_equal(together, np.concatenate([model.logits(one) for one in pixels.split(1)]))
    order = np.random.default_rng(3).permutation(len(pixels))
    assert np.array_equal(together[order], model.logits(pixels[order]))
    ensemble = Ensemble.load({1: (trained.folder / "model.json", trained.folder / "model.safetensors")}, CPU)
    array = trained.data.tune.raw(np.arange(len(pixels))).numpy()
    assert np.array_equal(ensemble.segment(array).masks[order], ensemble.segment(array[order]).masks)
    assert ensemble.structures == STRUCTURES
    assert np.array_equal(ensemble.logits(array), together)


def test_what_is_read_back_is_what_training_judged(trained: Trained):
    record = read_json(trained.folder / "model.json")
    array = trained.data.tune.raw(np.arange(len(trained.data.tune))).numpy()
    masks = segment([trained.read().maps], array).masks
    assert trained.data.masks is not None
    reference = trained.data.masks.of(trained.data.tune, np.arange(len(masks)))
    each = np.stack([dice(one, other, [1, 2]) for one, other in zip(masks, reference, strict=True)])
    overlap = mean_dice(each, trained.data.tune.index["patient_id"].to_numpy())
    assert overlap == pytest.approx(record["tune_dice"], abs=1e-9)
    assert record["task"] == "segmentation"
    history = read_json(trained.folder / "history.json")
    assert all(isinstance(value, int | float) for row in history for value in row.values()), "MLflow takes numbers"


@pytest.mark.parametrize("name", ["mae lesion", "classical head"])
def test_balls_are_found(every, name):
    assert read_json(every[name].folder / "model.json")["tune_dice"] > 0.5
    assert read_json(every[name].folder / "model.json")["tune_auc"] == 1.0


@pytest.mark.parametrize("name", ["mae windows", "classical head", "mae volumes"])
def test_trained_again_it_has_the_same_bytes(every, tmp_path, name):
    again = trained_as(name, tmp_path)
    for file in ("model.safetensors", "model.json", "history.json"):
        assert sha256_file(again.folder / file) == sha256_file(every[name].folder / file)


@pytest.mark.parametrize("change", ["one missing", "one too many", "another shape"])
def test_weights_that_do_not_fit_are_refused(trained: Trained, tmp_path, change: str):
    tensors = read_weights(trained.folder / "model.safetensors")
    name = max(tensors)
    if change == "one missing":
        del tensors[name]
    elif change == "one too many":
        tensors["stranger"] = torch.zeros(1)
    else:
        tensors[name] = torch.zeros(2, 3, 4)
    save_weights(tmp_path / "model.safetensors", tensors)
    record = read_json(trained.folder / "model.json") | {"sha256": sha256_file(tmp_path / "model.safetensors")}
    write_json(tmp_path / "model.json", record)
    with pytest.raises(WeightsError, match=r"do not fit.* (is missing|is unexpected|has shape \(.*\) instead of)"):
        read_model(tmp_path / "model.json", tmp_path / "model.safetensors", CPU)


def test_every_trained_parameter_gets_a_gradient_from_masks_and_labels(trained: Trained):
    windows = read_json(trained.folder / "model.json").get("windows", False)
    assert not (windows and trained.read().networks), "a whole image is more than it can look at"
    for network in trained.read().networks:
        assert isinstance(network, Segmenter)
        network.train()
        pixels = torch.rand(2, 1, *network.spec.image_size)
        classes, head = network(pixels, torch.ones(network.depth, 2, 2), maps=True)
        targets = torch.ones(2, *network.spec.image_size, dtype=torch.uint8)
        (mask_loss(classes, targets) + head.square().sum()).backward()
        assert not [name for name, p in network.named_parameters() if p.requires_grad and p.grad is None]
        plain = network(pixels, maps=True)[0]
        assert torch.allclose(plain, classes, atol=1e-5)


def test_a_network_says_where_it_looked_and_what_it_found(trained: Trained):
    for network in trained.read().networks:
        assert isinstance(network, Segmenter)
        pixels = torch.rand(2, 1, *network.spec.image_size)
        assert np.allclose(network.shares(pixels).reshape(2, -1).sum(axis=1), 1)
        logits, depths = trained.read().look(pixels)
        assert np.array_equal(logits, trained.read().logits(pixels))
        assert all(torch.equal(*pair) for pair in zip(depths, network.depths(pixels), strict=True))


# ---------------------------------------------------------------- is the encoder used?


def test_a_decoder_that_looks_at_the_image_alone_is_found_out(every):
    """The projections of the tokens are emptied: noise then changes nothing."""
    network = every["mae lesion"].read().networks[0]
    assert isinstance(network, Segmenter)

    def answer(model: Segmenter) -> float:
        pixels = torch.rand(1, 1, SIDE, SIDE, generator=torch.Generator().manual_seed(2))
        with torch.no_grad():
            changed = (model(pixels, maps=True)[0] - plain).abs().max().item()
        return 0.8 if changed < 1e-6 else 0.3

    with torch.no_grad():
        plain = network(torch.rand(1, 1, SIDE, SIDE, generator=torch.Generator().manual_seed(2)), maps=True)[0]
    assert encoder_test(network, answer, 0.8)["used"]
    assert network.noise is None
    for projection in network.decoder.projections:
        projection.weight.data.zero_()
    with torch.no_grad():
        plain = network(torch.rand(1, 1, SIDE, SIDE, generator=torch.Generator().manual_seed(2)), maps=True)[0]
    tested = encoder_test(network, answer, 0.8)
    assert not tested["used"]
    (said,) = remarks("mae", {"1": {"encoder_test": tested}})
    assert said.startswith(
        "mae seed 1: its pretraining is not used: the mean Dice of the tuning images is 0.800, and 0.800"
    )
    assert "its encoder is not used" in remarks("scratch", {"1": {"encoder_test": tested}})[0]


def test_training_records_the_test_of_its_encoder(every):
    tested = read_json(every["mae lesion"].folder / "model.json")["encoder_test"]
    assert tested["used"]
    assert tested["tune_dice_with_noise"] < 0.9 * tested["tune_dice"]
    assert remarks("mae", {"1": {"encoder_test": tested}}) == []
    assert (
        "nothing can be said" in remarks("mae", {"1": {"encoder_test": {**tested, "tune_dice": 0.0, "used": False}}})[0]
    )


# ---------------------------------------------------------------- what is refused


def test_settings_that_cannot_be_are_refused_together():
    with pytest.raises(
        ValueError, match=r"arms hog cannot segment; task segmentation takes mae.*mixup mixes labels"
    ) as all_:
        settings_of(arms=["mae", "hog"], mixup=0.2)
    assert Counter(str(all_.value))["\n"] >= 1
    kept = settings_of().model_dump()
    assert kept["task"] == "segmentation"
    assert kept["segmentation"]["image_score"] == "lesion"
    classification = type(settings_of())().model_dump()
    assert "task" not in classification
    assert "segmentation" not in classification


def test_windows_cannot_say_labels_and_masks_are_needed(tmp_path):
    data = data_of(2)
    windows = settings_of(segmentation={"window": [16, 16], "image_score": "head"})
    with pytest.raises(TrainingError, match="a window of an image cannot say its labels"):
        train("mae", 1, windows, data, tmp_path, RunLog("finetune", quiet=True))
    with pytest.raises(TrainingError, match="the preprocessed images have no masks"):
        train("mae", 1, settings_of(), replace(data, masks=None), tmp_path, RunLog("finetune", quiet=True))


def test_a_specification_comes_back_from_json():
    how = SegmentationSpec({1: "ball", 2: "core"}, "mean", 32, 0.5, 0.1, 20)
    assert SegmentationSpec.from_json(how.to_json()) == how
