"""The masked autoencoder: patches come back in place, the loss sees what was hidden, and predictions know where."""

from __future__ import annotations

from itertools import pairwise

import pytest
import torch

from pipeline.models.mae import DecoderBlock, DecoderSpec, Mask, MaskedAutoencoder, put, random_mask, take
from pipeline.models.vit import EncoderSpec, patchify, unpatchify

FLAT = EncoderSpec((16, 24), (4, 8), 2, 24, 2, 2, (0.5, 0.4), (0.25, 0.2))
VOLUME = EncoderSpec((8, 12, 16), (4, 6, 4), 1, 26, 2, 2, (0.5,), (0.25,))
BOTH = pytest.mark.parametrize("spec", [FLAT, VOLUME], ids=["2-D", "3-D"])
DECODER = DecoderSpec(width=20, depth=2, heads=2)


def images(spec: EncoderSpec, count: int = 3, seed: int = 0) -> torch.Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.rand(count, spec.channels, *spec.image_size, generator=generator)


def mask_for(spec: EncoderSpec, count: int = 3, ratio: float = 0.5, seed: int = 1) -> Mask:
    return random_mask(torch.rand(count, spec.tokens, generator=torch.Generator().manual_seed(seed)), ratio)


def autoencoder(spec: EncoderSpec, normalise_targets: bool = True) -> MaskedAutoencoder:
    torch.manual_seed(7)
    return MaskedAutoencoder(spec, DECODER, normalise_targets).eval()


# ---------------------------------------------------------------- patches


@BOTH
def test_unpatchify_is_the_inverse_of_patchify(spec):
    pixels = images(spec)
    patches = patchify(pixels, spec.patch_size)
    assert patches.shape == (3, spec.tokens, spec.patch_values)
    assert torch.equal(unpatchify(patches, spec), pixels)


def test_a_patch_holds_the_pixels_of_its_place():
    pixels = torch.arange(2 * 16 * 24, dtype=torch.float32).reshape(1, 2, 16, 24)
    patches = patchify(pixels, (4, 8))
    # The grid is 4 by 3, row by row: patch 4 lies in its second row and column.
    assert torch.equal(patches[0, 4], pixels[0, :, 4:8, 8:16].flatten())


# ---------------------------------------------------------------- masking


def test_a_mask_divides_the_grid_by_the_asked_share():
    mask = mask_for(FLAT, ratio=0.75)
    assert mask.visible.shape == (3, 3)
    assert mask.masked.shape == (3, 9)
    for visible, masked in zip(mask.visible, mask.masked, strict=True):
        assert sorted([*visible.tolist(), *masked.tolist()]) == list(range(12))


def test_decoding_a_share_keeps_the_visible_patches_and_drops_hidden_ones():
    noise = torch.rand(2, 12, generator=torch.Generator().manual_seed(3))
    whole, part = random_mask(noise, 0.75), random_mask(noise, 0.75, decoded_share=1 / 3)
    assert torch.equal(part.visible, whole.visible)
    assert torch.equal(part.masked, whole.masked[:, :3])


@pytest.mark.parametrize("ratio", [0.01, 0.99])
def test_there_is_always_something_to_see_and_something_to_predict(ratio):
    mask = mask_for(FLAT, ratio=ratio)
    assert mask.visible.shape[1] >= 1
    assert mask.masked.shape[1] >= 1


def test_every_place_is_hidden_equally_often():
    noise = torch.rand(4000, 12, generator=torch.Generator().manual_seed(5))
    hidden = torch.bincount(random_mask(noise, 0.75).masked.flatten(), minlength=12) / 4000
    # 4000 draws of probability 0.75: a standard error of 0.0068.
    assert (hidden - 0.75).abs().max() < 4 * 0.0068


def test_one_patch_cannot_be_masked():
    with pytest.raises(ValueError, match="at least 2 patches"):
        random_mask(torch.rand(1, 1), 0.5)


# ---------------------------------------------------------------- order and position


class Echo(torch.nn.Module):
    """A decoder block that passes tokens on, so that what comes out shows how they were laid out."""

    def forward(self, tokens, first=0):
        return tokens[:, first:]


def echoing(spec: EncoderSpec) -> MaskedAutoencoder:
    """An autoencoder that predicts, for each masked place, the number of the place whose position it was given."""
    model = autoencoder(spec)
    model.decoder = torch.nn.ModuleList([Echo()])
    model.decoder_norm = torch.nn.Identity()
    model.decoder_positions = torch.arange(spec.tokens).float()[:, None].expand(-1, DECODER.width).contiguous()
    torch.nn.init.zeros_(model.mask_token)
    torch.nn.init.constant_(model.to_pixels.weight, 1 / DECODER.width)
    return model


@BOTH
def test_predictions_come_back_to_the_place_that_they_are_for(spec):
    """Every patch holds its own number; each is encoded or predicted, and put back by the indices of the mask."""
    numbers = torch.arange(spec.tokens).float()[None, :, None].expand(3, -1, spec.patch_values)
    mask = mask_for(spec)
    predicted = echoing(spec).predict(numbers, mask)
    empty = torch.full_like(numbers, -1)
    together = put(put(empty, mask.masked, predicted), mask.visible, take(numbers, mask.visible))
    assert torch.allclose(together, numbers, atol=1e-4)


@BOTH
def test_a_wrong_order_does_not_come_back_in_place(spec):
    numbers = torch.arange(spec.tokens).float()[None, :, None].expand(3, -1, spec.patch_values)
    mask = mask_for(spec)
    planted = Mask(mask.visible, mask.masked.roll(1, dims=1))
    predicted = echoing(spec).predict(numbers, planted)
    together = put(numbers, mask.masked, predicted)
    assert not torch.allclose(together, numbers, atol=1e-4)


@BOTH
def test_visible_tokens_carry_their_own_position(spec):
    """The encoder must not see the order of the list: shuffled visible patches with their places mean the same."""
    model, pixels, mask = autoencoder(spec), images(spec), mask_for(spec)
    shuffled = Mask(mask.visible.flip(1), mask.masked)
    patches = model.patches(pixels)
    assert torch.allclose(model.predict(patches, mask), model.predict(patches, shuffled), atol=1e-5)
    planted = take(patches, mask.visible).flip(1)
    wrong = put(patches, mask.visible, planted)
    assert not torch.allclose(model.predict(patches, mask), model.predict(wrong, mask), atol=1e-3)


@BOTH
def test_predictions_depend_on_position(spec):
    model, mask = autoencoder(spec), mask_for(spec)
    predicted = model.predict(model.patches(images(spec)), mask)
    assert predicted.std(dim=1).mean() > 1e-2
    model.decoder_positions.zero_()
    blind = model.predict(model.patches(images(spec)), mask)
    assert blind.std(dim=1).mean() < 1e-5


def test_last_block_for_masked_tokens_alone_equals_the_full_decoder():
    model, mask = autoencoder(FLAT), mask_for(FLAT)
    patches = model.patches(images(FLAT))
    short = model.predict(patches, mask)
    for block in model.decoder:
        block.forward = lambda tokens, first=0, block=block: DecoderBlock.forward(block, tokens, 0)
    full = model.predict(patches, mask)
    assert full.shape[1] == 1 + FLAT.tokens
    assert torch.allclose(full[:, 1 + mask.visible.shape[1] :], short, atol=1e-6)


# ---------------------------------------------------------------- what the loss sees


@BOTH
def test_loss_ignores_visible_pixels_as_targets_and_hidden_ones_as_input(spec):
    model, pixels, mask = autoencoder(spec), images(spec), mask_for(spec)
    patches = model.patches(pixels).requires_grad_(True)
    model.predict(patches, mask).sum().backward()
    gradient = patches.grad.abs().sum(dim=2)
    assert (gradient.gather(1, mask.masked) == 0).all()
    assert (gradient.gather(1, mask.visible) > 0).all()

    # A prediction that is right wherever the loss looks costs nothing, whatever the visible pixels are.
    wanted = model.targets(take(model.patches(pixels), mask.masked))
    model.predict = lambda patches, mask: wanted
    assert model(pixels, mask) == 0
    changed = unpatchify(
        put(patchify(pixels, spec.patch_size), mask.visible, torch.rand(3, mask.visible.shape[1], spec.patch_values)),
        spec,
    )
    assert model(changed, mask) == 0
    other = unpatchify(
        put(patchify(pixels, spec.patch_size), mask.masked, torch.rand(3, mask.masked.shape[1], spec.patch_values)),
        spec,
    )
    assert model(other, mask) > 0.1


def test_normalised_targets_have_mean_0_and_spread_1_and_flat_patches_do_not_blow_up():
    model = autoencoder(FLAT)
    patches = torch.randn(2, 12, FLAT.patch_values, generator=torch.Generator().manual_seed(2)) * 3 + 5
    target = model.targets(patches)
    assert torch.allclose(target.mean(-1), torch.zeros(2, 12), atol=1e-5)
    assert torch.allclose(target.std(-1), torch.ones(2, 12), atol=1e-3)
    nearly_flat = 1e-4 * patches
    assert model.targets(nearly_flat).std(-1).max() < 0.05


def test_targets_may_be_the_pixels_themselves():
    patches = torch.rand(2, 12, FLAT.patch_values)
    assert torch.equal(autoencoder(FLAT, normalise_targets=False).targets(patches), patches)


@pytest.mark.parametrize("normalise_targets", [True, False])
def test_a_right_prediction_gives_the_original_picture_back(normalise_targets):
    model, pixels, mask = autoencoder(FLAT, normalise_targets), images(FLAT), mask_for(FLAT)
    model.predict = lambda patches, mask: model.targets(take(patches, mask.masked))
    masked, reconstructed = model.reconstruct(pixels, mask)
    assert torch.allclose(reconstructed, pixels, atol=1e-5)
    seen = take(patchify(masked, FLAT.patch_size), mask.visible)
    assert torch.allclose(seen, take(patchify(pixels, FLAT.patch_size), mask.visible), atol=1e-5)
    assert take(patchify(masked, FLAT.patch_size), mask.masked).flatten(2).std(-1).max() < 0.1


@BOTH
def test_one_image_can_be_overfitted(spec):
    model, pixels, mask = autoencoder(spec).train(), images(spec, 1), mask_for(spec, 1)
    optimiser = torch.optim.AdamW(model.parameters(), lr=5e-3, fused=True)
    zero = model.targets(take(model.patches(pixels), mask.masked)).square().mean()
    losses = []
    for _ in range(150):
        optimiser.zero_grad()
        loss = model(pixels, mask)
        loss.backward()
        optimiser.step()
        losses.append(loss.item())
    assert losses[-1] < 0.05 * zero
    assert all(earlier > later for earlier, later in pairwise(losses[::50]))
