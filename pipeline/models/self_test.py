"""Self-tests of a masked autoencoder, on the real network with its real weights: a few forward passes of one image.

Shapes: L patches of the grid, K visible, M masked, P values per patch, E decoder width.
"""

from __future__ import annotations

import torch
from torch import Tensor

from pipeline.models.mae import MaskedAutoencoder, put, take
from pipeline.models.masking import Mask
from pipeline.models.training import TrainingError
from pipeline.models.vit import embed

# Of predictions, or tokens, across places; about 1e-8 when positions are ignored.
MIN_POSITION_SPREAD = 1e-4
# Of the spread across places: what reordering a sum may change, and a wrong place exceeds by far.
TOLERANCE = 0.01
PLACES_LOOKED_UP = 256  # in the table of positions; volumes have thousands


@torch.no_grad()
def self_test(model: MaskedAutoencoder, mask: Mask) -> None:
    """Prove that positions count and that patches come back in place, before anything is trained.

    `mask` is a real one that decodes every hidden patch; its first image is used. Each patch holds a value of its own.
    Raises TrainingError, naming every fault.
    """
    mask = Mask(mask.visible[:1], mask.masked[:1])
    training = model.training
    model.eval()
    numbers = torch.linspace(-1, 1, model.spec.tokens, device=mask.visible.device)
    patches = numbers[None, :, None].expand(1, -1, model.spec.patch_values).contiguous()
    faults = [*mask_faults(patches, mask), *encoder_faults(model, patches, mask), *decoder_faults(model, patches, mask)]
    model.train(training)
    if faults:
        raise TrainingError("the autoencoder is broken, nothing was trained: " + "; ".join(faults))


def mask_faults(patches: Tensor, mask: Mask) -> list[str]:
    """Check that every place is visible or masked, once, and that patches (1, L, P) go back where they were taken."""
    places = torch.cat((mask.visible, mask.masked), dim=1).sort(dim=1).values
    if not torch.equal(places[0], torch.arange(patches.shape[1], device=places.device)):
        return ["the mask does not name every patch once"]
    back = torch.full_like(patches, torch.nan)
    for part in (mask.visible, mask.masked):
        back = put(back, part, take(patches, part))
    return [] if torch.equal(back, patches) else ["patches do not come back in place"]


def encoder_faults(model: MaskedAutoencoder, patches: Tensor, mask: Mask) -> list[str]:
    """Check that a visible patch enters the encoder with the position of its own place, and that this is seen."""
    everywhere = embed(model.encoder, patches)[:, 1:]
    chosen = embed(model.encoder, take(patches, mask.visible), mask.visible)[:, 1:]
    faults = []
    if not _close(chosen, take(everywhere, mask.visible), everywhere):
        faults.append("visible patches do not enter the encoder with the position of their own place")
    alike = embed(model.encoder, torch.zeros_like(patches))[:, 1:]
    if _spread(alike) < MIN_POSITION_SPREAD:
        faults.append("equal patches at different places are the same to the encoder: it has no positions")
    return faults


def decoder_faults(model: MaskedAutoencoder, patches: Tensor, mask: Mask) -> list[str]:
    """Check that each prediction is for its own place: asked for it, dependent on it, and given in its order."""
    predicted = model.predict(patches, mask)
    spread = _spread(predicted)
    if mask.masked.shape[1] > 1 and spread < MIN_POSITION_SPREAD:
        return [f"predictions for masked patches do not depend on their position (spread {spread:.1e})"]
    faults = []
    asked = (model.queries(mask) - model.mask_token)[0, :PLACES_LOOKED_UP]
    nearest = torch.cdist(asked, model.decoder_positions).argmin(dim=1)
    if not torch.equal(nearest, mask.masked[0, :PLACES_LOOKED_UP]):
        faults.append("predictions are asked for other places than those masked")
    turned = model.predict(patches, Mask(mask.visible, mask.masked.flip(1)))
    if not _close(turned.flip(1), predicted, predicted):
        faults.append("predictions come back in another order than the masked places")
    turned = model.predict(patches, Mask(mask.visible.flip(1), mask.masked))
    if not _close(turned, predicted, predicted):
        faults.append("predictions depend on the order in which visible patches are listed")
    return faults


def _spread(tokens: Tensor) -> float:
    return tokens.float().std(dim=1, correction=0).mean().item()


def _close(one: Tensor, other: Tensor, scale: Tensor) -> bool:
    return (one - other).abs().max().item() <= TOLERANCE * max(_spread(scale), MIN_POSITION_SPREAD)
