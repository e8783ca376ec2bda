"""Datasets, and how many images the arms add to them."""

from __future__ import annotations

from typing import Literal, Self

from pydantic import Field, model_validator

from mgdm_ray.config.base import MEDMNIST, PHANTOMS, Frozen, Name, Task, require_known


class PhantomConfig(Frozen):
    """How a ``phantom-*`` dataset is drawn."""

    difficulty: float = Field(0.5, ge=0, le=1)
    """0: lesions stand out; 1: they drown in noise and confounders."""
    train: int = Field(400, ge=20, le=100_000)
    """Number of training images."""
    val: int = Field(120, ge=10, le=100_000)
    """Number of validation images."""
    test: int = Field(200, ge=10, le=100_000)
    """Number of test images."""
    imbalance: float = Field(1.0, ge=1, le=100)
    """Most frequent class over rarest class; 1 is balanced. Geometric in between."""
    seed: int = Field(0, ge=0)
    """Another seed draws another dataset."""


class DatasetConfig(Frozen):
    """One dataset of the study."""

    name: Name
    """A MedMNIST name, a ``phantom-*`` name, or any name of your own together with ``path``."""
    path: str | None = None
    """A MedMNIST-format .npz of your own, relative to ``data_dir`` or absolute."""
    task: Task | None = None
    """Kind of labels of your own .npz; known for the named datasets."""
    size: int = Field(28, ge=8, le=512)
    """Height and width in pixels."""
    train_size: int | None = Field(None, ge=10)
    """Use at most so many training images: a seeded, stratified choice. Default: all."""
    phantom: PhantomConfig | None = None
    """Only for ``phantom-*``."""

    @model_validator(mode="after")
    def _source(self) -> Self:
        if self.path is None:
            require_known(self.name, "dataset", (*MEDMNIST, *PHANTOMS))
        elif self.name in (*MEDMNIST, *PHANTOMS):
            raise ValueError(
                f"{self.name!r} is a built-in dataset: give your own path another name"
            )
        if self.name in PHANTOMS and self.phantom is None:
            object.__setattr__(self, "phantom", PhantomConfig())
        if self.phantom is not None and self.name not in PHANTOMS:
            raise ValueError("'phantom' is only for phantom-* datasets")
        if self.path is None and self.task is not None:
            raise ValueError("'task' is only for a dataset with 'path': built-in tasks are known")
        return self


class SyntheticConfig(Frozen):
    """How many images the arms add."""

    ratio: float = Field(1.0, gt=0, le=100)
    """Added images per real training image."""
    balance: Literal["proportional", "balanced"] = "proportional"
    """Classes of the added images: as in the training set, or equally many of each."""
