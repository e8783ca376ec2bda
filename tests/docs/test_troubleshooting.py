"""docs/troubleshooting.md: each message is provoked, or still stands in the code."""

from __future__ import annotations

import re
import signal
import zipfile
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from mgdm_ray import study
from tests.conftest import ROOT

PAGE = ROOT / "docs" / "troubleshooting.md"
MESSAGE = re.compile(r"<!-- (message|in): (\S+) -->\n```text\n(.*?)\n```", re.DOTALL)
FOUND = MESSAGE.findall(PAGE.read_text(encoding="utf-8"))
STUDY = "name: mine\ndatasets: [phantom-ultrasound]\nnetworks: [resnet18]\n"
MINE = "studies/mine.yaml"


@pytest.fixture
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """A folder with a study file, in which commands run in this process."""
    handlers = {n: signal.getsignal(n) for n in (signal.SIGINT, signal.SIGTERM)}
    (tmp_path / "studies").mkdir()
    (tmp_path / MINE).write_text(STUDY)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("MGDM_DATA_DIR", str(tmp_path))
    yield tmp_path
    for number, handler in handlers.items():
        signal.signal(number, handler)


def planned(*values: str) -> list[str]:
    """The command that plans the study with other values."""
    return [MINE, "--plan", *(word for value in values for word in ("--set", value))]


def own(path: str) -> list[str]:
    """The command that runs the study on data of the reader's."""
    dataset = f"{{name: mine, path: {path}, task: binary, size: 32}}"
    return [MINE, "--set", f"datasets=[{dataset}]"]


def twice(here: Path) -> list[str]:
    (here / MINE).write_text("name: a\nname: b\n")
    return planned()


def broken_npz(here: Path) -> list[str]:
    (here / "mine.npz").write_bytes(b"PK")
    return own("mine.npz")


def npz(here: Path, labels: np.ndarray, size: int) -> list[str]:
    images = np.zeros((len(labels), size, size), np.uint8)
    arrays = {f"{split}_images": images for split in ("train", "val", "test")}
    arrays |= {f"{split}_labels": labels for split in ("train", "val", "test")}
    np.savez(here / "mine.npz", **arrays)
    assert zipfile.is_zipfile(here / "mine.npz")
    return own("mine.npz")


def folder(here: Path, *names: str) -> Path:
    """``scans`` with small pictures at these places."""
    root = here / "scans"
    for number, name in enumerate(names):
        path = root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        pixels = np.random.default_rng(number).integers(0, 255, (8, 8), dtype=np.uint8)
        Image.fromarray(pixels).save(path)
    return root


def loose(here: Path) -> list[str]:
    folder(here, "a/1.png", "b/2.png", "3.png")
    return own("scans")


def unreadable(here: Path) -> list[str]:
    folder(here, *(f"{c}/{i}.png" for c in "ab" for i in range(20)))
    (here / "scans" / "a" / "0.png").write_bytes(b"no picture")
    return own("scans")


def two_splits(here: Path) -> list[str]:
    places = [(c, i) for c in "ab" for i in range(9)]
    folder(here, *(f"{c}/{i}.png" for c, i in places))
    rows = [f"{c}/{i}.png,{c},{('train', 'val', 'test')[i % 3]},{c}{i}" for c, i in places]
    rows[:2] = ["a/0.png,a,train,same", "a/1.png,a,val,same"]
    (here / "scans" / "all.csv").write_text("\n".join(["path,label,split,group", *rows]))
    return own("scans/all.csv")


def a_file(here: Path) -> list[str]:
    (here / "taken").touch()
    return [MINE, "--storage", str(here / "taken")]


PROVOKED: dict[str, Callable[[Path], list[str]]] = {
    "no_file": lambda _: ["studies/mien.yaml", "--plan"],
    "unknown_network": lambda _: planned("networks=[resnet19]"),
    "unknown_key": lambda _: planned("denoisr.steps=3"),
    "out_of_range": lambda _: planned("denoiser.steps=0"),
    "twice": twice,
    "size": lambda _: planned("image_size=30"),
    "judge": lambda _: planned("networks=[resnet34]"),
    "dropout": lambda _: planned("setting.measurement=mutual_information"),
    "no_data": lambda _: own("scans.npz"),
    "broken_npz": broken_npz,
    "pickled": lambda here: npz(here, np.array([0, 1] * 5, dtype=object), 32),
    "other_size": lambda here: npz(here, np.array([0, 1] * 5), 28),
    "loose": loose,
    "unreadable": unreadable,
    "two_splits": two_splits,
    "storage": a_file,
    "credentials": lambda _: [MINE, "--plan", "--storage", "s3://me:secret@bucket/x"],
    "tracking": lambda _: planned("tracking.uri=http://me:secret@host"),
    "nothing_here": lambda here: [MINE, "--report-only", "--storage", str(here / "empty")],
    "warm_start": lambda _: planned("search.warm_start=pilot"),
}


def pattern(message: str) -> re.Pattern[str]:
    """``...`` may be anything; the rest must come as it is."""
    return re.compile(".*".join(re.escape(part) for part in message.split("...")), re.DOTALL)


@pytest.mark.parametrize(("name", "message"), [(n, m) for kind, n, m in FOUND if kind == "message"])
def test_the_message_comes(
    name: str, message: str, here: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Would catch a page that quotes what the program no longer says, or a traceback instead."""
    code = study.main(PROVOKED[name](here))
    printed = capsys.readouterr()
    assert code == study.WRONG_INPUT, printed
    assert pattern(message).search(printed.err), printed.err
    assert "Traceback" not in printed.err


@pytest.mark.parametrize(("path", "message"), [(n, m) for kind, n, m in FOUND if kind == "in"])
def test_the_message_stands_in_the_code(path: str, message: str) -> None:
    """The same for messages of what cannot be provoked here, such as a full disk."""
    # A message that is broken over lines of the source is one text again without the quotes.
    source = re.sub(r'"\s*f?"', "", (ROOT / path).read_text(encoding="utf-8"))
    parts = [part for part in message.split("...") if part.strip(" ,;.()")]
    assert all(part in re.sub(r"\{[^{}]*\}", "", source) for part in parts), parts


def test_every_provocation_is_on_the_page() -> None:
    """Would catch a message whose comment is misspelt, which then is not tested."""
    quoted = [name for kind, name, _ in FOUND if kind == "message"]
    assert sorted(quoted) == sorted(PROVOKED)
    assert PAGE.read_text(encoding="utf-8").count("```text") == len(FOUND)
