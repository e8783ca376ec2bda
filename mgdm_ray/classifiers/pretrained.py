"""Weights learned elsewhere: from torchvision's or timm's hub, or from a file."""

from __future__ import annotations

import re
from collections.abc import Mapping
from pathlib import Path
from typing import Literal

import torch
from safetensors.torch import load_file
from torch import nn
from torchvision.models import get_model_weights
from torchvision.models.vision_transformer import VisionTransformer, interpolate_embeddings

from mgdm_ray.config import InputError

Source = Path | Literal["hub"]

MEAN, STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
"""ImageNet's, of images in [0, 1]: what torchvision's networks were trained on."""
WANT_OURS = ("googlenet", "inception_v3")
"""Their weights come from TensorFlow and were trained on images in [-1, 1], as ours are."""
# densenet's files are older than its module names; torchvision renames as it loads.
OLD_DENSENET = re.compile(r"(denselayer\d+\.(?:norm|conv))\.(\d)\.")


class Rescale(nn.Module):
    """From images in [-1, 1] to (v - mean) / std of the same images in [0, 1], per channel."""

    def __init__(self, mean: tuple[float, ...], std: tuple[float, ...], channels: int) -> None:
        super().__init__()
        m, s = torch.tensor(mean), torch.tensor(std)
        if channels == 1:  # the weights of the colours are summed: they share one scale
            m, s = m.mean(dim=0, keepdim=True), s.mean(dim=0, keepdim=True)
        self.register_buffer("factor", (0.5 / s).view(-1, 1, 1), persistent=False)
        self.register_buffer("shift", ((0.5 - m) / s).view(-1, 1, 1), persistent=False)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x * self.get_buffer("factor") + self.get_buffer("shift")


def use_pretrained(network: nn.Module, name: str, source: Source) -> None:
    """Give torchvision's ``network`` the weights of ``source``, in place.

    Fresh stay its last layer, and layers whose shapes differ (those adapted to small images). A
    first convolution for grey images gets the sum over the colours; a vision transformer's
    position embeddings are interpolated. Raises InputError where ``source`` cannot be had, is
    damaged, or holds another network.
    """
    state = _from_hub(name) if source == "hub" else read_weights(source)
    state = {OLD_DENSENET.sub(r"\1\2.", key): value for key, value in state.items()}
    if isinstance(network, VisionTransformer) and "encoder.pos_embedding" in state:
        state = interpolate_embeddings(network.image_size, network.patch_size, dict(state))
    own = network.state_dict()
    head = last_layer(network)
    body = [k for k in own if not k.startswith(f"{head}.") and not k.endswith("batches_tracked")]
    missing = [key for key in body if key not in state]
    if missing:
        raise InputError(
            f"{source}: no weights of {name!r}: lacks {', '.join(missing[:3])}"
            + (f" and {len(missing) - 3} more" if len(missing) > 3 else "")
            + f"; it has {', '.join(sorted(state)[:3])}, ..."
        )
    found = {key: _fitted(state[key], own[key]) for key in body}
    # A bias without its weight is worth nothing: a layer is taken over whole or not at all.
    other = {key.rpartition(".")[0] for key in body if found[key].shape != own[key].shape}
    taken = {key: value for key, value in found.items() if key.rpartition(".")[0] not in other}
    network.load_state_dict({**own, **taken})


def last_layer(network: nn.Module) -> str:
    """Name of the layer that gives the logits: of a linear one, or SqueezeNet's convolution."""
    modules = network.named_modules()
    layers: list[str] = [n for n, m in modules if isinstance(m, nn.Linear | nn.Conv2d)]
    return layers[-1]


def read_weights(path: Path) -> Mapping[str, torch.Tensor]:
    """Tensors by name from a .safetensors, the only format that is read from a file.

    Raises InputError for anything else: weights that torch.save wrote are a pickle, and
    ``weights_only`` has been broken more than once (CVE-2025-32434, CVE-2026-24747).
    """
    if path.suffix != ".safetensors":
        raise InputError(
            f"{path}: weights are read from .safetensors files only; docs/networks.md has the "
            "line that converts others"
        )
    try:
        return load_file(path)
    except Exception as error:  # damaged files fail in many ways
        lines = str(error).strip().splitlines() or [type(error).__name__]
        raise InputError(f"{path}: cannot be read as weights: {lines[0][:200]}") from error


def unavailable(name: str, error: Exception) -> InputError:
    """The error for weights that the hub does not give."""
    lines = str(error).strip().splitlines() or [type(error).__name__]
    return InputError(
        f"cannot fetch the pretrained weights of {name!r}: {lines[0][:200]}. Where there is no "
        f"internet, save them as {name}.safetensors in a folder and name that in "
        "downstream.pretrained; else run the same command with --retry-failed"
    )


def _from_hub(name: str) -> Mapping[str, torch.Tensor]:
    weights = get_model_weights(name).DEFAULT
    try:
        state: Mapping[str, torch.Tensor] = weights.get_state_dict(
            progress=False, check_hash=True, weights_only=True
        )
    except (OSError, RuntimeError) as error:  # RuntimeError: the hash is wrong
        raise unavailable(name, error) from error
    return state


def _fitted(given: torch.Tensor, own: torch.Tensor) -> torch.Tensor:
    if given.ndim == own.ndim == 4 and (given.shape[1], own.shape[1]) == (3, 1):
        given = given.sum(dim=1, keepdim=True)
    return given.to(own.dtype)
