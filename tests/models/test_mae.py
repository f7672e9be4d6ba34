"""The masked autoencoder: patches come back in place, the loss sees what was hidden, and predictions know where."""

from __future__ import annotations

from itertools import pairwise

import pytest
import torch

from pipeline.models.decoders import DecoderBlock, DecoderSpec
from pipeline.models.mae import MaskedAutoencoder, put, take
from pipeline.models.masking import Mask, make_mask
from pipeline.models.vit import EncoderSpec, embed, patchify, unpatchify

FLAT = EncoderSpec((16, 24), (4, 8), 2, 24, 2, 2, (0.5, 0.4), (0.25, 0.2))
VOLUME = EncoderSpec((8, 12, 16), (4, 6, 4), 1, 26, 2, 2, (0.5,), (0.25,))
BOTH = pytest.mark.parametrize("spec", [FLAT, VOLUME], ids=["2-D", "3-D"])
DECODER = DecoderSpec(width=20, depth=2, heads=2)
CROSS = DecoderSpec(width=20, depth=3, heads=2, kind="cross_attention")
KINDS = pytest.mark.parametrize("decoder", [DECODER, CROSS], ids=["self-attention", "cross-attention"])


def images(spec: EncoderSpec, count: int = 3, seed: int = 0) -> torch.Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.rand(count, spec.channels, *spec.image_size, generator=generator)


def mask_for(spec: EncoderSpec, count: int = 3, ratio: float = 0.5, seed: int = 1) -> Mask:
    noise = torch.rand(count, spec.tokens, generator=torch.Generator().manual_seed(seed))
    return make_mask("random", noise, spec.grid, ratio)


def autoencoder(spec: EncoderSpec, normalise_targets: bool = True, decoder: DecoderSpec = DECODER) -> MaskedAutoencoder:
    torch.manual_seed(7)
    return MaskedAutoencoder(spec, decoder, normalise_targets).eval()


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


# ---------------------------------------------------------------- order and position


class Echo(torch.nn.Module):
    """A decoder block that passes tokens on, so that what comes out shows how they were laid out."""

    def forward(self, tokens, first=0):
        return tokens[:, first:]


def echoing(spec: EncoderSpec) -> MaskedAutoencoder:
    """An autoencoder that predicts, for each masked place, the number of the place whose position it was given."""
    model = autoencoder(spec)
    model.decoder.project = torch.nn.Linear(spec.width, DECODER.width)
    model.decoder.blocks = torch.nn.ModuleList([Echo()])
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
@KINDS
def test_visible_tokens_carry_their_own_position(spec, decoder):
    """The encoder must not see the order of the list: shuffled visible patches with their places mean the same."""
    model, pixels, mask = autoencoder(spec, decoder=decoder), images(spec), mask_for(spec)
    shuffled = Mask(mask.visible.flip(1), mask.masked)
    patches = model.patches(pixels)
    assert torch.allclose(model.predict(patches, mask), model.predict(patches, shuffled), atol=1e-5)
    planted = take(patches, mask.visible).flip(1)
    wrong = put(patches, mask.visible, planted)
    assert not torch.allclose(model.predict(patches, mask), model.predict(wrong, mask), atol=1e-3)


@BOTH
@KINDS
def test_predictions_depend_on_position(spec, decoder):
    model, mask = autoencoder(spec, decoder=decoder), mask_for(spec)
    predicted = model.predict(model.patches(images(spec)), mask)
    assert predicted.std(dim=1).mean() > 1e-2
    model.decoder_positions.zero_()
    blind = model.predict(model.patches(images(spec)), mask)
    assert blind.std(dim=1).mean() < 1e-5


def test_last_block_for_masked_tokens_alone_equals_the_full_decoder():
    model, mask = autoencoder(FLAT), mask_for(FLAT)
    patches = model.patches(images(FLAT))
    short = model.predict(patches, mask)
    for block in model.decoder.blocks:
        block.forward = lambda tokens, first=0, block=block: DecoderBlock.forward(block, tokens, 0)
    full = model.predict(patches, mask)
    assert full.shape[1] == 1 + FLAT.tokens
    assert torch.allclose(full[:, 1 + mask.visible.shape[1] :], short, atol=1e-6)


# ---------------------------------------------------------------- the cross-attention decoder


def explicit_cross_attention(model: MaskedAutoencoder, patches: torch.Tensor, mask: Mask) -> torch.Tensor:
    """The published architecture, one image, one head, one block and one query at a time."""
    encoder, decoder, rows = model.encoder, model.decoder, []
    for image in range(len(patches)):
        stream = embed(encoder, patches[image, mask.visible[image]][None], mask.visible[image][None])
        outputs = [stream]
        for block in encoder.blocks:
            outputs.append(block(outputs[-1]))
        for place in mask.masked[image]:
            query = model.mask_token[0, 0] + model.decoder_positions[place]
            for index, block in enumerate(decoder.blocks):
                mixed = sum(weight * output for weight, output in zip(decoder.mixture[index], outputs, strict=True))
                keys, values = block.key_value(encoder.norm(mixed))[0].chunk(2, dim=1)
                asked = block.query(block.norm_attention(query))
                heads = []
                for part in range(block.heads):
                    columns = slice(part * len(asked) // block.heads, (part + 1) * len(asked) // block.heads)
                    score = keys[:, columns] @ asked[columns] / (len(asked) / block.heads) ** 0.5
                    heads.append(score.softmax(dim=0) @ values[:, columns])
                query = query + block.projection(torch.cat(heads))
                query = query + block.mlp(block.norm_mlp(query))
            rows.append(model.to_pixels(model.decoder_norm(query)))
    return torch.stack(rows).unflatten(0, (len(patches), -1))


@BOTH
def test_cross_attention_computes_the_published_architecture(spec):
    model, mask = autoencoder(spec, decoder=CROSS), mask_for(spec, ratio=0.7)
    patches = model.patches(images(spec))
    assert torch.allclose(model.predict(patches, mask), explicit_cross_attention(model, patches, mask), atol=1e-5)


@BOTH
def test_with_cross_attention_a_prediction_does_not_depend_on_what_else_is_predicted(spec):
    mask = mask_for(spec, ratio=0.7)
    share = Mask(mask.visible, mask.masked[:, :2])
    differs = {}
    for decoder in (CROSS, DECODER):
        model = autoencoder(spec, decoder=decoder)
        patches = model.patches(images(spec))
        difference = model.predict(patches, mask)[:, :2] - model.predict(patches, share)
        differs[decoder.kind] = difference.abs().max().item()
    assert differs["cross_attention"] < 1e-5
    assert differs["self_attention"] > 1e-3


@KINDS
def test_every_weight_that_can_be_trained_gets_a_gradient(decoder):
    model = autoencoder(FLAT, decoder=decoder)
    model(images(FLAT), mask_for(FLAT)).backward()
    assert [name for name, p in model.named_parameters() if p.requires_grad and not p.grad.abs().sum() > 0] == []


def test_both_decoders_have_the_same_encoder_for_the_same_seed():
    ours, theirs = (autoencoder(FLAT, decoder=decoder).encoder.state_dict() for decoder in (DECODER, CROSS))
    assert all(torch.equal(ours[name], theirs[name]) for name in ours | theirs)


# ---------------------------------------------------------------- what the loss sees


@BOTH
@KINDS
def test_loss_ignores_visible_pixels_as_targets_and_hidden_ones_as_input(spec, decoder):
    model, pixels, mask = autoencoder(spec, decoder=decoder), images(spec), mask_for(spec)
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
@KINDS
def test_one_image_can_be_overfitted(spec, decoder):
    model, pixels, mask = autoencoder(spec, decoder=decoder).train(), images(spec, 1), mask_for(spec, 1)
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
