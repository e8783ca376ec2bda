"""The storage at every crash point: killed, torn, disk full, I/O errors, power failures.

Each operation is run once per call that changes the disk and per sort of fault. Afterwards readers
must see nothing or the whole, the next start must sweep what was left, and the same operation must
end well.
"""

from __future__ import annotations

import multiprocessing
import os
import shutil
import subprocess
from pathlib import Path

import numpy as np
import pytest
import torch

from mgdm_ray.pipeline.tasks import images
from mgdm_ray.results.openings import Opening, read_openings, record
from mgdm_ray.storage.records import Record, append_record, read_records, write_records
from mgdm_ray.storage.store import Store
from tests.crash_points import SORTS, Operation, calls_of, every_fault, power_failures
from tests.stored_example import (
    KEY,
    KIND,
    PAYLOAD,
    content,
    nothing,
    nothing_or_whole,
    put,
    rubbish,
    whole,
)

fork = multiprocessing.get_context("fork")


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


OPENING = Opening("s", "2026-01-01T00:00:00.000000+00:00", "report", "p", {"d": "f"}, ["n"], [0])


def record_opening(root: Path) -> None:
    record(Store(root), OPENING)


def whole_openings(root: Path) -> None:
    assert all(one == OPENING for one in read_openings(Store(root)))


def some_openings(root: Path) -> None:
    whole_openings(root)
    assert read_openings(Store(root))


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
FILE_OPERATIONS.append(
    Operation("opening", no_records, record_opening, whole_openings, some_openings)
)
OPERATIONS = [*STORE_OPERATIONS, *FILE_OPERATIONS]
LONG = ("commit after another", "commit over rubbish")
BY_NAME = pytest.mark.parametrize(
    "operation",
    [
        pytest.param(o, id=o.name, marks=[pytest.mark.slow] if o.name in LONG else [])
        for o in OPERATIONS
    ],
)


@pytest.fixture
def unforced(monkeypatch: pytest.MonkeyPatch) -> None:
    """No waiting for the real disk: the harness notes what is forced, and no power fails here."""
    monkeypatch.setattr(os, "fsync", lambda _: None)


def recovers(operation: Operation, root: Path, name: str) -> None:
    """Readers, the next start, and the operation once more."""
    try:
        operation.readable(root)
        Store(root).sweep()
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
