"""The features before a classifier's last layer, and its answer; Inception's features."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from safetensors.torch import load_file
from torch import nn
from torchvision.models import Inception_V3_Weights, inception_v3

INCEPTION_SIZE, INCEPTION_CLASSES = 299, 1000


@dataclass(frozen=True)
class View:
    """A network's features and answers for N images."""

    features: NDArray[np.float32]
    """`[N, D]`, the input of the last layer, averaged over positions if that is a convolution."""
    probabilities: NDArray[np.float64]
    """`[N, K]`."""

    @property
    def predicted(self) -> NDArray[np.int64]:
        """`[N]`, the most probable class."""
        best: NDArray[np.int64] = self.probabilities.argmax(axis=1)
        return best

    @property
    def entropy(self) -> NDArray[np.float32]:
        """`[N]` in nats, in [0, log K]."""
        p = self.probabilities
        logs = np.log(p, out=np.zeros_like(p), where=p > 0)
        entropy: NDArray[np.float32] = np.maximum(0, -(p * logs).sum(axis=1)).astype(np.float32)
        return entropy


def look(
    network: nn.Module, images: torch.Tensor, num_classes: int, device: str, batch_size: int = 64
) -> View:
    """``network``'s features and answers for ``images`` `[N, C, H, W]` in [-1, 1]; sets eval mode.

    ValueError where it has no last layer with ``num_classes`` outputs.
    """
    network.to(device).eval()
    taken: list[torch.Tensor] = []

    def take(_: nn.Module, inputs: tuple[torch.Tensor, ...]) -> None:
        x = inputs[0]
        taken.append((x.mean(dim=(2, 3)) if x.ndim == 4 else x).flatten(1).float().cpu())

    hook = last_layer(network, num_classes).register_forward_pre_hook(take)
    try:
        with torch.inference_mode():
            answers = [
                network(images[i : i + batch_size].to(device)).double().softmax(dim=1).cpu()
                for i in range(0, len(images), batch_size)
            ]
    finally:
        hook.remove()
    return View(torch.cat(taken).numpy(), torch.cat(answers).numpy())


def last_layer(network: nn.Module, num_classes: int) -> nn.Linear | nn.Conv2d:
    """The last layer with ``num_classes`` outputs: linear, or SqueezeNet's convolution."""
    for module in reversed(list(network.modules())):
        if isinstance(module, nn.Linear) and module.out_features == num_classes:
            return module
        if isinstance(module, nn.Conv2d) and module.out_channels == num_classes:
            return module
    raise ValueError(f"{type(network).__name__} has no layer with {num_classes} outputs")


def inception_features(
    sets: Sequence[torch.Tensor], device: str
) -> list[NDArray[np.float32]] | None:
    """Inception v3 features `[N, 2048]` of each set of images `[N, C, H, W]` in [-1, 1].

    None without its ImageNet weights: they are taken from torch's hub folder (``TORCH_HOME``) as
    safetensors under the name of torchvision's file, and never downloaded. FDs of them are not
    comparable with published FIDs, which use another port of the network.
    """
    weights = Inception_V3_Weights.IMAGENET1K_V1
    name = Path(weights.url).with_suffix(".safetensors").name
    path = Path(torch.hub.get_dir()) / "checkpoints" / name
    if not path.is_file():
        return None
    # Its weights are for images in [-1, 1]; transform_input is for those in ImageNet's scale.
    network = inception_v3(weights=None, init_weights=False, transform_input=False)
    network.load_state_dict(load_file(path))
    found = []
    for images in sets:
        rows = []
        for start in range(0, len(images), 32):  # enlarged, all of them take gigabytes
            part = images[start : start + 32].expand(-1, 3, -1, -1)
            large = torch.nn.functional.interpolate(
                part, size=(INCEPTION_SIZE, INCEPTION_SIZE), mode="bilinear", antialias=True
            )
            rows.append(look(network, large.clamp(-1, 1), INCEPTION_CLASSES, device).features)
        found.append(np.concatenate(rows))
    return found
