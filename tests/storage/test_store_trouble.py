"""The storage on a full disk, among rivals, and with damaged artefacts."""

from __future__ import annotations

import json
import multiprocessing
import os
import shutil
import signal
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from mgdm_ray.pipeline.tasks import images
from mgdm_ray.storage.records import Record, read_records, write_records
from mgdm_ray.storage.store import Store, no_space
from tests.stored_example import KEY, KIND, nothing_or_whole, put, rubbish, whole

fork = multiprocessing.get_context("fork")

# --- a real full disk ---------------------------------------------------------------------


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    """A file system of 2 MB."""
    place = tmp_path / "disk"
    place.mkdir()
    mount = ["mount", "-t", "tmpfs", "-o", "size=2m", "tmpfs", str(place)]
    try:
        done = subprocess.run(mount, capture_output=True, text=True, check=False)
    except FileNotFoundError:
        pytest.skip("there is no mount command: no small disk to fill")
    if done.returncode:
        pytest.skip(f"mounting a small disk is not permitted here: {done.stderr.strip()}")
    try:
        yield place
    finally:
        subprocess.run(["umount", str(place)], check=True)


def test_a_full_disk_corrupts_nothing_and_the_same_call_works_later(small_disk: Path) -> None:
    """Would catch an artefact cut short by a full disk that counts, leftovers that keep the disk
    full, and an error that is not told from others."""
    root = small_disk / "runs"
    store = Store(root)
    ballast = small_disk / "ballast"
    for free in (0, 4096, 60_000, 150_000):
        ballast.write_bytes(b"x")  # else what is free depends on the last round
        space = os.statvfs(small_disk)
        ballast.write_bytes(b"x" * (space.f_bavail * space.f_frsize - free))
        with pytest.raises(OSError) as caught:
            put(root, {"a": b"a" * 100_000, "sub/b": b"b" * 100_000})
        assert no_space(caught.value), free
        assert not store.is_done(KIND, KEY)
        assert not list(root.glob("artifacts/*/*"))
        assert not list(root.glob("tmp/*"))
    ballast.unlink()
    store.sweep()
    put(root)
    whole(root)


def test_a_shard_that_does_not_fit_leaves_no_trace(small_disk: Path) -> None:
    """Would catch safetensors' own error not being known for a full disk, and a cut-off shard."""
    ballast = small_disk / "ballast"
    ballast.write_bytes(b"x" * 1_500_000)
    many, labels = torch.zeros(300, 3, 16, 16), np.zeros(300, np.int64)
    with pytest.raises(Exception, match="No space left") as caught:
        images.save_shard(small_disk, range(300), many, labels)
    assert no_space(caught.value)
    assert [p.name for p in small_disk.iterdir()] == ["ballast"]
    ballast.unlink()
    images.save_shard(small_disk, range(300), many, labels)
    assert len(images.read_rows(small_disk)[0]) == 300


def test_records_on_a_full_disk_stay_as_they_were(small_disk: Path) -> None:
    """Would catch records lost because their new version did not fit."""
    path, ballast = small_disk / "records.jsonl", small_disk / "ballast"
    old = [Record(key="a", kind="trial", status="done")]
    write_records(path, old)
    space = os.statvfs(small_disk)
    ballast.write_bytes(b"x" * (space.f_bavail * space.f_frsize))
    many = [Record(key=str(i), kind="trial", status="done") for i in range(1000)]
    with pytest.raises(OSError) as caught:
        write_records(path, many)
    assert no_space(caught.value)
    assert read_records(path) == old
    assert sorted(p.name for p in small_disk.iterdir()) == ["ballast", "records.jsonl"]


# --- rivals -------------------------------------------------------------------------------


def _put_again_and_again(root: Path, rounds: int, barrier: Any, spoil: bool) -> None:
    for number in range(rounds):
        here = root / str(number)
        barrier.wait(60)
        if spoil:
            rubbish(here)
        barrier.wait(60)
        put(here)
        nothing_or_whole(here)
        assert Store(here).is_done(KIND, KEY)


def _sweep_again_and_again(root: Path) -> None:
    while True:
        for here in root.iterdir():
            Store(here).sweep()


def test_rivals_make_one_artefact_and_a_sweep_beside_them_harms_none(tmp_path: Path) -> None:
    """Would catch two processes that commit one key at once and crash, delete each other's or mix
    theirs, over rubbish in its place; and a sweep that takes the folder of a live writer."""
    rounds, writers = 200, 3
    barrier = fork.Barrier(writers)
    processes = [
        fork.Process(target=_put_again_and_again, args=(tmp_path, rounds, barrier, not number))
        for number in range(writers)
    ]
    sweeper = fork.Process(target=_sweep_again_and_again, args=(tmp_path,))
    for process in [*processes, sweeper]:
        process.start()
    for process in processes:
        process.join(120)
    sweeping = sweeper.is_alive()
    sweeper.kill()
    sweeper.join()
    assert [process.exitcode for process in processes] == [0] * writers
    assert sweeping, "the sweep crashed"
    for number in range(rounds):
        here = tmp_path / str(number)
        whole(here)
        assert len(list(here.glob("artifacts/*/*"))) == 1
        Store(here).sweep()
        assert list(here.glob("tmp/*")) == []
        assert len(list(here.glob("damaged/*"))) == 1  # the rubbish, once


def test_a_sweep_tells_the_dead_from_the_living(tmp_path: Path) -> None:
    """Would catch a start that deletes what another process is writing just now, or that believes
    clocks: the live folder is the oldest, the dead one from the future."""
    store = Store(tmp_path)
    ready = fork.Event()

    def write_and_wait() -> None:
        with store.writing(KIND, KEY) as folder:
            (folder / "half").write_bytes(b"h")
            ready.set()
            time.sleep(600)

    process = fork.Process(target=write_and_wait)
    process.start()
    assert ready.wait(60)
    [theirs] = [p for p in (tmp_path / "tmp").iterdir() if p.is_dir()]
    with store.writing(KIND, KEY) as mine:
        for path in (mine, theirs):
            os.utime(path, (0, 0))
        store.sweep()
        assert mine.exists()
        assert (theirs / "half").exists()
    assert process.pid is not None
    os.kill(process.pid, signal.SIGKILL)
    process.join()
    os.utime(theirs, (2**33, 2**33))
    store.sweep()
    assert list(tmp_path.glob("tmp/*")) == []


# --- damage -------------------------------------------------------------------------------


def _cut(folder: Path) -> None:
    (folder / "a.bin").write_bytes(b"a" * 2999)


def _flip(folder: Path) -> None:
    (folder / "sub" / "deep" / "b.bin").write_bytes(b"b" * 1999 + b"c")


def _flip_secretly(folder: Path) -> None:
    path = folder / "a.bin"
    times = path.stat()
    path.write_bytes(b"a" * 2999 + b"b")
    os.utime(path, ns=(times.st_atime_ns, times.st_mtime_ns))


def _lose(folder: Path) -> None:
    (folder / "empty").unlink()


def _lose_marker(folder: Path) -> None:
    (folder / "done").unlink()


def _lose_manifest(folder: Path) -> None:
    (folder / "manifest.json").unlink()


def _tear_manifest(folder: Path) -> None:
    path = folder / "manifest.json"
    path.write_bytes(path.read_bytes()[:100])


def _tear_old_manifest(folder: Path) -> None:
    """As _tear_manifest, of a version whose marker says nothing."""
    _tear_manifest(folder)
    (folder / "done").write_bytes(b"")


def _edit_manifest(folder: Path) -> None:
    path = folder / "manifest.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), "record": {"score": 1.0}}))


def _block(folder: Path) -> None:
    shutil.rmtree(folder)
    folder.write_bytes(b"a file where the folder was")


@pytest.mark.parametrize(
    ("spoil", "contents", "says"),
    [
        (_cut, "sizes", "a.bin has 2999 bytes instead of 3000"),
        (_flip, "changed", "sub/deep/b.bin has another checksum"),
        (_flip_secretly, "all", "a.bin has another checksum"),
        (_lose, "sizes", "empty is missing"),
        (_lose_marker, "sizes", "done is missing"),
        (_lose_manifest, "sizes", "manifest.json is missing"),
        (_tear_manifest, "sizes", "manifest.json is not what was written"),
        (_tear_old_manifest, "sizes", "it cannot be read (JSONDecodeError"),
        (_edit_manifest, "sizes", "manifest.json is not what was written"),
        (_block, "sizes", "it cannot be read (NotADirectoryError"),
    ],
)
def test_damage_is_named_moved_aside_and_mended(
    spoil: Any, contents: Any, says: str, tmp_path: Path
) -> None:
    """Would catch a damaged artefact that counts, that is deleted, or that stops the study."""
    store = Store(tmp_path)
    for number in (1, 2):
        put(tmp_path)
        assert store.check(KIND, KEY, "all") == ""
        spoil(store.folder(KIND, KEY))
        wrong = store.check(KIND, KEY, contents)
        place = tmp_path / "damaged" / f"{KIND}-{KEY}-{number}"
        assert wrong.startswith(says)
        assert wrong.endswith(f"; moved to {place}")
        assert place.exists()
        assert not store.is_done(KIND, KEY)
        assert list(store.done()) == []
        assert store.check(KIND, KEY, contents) == ""  # nothing there is nothing damaged
    put(tmp_path)
    whole(tmp_path)


def test_times_of_files_damage_nothing(tmp_path: Path) -> None:
    """Would catch an artefact thrown away because it was copied, or because a clock jumped."""
    put(tmp_path)
    folder = Store(tmp_path).folder(KIND, KEY)
    for moment in (0, 2**33):
        for path in (*folder.rglob("*"), folder):
            os.utime(path, (moment, moment))
        for contents in ("sizes", "changed", "all"):
            assert Store(tmp_path).check(KIND, KEY, contents) == ""


def test_artefacts_of_older_versions_are_whole(tmp_path: Path) -> None:
    """Would catch a storage that is computed anew because its manifests say less than new ones."""
    put(tmp_path)
    folder = Store(tmp_path).folder(KIND, KEY)
    manifest = json.loads((folder / "manifest.json").read_text())
    for facts in manifest["files"].values():
        del facts["mtime_ns"]
    (folder / "manifest.json").write_text(json.dumps(manifest))
    (folder / "done").write_bytes(b"")
    for contents in ("sizes", "changed", "all"):
        assert Store(tmp_path).check(KIND, KEY, contents) == ""
    _flip(folder)
    assert Store(tmp_path).check(KIND, KEY).startswith("sub/deep/b.bin ")


def test_a_full_disk_is_recognised_behind_other_errors() -> None:
    """Would catch a full disk reported as a failure of the job, and others taken for one."""

    def raised(inner: Exception, explicit: bool) -> Exception:
        try:
            try:
                raise inner
            except Exception as error:
                if explicit:
                    raise RuntimeError("job failed") from error
                raise RuntimeError("job failed")  # noqa: B904 - the context alone must do
        except RuntimeError as outer:
            return outer

    for inner in (
        OSError(28, "No space left on device"),
        OSError(122, "Disk quota exceeded"),
        RuntimeError("Error while serializing: I/O error: No space left on device (os error 28)"),
        RuntimeError("(sqlite3.OperationalError) database or disk is full"),
    ):
        assert no_space(inner)
        assert no_space(raised(inner, True))
        assert no_space(raised(inner, False))
    for other in (OSError(5, "Input/output error"), RuntimeError("disk"), KeyboardInterrupt()):
        assert not no_space(other)
    assert not no_space(raised(ValueError("x"), True))
