"""The masked autoencoder of He et al. 2021 ("Masked Autoencoders Are Scalable Vision Learners"), in 2-D and 3-D.

Shapes: B images, L patches of the grid, K visible, M masked (K + M <= L), P values per patch, D encoder width,
E decoder width. A mask is two lists of grid places; tokens stay in the order of these lists, so that nothing is ever
shuffled back: each token carries the position of its own place.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from pipeline.models.decoders import DECODERS, DecoderSpec
from pipeline.models.masking import Mask
from pipeline.models.vit import (
    EncoderSpec,
    block_outputs,
    build_encoder,
    embed,
    initialise,
    normalise,
    patchify,
    per_channel,
    position_table,
    unpatchify,
)

# Added to a patch's variance when its target is normalised, in units of the pool's pixel variance: below a spread of
# about 2 % of the pool's, a patch shows noise, which would otherwise be blown up to a target of spread 1.
TARGET_VARIANCE_FLOOR = 4e-4


class MaskedAutoencoder(nn.Module):
    """Predicts the pixels of masked patches from the visible ones.

    `encoder` is a MONAI ViT and is what fine-tuning takes over. Pixels go in as (B, C, ...) in [0, 1].
    """

    def __init__(self, spec: EncoderSpec, decoder: DecoderSpec, normalise_targets: bool) -> None:
        super().__init__()
        self.spec = spec
        self.normalise_targets = normalise_targets
        self.encoder = build_encoder(spec)
        self.decoder = DECODERS[decoder.kind](spec, decoder)
        self.mask_token = nn.Parameter(torch.zeros(1, 1, decoder.width))
        self.decoder_norm = nn.LayerNorm(decoder.width, eps=spec.eps)
        self.to_pixels = nn.Linear(decoder.width, spec.patch_values)
        self.register_buffer("decoder_positions", position_table(spec.grid, decoder.width)[0], persistent=False)
        for part in (self.decoder, self.to_pixels):
            initialise(part)
        nn.init.normal_(self.mask_token, std=0.02)

    def patches(self, pixels: Tensor) -> Tensor:
        """Return the normalised patches (B, L, P) of `pixels`."""
        return patchify(normalise(pixels, self.spec), self.spec.patch_size)

    def targets(self, patches: Tensor) -> Tensor:
        """Return what is to be predicted for patches (..., P): the patch less its mean over its spread, or itself."""
        if not self.normalise_targets:
            return patches
        mean, spread = _patch_statistics(patches)
        return (patches - mean) / spread

    def predict(self, patches: Tensor, mask: Mask) -> Tensor:
        """Return predictions (B, M, P) for the masked places, in their order; only visible patches are looked at."""
        outputs = block_outputs(self.encoder, embed(self.encoder, take(patches, mask.visible), mask.visible))
        latent = self.encoder.norm(self.decoder.sources(outputs))
        tokens = self.decoder(latent, self.decoder_positions[mask.visible], self.queries(mask))
        return self.to_pixels(self.decoder_norm(tokens))

    def queries(self, mask: Mask) -> Tensor:
        """Return what the decoder is asked: the mask token with the positions of the masked places, (B, M, E)."""
        return self.mask_token + self.decoder_positions[mask.masked]

    def forward(self, pixels: Tensor, mask: Mask) -> Tensor:
        """Return the mean squared error over the masked patches: the loss."""
        patches = self.patches(pixels)
        wanted = self.targets(take(patches, mask.masked))
        return F.mse_loss(self.predict(patches, mask).float(), wanted)

    def reconstruct(self, pixels: Tensor, mask: Mask) -> tuple[Tensor, Tensor]:
        """Return two images in [0, 1]: masked patches grey, and masked patches predicted.

        A normalised target says nothing of a patch's mean and spread; as usual for pictures, these two numbers are
        taken from the original patch.
        """
        patches = self.patches(pixels)
        hidden = take(patches, mask.masked)
        predicted = self.predict(patches, mask)
        if self.normalise_targets:
            mean, spread = _patch_statistics(hidden)
            predicted = predicted * spread + mean
        grey = torch.zeros_like(hidden)
        return tuple(self._image(put(patches, mask.masked, new)) for new in (grey, predicted))  # type: ignore[return-value]

    def _image(self, patches: Tensor) -> Tensor:
        images = unpatchify(patches, self.spec)
        std, mean = (per_channel(values, images) for values in (self.spec.pixel_std, self.spec.pixel_mean))
        return (images * std + mean).clamp(0, 1)


def take(patches: Tensor, places: Tensor) -> Tensor:
    """Return the patches (B, K, P) at `places` (B, K) of (B, L, P)."""
    return patches.gather(1, places[:, :, None].expand(-1, -1, patches.shape[2]))


def put(patches: Tensor, places: Tensor, new: Tensor) -> Tensor:
    """Return a copy of (B, L, P) with `new` (B, K, P) at `places` (B, K): the inverse of `take`."""
    return patches.scatter(1, places[:, :, None].expand(-1, -1, patches.shape[2]), new)


def _patch_statistics(patches: Tensor) -> tuple[Tensor, Tensor]:
    variance, mean = torch.var_mean(patches, dim=-1, keepdim=True)
    return mean, (variance + TARGET_VARIANCE_FLOOR).sqrt()
