"""Time and memory of one pretraining step: MONAI's masked autoencoder and ours, side by side. Prints JSON.

    GOMP_SPINCOUNT=1000 python tests/benchmarks/pretraining_step.py --size small --batch 16 --threads 2 --rounds 5

That is how `maescreen` has threads wait for each other; 300000 is what OpenMP does by itself.

With --beside 1 a program that computes without end takes part, as on a machine with other users.

Every implementation takes one step per round, in shuffled order, so that a busy moment hits all alike; the ratio is
taken inside the round. Peak memory is measured in a process of its own per implementation, over what the process held
before the model was built. The share of the peak compares the step's matrix products (backward pass included) with
the fastest plain matrix product of the same run.

MONAI's MaskedAutoEncoderViT has no loss: it gets the mean squared error on masked patches, and the optimiser as torch
makes it; `monai_fused` has fused AdamW and the fused attention kernel, which its constructor does not offer. Where
transformers is installed, its ViTMAEForPreTraining takes part as it is made, with its own loss. That one and ours have
normalised targets.
"""

from __future__ import annotations

import argparse
import importlib.util
import json
import random
import statistics
from collections.abc import Callable

import torch
import torch.nn.functional as F
from measuring import busy, elsewhere, machine, peak_mib, seconds
from monai.networks.nets.masked_autoencoder_vit import MaskedAutoEncoderViT
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode

from pipeline.models.decoders import DecoderSpec
from pipeline.models.mae import MaskedAutoencoder
from pipeline.models.masking import make_mask
from pipeline.models.training import adamw, autocast, parameter_groups
from pipeline.models.vit import EncoderSpec, patchify
from pipeline.settings.training import ENCODER_SIZES

HUGGING_FACE = ("hugging_face",) if importlib.util.find_spec("transformers") else ()
NAMES = ("monai", "monai_fused", *HUGGING_FACE, "self_attention", "cross_attention")
BETAS, WEIGHT_DECAY, RATE, MASK_RATIO = (0.9, 0.95), 0.05, 1e-4, 0.75
MATMUL_SIDE = {"cpu": 2048, "cuda": 8192}
PRECISIONS = {"fp32": torch.float32, "bf16": torch.bfloat16}


def arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--size", choices=list(ENCODER_SIZES), default="small")
    parser.add_argument("--image", type=int, default=224, help="side of the image, pixels")
    parser.add_argument("--patch", type=int, default=16, help="side of a patch, pixels")
    parser.add_argument("--decoder-width", type=int, default=512)
    parser.add_argument("--decoder-depth", type=int, default=8)
    parser.add_argument("--decoder-heads", type=int, default=16)
    parser.add_argument("--decoded-share", type=float, default=1 / 3, help="of masked patches, cross_attention only")
    parser.add_argument("--batch", type=int, default=16)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--beside", type=int, default=0, help="other programs that keep a core busy meanwhile")
    parser.add_argument("--device", choices=["cpu", "cuda"], default="cpu")
    parser.add_argument("--precision", choices=list(PRECISIONS), default="fp32", help="of the forward pass")
    parser.add_argument("--compile", action="store_true", help="torch.compile of the model")
    return parser.parse_args()


# ---------------------------------------------------------------- the steps


def monai_step(options: argparse.Namespace, fused: bool) -> Callable[[], None]:
    size = ENCODER_SIZES[options.size]
    model = MaskedAutoEncoderViT(
        in_channels=1, img_size=options.image, patch_size=options.patch, hidden_size=size["width"],
        mlp_dim=4 * size["width"], num_layers=size["depth"], num_heads=size["heads"], masking_ratio=MASK_RATIO,
        decoder_hidden_size=options.decoder_width, decoder_mlp_dim=4 * options.decoder_width,
        decoder_num_layers=options.decoder_depth, decoder_num_heads=options.decoder_heads,
        pos_embed_type="sincos", decoder_pos_embed_type="sincos", spatial_dims=2, qkv_bias=True,
    ).to(options.device)  # fmt: skip
    if fused:
        for block in [*model.blocks[:-1], *model.decoder_blocks[:-1]]:
            block.attn.use_flash_attention = True
    trained = [parameter for parameter in model.parameters() if parameter.requires_grad]
    optimiser = torch.optim.AdamW(trained, RATE, BETAS, weight_decay=WEIGHT_DECAY, fused=fused or None)
    pixels = torch.rand(options.batch, 1, options.image, options.image, device=options.device)

    def loss() -> torch.Tensor:
        predicted, mask = model(pixels)
        hidden = mask.bool()
        return F.mse_loss(predicted[hidden].float(), patchify(pixels, (options.patch,) * 2)[hidden])

    return step(loss, optimiser, model, options)


def hugging_face_step(options: argparse.Namespace) -> Callable[[], None]:
    from transformers import ViTMAEConfig, ViTMAEForPreTraining

    size = ENCODER_SIZES[options.size]
    config = ViTMAEConfig(
        image_size=options.image, patch_size=options.patch, num_channels=1, hidden_size=size["width"],
        intermediate_size=4 * size["width"], num_hidden_layers=size["depth"], num_attention_heads=size["heads"],
        mask_ratio=MASK_RATIO, norm_pix_loss=True, decoder_hidden_size=options.decoder_width,
        decoder_intermediate_size=4 * options.decoder_width, decoder_num_hidden_layers=options.decoder_depth,
        decoder_num_attention_heads=options.decoder_heads,
    )  # fmt: skip
    model = ViTMAEForPreTraining(config).to(options.device)
    trained = [parameter for parameter in model.parameters() if parameter.requires_grad]
    optimiser = torch.optim.AdamW(trained, RATE, BETAS, weight_decay=WEIGHT_DECAY)
    pixels = torch.rand(options.batch, 1, options.image, options.image, device=options.device)
    return step(lambda: model(pixels).loss, optimiser, model, options)


def our_step(options: argparse.Namespace, kind: str) -> Callable[[], None]:
    size = ENCODER_SIZES[options.size]
    spec = EncoderSpec((options.image,) * 2, (options.patch,) * 2, 1, **size, pixel_mean=(0.5,), pixel_std=(0.25,))
    decoder = DecoderSpec(options.decoder_width, options.decoder_depth, options.decoder_heads, kind)
    model = MaskedAutoencoder(spec, decoder, normalise_targets=True).to(options.device)
    optimiser = adamw(parameter_groups(model, WEIGHT_DECAY), BETAS)
    for group in optimiser.param_groups:
        group["lr"] = RATE
    share = options.decoded_share if kind == "cross_attention" else 1.0
    pixels = torch.rand(options.batch, 1, options.image, options.image, device=options.device)

    def loss() -> torch.Tensor:
        noise = torch.rand(options.batch, spec.tokens, device=options.device)
        return model(pixels, make_mask("random", noise, spec.grid, MASK_RATIO, share))

    return step(loss, optimiser, model, options)


def step(
    loss: Callable[[], torch.Tensor],
    optimiser: torch.optim.Optimizer,
    model: torch.nn.Module,
    options: argparse.Namespace,
) -> Callable[[], None]:
    if options.compile:
        model.compile(dynamic=False)

    def run() -> None:
        optimiser.zero_grad(set_to_none=True)
        with autocast(torch.device(options.device), PRECISIONS[options.precision]):
            value = loss()
        value.backward()
        optimiser.step()

    return run


def build(name: str, options: argparse.Namespace) -> Callable[[], None]:
    torch.manual_seed(0)
    if name == "hugging_face":
        return hugging_face_step(options)
    return monai_step(options, name == "monai_fused") if name.startswith("monai") else our_step(options, name)


# ---------------------------------------------------------------- measurements


def matmul_flops_per_s(device: str, precision: str = "fp32") -> float:
    side, dtype = MATMUL_SIDE[device], PRECISIONS[precision]
    one, other = (torch.rand(side, side, device=device).to(dtype) for _ in range(2))
    torch.mm(one, other)
    return 2 * side**3 / min(seconds(lambda: torch.mm(one, other), device) for _ in range(5))


def step_flops(run: Callable[[], None]) -> int:
    """Count matrix products; attention is taken apart for it, since fused kernels are not counted on every device."""
    with FlopCounterMode(display=False) as counter, sdpa_kernel(SDPBackend.MATH):
        run()
    return counter.get_total_flops()


def memory_mib(name: str, options: argparse.Namespace) -> float:
    return peak_mib(lambda: build(name, options), options.device)[1]


def measure(options: argparse.Namespace) -> dict:
    memory = {name: elsewhere(memory_mib, name, options) for name in NAMES}
    runs = {name: build(name, options) for name in NAMES}
    flops = {name: step_flops(run) for name, run in runs.items()}  # the first, slow step of each as well
    order, shuffle = list(NAMES), random.Random(0)
    times: dict[str, list[float]] = {name: [] for name in NAMES}
    peaks = []
    for _ in range(options.rounds):
        peaks.append(matmul_flops_per_s(options.device, options.precision))
        shuffle.shuffle(order)
        for name in order:
            times[name].append(seconds(runs[name], options.device))
    peak = max(peaks)
    results = {
        name: {
            "step_s": statistics.median(times[name]),
            "fastest_step_s": min(times[name]),
            "ratio_to_monai": statistics.median(t / m for t, m in zip(times[name], times["monai"], strict=True)),
            "gflop_per_step": flops[name] / 1e9,
            "share_of_matmul_peak": flops[name] / statistics.median(times[name]) / peak,
            "peak_memory_mib": memory[name],
        }
        for name in NAMES
    }
    found = {
        **machine(options.device),
        "matmul_gflop_per_s": peak / 1e9,
        "float32_matmul_precision": torch.get_float32_matmul_precision(),
    }
    return {"settings": vars(options), "machine": found, "results": results}


def main() -> None:
    options = arguments()
    torch.set_num_threads(options.threads)
    with busy(options.beside):
        print(json.dumps(measure(options), indent=2))


if __name__ == "__main__":
    main()
