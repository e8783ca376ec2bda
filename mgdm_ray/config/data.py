"""Datasets, and the images that arms add to them."""

from __future__ import annotations

import re
from typing import Annotated, Literal, Self

from pydantic import Field, field_validator, model_validator

from mgdm_ray.config.base import (
    MEDMNIST,
    PHANTOMS,
    Arm,
    Frozen,
    Name,
    Network,
    Task,
    distinct,
    require_known,
    unique,
)

OWN_KEYS = ("task", "classes", "reading", "columns", "split", "licence", "citation")
"""Keys that only a dataset with ``path`` may have."""


class PhantomConfig(Frozen):
    """How a ``phantom-*`` dataset is drawn."""

    difficulty: float = Field(0.5, ge=0, le=1)
    """0: lesions stand out; 1: they are hidden in noise and confounders."""
    train: int = Field(400, ge=20, le=100_000)
    """Number of training images."""
    val: int = Field(120, ge=10, le=100_000)
    """Number of validation images."""
    test: int = Field(200, ge=10, le=100_000)
    """Number of test images."""
    imbalance: float = Field(1.0, ge=1, le=100)
    """Size of the largest class over the smallest; 1 is balanced, geometric in between."""
    seed: int = Field(0, ge=0)
    """Seed of the images."""


class ColumnsConfig(Frozen):
    """Column names of a manifest or table; only path and label are required."""

    path: str = "path"
    """Image file, relative to the manifest's folder; in a table of images: the image itself."""
    label: str = "label"
    """Class name."""
    split: str = "split"
    """train, val or test; images without a split are divided."""
    group: str = "group"
    """Patient: all images of one patient stay in one split."""
    stratum: str = "stratum"
    """Stratify by this as well as by class: a site, a device."""


class SplitConfig(Frozen):
    """How images without a split are divided: by patient, stratified, seeded."""

    val: float = Field(0.15, gt=0, le=0.4)
    """Share of images for validation."""
    test: float = Field(0.2, gt=0, le=0.4)
    """Share of images for testing."""
    seed: int = Field(0, ge=0)
    """Seed of the split."""
    group: str | None = Field(None, min_length=1, max_length=200)
    """Regular expression for the patient in an image's path: its first bracket, or the whole match,
    e.g. ``(P\\d+)_``."""
    file: str | None = None
    """Reuse the ``splits-NAME.csv`` of an earlier study; relative to ``data_dir`` or absolute."""

    @field_validator("group")
    @classmethod
    def _compiles(cls, value: str | None) -> str | None:
        try:
            re.compile(value or "")
        except (re.error, RecursionError, OverflowError) as error:
            raise ValueError(f"not a regular expression: {error}") from None
        return value


class ReadingConfig(Frozen):
    """How files become square 8-bit images."""

    channels: Literal[1, 3] | None = None
    """1 converts to grey, 3 to colour; null: grey if every image is grey."""
    fit: Literal["pad", "crop", "stretch"] = "pad"
    """Non-square images: black bars, the centre, or a changed aspect ratio."""
    window: tuple[float, Annotated[float, Field(gt=0)]] | None = None
    """[centre, width] of the values shown, for images of more than 8 bits: [40, 400] is soft tissue
    in CT. null: the window in a DICOM file, else the bits in use (integers) or the central 99 %
    (floats)."""
    slices: Literal["middle", "all"] | Annotated[int, Field(ge=0)] = "middle"
    """Files with many slices or frames: one of them, or all, as images of one patient."""
    damaged: Literal["refuse", "leave_out"] = "refuse"
    """Unreadable files stop the study, or are listed and left out."""


class DatasetConfig(Frozen):
    """One dataset of the study."""

    name: Name
    """A MedMNIST or ``phantom-*`` name, or your own name together with ``path`` or ``source``."""
    source: Name | None = None
    """This dataset is a variant of another, e.g. with fewer training images. Variants share test
    images and count as one dataset in the statistics."""
    path: str | None = None
    """Your own images, relative to ``data_dir`` or absolute: a folder with a folder per class, a
    manifest (.csv, .parquet), a folder of Hugging Face ``datasets``, or a MedMNIST-format .npz."""
    task: Task | None = None
    """Kind of labels of your own data; null: ``binary`` for two classes, else ``multiclass``."""
    classes: tuple[Annotated[str, Field(min_length=1, max_length=200)], ...] | None = Field(
        None, min_length=2
    )
    """Classes of your own data in the order of their labels; default: sorted, 2 before 10."""
    reading: ReadingConfig = ReadingConfig()
    columns: ColumnsConfig = ColumnsConfig()
    split: SplitConfig = SplitConfig()
    licence: str | None = Field(None, max_length=200)
    """Licence of your own data; shown in the report and with exported images."""
    citation: str | None = Field(None, max_length=500)
    """Source of your own data."""
    size: int = Field(28, ge=8, le=512)
    """Height and width in pixels."""
    train_size: int | None = Field(None, ge=10)
    """Use at most this many training images, a seeded stratified subset; default: all. A list makes
    one variant per size: ``retinamnist-50``, ``retinamnist-200``."""
    phantom: PhantomConfig | None = None
    """Only for ``phantom-*``."""
    pictures: bool = True
    """Show its images in the report and in MLflow. Off, for data that must not be shared: numbers
    and curves only; the storage keeps images. Changes no key."""

    @property
    def origin(self) -> str:
        """The dataset that the images come from, also for a variant."""
        return self.source or self.name

    @model_validator(mode="after")
    def _known(self) -> Self:
        if self.path is None:
            require_known(self.origin, "dataset", (*MEDMNIST, *PHANTOMS))
        elif self.origin in (*MEDMNIST, *PHANTOMS):
            raise ValueError(
                f"{self.origin!r} is a built-in dataset: give your own path another name"
            )
        if self.source and self.name in (*MEDMNIST, *PHANTOMS):
            raise ValueError(f"{self.name!r} is a built-in dataset: give the variant another name")
        if self.origin in PHANTOMS and self.phantom is None:
            object.__setattr__(self, "phantom", PhantomConfig())
        if self.phantom is not None and self.origin not in PHANTOMS:
            raise ValueError("'phantom' is only for phantom-* datasets")
        if self.path is None:
            for key in OWN_KEYS:
                if getattr(self, key) != type(self).model_fields[key].default:
                    raise ValueError(
                        f"{key!r} is only for a dataset with 'path'; built-in datasets define it"
                    )
        unique(self.classes or (), "class")
        return self


Ratio = Annotated[float, Field(gt=0, le=100)]


class RatioCurve(Frozen):
    """Additional cells with other numbers of added images: subsets of the same images."""

    ratios: Annotated[tuple[Ratio, ...], distinct("ratio")] = Field(min_length=1)
    """Added images per real training image, beside ``synthetic.ratio``."""
    arms: tuple[Arm, ...] | None = Field(None, min_length=1)
    """Default: all arms of the study that add images."""
    networks: tuple[Network, ...] | None = Field(None, min_length=1)
    """Default: all networks of the study."""

    @field_validator("arms")
    @classmethod
    def _arms(cls, value: tuple[Arm, ...] | None) -> tuple[Arm, ...] | None:
        bad = [arm for arm in value or () if arm in ("real", "augment")]
        if bad:
            raise ValueError(f"arm {bad[0]!r} adds no images and has no ratio")
        return value and unique(value, "arm")


class SyntheticConfig(Frozen):
    """Number and classes of the added images."""

    ratio: float = Field(1.0, gt=0, le=100)
    """Added images per real training image."""
    balance: Literal["proportional", "balanced", "top_up"] = "proportional"
    """Classes of the added images: as in the training set, equally many of each, or (``top_up``, as
    in MGDM) as many as fill every class up to ``per_class``, whatever ``ratio``."""
    per_class: int | None = Field(None, ge=1, le=1_000_000)
    """With ``top_up``: real plus added images per class. A larger class keeps all and gets none."""
    curve: RatioCurve | None = None
    """Results as a function of the number of added images, for the report."""

    @model_validator(mode="after")
    def _together(self) -> Self:
        if (self.balance == "top_up") != (self.per_class is not None):
            raise ValueError("'per_class' and 'balance: top_up' go together: give both or neither")
        if self.curve and self.balance == "top_up":
            raise ValueError("'curve' varies the ratio, which 'balance: top_up' does not have")
        if self.curve and self.ratio in self.curve.ratios:
            raise ValueError(f"'curve.ratios' holds {self.ratio:g}, which is 'ratio' already")
        return self

    @property
    def largest(self) -> float:
        """The largest ratio, for which images are drawn."""
        return max(self.ratio, *(self.curve.ratios if self.curve else ()), 0.0)


class LimitsConfig(Frozen):
    """Upper limits for a synthetic set; cells of a set above them are refused. Changes no key."""

    copies: float | None = Field(None, ge=0, le=1)
    """Largest near-copy rate, above that of held-out real images: 0.05 is 5 percentage points."""
    flips: float | None = Field(None, ge=0, le=1)
    """Largest label-flip rate by the judge, above its error rate on held-out real images."""
