"""Features of torchvision's Inception v3, where its ImageNet weights are at hand."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from safetensors.torch import load_file
from torchvision.models import Inception_V3_Weights, inception_v3

from mgdm_ray.classifiers.features import look

SIZE, CLASSES = 299, 1000


def inception_features(
    sets: Sequence[torch.Tensor], device: str
) -> list[NDArray[np.float32]] | None:
    """Features `[N, 2048]` of each set of images `[N, C, H, W]` in [-1, 1]; None without weights.

    Weights are taken from torch's hub folder (``TORCH_HOME``, else ~/.cache/torch), as safetensors
    under the name of torchvision's own file, and never downloaded. FDs of them compare arms with
    each other and with real images; published FIDs come from another port of the network and are
    not comparable.
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
                part, size=(SIZE, SIZE), mode="bilinear", antialias=True
            )
            rows.append(look(network, large.clamp(-1, 1), CLASSES, device).features)
        found.append(np.concatenate(rows))
    return found
