"""Folders of labelled images: names of classes, and all or nothing."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from mgdm_ray.config import InputError
from mgdm_ray.results.export.labelled_folder import new_folder, safe_names

AWKWARD = st.one_of(
    st.text(max_size=80),
    st.sampled_from(["", ".", "..", "a/b", "../x", "A", "a", "a-0", "a-1", "CON", "\n", "é", "0"]),
)


@given(st.lists(AWKWARD, min_size=1, max_size=12))
def test_every_class_has_a_folder_of_its_own(classes: list[str]) -> None:
    """Would catch a name that leads out of the folder, cannot be a file name, or is another
    class's too, also where case does not count."""
    names = safe_names(classes)
    assert len({name.lower() for name in names}) == len(classes)
    for name in names:
        assert re.fullmatch(r"[A-Za-z0-9_][A-Za-z0-9._-]{0,79}", name)


def test_plain_names_stay() -> None:
    assert safe_names(["benign", "grade_2", "1.5-T"]) == ("benign", "grade_2", "1.5-T")
    assert safe_names(["normal, benign", "normal/benign", "../"]) == (
        "normal-benign-0",
        "normal-benign-1",
        "class-2",
    )


def test_a_folder_comes_whole_or_not_at_all(tmp_path: Path) -> None:
    """Would catch half a result under the final name, and something of another in its place."""
    target = tmp_path / "deep" / "out"

    def break_off() -> None:
        with new_folder(target, "--out") as folder:
            (folder / "half").touch()
            assert not target.exists()
            raise KeyError

    with pytest.raises(KeyError):
        break_off()
    assert list(target.parent.iterdir()) == []
    with new_folder(target, "--out") as folder:
        (folder / "whole").touch()
    assert [p.name for p in target.iterdir()] == ["whole"]
    with pytest.raises(InputError, match="--out"), new_folder(target, "--out"):
        raise AssertionError("was given a folder")


def test_a_folder_that_fills_meanwhile_is_left_alone(tmp_path: Path) -> None:
    """Would catch two calls of which the second one takes the place of the first."""
    target = tmp_path / "out"

    def be_late() -> None:
        with new_folder(target, "--out") as folder:
            (folder / "mine").touch()
            target.mkdir()
            (target / "theirs").touch()

    with pytest.raises(InputError, match="--out"):
        be_late()
    assert [p.name for p in target.iterdir()] == ["theirs"]
    assert [p.name for p in tmp_path.iterdir()] == ["out"]


def test_a_place_that_cannot_be_written_to_is_told(tmp_path: Path) -> None:
    """Would catch a traceback for a place below a file."""
    (tmp_path / "file").touch()
    with (
        pytest.raises(InputError, match="--export"),
        new_folder(tmp_path / "file" / "out", "--export"),
    ):
        raise AssertionError("was given a folder")
