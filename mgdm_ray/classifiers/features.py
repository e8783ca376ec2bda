"""What a classifier sees in images: the features before its last layer, and its answer."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import nn


@dataclass(frozen=True)
class View:
    """What a network makes of N images."""

    features: NDArray[np.float32]
    """`[N, D]`, the input of the last layer, averaged over places where that is a convolution."""
    probabilities: NDArray[np.float64]
    """`[N, K]`."""

    @property
    def predicted(self) -> NDArray[np.int64]:
        """`[N]`, the most probable class."""
        best: NDArray[np.int64] = self.probabilities.argmax(axis=1)
        return best

    @property
    def entropy(self) -> NDArray[np.float32]:
        """`[N]` in nats, from 0 (sure) to log K (no idea)."""
        p = self.probabilities
        logs = np.log(p, out=np.zeros_like(p), where=p > 0)
        entropy: NDArray[np.float32] = np.maximum(0, -(p * logs).sum(axis=1)).astype(np.float32)
        return entropy


def look(
    network: nn.Module, images: torch.Tensor, num_classes: int, device: str, batch_size: int = 64
) -> View:
    """``network``'s view of ``images`` `[N, C, H, W]` in [-1, 1]; leaves it in evaluation mode.

    Raises ValueError where it has no last layer with ``num_classes`` outputs.
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
    """The layer that gives the logits: the last one with ``num_classes`` outputs. SqueezeNet's is
    a convolution."""
    for module in reversed(list(network.modules())):
        if isinstance(module, nn.Linear) and module.out_features == num_classes:
            return module
        if isinstance(module, nn.Conv2d) and module.out_channels == num_classes:
            return module
    raise ValueError(f"{type(network).__name__} has no layer with {num_classes} outputs")
