"""Pretrained weights, from torchvision's hub or from a file."""

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
"""ImageNet's, of images in [0, 1]."""
WANT_OURS = ("googlenet", "inception_v3")
"""Networks whose pretrained weights are for images in [-1, 1]."""
# densenet's files have older module names
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

    The last layer stays fresh, as do layers whose shapes differ. Grey images: the first convolution
    gets the sum over the colours. A vision transformer's position embeddings are interpolated.
    InputError where ``source`` is unavailable, damaged, or holds another network.
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
    # A layer is taken over whole or not at all.
    other = {key.rpartition(".")[0] for key in body if found[key].shape != own[key].shape}
    taken = {key: value for key, value in found.items() if key.rpartition(".")[0] not in other}
    network.load_state_dict({**own, **taken})


def last_layer(network: nn.Module) -> str:
    """Name of the layer that gives the logits: linear, or SqueezeNet's convolution."""
    modules = network.named_modules()
    layers: list[str] = [n for n, m in modules if isinstance(m, nn.Linear | nn.Conv2d)]
    return layers[-1]


def read_weights(path: Path) -> Mapping[str, torch.Tensor]:
    """Tensors by name from a .safetensors file; InputError for anything else.

    No pickles: ``weights_only`` has been broken (CVE-2025-32434, CVE-2026-24747).
    """
    if path.suffix != ".safetensors":
        raise InputError(
            f"{path}: weights must be a .safetensors file; docs/networks.md shows how to convert "
            "others"
        )
    try:
        return load_file(path)
    except Exception as error:  # damaged files fail in many ways
        lines = str(error).strip().splitlines() or [type(error).__name__]
        raise InputError(f"{path}: cannot be read as weights: {lines[0][:200]}") from error


def unavailable(name: str, error: Exception) -> InputError:
    """The error for weights that the hub does not provide."""
    lines = str(error).strip().splitlines() or [type(error).__name__]
    return InputError(
        f"cannot download the pretrained weights of {name!r}: {lines[0][:200]}. Without internet, "
        f"save them as {name}.safetensors in a folder and set downstream.pretrained to it; else "
        "rerun with --retry-failed"
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
