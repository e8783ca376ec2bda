"""Whether NVIDIA's driver and GPUs of this machine suffice for torch, as nvidia-smi describes them.

Standard library only, for cluster/node.sh runs it before any package is installed:
``python gpu_driver.py CUDA``, exit code 0 or 1.
"""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

DRIVERS = {"12": "525.60.13", "13": "580.65.06"}
"""CUDA's major version -> the oldest Linux driver it runs on (NVIDIA's CUDA release notes)."""
CAPABILITIES = {"13": (7, 5)}
"""CUDA's major version -> the oldest compute capability; 13 dropped Maxwell, Pascal and Volta."""
PCI = Path("/sys/bus/pci/devices")
SMI = ("nvidia-smi", "--format=csv,noheader")
ANSWERS_IN_S = 60.0


class DriverError(Exception):
    """There are GPUs, but nvidia-smi does not list them."""


class Gpu(NamedTuple):
    name: str
    driver: str
    capability: tuple[int, int] | None
    """None where nvidia-smi is too old to say."""


def listed(devices: Path = PCI) -> list[Gpu]:
    """The GPUs that nvidia-smi lists; none if there is neither a GPU nor the tool.

    Raises DriverError.
    """
    present = on_bus(devices)
    try:
        lines = _ask("name,driver_version,compute_cap") or _ask("name,driver_version")
    except subprocess.TimeoutExpired:
        raise DriverError(f"nvidia-smi does not answer within {ANSWERS_IN_S:.0f} s") from None
    if lines is None and present:
        count = f"{present} NVIDIA GPU{'' if present == 1 else 's'}"
        raise DriverError(
            f"{count} on the PCI bus, but nvidia-smi lists none: install NVIDIA's driver"
        )
    return [_parsed(line) for line in lines or ()]


def on_bus(devices: Path) -> int:
    """NVIDIA's display controllers (class 03), with or without a driver."""
    found = 0
    for device in devices.glob("*"):
        try:
            vendor = (device / "vendor").read_text(encoding="ascii").strip()
            kind = (device / "class").read_text(encoding="ascii").strip()
        except OSError:
            continue
        found += vendor == "0x10de" and kind.startswith("0x03")
    return found


def faults(
    gpus: Sequence[Gpu], cuda: str, least: tuple[int, int] | None = None, *, driver: bool = True
) -> list[str]:
    """Why torch for ``cuda`` (such as ``13.0``) cannot use these GPUs, one sentence each.

    ``least``: the oldest compute capability of this torch, where it is known. ``driver``: whether
    the driver is in question.
    """
    major = cuda.partition(".")[0]
    needed, least = DRIVERS.get(major), least or CAPABILITIES.get(major)
    found = []
    for gpu in gpus:
        if driver and needed and _numbers(gpu.driver) < _numbers(needed):
            found.append(
                f"driver {gpu.driver} of {gpu.name} is older than {needed}, which torch for CUDA "
                f"{cuda} needs"
            )
        if least and gpu.capability and gpu.capability < least:
            shown, oldest = (".".join(map(str, c)) for c in (gpu.capability, least))
            found.append(
                f"{gpu.name} has compute capability {shown}; torch for CUDA {cuda} needs {oldest} "
                "or higher"
            )
    return list(dict.fromkeys(found))


def _ask(fields: str) -> list[str] | None:
    """One line a GPU; None if nvidia-smi fails or is absent. Raises TimeoutExpired."""
    try:
        run = subprocess.run(
            [*SMI, f"--query-gpu={fields}"],
            capture_output=True,
            text=True,
            timeout=ANSWERS_IN_S,
            check=False,
        )
    except OSError:
        return None
    return run.stdout.strip().splitlines() if run.returncode == 0 else None


def _parsed(line: str) -> Gpu:
    # A name may contain a comma, the other fields do not.
    fields = [field.strip() for field in line.rsplit(",", 2)]
    if len(fields) == 2:
        return Gpu(fields[0], fields[1], None)
    numbers = _numbers(fields[2])
    return Gpu(fields[0], fields[1], (numbers[0], numbers[1]) if len(numbers) == 2 else None)


def _numbers(version: str) -> tuple[int, ...]:
    return tuple(int(part) for part in version.split(".") if part.isdigit())


def main(argv: Sequence[str]) -> int:
    """0: no GPU, or all can be used; 1: a GPU cannot be used; 2: wrong arguments."""
    if len(argv) != 1:
        print("usage: gpu_driver.py CUDA, such as 13.0", file=sys.stderr)
        return 2
    try:
        gpus = listed()
        found = faults(gpus, argv[0])
    except DriverError as error:
        gpus, found = [], [str(error)]
    for fault in found:
        print(f"gpu: {fault}", file=sys.stderr)
    if not found and gpus:
        print(f"gpu: {len(gpus)} x {gpus[0].name}, driver {gpus[0].driver}")
    return int(bool(found))


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
