"""Hashes of named parts: seeds for every image, batch and network, and content keys.

No global random state is used anywhere: whoever draws random numbers derives a seed from
what the numbers are *for*, which makes results independent of batch size, order and the
number of workers.
"""

from __future__ import annotations

import hashlib
import json
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Sequence

    import torch


def content_key(value: Any) -> str:
    """128 bits of sha256, in hex, of the canonical JSON of ``value``.

    Independent of the order of mapping keys. Raises ValueError for NaN and infinity and
    TypeError for what JSON cannot hold.
    """
    text = json.dumps(value, sort_keys=True, separators=(",", ":"), allow_nan=False)
    return hashlib.sha256(text.encode()).hexdigest()[:32]


def derive_seed(*parts: str | int | float | bool) -> int:
    """A seed in [0, 2**63) from named parts; any change of any part gives another seed.

    ``derive_seed("image", 7)`` and ``derive_seed("image", "7")`` differ: types count.
    """
    if not parts:
        raise ValueError("derive_seed needs at least one part")
    text = json.dumps(parts, ensure_ascii=True, allow_nan=False)
    return int.from_bytes(hashlib.sha256(text.encode()).digest()[:8], "big") >> 1


def generator(*parts: str | int | float | bool) -> torch.Generator:
    """A CPU generator seeded by ``derive_seed(*parts)``.

    Random numbers are always drawn on the CPU and then moved, so that a GPU run starts from
    the same noise as a CPU run.
    """
    import torch  # planning imports this module and must not pay for torch

    return torch.Generator().manual_seed(derive_seed(*parts))


def per_image_noise(
    shape: Sequence[int], indices: Sequence[int], *parts: str | int | float | bool
) -> torch.Tensor:
    """Standard normal noise `[len(indices), *shape]` float32, each image from its own seed.

    The noise of image ``i`` depends on ``parts`` and ``i`` only, never on its batch mates.
    """
    import numpy as np
    import torch

    # numpy hashes the whole seed; torch's CPU generator keeps 32 bits of it, too few for a
    # million images to be sure of distinct noise.
    rows = np.empty((len(indices), *shape), dtype=np.float32)
    for row, index in zip(rows, indices, strict=True):
        random = np.random.default_rng(derive_seed(*parts, int(index)))
        row[...] = random.standard_normal(tuple(shape), dtype=np.float32)
    return torch.from_numpy(rows)
