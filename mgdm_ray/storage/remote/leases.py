"""Job locks in an object store, which has none of its own: leases that a dead driver loses.

```
URL/drivers/DRIVER            heartbeat: rewritten with a new value every BEAT_S
URL/claims/KIND-KEY/NUMBER    the driver that holds the lock; the highest number counts
```
Taking or taking over a lock is a create-if-absent. Clocks are not compared: a driver counts as
dead once another has watched its heartbeat stand still for LEASE_S. A driver that was only cut off
may compute a job twice; the store keeps the first result.
"""

from __future__ import annotations

import contextlib
import logging
import os
import socket
import threading
import time
import uuid

from mgdm_ray.storage.locks import Locks
from mgdm_ray.storage.remote.cache import cache_root
from mgdm_ray.storage.remote.objects import Objects, is_url

log = logging.getLogger(__name__)

BEAT_S, LEASE_S = 5.0, 30.0


def open_locks(location: str) -> Locks:
    """Return the locks of a store in a folder or at a URL."""
    return Leases(location) if is_url(location) else Locks(location)


class Leases(Locks):
    """The locks that this process holds in the object store ``url``."""

    def __init__(self, url: str) -> None:
        super().__init__(cache_root(url))
        self.objects = Objects(url)
        self.driver = uuid.uuid4().hex
        self._mine: dict[tuple[str, str], str] = {}
        self._seen: dict[str, tuple[bytes, float]] = {}
        self._beating = threading.Event()
        self._thread: threading.Thread | None = None

    def take(self, kind: str, key: str) -> bool:
        if (kind, key) in self._mine:
            return True
        self._start_beating()
        prefix = f"claims/{kind}-{key}"
        held = sorted(self.objects.sizes(prefix))
        if held and not self._is_dead(self._driver_of(held[-1])):
            return False
        number = int(held[-1].rpartition("/")[2]) + 1 if held else 0
        name = f"{prefix}/{number:08d}"
        who = f"{self.driver} process {os.getpid()} on {socket.gethostname()}"
        # If it exists, the reply to our own first attempt may have been lost.
        if not self.objects.create(name, who.encode()) and self._driver_of(name) != self.driver:
            return False
        # The old lock may have been released and taken again since we looked.
        others = {o: self._driver_of(o) for o in self.objects.sizes(prefix) if o != name}
        if any(o > name or not self._is_dead(driver) for o, driver in others.items()):
            self.objects.remove([name])
            return False
        # The dead driver's heartbeat goes too. A live one writes it again.
        self.objects.remove([*others, *(f"drivers/{d}" for d in others.values() if d)])
        self._mine[kind, key] = name
        return True

    def release(self, kind: str, key: str) -> None:
        name = self._mine.pop((kind, key), None)
        if name is not None:
            self.objects.remove([name])

    def release_all(self) -> None:
        self.objects.remove(self._mine.values())
        self._mine.clear()
        if self._thread is not None:
            self._beating.set()
            self._thread.join()
            self._thread = None
            self.objects.remove([f"drivers/{self.driver}"])

    def holder(self, kind: str, key: str) -> str:
        held = sorted(self.objects.sizes(f"claims/{kind}-{key}"))
        with contextlib.suppress(FileNotFoundError, LookupError):
            return self.objects.read(held[-1]).decode().partition(" ")[2]
        return "another process"

    def _driver_of(self, name: str) -> str:
        """Return the driver of a lock; empty if it was just released."""
        try:
            return self.objects.read(name).decode().partition(" ")[0]
        except FileNotFoundError:
            return ""

    def _is_dead(self, driver: str) -> bool:
        if not driver:
            return True
        try:
            beat = self.objects.read(f"drivers/{driver}")
        except FileNotFoundError:
            return True  # it ended regularly
        known, since = self._seen.get(driver, (b"", 0.0))
        if beat != known:
            self._seen[driver] = beat, time.monotonic()
            return False
        return time.monotonic() - since > LEASE_S

    def _start_beating(self) -> None:
        if self._thread is None:
            self._beat()
            self._beating.clear()
            self._thread = threading.Thread(target=self._keep_beating, name="lease", daemon=True)
            self._thread.start()

    def _keep_beating(self) -> None:
        while not self._beating.wait(BEAT_S):
            try:
                self._beat()
            # Any error: the next beat may succeed; if none does, others take over.
            except Exception as error:  # noqa: BLE001
                log.warning("%s does not answer: %s", self.objects.url, error)

    def _beat(self) -> None:
        self.objects.write(f"drivers/{self.driver}", uuid.uuid4().hex.encode())
