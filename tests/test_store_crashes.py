"""The storage at every crash point: killed, torn, disk full, I/O errors, power failures, rivals.

Each operation is run once per call that changes the disk and per sort of fault. Afterwards readers
must see nothing or the whole, the next start must sweep what was left, and the same operation must
end well.
"""

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

from mgdm_ray.jobs import images
from mgdm_ray.records import Record, append_record, read_records, write_records
from mgdm_ray.store import Store, no_space
from tests.crash_points import SORTS, Operation, calls_of, every_fault, power_failures

fork = multiprocessing.get_context("fork")
KIND, KEY = "encode", "0" * 32
PAYLOAD = {"a.bin": b"a" * 3000, "empty": b"", "sub/deep/b.bin": b"b" * 2000}


def put(root: Path, payload: dict[str, bytes] = PAYLOAD) -> None:
    store = Store(root)
    with store.writing(KIND, KEY) as folder:
        for name, content in payload.items():
            (folder / name).parent.mkdir(parents=True, exist_ok=True)
            (folder / name).write_bytes(content)
        store.commit(KIND, KEY, folder, {"key": KEY}, {"inputs": {}, "needs": {}})


def content(folder: Path) -> dict[str, bytes]:
    files = (p for p in folder.rglob("*") if p.is_file())
    found = {p.relative_to(folder).as_posix(): p.read_bytes() for p in files}
    return {name: data for name, data in found.items() if name not in ("manifest.json", "done")}


def nothing_or_whole(root: Path) -> None:
    store = Store(root)
    if store.is_done(KIND, KEY):
        assert store.verify(KIND, KEY) == ""
        assert store.manifest(KIND, KEY)["record"] == {"key": KEY}
        assert list(store.done()) == [(KIND, KEY)]
    else:
        assert list(store.done()) == []
        with pytest.raises(FileNotFoundError, match="no finished artefact"):
            store.manifest(KIND, KEY)


def whole(root: Path) -> None:
    store = Store(root)
    assert store.is_done(KIND, KEY)
    assert store.verify(KIND, KEY) == ""
    assert content(store.folder(KIND, KEY)) == PAYLOAD
    assert not store.work(KIND, KEY).exists()


def nothing(root: Path) -> None:
    """A storage with a scratch folder of the job that will write."""
    work = Store(root).work(KIND, KEY)
    work.mkdir(parents=True)
    (work / "checkpoint").write_bytes(b"c")


def rubbish(root: Path) -> None:
    nothing(root)
    folder = Store(root).folder(KIND, KEY)
    folder.mkdir(parents=True)
    (folder / "manifest.json").write_text('{"record": {"ke')


def another_first(root: Path) -> None:
    nothing(root)
    put(root)


def damaged(root: Path) -> None:
    put(root)
    (Store(root).folder(KIND, KEY) / "a.bin").write_bytes(b"x" * 3000)


def set_aside(root: Path) -> None:
    Store(root).check(KIND, KEY)


def not_lost(root: Path) -> None:
    """The damaged one is where it was or where it goes, never in part. (In both, where a file
    system kept one folder but not the other; none that has a journal does.)"""
    places = (Store(root).folder(KIND, KEY), root / "damaged" / f"{KIND}-{KEY}-1")
    copies = [content(place) for place in places if place.exists()]
    assert copies
    assert all(copy == {**PAYLOAD, "a.bin": b"x" * 3000} for copy in copies)


def moved(root: Path) -> None:
    not_lost(root)
    assert not Store(root).is_done(KIND, KEY)


def leftovers(root: Path) -> None:
    """What killed processes leave: a half-filled folder with a lock nobody holds, one of a version
    without locks, and scratch of a job that is done."""
    put(root)
    for name in ("left", f"{KEY}-123-abc"):
        (root / "tmp" / name / "sub").mkdir(parents=True)
        (root / "tmp" / name / "sub" / "half").write_bytes(b"h")
    (root / "tmp" / "left.lock").touch()
    work = Store(root).work(KIND, KEY)
    work.mkdir(parents=True)
    (work / "checkpoint").write_bytes(b"c")


def sweep(root: Path) -> None:
    Store(root).sweep()


def swept(root: Path) -> None:
    whole(root)
    assert list(root.glob("tmp/*")) == []


STORE_OPERATIONS = [
    Operation("commit", nothing, put, nothing_or_whole, whole),
    Operation("commit over rubbish", rubbish, put, nothing_or_whole, whole),
    Operation("commit after another", another_first, put, nothing_or_whole, whole),
    Operation("setting aside", damaged, set_aside, not_lost, moved),
    Operation("sweeping", leftovers, sweep, nothing_or_whole, swept),
]

OLD = [Record(key=k, kind="trial", status="done") for k in "ab"]
NEW = [Record(key=k, kind="trial", status="failed", reason="é" * 40) for k in "bcd"]


def no_records(root: Path) -> None:
    root.mkdir()


def old_records(root: Path) -> None:
    root.mkdir()
    write_records(root / "records.jsonl", OLD)


def torn_records(root: Path) -> None:
    old_records(root)
    with (root / "records.jsonl").open("ab") as file:
        file.write(OLD[0].to_json().encode()[:50])


def write_new(root: Path) -> None:
    write_records(root / "records.jsonl", NEW)


def append_new(root: Path) -> None:
    append_record(root / "records.jsonl", NEW[-1])


def old_or_new(root: Path) -> None:
    assert read_records(root / "records.jsonl") in ([], OLD, NEW)


def old_and_perhaps_new(root: Path) -> None:
    assert read_records(root / "records.jsonl") in (OLD, [*OLD, NEW[-1]])


def only_new(root: Path) -> None:
    assert read_records(root / "records.jsonl") == NEW
    assert [p.name for p in root.iterdir() if p.name not in ("lock", "tmp")] == ["records.jsonl"]


def old_and_new(root: Path) -> None:
    assert read_records(root / "records.jsonl") == [*OLD, NEW[-1]]


ROWS, LABELS = range(4, 10), np.arange(6)
IMAGES = torch.arange(6 * 3 * 8 * 8, dtype=torch.float32).reshape(6, 3, 8, 8)


def save_shard(root: Path) -> None:
    images.save_shard(root, range(6), IMAGES, LABELS)


def whole_shard_or_none(root: Path) -> None:
    if images.shards_in(root):
        found, labels = images.read_rows(root)
        assert torch.equal(found, IMAGES)
        assert np.array_equal(labels, LABELS)


def only_the_shard(root: Path) -> None:
    whole_shard_or_none(root)
    names = [p.name for p in root.iterdir() if p.name not in ("lock", "tmp")]
    assert names == ["images-00000000-00000006.safetensors"]


FILE_OPERATIONS = [
    Operation("first records", no_records, write_new, old_or_new, only_new),
    Operation("write_records", old_records, write_new, old_or_new, only_new),
    Operation("append_record", torn_records, append_new, old_and_perhaps_new, old_and_new),
    Operation(
        "save_shard",
        no_records,
        save_shard,
        whole_shard_or_none,
        only_the_shard,
        ((images, "save_file"),),
    ),
]
OPERATIONS = [*STORE_OPERATIONS, *FILE_OPERATIONS]
BY_NAME = pytest.mark.parametrize("operation", OPERATIONS, ids=lambda o: o.name)


@pytest.fixture
def unforced(monkeypatch: pytest.MonkeyPatch) -> None:
    """No waiting for the real disk: the harness notes what is forced, and no power fails here."""
    monkeypatch.setattr(os, "fsync", lambda _: None)


def recovers(operation: Operation, root: Path, name: str) -> None:
    """Readers, the next start, and the operation once more."""
    try:
        operation.readable(root)
        with Store(root).exclusive():
            assert list(root.glob("tmp/*")) == []
            operation.readable(root)
            operation.act(root)
            operation.complete(root)
        assert list(root.glob("tmp/*")) == []
    except Exception as error:
        raise AssertionError(name) from error


@BY_NAME
@pytest.mark.usefixtures("unforced")
def test_every_crash_point_recovers(operation: Operation, tmp_path: Path) -> None:
    """Would catch an artefact that is done but not whole, a reader that crashes, and leftovers:
    at any call, for a kill before or within it, a full disk and an I/O error."""
    count = 0
    for name, root in every_fault(operation, tmp_path):
        recovers(operation, root, name)
        shutil.rmtree(root)
        count += 1
    print(f"{operation.name}: {count} faults")
    assert count > len(SORTS)


@BY_NAME
@pytest.mark.usefixtures("unforced")
def test_a_power_failure_after_any_call_recovers(operation: Operation, tmp_path: Path) -> None:
    """Would catch a missing fsync: of a file, of a sub-folder, of a name on the way."""
    count = 0
    for name, _, root in power_failures(operation, tmp_path):
        recovers(operation, root, name)
        shutil.rmtree(root)
        count += 1
    print(f"{operation.name}: {count} power failures")
    assert count


@pytest.mark.parametrize(
    "operation",
    [o for o in OPERATIONS if o.name not in ("append_record", "sweeping")],
    ids=lambda o: o.name,
)
def test_what_has_returned_survives_a_power_failure(operation: Operation, tmp_path: Path) -> None:
    """Would catch a result that was called done and is computed again after a power failure."""
    ended = [(n, root) for n, end, root in power_failures(operation, tmp_path) if end]
    assert len(ended) == 3
    for name, root in ended:
        try:
            Store(root).sweep()
            operation.complete(root)
        except Exception as error:
            raise AssertionError(name) from error


def test_the_crash_points_are_those_that_the_system_sees(tmp_path: Path) -> None:
    """Would catch a write of the store's that goes past the harness, and so past these tests."""
    if shutil.which("strace") is None:
        pytest.skip("strace is not installed: nothing else tells what the system was asked")
    operation, root, log = STORE_OPERATIONS[0], tmp_path / "traced", tmp_path / "trace"
    operation.prepare(root)
    calls = "fsync,rename,renameat,renameat2,mkdir,mkdirat,write,unlink,unlinkat,rmdir"
    ready, go = fork.Event(), fork.Event()

    def act() -> None:
        ready.set()
        go.wait(30)
        operation.act(root)

    child = fork.Process(target=act)
    child.start()
    ready.wait(30)
    tracer = subprocess.Popen(
        ["strace", "-y", "-p", str(child.pid), "-e", f"trace={calls}", "-o", str(log)],
        stderr=subprocess.PIPE,
    )
    assert tracer.stderr is not None
    first = tracer.stderr.readline().decode()
    if "attached" not in first:
        go.set()
        child.join()
        pytest.skip(f"strace may not look at other processes here: {first.strip()}")
    go.set()
    child.join(60)
    tracer.wait(60)
    seen = [line for line in log.read_text().splitlines() if str(root) in line]
    made = [c for c in calls_of(operation, tmp_path / "counted") if c.name != "create"]
    alike = {"unlinkat": "unlink", "rmdir": "unlink", "refused": "mkdir", "renameat": "rename"}
    names = [line.split("(")[0] for line in seen]
    assert [alike.get(n, n) for n in names] == [alike.get(c.name, c.name) for c in made]


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
    with store.exclusive():
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
    write_records(path, OLD)
    space = os.statvfs(small_disk)
    ballast.write_bytes(b"x" * (space.f_bavail * space.f_frsize))
    many = [Record(key=str(i), kind="trial", status="done") for i in range(1000)]
    with pytest.raises(OSError) as caught:
        write_records(path, many)
    assert no_space(caught.value)
    assert read_records(path) == OLD
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
    assert Store(tmp_path).check(KIND, KEY).startswith("sub/deep/b.bin has another checksum")


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
