"""Seeds and content keys: hashes of named parts.

No global random state: whoever draws derives a seed from what the numbers are for.
"""

from __future__ import annotations

import hashlib
import json
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Sequence

    import torch


def content_key(value: Any) -> str:
    """128 bits of sha256, in hex, of the canonical JSON of ``value``; the order of keys is ignored.

    ValueError for NaN and infinity, TypeError for what JSON cannot hold.
    """
    text = json.dumps(value, sort_keys=True, separators=(",", ":"), allow_nan=False)
    return hashlib.sha256(text.encode()).hexdigest()[:32]


def derive_seed(*parts: str | int | float | bool) -> int:
    """A seed in [0, 2**63) from named parts, whose types count: ``7`` is not ``"7"``."""
    if not parts:
        raise ValueError("derive_seed needs at least one part")
    text = json.dumps(parts, ensure_ascii=True, allow_nan=False)
    return int.from_bytes(hashlib.sha256(text.encode()).digest()[:8], "big") >> 1


def generator(*parts: str | int | float | bool) -> torch.Generator:
    """A generator seeded by ``derive_seed(*parts)``, on the CPU: a GPU starts from the same
    noise."""
    import torch  # planning imports this module and must not pay for torch

    return torch.Generator().manual_seed(derive_seed(*parts))


def per_image_noise(
    shape: Sequence[int], indices: Sequence[int], *parts: str | int | float | bool
) -> torch.Tensor:
    """Standard normal noise `[len(indices), *shape]` float32.

    The noise of image ``i`` is a function of ``parts`` and ``i`` only.
    """
    import numpy as np
    import torch

    # numpy uses the whole seed; torch's CPU generator 32 bits, too few for a million images
    rows = np.empty((len(indices), *shape), dtype=np.float32)
    for row, index in zip(rows, indices, strict=True):
        random = np.random.default_rng(derive_seed(*parts, int(index)))
        row[...] = random.standard_normal(tuple(shape), dtype=np.float32)
    return torch.from_numpy(rows)
