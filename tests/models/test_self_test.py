"""The self-tests of an autoencoder: silent on a sound one, and each planted fault is named."""

from __future__ import annotations

import sys

import pytest
import torch

from pipeline.models.decoders import DecoderSpec
from pipeline.models.mae import MaskedAutoencoder
from pipeline.models.masking import Mask, make_mask, mask_draws
from pipeline.models.self_test import self_test
from pipeline.models.training import TrainingError
from pipeline.models.vit import EncoderSpec, embed

FLAT = EncoderSpec((16, 24), (4, 4), 2, 24, 2, 2, (0.5, 0.4), (0.25, 0.2))
VOLUME = EncoderSpec((8, 12, 16), (4, 6, 4), 1, 26, 2, 2, (0.5,), (0.25,), positions="learned")
SPECS = pytest.mark.parametrize("spec", [FLAT, VOLUME], ids=["2-D", "3-D"])
DECODERS = pytest.mark.parametrize("decoder", ["self_attention", "cross_attention"])


def model_and_mask(spec: EncoderSpec, decoder: str, kind: str = "random") -> tuple[MaskedAutoencoder, Mask]:
    torch.manual_seed(3)
    model = MaskedAutoencoder(spec, DecoderSpec(20, 2, 2, decoder), True)
    noise = torch.rand(2, mask_draws(kind, spec.grid), generator=torch.Generator().manual_seed(1))
    return model, make_mask(kind, noise, spec.grid, 0.7)


@SPECS
@DECODERS
@pytest.mark.parametrize("kind", ["random", "block", "grid"])
def test_a_sound_model_passes_and_is_left_as_it_was(spec, decoder, kind):
    model, mask = model_and_mask(spec, decoder, kind)
    before, state = {n: t.clone() for n, t in model.state_dict().items()}, torch.get_rng_state()
    self_test(model, mask)
    assert all(torch.equal(before[name], tensor) for name, tensor in model.state_dict().items())
    assert torch.equal(state, torch.get_rng_state())
    assert model.training


@SPECS
@DECODERS
def test_decoder_positions_of_zeros_are_found(spec, decoder):
    model, mask = model_and_mask(spec, decoder)
    model.decoder_positions.zero_()
    with pytest.raises(TrainingError, match="do not depend on their position"):
        self_test(model, mask)


@SPECS
@DECODERS
def test_encoder_positions_of_zeros_are_found(spec, decoder):
    model, mask = model_and_mask(spec, decoder)
    model.encoder.patch_embedding.position_embeddings.data.zero_()
    with pytest.raises(TrainingError, match="the same to the encoder: it has no positions"):
        self_test(model, mask)


@DECODERS
def test_queries_for_the_wrong_place_are_found(decoder, monkeypatch):
    model, mask = model_and_mask(FLAT, decoder)
    right = model.queries
    monkeypatch.setattr(model, "queries", lambda mask: right(Mask(mask.visible, mask.masked.sort(dim=1).values)))
    with pytest.raises(TrainingError, match=r"asked for other places.*in another order"):
        self_test(model, mask)


@DECODERS
def test_predictions_in_the_wrong_order_are_found(decoder, monkeypatch):
    """Predictions sorted by place, as a forgotten shuffling back would leave them."""
    model, mask = model_and_mask(FLAT, decoder)
    right = model.predict

    def sorted_by_place(patches, mask):
        order = mask.masked.argsort(dim=1)
        return right(patches, mask).gather(1, order[:, :, None].expand(-1, -1, FLAT.patch_values))

    monkeypatch.setattr(model, "predict", sorted_by_place)
    with pytest.raises(TrainingError, match="in another order than the masked places"):
        self_test(model, mask)


def test_visible_patches_with_the_positions_of_others_are_found(monkeypatch):
    model, mask = model_and_mask(FLAT, "self_attention")
    right = embed

    def turned(encoder, patches, places=None):
        return right(encoder, patches, None if places is None else places.roll(1, dims=1))

    monkeypatch.setattr(sys.modules["pipeline.models.self_test"], "embed", turned)
    with pytest.raises(TrainingError, match="position of their own place"):
        self_test(model, mask)


def test_decoder_positions_of_other_visible_patches_are_found(monkeypatch):
    model, mask = model_and_mask(FLAT, "self_attention")
    right = model.decoder.forward

    def turned(latent, seen, hidden):
        return right(latent, seen.roll(1, dims=1), hidden)

    monkeypatch.setattr(model.decoder, "forward", turned)
    with pytest.raises(TrainingError, match="depend on the order in which visible patches are listed"):
        self_test(model, mask)


@DECODERS
def test_predictions_moved_on_by_one_place_are_found(decoder, monkeypatch):
    model, mask = model_and_mask(FLAT, decoder)
    right = model.predict
    monkeypatch.setattr(model, "predict", lambda patches, mask: right(patches, mask).roll(1, dims=1))
    with pytest.raises(TrainingError, match="in another order than the masked places"):
        self_test(model, mask)


def test_a_mask_that_names_a_patch_twice_is_found():
    model, mask = model_and_mask(FLAT, "self_attention")
    with pytest.raises(TrainingError, match="does not name every patch once"):
        self_test(model, Mask(mask.visible, mask.visible))
