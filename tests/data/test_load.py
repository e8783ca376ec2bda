"""Reading splits, checking files, downloading, and conversion to tensors and back."""

from __future__ import annotations

import hashlib
import os
import re
import threading
import zipfile
from collections.abc import Iterator
from functools import partial
from http.server import HTTPServer, SimpleHTTPRequestHandler
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from mgdm_ray.config import DatasetConfig, InputError, PhantomConfig, SyntheticConfig
from mgdm_ray.data import load
from mgdm_ray.data.info import DatasetInfo
from mgdm_ray.data.load import data_source, to_tensor, to_uint8
from mgdm_ray.data.npz import npz_path, resolve_data_dir

OWN = DatasetConfig(name="mine", path="own.npz", size=8)


def arrays(size: int = 8, classes: int = 3) -> dict[str, np.ndarray]:
    rng = np.random.default_rng(0)
    out: dict[str, np.ndarray] = {}
    for split, number in (("train", 30), ("val", 9), ("test", 12)):
        out[f"{split}_images"] = rng.integers(0, 256, (number, size, size), dtype=np.uint8)
        out[f"{split}_labels"] = (np.arange(number) % classes).astype(np.uint8)[:, None]
    return out


def save(folder: Path, changes: dict[str, Any] | None = None, drop: str | None = None) -> Path:
    content = {**arrays(), **(changes or {})}
    if drop:
        del content[drop]
    path = folder / "own.npz"
    np.savez_compressed(path, **content)
    return path


def corrupt(path: Path, member: str) -> None:
    """Overwrite some of a member's compressed bytes, leaving the directory of the zip alone."""
    with zipfile.ZipFile(path) as archive:
        item = archive.getinfo(member)
    data = bytearray(path.read_bytes())
    start = item.header_offset + 30 + len(member) + item.compress_size // 2
    data[start : start + 40] = bytes(255 - b for b in data[start : start + 40])
    path.write_bytes(data)


def test_data_dir_order(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Catches an environment variable that would overrule the study file, and a lost default."""
    monkeypatch.setenv("MGDM_DATA_DIR", str(tmp_path / "env"))
    assert resolve_data_dir(str(tmp_path)) == str(tmp_path)
    assert resolve_data_dir(None) == str(tmp_path / "env")
    monkeypatch.delenv("MGDM_DATA_DIR")
    assert resolve_data_dir(None) == str(Path.home() / ".medmnist")
    assert resolve_data_dir("s3://bucket//x") == "s3://bucket//x", "not taken for a path"


def test_file_names(tmp_path: Path) -> None:
    """Catches 128-pixel studies that read the 28-pixel file, and relative paths off the folder."""
    assert npz_path(DatasetConfig(name="breastmnist"), tmp_path) == tmp_path / "breastmnist.npz"
    big = DatasetConfig(name="breastmnist", size=128)
    assert npz_path(big, tmp_path) == tmp_path / "breastmnist_128.npz"
    assert npz_path(OWN, tmp_path) == tmp_path / "own.npz"
    absolute = DatasetConfig(name="mine", path=str(tmp_path / "x.npz"))
    assert npz_path(absolute, "/elsewhere") == tmp_path / "x.npz"


def test_split_has_the_shapes_and_values_of_the_file(tmp_path: Path) -> None:
    """Catches a lost channel axis, [N, 1] labels passed on, and mixed-up splits."""
    save(tmp_path)
    split = data_source(OWN, str(tmp_path)).load("val")
    assert split.images.shape == (9, 8, 8, 1)
    assert (split.images.dtype, split.labels.dtype) == (np.uint8, np.int64)
    np.testing.assert_array_equal(split.images[..., 0], arrays()["val_images"])
    np.testing.assert_array_equal(split.labels, np.arange(9) % 3)


def test_test_split_is_not_opened_for_train(tmp_path: Path) -> None:
    """Catches any reading of test pixels or labels while loading train or val."""
    path = save(tmp_path)
    corrupt(path, "test_images.npy")
    corrupt(path, "test_labels.npy")
    assert len(data_source(OWN, tmp_path).load("train")) == 30
    assert len(data_source(OWN, tmp_path).load("val")) == 9
    with pytest.raises(InputError, match=r"own\.npz"):
        data_source(OWN, tmp_path).load("test")


def test_train_size_is_stratified_seeded_and_nested(tmp_path: Path) -> None:
    """Catches rare classes that vanish, a choice that changes between runs, and one that applies
    to val or test."""
    labels = np.array([0] * 80 + [1] * 15 + [2] * 5)
    images = np.arange(100, dtype=np.uint8)[:, None, None].repeat(8, 1).repeat(8, 2)
    save(tmp_path, {"train_images": images, "train_labels": labels})

    def chosen(size: int) -> tuple[set[int], list[int]]:
        config = DatasetConfig(name="mine", path="own.npz", size=8, train_size=size)
        split = data_source(config, tmp_path).load("train")
        assert len(data_source(config, tmp_path).load("test")) == 12
        return set(split.images[:, 0, 0, 0].tolist()), np.bincount(split.labels).tolist()

    assert chosen(20) == chosen(20)
    assert chosen(20)[1] == [16, 3, 1]
    assert chosen(10)[1] == [8, 1, 1]
    assert chosen(10)[0] < chosen(20)[0] < chosen(100)[0]
    assert chosen(500)[1] == [80, 15, 5]


def test_fingerprint_follows_content_only(tmp_path: Path) -> None:
    """Catches keys that change with the file's date or place, or stay when pixels change."""
    assert data_source(OWN, tmp_path).fingerprint() == "absent"
    path = save(tmp_path)
    first = data_source(OWN, tmp_path).fingerprint()
    os.utime(path, (0, 0))
    assert data_source(OWN, tmp_path).fingerprint() == first
    changed = arrays()["train_images"]
    changed[3, 2, 1] ^= 1
    save(tmp_path, {"train_images": changed})
    assert data_source(OWN, tmp_path).fingerprint() != first
    phantom = DatasetConfig(name="phantom-xray")
    assert data_source(phantom, tmp_path).fingerprint() == "phantom:v1"


def test_good_file_passes(tmp_path: Path) -> None:
    """Catches a check that refuses or warns about good data."""
    save(tmp_path)
    assert data_source(OWN, tmp_path).check() == []
    assert data_source(DatasetConfig(name="phantom-fundus"), tmp_path).check() == []


U8 = np.uint8
BAD: list[tuple[str, dict[str, Any], str]] = [
    ("dtype", {"val_images": np.zeros((9, 8, 8), np.float32)}, r"val_images.*float32.*uint8"),
    (
        "channels first",
        {"train_images": np.zeros((30, 3, 8, 8), U8)},
        r"train_images.*\[30, 3, 8, 8\]",
    ),
    ("size", {"test_images": np.zeros((12, 16, 16), U8)}, r"16 x 16.*size 8.*size: 16"),
    ("not square", {"val_images": np.zeros((9, 8, 6), U8)}, r"val_images.* 8 x 6"),
    ("channels differ", {"val_images": np.zeros((9, 8, 8, 3), U8)}, r"val_images.* 3 .* 1$"),
    ("label count", {"val_labels": np.zeros(8, U8)}, r"val .*9.*8"),
    ("multi-label", {"train_labels": np.zeros((30, 14), U8)}, r"train_labels.*\[30, 14\]"),
    ("float labels", {"train_labels": np.zeros(30)}, r"train_labels.*float64"),
    ("negative label", {"val_labels": np.full(9, -1)}, r"val_labels.* -1"),
    ("label too high", {"test_labels": np.full(12, 7)}, r"test_labels.* 7.*0\.\.2"),
    ("one class", {"train_labels": np.zeros(30, U8)}, r"train_labels.* 1 .* 2 "),
    ("hole", {"train_labels": (np.arange(30) % 2 * 2).astype(U8)}, r"train_labels.* 1$"),
    ("pickled", {"val_labels": np.array([{}] * 9, dtype=object)}, "val_labels"),
    ("empty", {"val_images": np.zeros((0, 8, 8), U8)}, "val_images"),
]


@pytest.mark.parametrize(("changes", "message"), [b[1:] for b in BAD], ids=[b[0] for b in BAD])
def test_bad_arrays_are_refused(tmp_path: Path, changes: dict[str, Any], message: str) -> None:
    """Catches bad data that would only fail (or worse, not fail) inside a job."""
    path = save(tmp_path, changes)
    with pytest.raises(InputError, match=message) as caught:
        data_source(OWN, tmp_path).check()
    assert str(path) in str(caught.value)


def test_damaged_and_missing_files_are_refused(tmp_path: Path) -> None:
    """Catches a bare BadZipFile or KeyError, and flipped bits that a header check overlooks."""
    with pytest.raises(InputError, match=rf"own\.npz.*{tmp_path}.*MGDM_DATA_DIR"):
        data_source(OWN, tmp_path).check()
    path = save(tmp_path, drop="val_labels")
    with pytest.raises(InputError, match=r"'val_labels'.*test_images"):
        data_source(OWN, tmp_path).check()
    path = save(tmp_path)
    corrupt(path, "test_images.npy")
    with pytest.raises(InputError, match=r"own\.npz"):
        data_source(OWN, tmp_path).check()
    whole = save(tmp_path).read_bytes()
    for torn in (whole[: len(whole) // 2], b"", b"<html>404</html>"):
        path.write_bytes(torn)
        source = data_source(OWN, tmp_path)
        for check in (source.check, source.fingerprint):
            with pytest.raises(InputError, match=r"own\.npz"):
                check()
    path.unlink()
    path.mkdir()
    with pytest.raises(InputError, match=r"own\.npz"):
        data_source(OWN, tmp_path).check()


def test_missing_medmnist_file_says_what_to_do(tmp_path: Path) -> None:
    """Catches a message without the file's name, folder, address or the variable to set."""
    config = DatasetConfig(name="retinamnist", size=128)
    with pytest.raises(InputError) as caught:
        data_source(config, tmp_path).check()
    for part in (
        "retinamnist_128.npz",
        str(tmp_path),
        "https://zenodo.org/records/10519652/files/retinamnist_128.npz",
        "MGDM_DATA_DIR",
    ):
        assert part in str(caught.value)


def test_warnings_for_what_is_odd_but_possible(tmp_path: Path) -> None:
    """Catches silence about a class that val cannot measure and an over-large train_size."""
    save(tmp_path, {"val_labels": np.zeros(9, np.uint8)})
    config = DatasetConfig(name="mine", path="own.npz", size=8, train_size=99)
    size, absent = data_source(config, tmp_path).check()
    assert "train_size 99" in size
    assert re.search(r"val .*1, 2", absent)


def test_train_size_below_the_number_of_classes(tmp_path: Path) -> None:
    """Catches a stratified choice that would leave a class without image."""
    save(tmp_path, {"train_labels": np.arange(30) % 12})
    config = DatasetConfig(name="mine", path="own.npz", size=8, train_size=10)
    source = data_source(config, tmp_path)
    for call in (source.check, partial(source.load, "train")):
        with pytest.raises(InputError, match=r"train_size 10.*12"):
            call()


@pytest.fixture
def server(tmp_path: Path) -> Iterator[tuple[str, Path]]:
    folder = tmp_path / "server"
    folder.mkdir()

    class Quiet(SimpleHTTPRequestHandler):
        def log_message(self, format: str, *args: Any) -> None:
            pass

    http = HTTPServer(("127.0.0.1", 0), partial(Quiet, directory=str(folder)))
    thread = threading.Thread(target=http.serve_forever, daemon=True)
    thread.start()
    yield f"http://127.0.0.1:{http.server_port}", folder
    http.shutdown()
    http.server_close()
    thread.join()


def test_download(
    tmp_path: Path, server: tuple[str, Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Catches half a file, a wrong md5 or left-over temporary files in the data folder."""
    monkeypatch.setenv("no_proxy", "127.0.0.1")
    url, folder = server
    payload = save(folder).read_bytes()
    target = tmp_path / "data"
    config = DatasetConfig(name="breastmnist")

    def answer(md5: str, file: str = "own.npz") -> None:
        info = DatasetInfo("breastmnist", "binary", ("0", "1"), 1, "", "", f"{url}/{file}", md5)
        monkeypatch.setattr(load, "dataset_info", lambda *_: info)

    answer("0" * 32)
    with pytest.raises(InputError, match="md5"):
        data_source(config, target).download()
    answer(hashlib.md5(payload).hexdigest(), "nothing.npz")
    with pytest.raises(InputError, match=r"404.*breastmnist\.npz"):
        data_source(config, target).download()
    assert list(target.iterdir()) == []
    answer(hashlib.md5(payload).hexdigest())
    data_source(config, target).download()
    assert (target / "breastmnist.npz").read_bytes() == payload
    assert [p.name for p in target.iterdir()] == ["breastmnist.npz"]
    answer("0" * 32)
    data_source(config, target).download()  # present: not fetched again


def test_download_without_source(tmp_path: Path) -> None:
    """Catches an attempt to download your own file from nowhere."""
    with pytest.raises(InputError, match=r"own\.npz"):
        data_source(OWN, tmp_path).download()


def test_tensor_round_trip_is_exact() -> None:
    """Catches truncation instead of rounding: every grey value must survive."""
    images = np.arange(256, dtype=np.uint8).reshape(1, 16, 16, 1).repeat(3, 3)
    images[..., 1] = images[..., 1].T.reshape(1, 16, 16)
    tensor = to_tensor(images)
    assert tensor.shape == (1, 3, 16, 16)
    assert tensor.dtype == torch.float32
    assert (tensor.min(), tensor.max()) == (-1, 1)
    assert tensor[0, 1, 2, 5] * 127.5 + 127.5 == pytest.approx(images[0, 2, 5, 1])
    np.testing.assert_array_equal(to_uint8(tensor), images)


def test_to_uint8_rounds_and_clips() -> None:
    """Catches wrap-around of values outside [-1, 1] and truncation towards zero."""
    values = torch.tensor([-3.0, -1.0, 0.6 / 127.5 - 1, 0.999, 1.0, 7.0]).reshape(1, 1, 2, 3)
    assert to_uint8(values).ravel().tolist() == [0, 0, 1, 255, 255, 255]


def test_phantom_split_through_load() -> None:
    """Catches phantoms that take another road than files: shapes, dtypes, train_size."""
    phantom = PhantomConfig(train=40, val=10, test=10)
    config = DatasetConfig(name="phantom-fundus", size=16, phantom=phantom, train_size=15)
    train = data_source(config).load("train")
    assert train.images.shape == (15, 16, 16, 3)
    assert np.bincount(train.labels).tolist() == [3, 3, 3, 3, 3]
    assert len(data_source(config).load("val")) == 10
    with pytest.raises(ValueError, match="validation"):
        data_source(config).load("validation")  # type: ignore[arg-type]


REAL = ("breastmnist", "retinamnist", "pneumoniamnist")


@pytest.mark.parametrize("name", REAL)
def test_real_files(name: str) -> None:
    """Catches readers that only work on files of our own making."""
    config = DatasetConfig(name=name)
    if not npz_path(config, None).is_file():
        pytest.skip(f"{name}.npz is not in {resolve_data_dir(None)}; set MGDM_DATA_DIR")
    assert data_source(config).check() == []
    split = data_source(config).load("val")
    assert split.images.shape[1:] == (28, 28, 3 if name == "retinamnist" else 1)
    assert len(data_source(config).fingerprint()) == 64


def test_a_top_up_of_nothing_is_refused_before_anything_starts() -> None:
    """Catches a study that trains for hours and then fails in its first synthetic set."""
    config = DatasetConfig(name="phantom-xray", size=16, phantom=PhantomConfig(train=20))
    for per_class, refused in ((1, True), (500, False)):
        synthetic = SyntheticConfig(balance="top_up", per_class=per_class)
        if refused:
            with pytest.raises(InputError, match=r"synthetic\.per_class 1"):
                data_source(config).check_top_up(synthetic)
        else:
            data_source(config).check_top_up(synthetic)
