"""Locks that die with their holder, and files replaced in one step."""

from __future__ import annotations

import multiprocessing
import os
import signal
import time
from pathlib import Path
from typing import Any

import pytest

from mgdm_ray.storage.files import held, replacing

fork = multiprocessing.get_context("fork")


def _go_in_and_out(lock: Path, inside: Path, times: int) -> None:
    for _ in range(times):
        with held(lock):
            inside.mkdir()  # FileExistsError where another one is inside
            inside.rmdir()


def test_a_lock_is_held_by_one_at_a_time(tmp_path: Path) -> None:
    """Would catch a process that holds a lock whose file another one has just taken away."""
    arguments = (tmp_path / "x.lock", tmp_path / "inside", 1000)
    processes = [fork.Process(target=_go_in_and_out, args=arguments) for _ in range(4)]
    for process in processes:
        process.start()
    for process in processes:
        process.join(120)
    assert [process.exitcode for process in processes] == [0] * 4
    assert list(tmp_path.iterdir()) == []


def _hold_for_ever(lock: Path, ready: Any) -> None:
    with held(lock):
        ready.set()
        time.sleep(600)


def test_a_killed_holder_gives_the_lock_back(tmp_path: Path) -> None:
    """Would catch a lock that outlives its holder, or that a second one gets while it lives."""
    lock, ready = tmp_path / "x.lock", fork.Event()
    process = fork.Process(target=_hold_for_ever, args=(lock, ready))
    process.start()
    assert ready.wait(60)
    with pytest.raises(BlockingIOError), held(lock, wait=False):
        pass
    assert process.pid is not None
    os.kill(process.pid, signal.SIGKILL)
    process.join()
    with held(lock, wait=False):
        assert lock.exists()
    assert not lock.exists()


def test_an_error_while_replacing_leaves_the_old_file(tmp_path: Path) -> None:
    """Would catch a half-written file in the place of a good one, and its temporary."""
    path = tmp_path / "a.json"
    path.write_text("old")

    def fail() -> None:
        with replacing(path) as temporary:
            temporary.write_text("half")
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        fail()
    assert path.read_text() == "old"
    assert list(tmp_path.iterdir()) == [path]
    with replacing(path) as temporary:
        temporary.write_text("new")
    assert path.read_text() == "new"
    assert list(tmp_path.iterdir()) == [path]
