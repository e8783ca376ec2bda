"""Faults between the code under test and the disk: at every call, of every sort.

``Disk`` stands in for the calls by which Python changes a disk and lets one of them fail.
``every_fault`` runs an operation in a child process once per call and sort of fault;
``power_failures`` gives what a disk may hold after each call when the power goes.
"""

from __future__ import annotations

import builtins
import contextlib
import errno
import io
import os
import signal
import traceback
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any
from unittest import mock

KILL, TORN, FULL, ERROR, STAYS_FULL = "kill", "torn", "ENOSPC", "EIO", "ENOSPC from then on"
SORTS = (KILL, TORN, FULL, ERROR, STAYS_FULL)
GROWING = ("create", "write", "mkdir", "link", "library")
"""Calls that a full disk refuses; renames and removals go on working."""

ENDED, REFUSED, BROKEN = 0, 3, 1
"""How a child may end: it went well, it raised what the disk raised, or anything else."""


@dataclass(frozen=True)
class Call:
    """One change of the disk."""

    name: str
    path: str
    other: str = ""
    data: bytes = b""
    offset: int = 0


@dataclass(frozen=True)
class Fault:
    at: int
    sort: str

    def hits(self, number: int, call: Call) -> bool:
        if self.sort == STAYS_FULL:
            return number >= self.at and call.name in GROWING
        return number == self.at


class _File(io.FileIO):
    """A raw file whose writes pass through ``disk``."""

    def __init__(self, path: str, mode: str, disk: Disk) -> None:
        super().__init__(path, mode)
        self.disk, self.where, self.appends = disk, path, "a" in mode

    def write(self, data: Any) -> int:
        content = bytes(data)
        offset = os.fstat(self.fileno()).st_size if self.appends else self.tell()
        super_write = super().write
        self.disk.change(
            Call("write", self.where, data=content, offset=offset),
            lambda: super_write(content),
            lambda: super_write(content[: len(content) // 2]),
        )
        return len(content)


class Disk:
    """Notes every change below ``root`` in ``calls``, and strikes with ``fault``."""

    def __init__(self, root: Path, fault: Fault | None = None) -> None:
        self.root, self.fault = root, fault
        self.calls: list[Call] = []
        self.real: dict[str, Any] = {}

    def change(
        self, call: Call, act: Callable[[], Any], half: Callable[[], Any] | None = None
    ) -> Any:
        number = len(self.calls)
        self.calls.append(call)
        if self.fault is not None and self.fault.hits(number, call):
            self._strike(self.fault.sort, call, half)
        try:
            return act()
        except OSError:
            self.calls[number] = Call("refused", call.path)  # as mkdir where the folder is there
            raise

    def _strike(self, sort: str, call: Call, half: Callable[[], Any] | None) -> None:
        if half is not None and sort not in (KILL, ERROR):
            half()
        if sort in (KILL, TORN):
            os.kill(os.getpid(), signal.SIGKILL)
        number = errno.EIO if sort == ERROR else errno.ENOSPC
        raise OSError(number, os.strerror(number), call.path)

    def _inside(self, path: Any, dir_fd: int | None = None) -> str | None:
        """The full path, or None for one that is not below ``root``."""
        if isinstance(path, int):
            path = os.readlink(f"/proc/self/fd/{path}")
        elif dir_fd is not None:
            path = os.path.join(os.readlink(f"/proc/self/fd/{dir_fd}"), os.fspath(path))
        full = os.path.abspath(os.fspath(path))
        return full if Path(full).is_relative_to(self.root) else None

    # --- stand-ins, named like what they stand in for ------------------------------------

    def one_path(self, name: str) -> Callable[..., Any]:
        real = self.real[name]

        def call(path: Any, *rest: Any, dir_fd: int | None = None) -> Any:
            full = self._inside(path, dir_fd)
            given = {} if dir_fd is None else {"dir_fd": dir_fd}
            if full is None:
                return real(path, *rest, **given)
            plain = "unlink" if name == "remove" else name
            return self.change(Call(plain, full), lambda: real(path, *rest, **given))

        return call

    def two_paths(self, name: str) -> Callable[..., Any]:
        real = self.real[name]

        def call(source: Any, target: Any) -> Any:
            from_, to = self._inside(source), self._inside(target)
            if from_ is None or to is None:
                return real(source, target)
            plain = "rename" if name == "replace" else name
            return self.change(Call(plain, from_, to), lambda: real(source, target))

        return call

    def fsync(self, descriptor: int) -> None:
        full = self._inside(descriptor)
        if full is None:
            self.real["fsync"](descriptor)
        else:
            self.change(Call("fsync", full), lambda: self.real["fsync"](descriptor))

    def open(
        self,
        file: Any,
        mode: str = "r",
        buffering: int = -1,
        encoding: str | None = None,
        errors: str | None = None,
        newline: str | None = None,
        closefd: bool = True,
        opener: Any = None,
    ) -> Any:
        full = None if isinstance(file, int) else self._inside(file)
        if full is None or not set(mode) & set("wax+"):
            return self.real["io.open"](
                file, mode, buffering, encoding, errors, newline, closefd, opener
            )
        plain = mode.replace("b", "").replace("t", "")
        note = Call("create", full, other="truncate" if "w" in mode else "")
        raw = self.change(note, lambda: _File(full, plain, self))
        buffered = io.BufferedRandom(raw) if "+" in mode else io.BufferedWriter(raw)
        return buffered if "b" in mode else io.TextIOWrapper(buffered, encoding, errors, newline)

    def library(self, save: Callable[[Any, Path], None]) -> Callable[[Any, Path], None]:
        """A library's function that writes a whole file outside Python: one call, may be torn."""

        def call(content: Any, path: Path) -> None:
            def half() -> None:
                save(content, path)
                os.truncate(path, path.stat().st_size // 2)

            self.change(Call("library", str(path)), lambda: save(content, path), half)
            self.calls[-1] = Call("library", str(path), data=path.read_bytes())

        return call

    @contextlib.contextmanager
    def installed(self, *libraries: tuple[Any, str]) -> Iterator[Disk]:
        """Stand between Python and the disk; ``libraries`` are (module, function that saves)."""
        one = ("mkdir", "unlink", "remove", "rmdir")
        two = ("rename", "replace", "link")
        self.real = {name: getattr(os, name) for name in (*one, *two, "fsync")}
        self.real["io.open"] = io.open
        with contextlib.ExitStack() as stack:
            for name in one:
                stack.enter_context(mock.patch.object(os, name, self.one_path(name)))
            for name in two:
                stack.enter_context(mock.patch.object(os, name, self.two_paths(name)))
            stack.enter_context(mock.patch.object(os, "fsync", self.fsync))
            stack.enter_context(mock.patch.object(io, "open", self.open))
            stack.enter_context(mock.patch.object(builtins, "open", self.open))
            for module, name in libraries:
                saver = self.library(getattr(module, name))
                stack.enter_context(mock.patch.object(module, name, saver))
            yield self


# --- a process that dies, a disk that refuses ---------------------------------------------


@dataclass(frozen=True)
class Operation:
    """What is done to a folder, and how its outcome is judged.

    ``prepare`` makes what is there before; ``act`` is what faults hit; ``readable`` asserts that
    readers see nothing or the whole; ``complete`` asserts that all is there.
    """

    name: str
    prepare: Callable[[Path], None]
    act: Callable[[Path], None]
    readable: Callable[[Path], None]
    complete: Callable[[Path], None]
    libraries: tuple[tuple[Any, str], ...] = ()


def calls_of(operation: Operation, root: Path) -> list[Call]:
    """The changes that ``operation`` makes when nothing goes wrong."""
    operation.prepare(root)
    with Disk(root).installed(*operation.libraries) as disk:
        operation.act(root)
    operation.complete(root)
    return disk.calls


def every_fault(operation: Operation, folder: Path) -> Iterator[tuple[str, Path]]:
    """A folder per fault, each as the operation left it that met the fault, and the fault's name.

    Raises AssertionError where the process ended in another way than the fault explains.
    """
    calls = calls_of(operation, folder / "counted")
    for sort in SORTS:
        for at, call in enumerate(calls):
            if sort == TORN and call.name not in ("write", "library"):
                continue  # nothing that could be torn: the same as KILL
            if sort == STAYS_FULL and call.name not in GROWING:
                continue  # the same as from the next growing call on
            root = folder / f"{sort.split()[-1]}-{at}"
            operation.prepare(root)
            name = f"{operation.name}: {sort} at call {at}, {call.name} {Path(call.path).name}"
            status = _in_child(operation, root, Fault(at, sort))
            if sort in (KILL, TORN):
                assert os.WIFSIGNALED(status), name
                assert os.WTERMSIG(status) == signal.SIGKILL, name
            else:
                assert os.WIFEXITED(status), name
                assert os.WEXITSTATUS(status) in (ENDED, REFUSED), name
            yield name, root


def _in_child(operation: Operation, root: Path, fault: Fault) -> int:
    child = os.fork()
    if child:
        return os.waitpid(child, 0)[1]
    code = BROKEN
    try:
        with Disk(root, fault).installed(*operation.libraries):
            operation.act(root)
        code = ENDED
    except OSError as error:
        wanted = errno.EIO if fault.sort == ERROR else errno.ENOSPC
        code = REFUSED if error.errno == wanted else BROKEN
        if code == BROKEN:
            os.write(2, traceback.format_exc().encode())
    except BaseException:  # noqa: BLE001 - a child must never return into the test
        os.write(2, traceback.format_exc().encode())
    finally:
        os._exit(code)


# --- a power failure ----------------------------------------------------------------------


@dataclass
class _Node:
    """A file or folder: as programs see it, and as the disk is sure to have it."""

    is_folder: bool
    data: bytes = b""
    sure_data: bytes = b""
    names: dict[str, _Node] = field(default_factory=dict)
    sure_names: dict[str, _Node] = field(default_factory=dict)

    @staticmethod
    def of(path: Path) -> _Node:
        """What lies there, all of it on the disk."""
        if path.is_file():
            content = path.read_bytes()
            return _Node(False, content, content)
        names = {child.name: _Node.of(child) for child in path.iterdir()}
        return _Node(True, names=names, sure_names=dict(names))


LOST, NAMES_KEPT, HALF_KEPT = "lost", "names kept, content lost", "names kept, half the content"


class _Model:
    """A disk that keeps for sure only what was forced to it."""

    def __init__(self, root: Path) -> None:
        self.root, self.top = root, _Node.of(root)

    def find(self, path: str) -> _Node:
        node = self.top
        for part in Path(path).relative_to(self.root).parts:
            node = node.names[part]
        return node

    def apply(self, call: Call) -> None:
        path = Path(call.path)
        if call.name == "refused":
            return
        if call.name == "fsync":
            node = self.find(call.path)
            node.sure_data, node.sure_names = node.data, dict(node.names)
            return
        names = self.find(str(path.parent)).names
        if call.name == "mkdir":
            names.setdefault(path.name, _Node(True))
        elif call.name in ("create", "library"):
            node = names.setdefault(path.name, _Node(False))
            node.data = call.data if call.other or call.name == "library" else node.data
        elif call.name == "write":
            node = names[path.name]
            after = node.data[call.offset + len(call.data) :]
            node.data = node.data[: call.offset] + call.data + after
        elif call.name in ("unlink", "rmdir"):
            names.pop(path.name, None)
        else:
            other = Path(call.other)
            moved = names.pop(path.name) if call.name == "rename" else names[path.name]
            self.find(str(other.parent)).names[other.name] = moved

    def write(self, into: Path, kept: str) -> None:
        _write(self.top, into, kept)


def _write(node: _Node, path: Path, kept: str) -> None:
    if node.is_folder:
        path.mkdir()
        for name, child in (node.sure_names if kept == LOST else node.names).items():
            _write(child, path / name, kept)
    elif kept == HALF_KEPT and node.data != node.sure_data:
        path.write_bytes(node.data[: len(node.data) // 2])
    else:
        path.write_bytes(node.sure_data)


def power_failures(operation: Operation, folder: Path) -> Iterator[tuple[str, bool, Path]]:
    """(name, whether the operation had ended, what the disk holds) after each of its calls.

    Three disks each: one that kept only what was forced to it; one that kept all names, but of
    files only the content that was forced; and one that kept half of the other content, too.
    """
    root = folder / "counted"
    operation.prepare(root)
    model = _Model(root)
    with Disk(root).installed(*operation.libraries) as disk:
        operation.act(root)
    for at, call in enumerate(disk.calls):
        model.apply(call)
        for kept in (LOST, NAMES_KEPT, HALF_KEPT):
            into = folder / f"{at}-{len(kept)}"
            model.write(into, kept)
            name = f"{operation.name}: power failure after call {at} ({call.name}), {kept}"
            yield name, at == len(disk.calls) - 1, into
