"""Locks between processes: one holder, none that outlives it."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import psutil
import pytest

from mgdm_ray.storage.locks import Locks

HOLD = """
import sys, time
from mgdm_ray.storage.locks import Locks
claims = Locks(sys.argv[1])
print(claims.take("decode", "k"), flush=True)
time.sleep(600)
"""
HOLD_WITH_CHILD = """
import subprocess, sys, time
from mgdm_ray.storage.locks import Locks
claims = Locks(sys.argv[1])
assert claims.take("decode", "k")
print(subprocess.Popen(["sleep", "600"]).pid, flush=True)
time.sleep(600)
"""
RACE = """
import sys
from pathlib import Path
from mgdm_ray.storage.locks import Locks
claims, folder = Locks(sys.argv[1]), Path(sys.argv[1])
for number in range(300):
    while not claims.take("decode", "k"):
        pass
    # Two holders at once would find this file there, or miss it.
    (folder / "inside").open("x").close()
    (folder / "inside").unlink()
    claims.release("decode", "k")
"""


def other(code: str, folder: Path) -> subprocess.Popen[str]:
    return subprocess.Popen(
        [sys.executable, "-c", code, str(folder)], stdout=subprocess.PIPE, text=True
    )


def test_a_claim_has_one_holder(tmp_path: Path) -> None:
    """Would catch a job that two drivers compute, and a claim that is never free again."""
    mine = Locks(tmp_path)
    assert mine.take("decode", "k")
    assert mine.take("decode", "k"), "it is ours already"
    theirs = Locks(tmp_path)  # another open file: the system tells them apart
    assert not theirs.take("decode", "k")
    assert theirs.take("decode", "other")
    mine.release("decode", "k")
    assert theirs.take("decode", "k")
    assert not mine.take("decode", "k")
    theirs.release_all()
    assert mine.take("decode", "k")
    assert mine.take("decode", "other")
    mine.release_all()
    assert list((tmp_path / "claims").iterdir()) == []


def test_a_dead_holders_claim_is_free(tmp_path: Path) -> None:
    """Would catch claims that need their holder, or a clock, to end."""
    process = other(HOLD, tmp_path)
    try:
        assert process.stdout is not None
        assert process.stdout.readline().strip() == "True"
        mine = Locks(tmp_path)
        assert not mine.take("decode", "k")
        assert mine.holder("decode", "k").startswith(f"process {process.pid} on ")
        process.kill()
        process.wait()
        assert mine.take("decode", "k")
    finally:
        process.kill()


def test_a_claim_does_not_pass_on_to_children(tmp_path: Path) -> None:
    """Would catch a claim that Ray's own processes keep alive after the driver's death."""
    process = other(HOLD_WITH_CHILD, tmp_path)
    assert process.stdout is not None
    child = int(process.stdout.readline())
    try:
        process.kill()
        process.wait()
        assert psutil.pid_exists(child)
        assert Locks(tmp_path).take("decode", "k")
    finally:
        os.kill(child, signal.SIGKILL)


@pytest.mark.slow
def test_holders_that_come_and_go_never_meet(tmp_path: Path) -> None:
    """Would catch the race between removing a claim's file and opening it."""
    with ThreadPoolExecutor(4) as pool:
        codes = list(pool.map(lambda _: other(RACE, tmp_path).wait(timeout=120), range(4)))
    assert codes == [0, 0, 0, 0]
