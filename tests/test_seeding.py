"""Seeds are a function of what the numbers are for, and of nothing else."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from mgdm_ray.seeding import derive_seed, generator, per_image_noise

parts = st.lists(st.text() | st.integers() | st.booleans(), min_size=1, max_size=4)


@given(parts, parts)
def test_different_parts_give_different_seeds(one: list[object], other: list[object]) -> None:
    """Would catch parts that are glued together: ("ab", "c") is not ("a", "bc"), 1 is not "1"."""
    import json

    same = json.dumps(one) == json.dumps(other)
    assert (derive_seed(*one) == derive_seed(*other)) == same  # type: ignore[arg-type]
    assert 0 <= derive_seed(*one) < 2**63  # type: ignore[arg-type]


def test_no_parts_is_an_error() -> None:
    with pytest.raises(ValueError, match="derive_seed"):
        derive_seed()


def test_noise_of_an_image_does_not_depend_on_its_batch() -> None:
    """Would catch one generator for a whole batch."""
    whole = per_image_noise((1, 4, 4), range(6), "x")
    assert torch.equal(whole[4:5], per_image_noise((1, 4, 4), [4], "x"))
    assert torch.equal(whole[[5, 0]], per_image_noise((1, 4, 4), [5, 0], "x"))
    assert not torch.equal(whole[0], whole[1])


def test_noise_is_standard_normal() -> None:
    noise = per_image_noise((1, 32, 32), range(50), "n")
    assert noise.dtype == torch.float32
    assert abs(float(noise.mean())) < 0.02
    assert abs(float(noise.std()) - 1) < 0.02


def test_nobody_touches_the_global_random_state() -> None:
    before = torch.get_rng_state()
    generator("a", 1)
    per_image_noise((2,), [1, 2], "b")
    assert torch.equal(before, torch.get_rng_state())
