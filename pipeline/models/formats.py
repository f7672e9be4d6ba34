"""Vision transformer weights of other projects: the layouts of timm, Hugging Face transformers and MONAI.

The layout of timm is also that of facebookresearch/mae and, with LayerScale and registers, of facebookresearch/dinov2;
MONAI's is that of our own encoders. No project is imported: a layout is a list of names.
Nothing is passed over in silence: every tensor is taken, converted, left out for a reason that is stated, or an error.

The licences of weights are their authors' (those of facebookresearch/mae are for non-commercial use).
"""

from __future__ import annotations

import argparse
import math
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from pipeline.models.checkpoints import POSITIONS, WeightsError, fit_positions, read_weights
from pipeline.models.vit import EncoderSpec, build_encoder

PICKLED = (".pth", ".pt", ".bin")


@dataclass(frozen=True)
class Account:
    """What became of every tensor; `str()` lists it."""

    layout: str
    taken: list[str] = field(default_factory=list)
    converted: dict[str, str] = field(default_factory=dict)
    left_out: dict[str, str] = field(default_factory=dict)
    made: dict[str, str] = field(default_factory=dict)
    notes: list[str] = field(default_factory=list)
    licence: str = ""

    def __str__(self) -> str:
        lines = [f"{self.layout}: {len(self.taken)} tensors taken as they are: {', '.join(self.taken)}"]
        for title, part in (("converted", self.converted), ("left out", self.left_out), ("made", self.made)):
            lines += [f"{title}: {', '.join(names)}: {reason}" for reason, names in _by_reason(part).items()]
        said = f"not stated in the file, and yours to keep{self.licence}"
        return "\n".join([*lines, *(f"note: {note}" for note in self.notes), f"licence: {said}"])


@dataclass(frozen=True)
class Converted:
    """Tensors under our names, and what became of each that was given.

    `registers` are the register tokens that an encoder needs for them, see `EncoderSpec.registers`.
    """

    tensors: dict[str, Tensor]
    account: Account
    registers: int = 0


def _by_reason(part: Mapping[str, str]) -> dict[str, list[str]]:
    reasons: dict[str, list[str]] = {}
    for name, reason in part.items():
        reasons.setdefault(reason, []).append(name)
    return reasons


# ---------------------------------------------------------------- files


def read_foreign(path: Path) -> dict[str, Tensor]:
    """Read the tensors of a `.safetensors` file, or of a `.pth`, `.pt` or `.bin` file without running code in it.

    Training checkpoints hold the weights under "model" or "state_dict"; what data-parallel and compiled models put
    before each name is removed. Raises WeightsError when the file is neither, cannot be read, or holds no tensors.
    """
    content: Any = read_weights(path) if path.suffix == ".safetensors" else _read_pickled(path)
    for wrapper in ("model", "state_dict"):
        if isinstance(content, dict) and isinstance(content.get(wrapper), dict):
            content = content[wrapper]
    tensors = {name: value for name, value in content.items() if isinstance(value, Tensor)} if content else {}
    if not tensors:
        raise WeightsError(f"{path.name} holds no tensors by name; expected the state dict of a vision transformer")
    return {re.sub(r"^(module\.|_orig_mod\.)+", "", name): tensor for name, tensor in tensors.items()}


def _read_pickled(path: Path) -> dict[str, Any]:
    if path.suffix not in PICKLED:
        raise WeightsError(f"{path.name} is of no known kind; expected .safetensors, {', '.join(PICKLED)}")
    try:
        # The checkpoints of facebookresearch/mae hold their command line as a Namespace, which is plain data.
        with torch.serialization.safe_globals([argparse.Namespace]):
            content = torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:
        raise WeightsError(f"{path.name} cannot be read as plain tensors ({type(error).__name__})") from error
    if not isinstance(content, dict):
        raise WeightsError(f"{path.name} holds a {type(content).__name__}; expected tensors by name")
    return content


# ---------------------------------------------------------------- names

# timm's names and ours, of a block and of the rest. Both keep queries, keys and values in one matrix, in this order.
_BLOCK = {
    "norm1": "norm1",
    "attn.qkv": "attn.qkv",
    "attn.proj": "attn.out_proj",
    "norm2": "norm2",
    "mlp.fc1": "mlp.linear1",
    "mlp.fc2": "mlp.linear2",
}
_REST = {"patch_embed.proj": "patch_embedding.patch_embeddings", "norm": "norm"}

# Hugging Face's names and timm's: files of the hub, and models of transformers 5. Queries, keys and values apart.
_HUGGING_FACE = (
    (r"^(vit|vit_mae|dinov2|dinov2_with_registers)\.", ""),
    (r"^embeddings\.cls_token$", "cls_token"),
    (r"^embeddings\.position_embeddings$", "pos_embed"),
    (r"^embeddings\.patch_embeddings\.projection\.", "patch_embed.proj."),
    (r"^(encoder\.layer|layers)\.(\d+)\.", r"blocks.\2."),
    (r"^layernorm\.", "norm."),
    (r"(?<=\d)\.layernorm_before\.", ".norm1."),
    (r"(?<=\d)\.layernorm_after\.", ".norm2."),
    (r"(?<=\d)\.attention\.(attention\.query|q_proj)\.", ".attn.q."),
    (r"(?<=\d)\.attention\.(attention\.key|k_proj)\.", ".attn.k."),
    (r"(?<=\d)\.attention\.(attention\.value|v_proj)\.", ".attn.v."),
    (r"(?<=\d)\.attention\.(output\.dense|o_proj)\.", ".attn.proj."),
    (r"(?<=\d)\.intermediate\.dense\.", ".mlp.fc1."),
    (r"(?<=\d)\.output\.dense\.", ".mlp.fc2."),
    (r"(?<=\d)\.layer_scale([12])\.lambda1$", r".ls\1.gamma"),
    (r"^embeddings\.register_tokens$", "register_tokens"),
)
# timm's name for what facebookresearch/dinov2 calls otherwise.
_TIMM = ((r"^reg_token$", "register_tokens"),)
# MONAI's names and timm's: its ViT, and its MaskedAutoEncoderViT, whose final norm is the last of its blocks.
_MONAI = (
    (r"^patch_embedding\.patch_embeddings\.", "patch_embed.proj."),
    (r"^patch_embedding\.position_embeddings$", "pos_embed"),
    (r"^blocks\.\d+\.(weight|bias)$", r"norm.\1"),
    (r"(?<=\d)\.attn\.out_proj\.", ".attn.proj."),
    (r"(?<=\d)\.mlp\.linear(?=[12]\.)", ".mlp.fc"),
)
_LEFT_OUT = (
    (r"^(decoder.*|(embeddings\.)?mask_tokens?)$", "decoder of pretraining; the encoder does not use it"),
    (r"^(head|head_dist|classifier|pooler|pre_logits|classification_head)\..*$", "head of the task it was trained for"),
    (r"^blocks\.\d+\.(norm_cross_attn|cross_attn)\..*$", "cross-attention, which an encoder does not use"),
)
_UNUSED = r"^(classification_head\.|blocks\.\d+\.norm_cross_attn\.)"

# LayerScale (Touvron et al. 2021): a factor per channel on what a branch adds, and the last layer of that branch.
_SCALED = {"ls1": "attn.proj", "ls2": "mlp.fc2"}
_GATED = r"^blocks\.\d+\.mlp\.(w12|w3|weights_in|weights_out)\."


@dataclass(frozen=True)
class _Layout:
    """A layout, a name that tells it, and what files do not say: the LayerNorm eps that its models are built with, and
    the licence under which well-known ones were published."""

    name: str
    sign: str
    eps: float
    licence: str = ""


_OF_DINOV2 = " (facebookresearch/dinov2: Apache 2.0; those of others, as RAD-DINO, are on their model cards)"
_LAYOUTS = (
    _Layout("timm or facebookresearch/dinov2", r"^blocks\.\d+\.ls1\.gamma$", 1e-6, _OF_DINOV2),
    _Layout("Hugging Face dinov2", r"\.layer_scale1\.lambda1$", 1e-6, _OF_DINOV2),
    _Layout(
        "timm or facebookresearch/mae",
        r"^patch_embed\.proj\.weight$",
        1e-6,
        " (facebookresearch/mae: CC BY-NC 4.0, not for commercial use)",
    ),
    _Layout("Hugging Face", r"^(vit\.|vit_mae\.)?embeddings\.patch_embeddings\.projection\.weight$", 1e-12),
    _Layout("MONAI", r"^patch_embedding\.patch_embeddings\.weight$", 1e-5),
)


def _to_timm(name: str) -> str:
    """Return timm's name for one of Hugging Face's or MONAI's; names that are timm's stay."""
    for pattern, replacement in _HUGGING_FACE + _MONAI + _TIMM:
        name = re.sub(pattern, replacement, name)
    return name


def _to_ours(name: str) -> str:
    """Return our name for one of timm's, or the same where there is none."""
    stem, _, kind = name.rpartition(".")
    if match := re.fullmatch(r"(blocks\.\d+)\.(.+)", stem):
        return f"{match[1]}.{_BLOCK[match[2]]}.{kind}" if match[2] in _BLOCK else name
    return f"{_REST[stem]}.{kind}" if stem in _REST else name


def _from_ours(name: str) -> str:
    """Return timm's name for one of ours, or the same where there is none."""
    if name == POSITIONS:
        return "pos_embed"
    stem, _, kind = name.rpartition(".")
    if match := re.fullmatch(r"(blocks\.\d+)\.(.+)", stem):
        theirs = next((theirs for theirs, ours in _BLOCK.items() if ours == match[2]), match[2])
        return f"{match[1]}.{theirs}.{kind}"
    theirs = next((theirs for theirs, ours in _REST.items() if ours == stem), stem)
    return f"{theirs}.{kind}" if stem else name


# ---------------------------------------------------------------- in


def import_encoder(
    tensors: Mapping[str, Tensor], spec: EncoderSpec, grid_from: Sequence[int] | None = None
) -> Converted:
    """Convert the weights of a plain vision transformer into the state dict of `build_encoder(spec)`.

    - Three-channel patch weights become one-channel ones by summing: a grey image is three equal channels to the
      original, whose response is the sum of its weights times the grey value (the mean would be a third of it). In a
      colour task they are taken as they are.
    - Positions are resampled to the grid of `spec`. `grid_from` (patches per axis) is needed unless it was square.
    - The class token's own position is added to the class token, since a MONAI ViT gives it none.
    - Models without a bias on queries, keys and values, as MONAI makes them by default, get one of zeros.
    - LayerScale is multiplied into the layer before it, weight and bias, which changes nothing but rounding.
    - Register tokens are kept: the encoder for them is `build_encoder` of `spec` with as many `registers`.

    Raises WeightsError, naming every tensor that is missing, unknown or of another shape, or of a gated MLP.
    """
    layout = _layout(tensors)
    file_names = {_to_timm(name): name for name in tensors}
    if len(file_names) < len(tensors):
        raise WeightsError("some tensors stand twice, with and without a prefix; expected one model")
    given = {name: tensors[file_name].float() for name, file_name in file_names.items()}
    left_out = {name: reason for name in given if (reason := _reason_to_leave_out(name)) is not None}
    kept = {name: tensor for name, tensor in given.items() if name not in left_out}
    converted: dict[str, str] = {}
    _refuse_gated(kept, file_names)
    ours = _join_queries_keys_values(kept, converted)
    ours = _fold_layer_scale(ours, spec.depth, converted)
    registers = kept["register_tokens"].shape[1] if kept.get("register_tokens", torch.empty(0)).ndim == 3 else 0
    spec = replace(spec, registers=registers)
    ours = _split_positions(ours, spec, grid_from, converted)
    ours = _fit_channels(ours, spec, converted)
    ours = {_to_ours(name): tensor for name, tensor in ours.items()}
    template = _template(spec)
    unused = {name: "never used; starts as in a new encoder" for name in template if re.match(_UNUSED, name)}
    ours |= {name: template[name] for name in unused}
    biases = [name for name in template if name.endswith(".attn.qkv.bias")]
    unbiased = [] if any(name in ours for name in biases) else biases
    ours |= {name: torch.zeros_like(template[name]) for name in unbiased}
    _require_fit(ours, template, file_names)

    notes = []
    if kinds := {str(tensor.dtype).removeprefix("torch.") for tensor in tensors.values()} - {"float32"}:
        notes.append(f"{', '.join(sorted(kinds))} became float32")
    if layout.eps != spec.eps:
        notes.append(f"LayerNorm eps is {spec.eps:g} here and {layout.eps:g} by default there: outputs differ a little")
    if "dinov2" in layout.name and "resampled" in converted.get("pos_embed", ""):
        notes.append("positions are resampled linearly; DINOv2's own code does so bicubically")
    account = Account(
        layout.name,
        taken=[file_names[name] for name in kept if name not in converted],
        converted={file_names[name]: how for name, how in converted.items()},
        left_out={file_names[name]: reason for name, reason in left_out.items()},
        made=unused | dict.fromkeys(unbiased, "zeros, since this model has no such bias"),
        notes=notes,
        licence=layout.licence,
    )
    return Converted({name: ours[name].contiguous() for name in template}, account, registers)


def _layout(tensors: Mapping[str, Tensor]) -> _Layout:
    for layout in _LAYOUTS:
        if any(re.search(layout.sign, name) for name in tensors):
            return layout
    raise WeightsError(
        "no known vision transformer: expected patch_embed.proj.weight (timm, facebookresearch/mae), "
        "embeddings.patch_embeddings.projection.weight (Hugging Face) or patch_embedding.patch_embeddings.weight "
        f"(MONAI); found {', '.join(sorted(tensors)[:5])}, …"
    )


def _reason_to_leave_out(name: str) -> str | None:
    return next((reason for pattern, reason in _LEFT_OUT if re.match(pattern, name)), None)


def _join_queries_keys_values(tensors: Mapping[str, Tensor], converted: dict[str, str]) -> dict[str, Tensor]:
    joined = dict(tensors)
    for name in [name for name in tensors if ".attn.q." in name]:
        parts = [name.replace(".attn.q.", f".attn.{part}.") for part in "qkv"]
        if all(part in joined for part in parts):
            joined[name.replace(".attn.q.", ".attn.qkv.")] = torch.cat([joined.pop(part) for part in parts])
            converted |= dict.fromkeys(parts, "queries, keys and values joined in one matrix")
    return joined


def _refuse_gated(tensors: Mapping[str, Tensor], file_names: Mapping[str, str]) -> None:
    if gated := [file_names[name] for name in tensors if re.match(_GATED, name)]:
        raise WeightsError(
            f"these weights have a gated MLP (SwiGLU), which this encoder does not: {', '.join(gated)}; take a model "
            "whose MLP is two layers with GELU between them (DINOv2's small, base and large)"
        )


def _fold_layer_scale(tensors: Mapping[str, Tensor], depth: int, converted: dict[str, str]) -> dict[str, Tensor]:
    """Multiply each branch's factors into its last layer: g * (W x + b) = (g W) x + g b.

    Tensors of a model that has factors in some blocks alone stay as they are, and are unknown to the encoder.
    """
    folded = dict(tensors)
    scales = [f"blocks.{at}.{scale}.gamma" for at in range(depth) for scale in _SCALED]
    layers = [f"blocks.{at}.{layer}" for at in range(depth) for layer in _SCALED.values()]
    needed = [*scales, *(f"{layer}.{kind}" for layer in layers for kind in ("weight", "bias"))]
    if any(name not in folded for name in needed):
        return folded
    for scale, layer in zip(scales, layers, strict=True):
        factors, weight, bias = folded.pop(scale), folded[f"{layer}.weight"], folded[f"{layer}.bias"]
        if factors.shape != bias.shape or weight.shape[:1] != bias.shape:
            return dict(tensors)
        folded |= {f"{layer}.weight": factors[:, None] * weight, f"{layer}.bias": factors * bias}
        converted[scale] = "LayerScale, multiplied into the layer before it"
        converted |= dict.fromkeys((f"{layer}.weight", f"{layer}.bias"), "multiplied by LayerScale")
    return folded


def _split_positions(
    tensors: Mapping[str, Tensor], spec: EncoderSpec, grid_from: Sequence[int] | None, converted: dict[str, str]
) -> dict[str, Tensor]:
    """Turn timm's `pos_embed` (1, L or 1 + L, D) into ours (1, L, D) on the grid of `spec`."""
    if "pos_embed" not in tensors or "cls_token" not in tensors:
        return dict(tensors)  # what is missing is reported with all the rest
    table = tensors["pos_embed"]
    grid = tuple(grid_from) if grid_from is not None else _square(table, len(spec.grid))
    with_class = table.ndim == 3 and table.shape[1] == math.prod(grid) + 1
    done = [f"resampled from {_by(grid)} to {_by(spec.grid)} patches"] if grid != spec.grid else []
    split = {name: tensor for name, tensor in tensors.items() if name != "pos_embed"}
    if with_class:
        split["cls_token"] = tensors["cls_token"] + table[:, :1]
        converted["cls_token"] = "its position added"  # noqa: S105 -- a token of the network
        done.insert(0, "the class token's row taken off")
    if done:
        converted["pos_embed"] = ", ".join(done)
    split[POSITIONS] = fit_positions({POSITIONS: table[:, int(with_class) :]}, grid, spec.grid)[POSITIONS]
    return split


def _square(table: Tensor, axes: int) -> tuple[int, ...]:
    """Return the square (or cubic) grid that a table of positions belongs to, with a class token or without."""
    tokens = table.shape[1] if table.ndim == 3 else 0
    for patches in (tokens - 1, tokens):
        side = round(max(patches, 0) ** (1 / axes))
        if side and side**axes == patches:
            return (side,) * axes
    raise WeightsError(f"positions of shape {tuple(table.shape)} are of no square grid; give its patches per axis")


def _fit_channels(tensors: dict[str, Tensor], spec: EncoderSpec, converted: dict[str, str]) -> dict[str, Tensor]:
    weight = tensors.get("patch_embed.proj.weight")
    if weight is None or weight.ndim < 2 or spec.channels != 1 or weight.shape[1] == 1:
        return tensors
    converted["patch_embed.proj.weight"] = f"{weight.shape[1]} channels summed to one: grey is all of them alike"
    return {**tensors, "patch_embed.proj.weight": weight.sum(dim=1, keepdim=True)}


def _require_fit(ours: Mapping[str, Tensor], template: Mapping[str, Tensor], file_names: Mapping[str, str]) -> None:
    problems = [f"{_from_ours(name)} is missing" for name in template if name not in ours]
    problems += [f"{file_names.get(name, name)} is unknown" for name in ours if name not in template]
    for name in [name for name in template if name in ours]:
        given, wanted = tuple(ours[name].shape), tuple(template[name].shape)
        if given != wanted:
            problems.append(f"{_from_ours(name)} has shape {given} instead of {wanted}")
        elif not torch.isfinite(ours[name]).all():
            problems.append(f"{_from_ours(name)} holds values that are not finite")
    if problems:
        raise WeightsError("these are not the weights of this encoder, a plain ViT: " + "; ".join(problems))


def _template(spec: EncoderSpec) -> dict[str, Tensor]:
    """Return names, shapes and unused tensors of an encoder, without touching the caller's random numbers."""
    with torch.random.fork_rng(devices=[]):
        return build_encoder(spec).state_dict()


def _by(grid: Sequence[int]) -> str:
    return " by ".join(map(str, grid))
