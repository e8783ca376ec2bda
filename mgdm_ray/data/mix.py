"""Choose which images are added to the real training set, and put both together."""

from __future__ import annotations

from typing import TYPE_CHECKING, Literal

import numpy as np
from numpy.typing import NDArray

from mgdm_ray.data.apportion import apportion, interleave
from mgdm_ray.data.load import Split
from mgdm_ray.seeding import derive_seed

if TYPE_CHECKING:
    import torch

    from mgdm_ray.data.pixels import Pixels


def synthetic_labels(
    labels: NDArray[np.int64],
    num_classes: int,
    ratio: float,
    balance: Literal["proportional", "balanced", "top_up"],
    *seed_parts: str | int | float | bool,
    per_class: int | None = None,
) -> NDArray[np.int64]:
    """Labels `[M]` int64 of the images to add.

    ``proportional``: class shares of ``labels`` `[N]`; ``balanced``: equal shares; both
    M = max(1, round(ratio * N)), by largest remainder. ``top_up``: what each class lacks to
    ``per_class``. The order is seeded; every prefix has nearly the same shares. ValueError for
    labels out of range, and where nothing is missing.
    """
    if len(labels) == 0 or labels.min() < 0 or labels.max() >= num_classes:
        raise ValueError(f"labels must be non-empty and in 0..{num_classes - 1}")
    if balance == "top_up":
        real = np.bincount(labels, minlength=num_classes)
        missing = np.clip((per_class or 0) - real, 0, None).astype(np.int64)
        if not missing.any():
            raise ValueError(
                f"nothing to top up: every class has at least {per_class} real images "
                f"({real.tolist()}); set a larger synthetic.per_class"
            )
        return interleave(missing, "synthetic_labels", *seed_parts)
    total = max(1, round(ratio * len(labels)))
    weights: NDArray[np.float64] = np.ones(num_classes)
    if balance == "proportional":
        weights = np.bincount(labels, minlength=num_classes).astype(np.float64)
    return interleave(apportion(weights, total), "synthetic_labels", *seed_parts)


def duplicate_indices(
    labels: NDArray[np.int64],
    wanted_labels: NDArray[np.int64],
    *seed_parts: str | int | float | bool,
) -> NDArray[np.int64]:
    """Indices `[M]` int64 into the real images such that ``labels[result] == wanted_labels``.

    Within a class the repeats are as even as possible: every image is used n or n + 1 times.
    Raises ValueError where a wanted class has no real image.
    """
    chosen = np.empty(len(wanted_labels), dtype=np.int64)
    for label in np.unique(wanted_labels):
        (places,) = np.nonzero(wanted_labels == label)
        (pool,) = np.nonzero(labels == label)
        if len(pool) == 0:
            raise ValueError(f"no real image has label {label}, of which {len(places)} are wanted")
        rng = np.random.default_rng(derive_seed("duplicate", int(label), *seed_parts))
        rounds = -(-len(places) // len(pool))
        order = np.concatenate([rng.permutation(pool) for _ in range(rounds)])
        chosen[places] = order[: len(places)]
    return chosen


def training_set(
    real: Split, added: tuple[torch.Tensor, torch.Tensor] | None = None
) -> tuple[Pixels, torch.Tensor]:
    """Images `[N + M, C, H, W]` and labels `[N + M]` int64; real ones first, with 8 bits.

    ``added``: images `[M, C, H, W]` and labels `[M]`. They are clipped to [-1, 1], so that larger
    values do not give synthetic images away. ValueError for shapes that do not match.
    """
    import torch

    from mgdm_ray.data.pixels import Pixels, to_pixels

    images, labels = to_pixels(real.images), torch.from_numpy(real.labels)
    if added is None:
        return Pixels((images,)), labels
    more, more_labels = added
    if more.shape[1:] != images.shape[1:] or len(more) != len(more_labels):
        raise ValueError(
            f"cannot add images {list(more.shape)} with {len(more_labels)} labels "
            f"to real images {list(images.shape)}"
        )
    return (
        Pixels((images, more.to(torch.float32).clamp(-1, 1))),
        torch.cat([labels, more_labels.to(torch.int64)]),
    )
