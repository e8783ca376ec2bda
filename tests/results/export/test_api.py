"""The Python interface, on the models of a tiny study that really ran."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import load_file, save_file

import mgdm_ray
from mgdm_ray.config import MEASUREMENTS as NAMES
from mgdm_ray.config import InputError
from mgdm_ray.data.load import to_uint8
from mgdm_ray.diffusion.guidance import MEASUREMENTS
from mgdm_ray.diffusion.pipeline import NonFiniteSample
from mgdm_ray.pipeline.tasks.images import read_rows
from tests.results.export.example import IMAGES, Finished, finished_study

SETTING = {"measurement": "entropy", "uncertainty_scale": 0.1}


@pytest.fixture(scope="module")
def finished() -> Finished:
    return finished_study()


@pytest.fixture(scope="module")
def exported(finished: Finished, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("exported") / "models"
    assert finished.sample("--export", folder) == 0
    return folder


@pytest.fixture
def models(exported: Path, tmp_path: Path) -> Path:
    """A copy that a test may spoil."""
    return Path(shutil.copytree(exported, tmp_path / "models"))


def test_the_package_alone_imports_nothing_heavy() -> None:
    """Would catch a plan that pays for torch because the package's own names do."""
    code = (
        "import sys, mgdm_ray, mgdm_ray.pipeline.plan; assert mgdm_ray.__version__;"
        "heavy = {'torch', 'ray', 'monai'} & set(sys.modules); assert not heavy, heavy;"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert all(callable(getattr(mgdm_ray, name)) for name in mgdm_ray.__all__)
    with pytest.raises(AttributeError, match="two_stages"):
        mgdm_ray.two_stages  # noqa: B018


def test_the_study_s_images_come_out(finished: Finished, exported: Path) -> None:
    """Would catch an interface that samples otherwise than the study: same seed, labels and
    setting, same images to the bit, for the batches are the same."""
    denoiser, guide = mgdm_ray.load_denoiser(exported), mgdm_ray.load_guide(exported)
    setting = json.loads((exported / "config.json").read_text())["setting"]
    for arm, given in (("disturb", setting), ("roundtrip", None)):
        images, labels = read_rows(finished.folder("decode", arm))
        made = mgdm_ray.two_stage(denoiser, guide, labels.tolist(), given, seed=0)
        assert made.dtype == torch.float32
        assert made.shape == (IMAGES, 1, 16, 16)
        assert made.min() >= -1
        assert made.max() <= 1
        torch.testing.assert_close(made, images.clamp(-1, 1), rtol=0, atol=0)


def test_artefacts_are_the_models_too(finished: Finished, exported: Path) -> None:
    """Would catch an export that changes the weights."""
    denoiser = mgdm_ray.load_denoiser(finished.folder("fit_denoiser"))
    guide = mgdm_ray.load_guide(finished.folder("fit_guide"))
    assert denoiser.classes == ("0", "1")
    taken = mgdm_ray.load_denoiser(exported)
    assert taken.classes == ("benign", "malignant")
    sampling = taken.sampling
    one = mgdm_ray.two_stage(denoiser, guide, [1, 0], SETTING, sampling=sampling)
    other = mgdm_ray.two_stage(
        taken, mgdm_ray.load_guide(exported), ["malignant", "benign"], SETTING
    )
    torch.testing.assert_close(one, other, rtol=0, atol=0)
    assert not torch.equal(one, mgdm_ray.two_stage(denoiser, guide, [1, 0], SETTING))


def test_an_image_is_a_function_of_its_index(exported: Path) -> None:
    """Would catch noise that depends on where a call begins; two calls of other batches agree to
    round-off."""
    denoiser, guide = mgdm_ray.load_denoiser(exported), mgdm_ray.load_guide(exported)
    whole = mgdm_ray.two_stage(denoiser, guide, [1] * 6, SETTING, seed=4)
    part = mgdm_ray.two_stage(denoiser, guide, [1] * 2, SETTING, seed=4, first=3)
    torch.testing.assert_close(part, whole[3:5], rtol=0, atol=1e-4)
    other = mgdm_ray.two_stage(denoiser, guide, [1] * 2, SETTING, seed=5, first=3)
    assert (other - part).abs().max() > 0.1


def test_a_measurement_of_one_s_own(exported: Path) -> None:
    """Would catch a registration that two_stage does not know of."""
    denoiser, guide = mgdm_ray.load_denoiser(exported), mgdm_ray.load_guide(exported)

    @mgdm_ray.register_measurement("brightness_for_tests")
    def brightness(_: torch.Tensor, x_t: torch.Tensor, *__: object) -> torch.Tensor:
        return x_t.mean(dim=(1, 2, 3))

    setting = {"measurement": "brightness_for_tests", "uncertainty_scale": 0.5}
    try:
        bright = mgdm_ray.two_stage(denoiser, guide, [0] * 4, setting)
        plain = mgdm_ray.two_stage(denoiser, guide, [0] * 4)
        strong = denoiser.sampling.model_copy(update={"guidance_scale": 1e38, "clip": False})
        with pytest.raises(NonFiniteSample):
            mgdm_ray.two_stage(denoiser, guide, [0], setting, sampling=strong)
    finally:
        del MEASUREMENTS["brightness_for_tests"]
        NAMES.remove("brightness_for_tests")
    assert bright.mean() > plain.mean() + 0.1


def test_saved_images_are_marked(tmp_path: Path) -> None:
    """Would catch files that do not say that they are synthetic, and ones that are written over."""
    images = torch.linspace(-1, 1, 2 * 3 * 4 * 4).reshape(2, 3, 4, 4)
    paths = mgdm_ray.save_images(images, tmp_path / "new" / "folder")
    for path, pixels in zip(paths, to_uint8(images), strict=True):
        picture = Image.open(path)
        np.testing.assert_array_equal(np.array(picture), pixels)
        assert picture.text["synthetic"] == "true"  # type: ignore[attr-defined]
    with pytest.raises(InputError, match=r"000000\.png"):
        mgdm_ray.save_images(images, tmp_path / "new" / "folder")


@pytest.mark.parametrize(
    ("change", "named"),
    [
        ({"labels": ["benine"]}, "'benine'.*'benign'"),
        ({"labels": [2]}, "0 'benign', 1 'malignant'"),
        ({"labels": [-1]}, "-1"),
        ({"labels": []}, r"\[\]"),
        ({"labels": "benign"}, "'benign'"),
        ({"setting": {"uncertainty": 1}}, "'uncertainty'.*'uncertainty_scale'"),
        ({"setting": {"uncertainty_scale": -1}}, r"setting\.uncertainty_scale.*-1"),
        ({"setting": {"measurement": "entropie"}}, "'entropie'.*'entropy'"),
        ({"guide": None}, "load_guide"),
        ({"arm": "duplicate"}, "'duplicate'.*generate"),
        ({"arm": "generate"}, "'generate'"),
        ({"arm": "perturb", "setting": None}, "'perturb'"),
        ({"seed": -1}, "-1"),
        ({"first": -2}, "-2"),
    ],
)
def test_wrong_arguments_are_named(exported: Path, change: dict[str, Any], named: str) -> None:
    """Would catch a traceback from inside torch, or images of another class or setting."""
    given = {
        "denoiser": mgdm_ray.load_denoiser(exported),
        "guide": mgdm_ray.load_guide(exported),
        "labels": [0],
        "setting": SETTING,
        **change,
    }
    with pytest.raises(InputError, match=named):
        mgdm_ray.two_stage(**given)


def test_a_misspelt_option_is_refused(exported: Path) -> None:
    """Would catch an option that is silently ignored."""
    denoiser = mgdm_ray.load_denoiser(exported)
    with pytest.raises(TypeError, match="frist"):
        mgdm_ray.two_stage(denoiser, None, [0], frist=2)  # type: ignore[call-arg]


def rewrite(path: Path, **changes: Any) -> None:
    path.write_text(json.dumps({**json.loads(path.read_text()), **changes}))


def spoil_tensors(path: Path) -> None:
    tensors = load_file(path)
    first = sorted(tensors)[0]
    save_file({**tensors, first: torch.zeros(3)}, path)


CONFIG, WEIGHTS = "config.json", "denoiser.safetensors"
SPOILED: dict[str, tuple[Callable[[Path], object], str]] = {
    "no weights": (lambda f: (f / WEIGHTS).unlink(), WEIGHTS),
    "cut short": (lambda f: (f / WEIGHTS).write_bytes(b"\x08\0\0\0"), WEIGHTS),
    "other weights": (lambda f: spoil_tensors(f / WEIGHTS), WEIGHTS),
    "no description": (lambda f: (f / CONFIG).unlink(), r"mgdm_ray\.sample"),
    "torn": (lambda f: (f / CONFIG).write_text('{"format": '), CONFIG),
    "no mapping": (lambda f: (f / CONFIG).write_text("[]"), CONFIG),
    "deep": (lambda f: (f / CONFIG).write_text("[" * 100_000), CONFIG),
    "huge": (lambda f: (f / CONFIG).write_text(" " * 2_000_000), "1000000 bytes"),
    "binary": (lambda f: (f / CONFIG).write_bytes(b"\xff\xfe\0"), CONFIG),
    "another format": (lambda f: rewrite(f / CONFIG, format="x"), "format"),
    "unknown key": (lambda f: rewrite(f / CONFIG, run="rm"), "run"),
    "another size": (lambda f: rewrite(f / CONFIG, channels=3), WEIGHTS),
    "more classes": (lambda f: rewrite(f / CONFIG, classes=["a", "b", "c"]), WEIGHTS),
}


@pytest.mark.parametrize("name", SPOILED)
def test_damaged_folders_are_refused(models: Path, name: str) -> None:
    """Would catch a traceback, or a model that is loaded all the same."""
    spoil, named = SPOILED[name]
    spoil(models)
    with pytest.raises(InputError, match=named):
        mgdm_ray.load_denoiser(models)


def test_a_description_that_asks_for_too_much(models: Path) -> None:
    """Would catch memory that is taken by whatever a file from elsewhere says."""
    config = json.loads((models / "config.json").read_text())
    for unet in (
        {"channels": [16, 1 << 40], "attention": [False, False]},
        {"channels": [4096, 4096], "attention": [False, False]},
        {"channels": [16] * 9, "attention": [False] * 9},
        {"channels": [16, 16], "attention": [False, False], "num_res_blocks": 1000},
    ):
        wrong = {**config["denoiser"], "config": {**config["denoiser"]["config"], "unet": unet}}
        rewrite(models / "config.json", denoiser=wrong)
        with pytest.raises(InputError, match="models"):
            mgdm_ray.load_denoiser(models)


def test_what_is_no_model_is_refused(finished: Finished, tmp_path: Path) -> None:
    """Would catch a guide taken for a denoiser, and a broken artefact that is loaded."""
    with pytest.raises(InputError, match=r"'fit_guide'.*'fit_denoiser'"):
        mgdm_ray.load_denoiser(finished.folder("fit_guide"))
    with pytest.raises(InputError, match=r"mgdm_ray\.sample"):
        mgdm_ray.load_guide(tmp_path)
    folder = Path(shutil.copytree(finished.folder("fit_denoiser"), tmp_path / "artefact"))
    weights = folder / "weights.safetensors"
    weights.write_bytes(weights.read_bytes()[:-5])
    with pytest.raises(InputError, match=r"weights\.safetensors"):
        mgdm_ray.load_denoiser(folder)
    rewrite(folder / "model.json", num_classes="many")
    with pytest.raises(InputError, match="artefact"):
        mgdm_ray.load_denoiser(folder)
