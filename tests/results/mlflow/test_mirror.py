"""Logging in the background, with a tracker that only remembers."""

from __future__ import annotations

import threading
from typing import cast

import pytest

from mgdm_ray.results.mlflow import Mirror, Tracker
from mgdm_ray.storage.records import Record

RECORDS = [Record(str(number), "decode", "done") for number in range(5)]


class Fake:
    def __init__(self, fails_at: str = "") -> None:
        self.logged: list[str] = []
        self.threads: set[int] = set()
        self.interrupted, self.fails_at = False, fails_at
        self.go = threading.Event()

    def log(self, record: Record, _: object) -> None:
        self.go.wait(10)
        if record.key == self.fails_at:
            raise RuntimeError("a bug")
        self.logged.append(record.key)
        self.threads.add(threading.get_ident())

    def interrupt(self) -> None:
        self.interrupted = True


def mirror(fake: Fake) -> Mirror:
    return Mirror(lambda: cast("Tracker", fake))


def test_leaving_waits_until_all_is_logged() -> None:
    """Would catch records that are lost, out of order, or logged in the study's own thread."""
    fake = Fake()
    with mirror(fake) as logs:
        for record in RECORDS:
            logs.log(record)
        fake.go.set()
    assert fake.logged == [record.key for record in RECORDS]
    assert threading.get_ident() not in fake.threads
    assert not fake.interrupted


def test_an_interrupted_study_drops_what_waits() -> None:
    """Would catch Ctrl-C that waits for hundreds of records, or a run that stays RUNNING."""
    fake = Fake()

    def stop() -> None:
        with mirror(fake) as logs:
            for record in RECORDS:
                logs.log(record)
            threading.Timer(0.2, fake.go.set).start()
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        stop()
    assert fake.interrupted
    assert len(fake.logged) <= 1


def test_a_bug_is_raised_at_the_end() -> None:
    """Would catch an exception that dies with its thread."""
    fake = Fake(fails_at="2")
    fake.go.set()
    logs = mirror(fake)
    for record in RECORDS:
        logs.log(record)
    with pytest.raises(RuntimeError, match="a bug"):
        logs.__exit__(None)
    assert fake.logged == ["0", "1"]


def test_nothing_is_logged_without_a_connection() -> None:
    """Would catch a second driver that writes to MLflow, too."""
    with Mirror(None) as logs:
        logs.log(RECORDS[0])
