"""The store in a bucket: an artefact is there for all machines or for none, whoever dies when."""

from __future__ import annotations

import json
import re
import uuid
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from mgdm_ray.results.openings import Opening, read_openings, record
from mgdm_ray.storage.remote.cache import Cache
from mgdm_ray.storage.remote.objects import Objects
from mgdm_ray.storage.remote.store import RemoteStore, open_store
from mgdm_ray.storage.store import Store
from tests.stored_example import KEY, KIND, PAYLOAD, content

OTHER = "1" * 32


class Died(BaseException):
    """What a kill is to the code that it hits: nothing comes after it."""


@pytest.fixture
def url(bucket: str) -> str:
    return f"{bucket}/{uuid.uuid4().hex}"


@pytest.fixture
def machine(
    url: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> Callable[[str], RemoteStore]:
    """A new store object with the cache of the machine of that name."""

    def on(name: str) -> RemoteStore:
        monkeypatch.setenv("MGDM_CACHE_DIR", str(tmp_path / name))
        return RemoteStore(url)

    return on


def put(store: Store, payload: dict[str, bytes] = PAYLOAD, key: str = KEY) -> Path:
    with store.writing(KIND, key) as folder:
        for name, data in payload.items():
            (folder / name).parent.mkdir(parents=True, exist_ok=True)
            (folder / name).write_bytes(data)
        return store.commit(KIND, key, folder, {"key": key}, {"inputs": {"a": 1}, "needs": {}})


def test_an_artefact_reads_back_on_another_machine(machine: Callable[[str], RemoteStore]) -> None:
    """Would catch files that stay where they were written, and damage on the way."""
    folder = put(machine("a"))
    assert content(folder) == PAYLOAD
    other = machine("b")
    assert other.is_done(KIND, KEY)
    assert list(other.done()) == [(KIND, KEY)]
    assert other.manifest(KIND, KEY)["inputs"] == {"a": 1}
    there = other.here(KIND, KEY)
    assert there != folder
    assert content(there) == PAYLOAD
    assert other.verify(KIND, KEY) == ""
    assert Store(other.root).is_done(KIND, KEY), "the copy is an artefact like any other"


def test_the_first_of_two_writers_wins(machine: Callable[[str], RemoteStore]) -> None:
    """Would catch files of one writer under the checksums of the other."""
    first, second = machine("a"), machine("b")
    put(first, {"x": b"first"})
    put(second, {"x": b"second", "more": b"m"})
    assert content(machine("c").here(KIND, KEY)) == {"x": b"first"}
    uploads = {name.split("/")[3] for name in first.objects.sizes("artifacts")}
    assert len(uploads) == 2, "the marker and one upload: the second one took its files back"


class _Fault:
    """Dies at call ``at`` that changes the bucket: before it is made, or once it is."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, at: int, late: bool) -> None:
        self.calls, self.at, self.late = 0, at, late
        for name in ("upload", "create", "write", "remove"):
            monkeypatch.setattr(Objects, name, self.faulty(getattr(Objects, name)))

    def faulty(self, call: Callable[..., Any]) -> Callable[..., Any]:
        def run(objects: Objects, *arguments: Any) -> Any:
            self.calls += 1
            dies = self.calls == self.at
            if dies and not self.late:
                raise Died
            result = call(objects, *arguments)
            if dies:
                raise Died
            return result

        return run


@pytest.mark.parametrize("late", [False, True])
def test_a_writer_that_dies_anywhere_leaves_all_or_nothing(
    machine: Callable[[str], RemoteStore], late: bool
) -> None:
    """Would catch a marker that comes before its files, and rubbish that stands in the way."""
    at, died = 0, 0
    while True:
        at += 1
        key = f"{at:032x}"
        store = machine("a")
        with pytest.MonkeyPatch.context() as patch:
            _Fault(patch, at, late)
            try:
                put(store, key=key)
            except Died:
                died += 1
            else:
                break
        seen = machine(f"b{at}")
        if seen.is_done(KIND, key):
            assert content(seen.here(KIND, key)) == PAYLOAD
        else:
            with pytest.raises(FileNotFoundError, match=f"{KIND}/{key}"):
                seen.here(KIND, key)
        put(machine("a"), key=key)
        assert content(machine(f"c{at}").here(KIND, key)) == PAYLOAD
    assert died >= 4, "three files and the marker"
    store = machine("a")
    store.sweep()
    names = store.objects.sizes("artifacts")
    assert len(names) == at * (1 + len(PAYLOAD)), "broken uploads are gone"


def test_an_answer_that_is_lost_does_not_cost_the_files(
    machine: Callable[[str], RemoteStore], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Would catch a writer that takes its own marker, written at a first try, for another's."""
    create = Objects.create

    def twice(self: Objects, name: str, data: bytes) -> bool:
        create(self, name, data)
        return create(self, name, data)

    monkeypatch.setattr(Objects, "create", twice)
    put(machine("a"))
    assert content(machine("b").here(KIND, KEY)) == PAYLOAD


def test_damage_in_the_bucket_is_found_and_mended(machine: Callable[[str], RemoteStore]) -> None:
    """Would catch an object that was lost or cut short and is taken for a result."""
    store = machine("a")
    harms: dict[str, Callable[[str], None]] = {
        "a.bin is missing": lambda name: store.objects.remove([name]),
        "a.bin has 3 bytes instead of 3000": lambda name: store.objects.write(name, b"xxx"),
    }
    for wrong, harm in harms.items():
        put(machine("a"))
        (name,) = [n for n in store.objects.sizes("artifacts") if n.endswith("a.bin")]
        harm(name)
        driver = machine(f"that finds: {wrong}")  # it has no copy of its own
        assert list(driver.done()) == [(KIND, KEY)]
        assert driver.verify(KIND, KEY) == wrong
        moved = f"{wrong}; its marker was moved to {driver.location}/"
        assert driver.check(KIND, KEY).startswith(moved)
        assert not driver.is_done(KIND, KEY)
        assert list(machine("c").done()) == []
        assert driver.check(KIND, KEY) == ""
        put(driver)
        assert machine("c").check(KIND, KEY) == ""
        machine("c").sweep()


def test_changed_bytes_are_found_when_they_arrive(machine: Callable[[str], RemoteStore]) -> None:
    """Would catch a job that computes from an object of the right size and the wrong content."""
    store = machine("a")
    put(store)
    (name,) = [n for n in store.objects.sizes("artifacts") if n.endswith("a.bin")]
    store.objects.write(name, b"b" * 3000)
    with pytest.raises(OSError, match=rf"{KIND} {KEY}: a\.bin"):
        machine("b").here(KIND, KEY)
    assert not Store(machine("b").root).is_done(KIND, KEY)


def test_scratch_goes_to_the_next_machine_and_then_away(
    machine: Callable[[str], RemoteStore],
) -> None:
    """Would catch shards that are computed again because their node is gone."""
    first = machine("a")
    shard = first.work(KIND, KEY) / "shard"
    shard.parent.mkdir(parents=True)
    shard.write_bytes(b"12")
    first.share(shard)
    second = machine("b")
    second.bring(second.work(KIND, KEY))
    assert (second.work(KIND, KEY) / "shard").read_bytes() == b"12"
    path, _ = second.ray_storage(KIND, KEY)
    assert path.endswith(f"work/{KIND}-{KEY}")
    put(second)
    assert not second.work(KIND, KEY).exists()
    assert second.objects.sizes("work") == {}


def test_what_has_changed_is_brought_anew(machine: Callable[[str], RemoteStore]) -> None:
    """Would catch a marker of equal length that stays what it was."""
    first, second = machine("a"), machine("b")
    for text in ("one", "two"):
        (first.root / "studies").mkdir(parents=True, exist_ok=True)
        (first.root / "studies" / "closed").write_text(text)
        first.share(first.root / "studies" / "closed")
        second.bring(second.root / "studies", anew=True)
        assert (second.root / "studies" / "closed").read_text() == text
    second.bring(second.root / "nothing")


def test_openings_of_two_machines_stand_side_by_side(machine: Callable[[str], RemoteStore]) -> None:
    """Would catch a machine whose stale copy replaces what another one recorded."""
    first, second = (
        Opening("s", f"2026-01-0{day}T00:00:00.000000+00:00", "report", "p", {"d": "f"}, ["n"], [0])
        for day in (1, 2)
    )
    one, two = machine("one"), machine("two")
    before = len(read_openings(two))
    record(one, first)
    record(two, second)
    for name in ("one", "two", "three"):
        found = read_openings(machine(name))
        assert len(found) == before + 2
        assert first in found
        assert second in found


def test_a_full_cache_drops_what_nobody_uses(
    machine: Callable[[str], RemoteStore], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Would catch a cache that grows without end, or one that takes files from under a job."""
    store = machine("a")
    put(store)
    put(store, {"big": b"b" * 4000}, OTHER)
    cached = Store(store.root)
    store.release()
    store.here(KIND, OTHER)  # in use from here
    monkeypatch.setenv("MGDM_CACHE_GB", "0.000001")
    Cache(store.root).trim()
    assert not cached.is_done(KIND, KEY)
    assert cached.is_done(KIND, OTHER), "in use"
    assert content(store.here(KIND, KEY)) == PAYLOAD, "it is fetched again"
    store.release()
    Cache(store.root).trim()
    assert list(cached.done()) == []
    assert len(list(store.done())) == 2, "the bucket keeps all"


@pytest.mark.parametrize("marker", [b"", b"{", b"[]", b'{"upload": "x"}'])
def test_a_marker_that_says_nothing_is_damage(
    machine: Callable[[str], RemoteStore], marker: bytes
) -> None:
    """Would catch one spoilt object that stops every study of a bucket."""
    store = machine("a")
    put(store)
    store.objects.write(f"artifacts/{KIND}/{KEY}/done", marker)
    store.objects.write("artifacts/README", b"somebody else's")
    store.objects.write("artifacts/Not A Kind/x/y", b"somebody else's")
    driver = machine("a")
    driver.sweep()
    damage = driver.verify(KIND, KEY)
    assert damage
    assert damage in driver.check(KIND, KEY)
    assert not driver.objects.exists(f"artifacts/{KIND}/{KEY}/done"), "it was moved"
    assert list(driver.done()) == []
    put(driver)
    assert content(machine("b").here(KIND, KEY)) == PAYLOAD
    assert driver.objects.exists("artifacts/README")


@pytest.mark.parametrize("name", ["../../outside", "/tmp/outside", "a/../../outside"])
def test_a_bucket_cannot_write_outside_of_the_cache(
    machine: Callable[[str], RemoteStore], monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    """Would catch names in a bucket, which others filled, that lead out of the cache."""
    store = machine("a")
    marker = {"upload": "u", "manifest": {"files": {name: {"bytes": 1, "sha256": ""}}}}
    store.objects.write(f"artifacts/{KIND}/{KEY}/done", json.dumps(marker).encode())
    with pytest.raises(OSError, match=re.escape(f"{name}'")):
        store.here(KIND, KEY)
    bad = RemoteStore(f"memory://bucket/{uuid.uuid4().hex}")
    monkeypatch.setattr(Objects, "sizes", lambda *_: {f"studies/{name}": 1, name: 1})
    with pytest.raises(OSError, match=re.escape(f"{name}'")):
        bad.bring(bad.root / "studies")


def test_a_location_is_a_folder_or_a_url(tmp_path: Path) -> None:
    assert type(open_store(tmp_path)) is Store
    assert open_store("memory://bucket/x").location == "memory://bucket/x"
    with pytest.raises(ValueError, match=r"'\.\./up'"):
        open_store("memory://bucket/x").folder("encode", "../up")
