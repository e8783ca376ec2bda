"""Datasets, and how many images the arms add to them."""

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
    require_known,
    unique,
)

OWN_KEYS = ("task", "classes", "reading", "columns", "split", "licence", "citation")
"""Keys of a dataset that only make sense for one's own data."""


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


class ColumnsConfig(Frozen):
    """What the columns of a manifest or table are called; only path and label must be there."""

    path: str = "path"
    """The image file, relative to the manifest's folder; in a table of images: the image."""
    label: str = "label"
    """The class, by its name."""
    split: str = "split"
    """train, val or test; images without one are divided."""
    group: str = "group"
    """The patient: all images of one stay in one split."""
    stratum: str = "stratum"
    """Anything that the splits should have alike, beside the class: a site, a device."""


class SplitConfig(Frozen):
    """How images that come without a split are divided: by patient, stratified, seeded."""

    val: float = Field(0.15, gt=0, le=0.4)
    """Share of the images for validation."""
    test: float = Field(0.2, gt=0, le=0.4)
    """Share of the images for the test split."""
    seed: int = Field(0, ge=0)
    """Another seed divides in another way."""
    group: str | None = Field(None, min_length=1, max_length=200)
    """A regular expression; what its first bracket (or all of it) matches in the path of an image
    names the patient, e.g. ``(P\\d+)_``."""
    file: str | None = None
    """A ``splits-NAME.csv`` that an earlier study wrote, to divide as it did; relative to
    ``data_dir`` or absolute."""

    @field_validator("group")
    @classmethod
    def _compiles(cls, value: str | None) -> str | None:
        try:
            re.compile(value or "")
        except (re.error, RecursionError, OverflowError) as error:
            raise ValueError(f"not a regular expression: {error}") from None
        return value


class ReadingConfig(Frozen):
    """How files become square images of 8 bits."""

    channels: Literal[1, 3] | None = None
    """1 makes colour grey, 3 grey colour; null: grey where every image is."""
    fit: Literal["pad", "crop", "stretch"] = "pad"
    """Of an image that is not square: black bars, its middle, or a changed aspect."""
    window: tuple[float, Annotated[float, Field(gt=0)]] | None = None
    """[centre, width] of the values shown, for all images of more than 8 bits: [40, 400] shows soft
    tissue in CT. null: the window in a DICOM file, else the bits in use (integers) or all but the
    half percent at either end (others)."""
    slices: Literal["middle", "all"] | Annotated[int, Field(ge=0)] = "middle"
    """Of files with many slices or frames: one, or all, which then are images of one patient."""
    damaged: Literal["refuse", "leave_out"] = "refuse"
    """Files that cannot be read stop the study, or are named and left out."""


class DatasetConfig(Frozen):
    """One dataset of the study."""

    name: Name
    """A MedMNIST name, a ``phantom-*`` name, or any name of your own together with ``path`` or
    ``source``."""
    source: Name | None = None
    """The dataset that this one is a variant of, e.g. with fewer training images. Variants count
    as one dataset in the statistics: they share their test images."""
    path: str | None = None
    """Your own images, relative to ``data_dir`` or absolute: a folder with a folder per class, a
    manifest (.csv, .parquet), a folder of Hugging Face ``datasets``, or a MedMNIST-format .npz."""
    task: Task | None = None
    """Kind of labels of your own data; known for the named datasets."""
    classes: tuple[Annotated[str, Field(min_length=1, max_length=200)], ...] | None = Field(
        None, min_length=2
    )
    """Names of the classes of your own data in the order of their numbers; default: sorted, 2
    before 10."""
    reading: ReadingConfig = ReadingConfig()
    columns: ColumnsConfig = ColumnsConfig()
    split: SplitConfig = SplitConfig()
    licence: str | None = Field(None, max_length=200)
    """Of your own data: what may be done with it, told in the report and to whoever gets images."""
    citation: str | None = Field(None, max_length=500)
    """Of your own data: where it comes from."""
    size: int = Field(28, ge=8, le=512)
    """Height and width in pixels."""
    train_size: int | None = Field(None, ge=10)
    """Use at most so many training images: a seeded, stratified choice. Default: all. A list makes
    a variant of each: ``retinamnist-50``, ``retinamnist-200``."""
    phantom: PhantomConfig | None = None
    """Only for ``phantom-*``."""
    pictures: bool = True
    """Show images of it in the report and in MLflow. Off: numbers and curves only, for data that
    may not be passed on; the pictures stay in the storage's artefacts. Changes no key."""

    @property
    def origin(self) -> str:
        """Whose images these are: of variants the dataset they come from."""
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
                        f"{key!r} is only for a dataset with 'path': of a built-in one it is known"
                    )
        unique(self.classes or (), "class")
        return self


class RatioCurve(Frozen):
    """Further cells with other numbers of added images: the first ones of the same images."""

    ratios: tuple[Annotated[float, Field(gt=0, le=100)], ...] = Field(min_length=1)
    """Added images per real training image, beside ``synthetic.ratio``."""
    arms: tuple[Arm, ...] | None = Field(None, min_length=1)
    """Default: all arms of the study that add images."""
    networks: tuple[Network, ...] | None = Field(None, min_length=1)
    """Default: all networks of the study."""

    @field_validator("ratios")
    @classmethod
    def _ratios(cls, value: tuple[float, ...]) -> tuple[float, ...]:
        return unique(value, "ratio")

    @field_validator("arms")
    @classmethod
    def _arms(cls, value: tuple[Arm, ...] | None) -> tuple[Arm, ...] | None:
        bad = [arm for arm in value or () if arm in ("real", "augment")]
        if bad:
            raise ValueError(f"arm {bad[0]!r} adds no images: it has no ratio")
        return value and unique(value, "arm")


class SyntheticConfig(Frozen):
    """How many images the arms add, and of which classes."""

    ratio: float = Field(1.0, gt=0, le=100)
    """Added images per real training image."""
    balance: Literal["proportional", "balanced", "top_up"] = "proportional"
    """Classes of the added images: as in the training set; equally many of each; or, with
    ``top_up``, as many as fill every class up to ``per_class`` (MGDM's way), whatever ``ratio``."""
    per_class: int | None = Field(None, ge=1, le=1_000_000)
    """With ``top_up``: real and added images of each class together. A class that has more real
    ones keeps them all and gets none."""
    curve: RatioCurve | None = None
    """How the arms depend on the number of added images; shown in the report."""

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
        """The largest ratio: so many images are drawn."""
        return max(self.ratio, *(self.curve.ratios if self.curve else ()), 0.0)


class LimitsConfig(Frozen):
    """What a synthetic set must not exceed to be used; over it, its cells are refused.

    Changes no key: what was computed is only shown or not.
    """

    copies: float | None = Field(None, ge=0, le=1)
    """Largest share of near-copies of training images, beyond what real images have."""
    flips: float | None = Field(None, ge=0, le=1)
    """Largest share of images in which the judge sees another class, beyond its own errors on
    held-out real images."""
