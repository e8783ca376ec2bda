"""A machine's copies: where they are, how many, and of which version."""

from __future__ import annotations

import os
import subprocess
import sys
import uuid
from pathlib import Path

import pytest

from mgdm_ray.storage.remote import cache
from mgdm_ray.storage.remote.cache import Cache, at_hand, cache_root, limit_bytes
from mgdm_ray.storage.remote.objects import Objects

USE = """
import sys, time
from pathlib import Path
from mgdm_ray.storage.remote.cache import Cache
Cache(Path(sys.argv[1])).use("encode", "old")
print("using", flush=True)
time.sleep(600)
"""


@pytest.fixture(autouse=True)
def elsewhere(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MGDM_CACHE_DIR", str(tmp_path / "cache"))


def artefact(root: Path, key: str, size: int, used: int) -> Path:
    folder = root / "artifacts" / "encode" / key
    folder.mkdir(parents=True)
    (root / "tmp").mkdir(exist_ok=True)
    (folder / "payload").write_bytes(b"x" * size)
    (folder / "done").touch()
    os.utime(folder / "done", (used, used))
    return folder


def test_every_url_has_a_folder_of_its_own(tmp_path: Path) -> None:
    """Would catch two storages that take each other's artefacts for their own."""
    assert cache_root("s3://a/x").parent == tmp_path / "cache"
    assert cache_root("s3://a/x") != cache_root("s3://a/y")


def test_the_least_recently_used_goes_first(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Would catch a cache that drops what was just used, or more than it must."""
    new, old, older = (
        artefact(tmp_path, n, 4000, t) for n, t in (("new", 30), ("old", 20), ("older", 10))
    )
    monkeypatch.setenv("MGDM_CACHE_GB", "0.000009")
    Cache(tmp_path).trim()
    assert (new.exists(), old.exists(), older.exists()) == (True, True, False)
    Cache(tmp_path).touch("encode", "old")
    monkeypatch.setenv("MGDM_CACHE_GB", "0.000005")
    Cache(tmp_path).trim()
    assert (new.exists(), old.exists()) == (False, True)


def test_what_another_process_uses_stays_until_it_dies(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Would catch files taken from under a job, and a dead job's files that stay for ever."""
    folder = artefact(tmp_path, "old", 4000, 10)
    monkeypatch.setenv("MGDM_CACHE_GB", "0.000001")
    process = subprocess.Popen(
        [sys.executable, "-c", USE, str(tmp_path)], stdout=subprocess.PIPE, text=True
    )
    assert process.stdout is not None
    assert process.stdout.readline().strip() == "using"
    Cache(tmp_path).trim()
    assert folder.exists()
    process.kill()
    process.wait()
    Cache(tmp_path).trim()
    assert not folder.exists()
    assert list((tmp_path / "users").iterdir()) == []


def test_a_look_at_all_files_is_rare(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Would catch a stat of every file of the cache for each artefact that comes."""
    looks: list[int] = []
    monkeypatch.setattr(Cache, "trim", lambda self: looks.append(1))  # noqa: ARG005
    monkeypatch.setattr(cache.Cache, "_new_bytes", {})
    monkeypatch.setenv("MGDM_CACHE_GB", "0.001")
    for number in range(30):
        artefact(tmp_path, f"k{number}", 4000, 10)
        Cache(tmp_path).added("encode", f"k{number}")
    assert len(looks) == 5, "every 20 kB of 1 MB"


@pytest.mark.parametrize("given", ["many", "0", "-3", "nan"])
def test_a_limit_is_a_number(given: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MGDM_CACHE_GB", given)
    with pytest.raises(ValueError, match=rf"^MGDM_CACHE_GB={given}:"):
        limit_bytes()


def test_a_copy_follows_its_object(tmp_path: Path) -> None:
    """Would catch a study on the images of last week, and an absent file that seems to be there."""
    url = f"memory://bucket/{uuid.uuid4().hex}"
    objects = Objects(url)
    assert not at_hand(url, "x.npz").is_file()
    for text in (b"one", b"two"):
        objects.write("x.npz", text)
        cache._copy_of.cache_clear()  # as the next process
        assert at_hand(url, "x.npz").read_bytes() == text
    objects.write("x.npz", b"three")
    assert at_hand(url, "x.npz").read_bytes() == b"two", "one process sees one content"
    assert at_hand(tmp_path, "x") == tmp_path / "x"
