"""Environment variables for Ray, which reads them when it is imported; cores and GPUs here."""

from __future__ import annotations

import itertools
import os
import secrets
import time
from pathlib import Path

QUIET = {
    "RAY_USAGE_STATS_ENABLED": "0",
    "RAY_TRAIN_ENABLE_PRINT_PATCH": "0",
    "RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO": "0",
    "TUNE_DISABLE_AUTO_CALLBACK_LOGGERS": "1",
    # By default training fails if it waits for workers for a minute. That it fits is checked.
    "RAY_TRAIN_WORKER_GROUP_START_TIMEOUT_S": "1000000",
    # By default the end of training is noticed seconds late.
    "RAY_TRAIN_HEALTH_CHECK_INTERVAL_S": "0.5",
    # By default a task killed for memory is retried without end at the same size.
    "RAY_task_oom_retries": "0",
    # A warning about the number of processes: Train and Tune need them.
    "RAY_DEDUP_LOGS_SKIP_REGEX": "worker processes have been started",
    # Freed memory stays in the process, up to 1 GiB, in huge pages: by default each step of a
    # network has thousands of page faults. Read by glibc >= 2.35 when a process starts.
    "GLIBC_TUNABLES": (
        "glibc.malloc.hugetlb=1:glibc.malloc.mmap_max=0:glibc.malloc.trim_threshold=1073741824"
    ),
}
"""Also for the workers of an existing cluster."""


def cores() -> int:
    """Cores this process may use."""
    if hasattr(os, "sched_getaffinity"):  # not on macOS
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


class Busy:
    """How busy all processes keep this machine's cores from now on."""

    def __init__(self) -> None:
        import psutil

        self._percent = psutil.cpu_percent
        self._percent()  # the next call counts from here, in the same thread
        self._started = time.monotonic()

    def __str__(self) -> str:
        """``2.8 min, cores busy 87 %``."""
        minutes = (time.monotonic() - self._started) / 60
        return f"{minutes:.1f} min, cores busy {self._percent():.0f} %"


def gpus() -> int:
    """NVIDIA GPUs this process may use, by their device files: without torch or a driver."""
    there = [
        p for p in Path("/dev").glob("nvidia[0-9]*") if p.name.removeprefix("nvidia").isdigit()
    ]
    visible = os.environ.get("CUDA_VISIBLE_DEVICES")
    if visible is None:
        return len(there)
    named = [name.strip() for name in visible.split(",")]
    # As in CUDA, entries after the first invalid one are ignored.
    shown = itertools.takewhile(lambda name: name and name != "-1", named)
    return min(len(there), len(list(shown)))


def nvidia_hardware() -> bool:
    """Whether this machine has an NVIDIA device, with or without a driver."""
    vendors = Path("/sys/bus/pci/devices").glob("*/vendor")
    return any(Path("/dev").glob("nvidia[0-9]*")) or any(
        vendor.read_text(encoding="ascii").strip() == "0x10de" for vendor in vendors
    )


def plugins() -> dict[str, str]:
    """Variables that workers on other machines need for the same measurements."""
    return {k: v for k, v in os.environ.items() if k == "MGDM_PLUGINS"}


class StartError(Exception):
    """Ray did not start, or has stopped; nothing is lost."""


class StudyStopped(Exception):
    """The run cannot continue with any job; finished ones are kept."""


def prepare(*, local: bool) -> None:
    """Set QUIET, and close a ``local`` cluster to other machines and users.

    It listens on 127.0.0.1 only and requires a token made for it. The token is in this process's
    environment, not in the home folder, where later clusters would read it. For an existing
    cluster the user's settings hold. Must run before ``import ray``.
    """
    for name, value in QUIET.items():
        os.environ.setdefault(name, value)
    if not local:
        return
    # This machine cannot be preempted; the watcher costs a process per training.
    os.environ.setdefault("RAY_TRAIN_ENABLE_PREEMPTION_WATCHER", "0")
    # Listens on 127.0.0.1 only, on Linux too.
    os.environ["RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER"] = "0"
    if "RAY_AUTH_MODE" not in os.environ:
        os.environ["RAY_AUTH_MODE"] = "token"
        os.environ.setdefault("RAY_AUTH_TOKEN", secrets.token_hex(32))
