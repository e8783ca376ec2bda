"""Dividing images: by patient, stratified, seeded, and as a file that can be given back."""

from __future__ import annotations

from collections import Counter, defaultdict
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from mgdm_ray.config import DatasetConfig, InputError, SplitConfig
from mgdm_ray.data.sources.listing import Item, Listing
from mgdm_ray.data.sources.splits import choose, divide, require_apart, splits_csv

ALL = ("train", "val", "test")
MINE = DatasetConfig(name="mine", path="x")


def items(counts: dict[int, int], **fields: str) -> list[Item]:
    return [
        Item(f"{label}/{index}", label, sha=f"{label}-{index}", **fields)  # type: ignore[arg-type]
        for label, number in counts.items()
        for index in range(number)
    ]


def table(found: dict[tuple[str, int | None], str], pool: list[Item]) -> dict[int, tuple[int, ...]]:
    counts = Counter((item.label, found[item.path, item.slice]) for item in pool)
    return {label: tuple(counts[label, s] for s in ALL) for label in {i.label for i in pool}}


def test_shares_of_every_class_are_exact() -> None:
    """Catches shares of the whole instead of each class: 20 and 15 % of 100, 20 and 7, by hand."""
    pool = items({0: 100, 1: 20, 2: 7})
    found = table(choose(pool, ALL, SplitConfig()), pool)
    assert found == {0: (65, 15, 20), 1: (13, 3, 4), 2: (5, 1, 1)}


@pytest.mark.parametrize(
    ("number", "wanted"), [(1, (1, 0, 0)), (2, (1, 0, 1)), (3, (1, 1, 1)), (4, (2, 1, 1))]
)
def test_tiny_classes(number: int, wanted: tuple[int, ...]) -> None:
    """Catches a class of few images that training never sees, or that no test measures."""
    pool = items({0: 40, 1: number})
    assert table(choose(pool, ALL, SplitConfig()), pool)[1] == wanted


def test_order_of_files_does_not_count_the_seed_does() -> None:
    """Catches splits that change with the file system, and a seed that is ignored."""
    pool = items({0: 30, 1: 30})
    first = choose(pool, ALL, SplitConfig())
    assert choose(pool[::-1], ALL, SplitConfig()) == first
    assert choose(pool, ALL, SplitConfig(seed=1)) != first


@settings(max_examples=100, deadline=None)
@given(
    st.lists(
        st.tuples(st.integers(0, 3), st.integers(0, 12), st.integers(0, 30)),
        min_size=8,
        max_size=80,
    )
)
def test_patients_and_identical_files_stay_together(rows: list[tuple[int, int, int]]) -> None:
    """Catches a patient in two splits, also where patients are joined by a common file."""
    pool = [
        Item(f"{index}", label, group=f"P{patient}" if patient else None, sha=f"s{file}")
        for index, (label, patient, file) in enumerate(rows)
    ]
    found = choose(pool, ALL, SplitConfig())
    assert set(found) == {(item.path, None) for item in pool}
    where = defaultdict(set)
    for item in pool:
        split = found[item.path, None]
        where[item.group or item.sha].add(split)
        where[item.sha].add(split)
    assert all(len(splits) == 1 for splits in where.values())


def test_shares_hold_with_patients() -> None:
    """Catches a division by patients that ignores the shares or the classes: within 5 % here."""
    pool = [
        Item(f"{patient}/{k}", (patient + k) % 3, group=f"P{patient}", sha=f"{patient}-{k}")
        for patient in range(60)
        for k in range(1 + patient % 7)
    ]
    found = table(choose(pool, ALL, SplitConfig(val=0.2, test=0.25)), pool)
    for counts in found.values():
        total = sum(counts)
        assert abs(counts[1] / total - 0.2) < 0.05
        assert abs(counts[2] / total - 0.25) < 0.05


def test_strata_are_alike() -> None:
    """Catches a stratum (a site) that lands in one split as a whole."""
    pool = [
        Item(f"{site}{k}", k % 2, stratum=site, sha=f"{site}{k}")
        for site, number in (("A", 80), ("B", 20))
        for k in range(number)
    ]
    found = choose(pool, ALL, SplitConfig())
    sites = Counter((item.stratum, found[item.path, None]) for item in pool)
    assert [sites["B", s] for s in ALL] == [14, 2, 4]  # 2 x (7, 1, 2) of ten
    assert [sites["A", s] for s in ALL] == [52, 12, 16]


def listing(pool: list[Item]) -> Listing:
    return Listing(Path("/nowhere"), ("a", "b"), tuple(pool))


def test_given_splits_stay() -> None:
    """Catches splits of the data's makers that are changed; validation is taken out of training."""
    pool = [Item(f"{k}", k % 2, "train", sha=str(k)) for k in range(40)]
    pool += [Item(f"t{k}", k % 2, "test", sha=f"t{k}") for k in range(10)]
    done = divide(listing(pool), MINE, "/nowhere")
    assert [i.path for i in done.of("test")] == [f"t{k}" for k in range(10)]
    assert done.counts("val") == [3, 3], "15 % of 20 each"
    assert done.counts("train") == [17, 17]


def test_some_without_a_split() -> None:
    """Catches images that silently get no split at all."""
    pool = [Item(f"{s}{k}", k % 2, s, sha=f"{s}{k}") for s in ALL for k in range(4)]  # type: ignore[arg-type]
    with pytest.raises(InputError, match=r"1 image.*'split'"):
        divide(listing([*pool, Item("x", 0)]), MINE, "/nowhere")


def test_a_patient_in_two_splits_is_refused() -> None:
    """Catches the leak that makes every classifier look good, with the patient named."""
    pool = [Item(f"{s}{k}", k % 2, s, f"P{k}") for k in range(6) for s in ("train", "test")]  # type: ignore[arg-type]
    with pytest.raises(InputError, match=r"6 patient.*'P0' \(test and train\)"):
        require_apart(listing(pool))


def test_the_splits_file_gives_the_same_splits(tmp_path: Path) -> None:
    """Catches a written file that cannot be given back, and names with commas and line ends."""
    pool = [*items({0: 20, 1: 20}), Item('a, "b"\nc', 0, slice=3, sha="odd")]
    done = divide(listing(pool), MINE, "/nowhere")
    (tmp_path / "splits.csv").write_text(splits_csv(done), encoding="utf-8")
    again = MINE.model_copy(update={"split": SplitConfig(file="splits.csv", seed=9)})
    assert divide(listing(pool), again, str(tmp_path)) == done
    new = Item("new", 0, sha="new")
    with pytest.raises(InputError, match=r"splits\.csv: .*'new'"):
        divide(listing([*pool, new]), again, str(tmp_path))


@pytest.mark.parametrize("text", ["", "path,split\na,b\n", "nothing\n1\n", "\0"])
def test_a_splits_file_that_is_none(tmp_path: Path, text: str) -> None:
    """Catches a traceback, or splits made anew where the file was meant to decide."""
    (tmp_path / "s.csv").write_text(text)
    config = MINE.model_copy(update={"split": SplitConfig(file="s.csv")})
    with pytest.raises(InputError, match=r"split\.file"):
        divide(listing(items({0: 5, 1: 5})), config, str(tmp_path))
