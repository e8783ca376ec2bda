"""Divide images into train, validation and test: by patient, stratified, seeded."""

from __future__ import annotations

import csv
import io
from collections import Counter, defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from mgdm_ray.config import DatasetConfig, InputError, SplitConfig
from mgdm_ray.data.apportion import apportion
from mgdm_ray.data.npz import SPLITS, SplitName
from mgdm_ray.data.sources.listing import SPLIT_NAMES, Item, Listing, shown, some
from mgdm_ray.seeding import derive_seed

Unit = tuple[Item, ...]
"""Images that stay together: of one patient, or of the same bytes."""


def divide(listing: Listing, config: DatasetConfig, data_dir: str) -> Listing:
    """Give every image of ``listing`` a split.

    Given splits stay, and ``split.file`` overrules them. The rest is divided; where the source has
    splits, validation or test only if it has none. InputError for a patient in two splits.
    """
    filed = config.split.file
    items = listing.items if filed is None else tuple(_as_filed(listing, filed, data_dir))
    there = Counter(item.split for item in items)
    wanted = [s for s in SPLITS if s == "train" or not there[s]]
    if len(wanted) > 1:
        # Images without a split, or, where all have one, those of train.
        pool = [item for item in items if item.split == (None if there[None] else "train")]
        chosen = choose(pool, wanted, config.split)
        items = tuple(
            replace(item, split=chosen.get((item.path, item.slice), item.split)) for item in items
        )
    elif there[None]:
        raise InputError(
            f"{there[None]} image(s) have no split, while others fill train, val and test; fill "
            f"the column {config.columns.split!r} for all of them, or for none"
        )
    divided = listing.with_items(items)
    require_apart(divided)
    return divided


def choose(
    items: Sequence[Item], wanted: Sequence[SplitName], config: SplitConfig
) -> dict[tuple[str, int | None], SplitName]:
    """Choose one of the ``wanted`` splits for every image, by (path, slice).

    Units (patients, identical files) stay whole. Each class (and stratum) is divided in the given
    shares: each unit, the largest first, goes where most images of its classes are missing. A class
    of three images or more is in every split, of two in train and test, of one in train.
    """
    units = sorted(_units(items), key=lambda unit: _order(unit, config.seed))
    totals = Counter(map(_stratum, items))
    strata = sorted(totals)
    place = {stratum: index for index, stratum in enumerate(strata)}
    share = {"train": 1.0, "val": config.val, "test": config.test}
    share["train"] -= sum(share[s] for s in wanted if s != "train")
    targets = np.array([_targets(totals[s], wanted, share) for s in strata], dtype=float).T
    have = np.zeros_like(targets)
    chosen: dict[tuple[str, int | None], SplitName] = {}
    for unit in units:
        weight = np.bincount([place[_stratum(item)] for item in unit], minlength=len(strata))
        # As shares of the class, so that rare classes count as much.
        scale = np.array([1 / totals[s] for s in strata])
        owed = ((targets - have - weight / 2) * weight * scale).sum(axis=1)
        split = int(owed.argmax())
        have[split] += weight
        chosen |= {(item.path, item.slice): wanted[split] for item in unit}
    return chosen


def _targets(
    number: int, wanted: Sequence[SplitName], share: Mapping[str, float]
) -> NDArray[np.int64]:
    if number >= len(wanted):
        return apportion([share[s] for s in wanted], number, minimum=1)
    order = [s for s in ("train", "test", "val") if s in wanted][:number]
    return np.array([int(s in order) for s in wanted], dtype=np.int64)


def _stratum(item: Item) -> tuple[int, str]:
    return item.label, item.stratum or ""


def _order(unit: Unit, seed: int) -> tuple[int, int]:
    name = unit[0].group or unit[0].sha or unit[0].path
    return -len(unit), derive_seed("split", seed, name, unit[0].path)


def _units(items: Iterable[Item]) -> list[Unit]:
    """Join images of one patient or of the same bytes, also through others."""
    from scipy.cluster.hierarchy import DisjointSet  # takes a second, and a plan seldom needs it

    joined: DisjointSet = DisjointSet()
    names = {}
    for item in items:
        file = f"file {item.sha or item.path}"
        names[item] = f"group {item.group}" if item.group else file
        joined.add(names[item])
        if item.sha:
            joined.add(file)
            joined.merge(names[item], file)
    units: dict[str, list[Item]] = defaultdict(list)
    for item, name in names.items():
        units[joined[name]].append(item)
    return [tuple(unit) for unit in units.values()]


def require_apart(listing: Listing) -> None:
    """Raise InputError where one patient is in several splits."""
    groups = listing.split_groups()
    if groups:
        splits = {g: {str(i.split) for i in listing.items if i.group == g} for g in groups[:5]}
        names = [f"{shown(g)} ({' and '.join(sorted(found))})" for g, found in splits.items()]
        raise InputError(
            f"{len(groups)} patient(s) are in more than one split, so the test is not held out: "
            f"{some([*names, *groups[5:]], 5, ', ')}. Put each patient into one split, or remove "
            "the splits: then they are made by patient"
        )


def splits_csv(listing: Listing) -> str:
    """The splits as a manifest, which ``split.file`` accepts."""
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(["path", "slice", "label", "group", "stratum", "split"])
    for i in listing.items:
        label = listing.classes[i.label]
        writer.writerow([i.path, i.slice, label, i.group, i.stratum, i.split])
    return text.getvalue()


def _as_filed(listing: Listing, name: str, data_dir: str) -> Iterable[Item]:
    path = Path(data_dir) / Path(name).expanduser()
    filed = _read(path)
    for item in listing.items:
        split = filed.get((item.path, "" if item.slice is None else str(item.slice)))
        if split is None:
            raise InputError(
                f"split.file {path}: has no row for {shown(item.path)}; it was written for other "
                "images: remove split.file, or add the row"
            )
        yield replace(item, split=split)


def _read(path: Path) -> dict[tuple[str, str], SplitName]:
    found: dict[tuple[str, str], SplitName] = {}
    try:
        with path.open(encoding="utf-8-sig", newline="") as file:
            for row in csv.DictReader(file, strict=True):
                split = SPLIT_NAMES.get((row.get("split") or "").lower())
                if row.get("path") is None or split is None:
                    raise InputError(
                        f"split.file {path}: needs the columns path and split (train, val, test) "
                        f"in every row; got {shown(str(row))}"
                    )
                found[str(row["path"]), row.get("slice") or ""] = split
    except (OSError, UnicodeDecodeError, csv.Error) as error:
        raise InputError(f"split.file {path}: cannot be read: {error}") from None
    return found
