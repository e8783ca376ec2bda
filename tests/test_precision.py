"""What a GPU computes in, and what makes it repeat itself; flags only, for there is no GPU."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
import torch

from mgdm_ray import precision
from mgdm_ray.precision import sampling_precision, set_up_gpu

CPU, CUDA = torch.device("cpu"), torch.device("cuda")


def flags() -> dict[str, object]:
    cudnn = torch.backends.cudnn
    return {
        "matmul": torch.get_float32_matmul_precision(),
        "tf32": cudnn.allow_tf32,
        "benchmark": cudnn.benchmark,
        "cudnn": cudnn.deterministic,
        "algorithms": torch.are_deterministic_algorithms_enabled(),
        "any order": torch.backends.cuda.mem_efficient_sdp_enabled(),
    }


@pytest.fixture(autouse=True)
def as_before(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    monkeypatch.delenv("CUBLAS_WORKSPACE_CONFIG", raising=False)
    before = flags()
    yield
    torch.set_float32_matmul_precision(str(before["matmul"]))
    torch.backends.cudnn.allow_tf32 = bool(before["tf32"])
    torch.backends.cudnn.benchmark = bool(before["benchmark"])
    torch.backends.cudnn.deterministic = bool(before["cudnn"])
    torch.use_deterministic_algorithms(bool(before["algorithms"]))
    torch.backends.cuda.enable_mem_efficient_sdp(bool(before["any order"]))


def test_a_cpu_is_left_alone() -> None:
    """Would catch results of a CPU that change, or its operations that turn slower."""
    before = flags()
    set_up_gpu("cpu", deterministic=True, benchmark=True)
    assert flags() == before


@pytest.mark.parametrize("benchmark", [True, False])
def test_a_deterministic_study_gives_up_speed(
    benchmark: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Would catch one flag that is forgotten, or that stays for the next job of the process."""
    set_up_gpu("cuda:0", deterministic=True, benchmark=benchmark)
    assert flags() == {
        "matmul": "highest",
        "tf32": False,
        "benchmark": False,
        "cudnn": True,
        "algorithms": True,
        "any order": False,
    }
    assert precision.os.environ["CUBLAS_WORKSPACE_CONFIG"] == ":4096:8"
    monkeypatch.delenv("CUBLAS_WORKSPACE_CONFIG")
    set_up_gpu("cuda", deterministic=False, benchmark=benchmark)
    assert flags() == {
        "matmul": "high",
        "tf32": True,
        "benchmark": benchmark,
        "cudnn": False,
        "algorithms": False,
        "any order": True,
    }
    assert "CUBLAS_WORKSPACE_CONFIG" not in precision.os.environ


@pytest.mark.parametrize(
    ("asked", "device", "able", "backward", "expected"),
    [
        ("auto", CUDA, True, False, "bfloat16"),
        ("auto", CUDA, False, False, "float16"),
        ("auto", CUDA, False, True, "float32"),
        ("float32", CUDA, False, False, "float32"),
        ("bfloat16", CUDA, True, True, "bfloat16"),
        ("auto", CPU, False, False, "float32"),
    ],
)
def test_sampling_is_in_float16_on_gpus_without_bfloat16(
    asked: str,
    device: torch.device,
    able: bool,
    backward: bool,
    expected: str,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Would catch gradients in float16, and a precision of the study that is overruled."""
    monkeypatch.setattr(precision, "has_bfloat16", lambda _device: able)
    assert sampling_precision(asked, device, backward=backward) == expected
