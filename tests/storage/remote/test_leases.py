"""Claims in a bucket between drivers: one holder, none that outlives its driver for long."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
import uuid
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor

import pytest

from mgdm_ray.storage.locks import Locks
from mgdm_ray.storage.remote import leases
from mgdm_ray.storage.remote.leases import Leases, open_locks
from mgdm_ray.storage.remote.objects import Objects

HOLD = """
import sys, time
from mgdm_ray.storage.remote import leases
leases.BEAT_S = 0.2
claims = leases.Leases(sys.argv[1])
print(claims.take("decode", "k"), flush=True)
time.sleep(600)
"""


@pytest.fixture
def url(bucket: str, monkeypatch: pytest.MonkeyPatch) -> str:
    monkeypatch.setattr(leases, "BEAT_S", 0.2)
    monkeypatch.setattr(leases, "LEASE_S", 2.0)
    return f"{bucket}/{uuid.uuid4().hex}"


@pytest.fixture
def holder(url: str) -> Iterator[subprocess.Popen[str]]:
    """Another process that has claimed decode k and lives."""
    process = subprocess.Popen([sys.executable, "-c", HOLD, url], stdout=subprocess.PIPE, text=True)
    assert process.stdout is not None
    assert process.stdout.readline().strip() == "True"
    yield process
    process.kill()
    process.wait()


def test_a_claim_has_one_holder(url: str) -> None:
    """Would catch a job that two drivers compute, and a claim that is never free again."""
    mine, theirs = Leases(url), Leases(url)
    assert mine.take("decode", "k")
    assert mine.take("decode", "k"), "it is ours already"
    assert not theirs.take("decode", "k")
    assert theirs.take("decode", "other")
    assert theirs.holder("decode", "k").startswith(f"process {os.getpid()} on ")
    mine.release("decode", "k")
    mine.release("decode", "k")
    assert theirs.take("decode", "k")
    assert not mine.take("decode", "k")
    theirs.release_all()
    assert mine.take("decode", "k")
    assert mine.take("decode", "other")
    mine.release_all()
    assert Objects(url).sizes("") == {}, "nothing stays behind"
    assert mine.holder("decode", "k") == "another process"


def test_an_answer_that_is_lost_leaves_the_claim_ours(
    url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Would catch a driver that takes its own claim, made at a first try, for another's, and waits
    for itself as long as it lives."""
    create = Objects.create

    def twice(self: Objects, name: str, data: bytes) -> bool:
        create(self, name, data)
        return create(self, name, data)

    monkeypatch.setattr(Objects, "create", twice)
    mine = Leases(url)
    assert mine.take("decode", "k")
    assert not Leases(url).take("decode", "k")
    mine.release_all()
    assert Objects(url).sizes("claims") == {}


def test_a_dead_drivers_claim_comes_free(url: str, holder: subprocess.Popen[str]) -> None:
    """Would catch a study that nobody can go on with, and one that is taken from the living."""
    mine = Leases(url)
    deadline = time.monotonic() + 5
    while time.monotonic() < deadline:
        assert not mine.take("decode", "k"), "its holder lives, longer than a lease is"
        time.sleep(0.3)
    holder.send_signal(signal.SIGKILL)
    holder.wait()
    killed = time.monotonic()
    while not mine.take("decode", "k"):
        assert time.monotonic() < killed + 30
        time.sleep(0.1)
    assert time.monotonic() - killed > 1.5, "not before the lease is over"
    mine.release_all()
    assert Objects(url).sizes("") == {}, "the dead one leaves nothing"


def test_one_of_many_takes_over(url: str, holder: subprocess.Popen[str]) -> None:
    """Would catch two drivers that both inherit the claim of a dead one."""
    holder.kill()
    holder.wait()
    others = [Leases(url) for _ in range(6)]
    for _ in range(3):
        won: list[Leases] = []
        with ThreadPoolExecutor(len(others)) as pool:
            while not won:
                taken = pool.map(lambda one: one.take("decode", "k"), others)
                won = [one for one, has in zip(others, taken, strict=True) if has]
        assert len(won) == 1
        won[0].release("decode", "k")
    for one in others:
        one.release_all()


def test_a_driver_that_was_away_finds_its_claim_gone_and_harms_nobody(url: str) -> None:
    """Would catch a late release that frees what another one holds by now."""
    slept = Leases(url)
    assert slept.take("decode", "k")
    slept._beating.set()  # as if the machine was asleep: no beats, but the process lives
    mine = Leases(url)
    while not mine.take("decode", "k"):
        time.sleep(0.1)
    slept.release("decode", "k")
    assert not Leases(url).take("decode", "k")
    mine.release_all()
    slept.release_all()


def test_claims_go_with_the_store(tmp_path: object) -> None:
    assert type(open_locks(str(tmp_path))) is Locks
    assert type(open_locks("memory://bucket/x")) is Leases
