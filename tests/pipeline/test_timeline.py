"""The event simulation, against timelines that one can draw by hand."""

from __future__ import annotations

import pytest

from mgdm_ray.pipeline.timeline import Task, makespan


def test_three_equal_tasks_on_two_cores_take_two_rounds() -> None:
    """Would catch work divided by cores, which says 15."""
    assert makespan([Task(name, 10, 1) for name in "abc"], cpus=2) == 20


def test_a_chain_takes_the_sum_whatever_the_cores() -> None:
    """Would catch needs that are not waited for."""
    chain = [Task("a", 5, 1), Task("b", 7, 1, needs=("a",)), Task("c", 1, 1, needs=("b", "gone"))]
    assert makespan(chain, cpus=100) == 13


def test_what_became_ready_first_goes_first() -> None:
    """Would catch an order that Ray does not have: b, ready only at 4, waits for c and d.

    a 0-4 and c 0-10 run beside each other, then d 4-14, then b from 10 to 30.
    """
    tasks = [Task("a", 4, 1), Task("b", 20, 1, needs=("a",)), Task("c", 10, 1), Task("d", 10, 1)]
    assert makespan(tasks, cpus=2) == 30


def test_a_group_waits_for_all_its_cores_and_lets_small_ones_pass() -> None:
    """a 0-3 on one of two cores; the pair b cannot start before c, which passed it, ends at 8."""
    tasks = [Task("a", 3, 1), Task("b", 5, 2), Task("c", 8, 1)]
    assert makespan(tasks, cpus=2) == 13


def test_lanes_run_side_by_side_where_there_is_room_and_else_in_turn() -> None:
    """Would catch a search of two trials at once that costs the time of one on one core."""
    search = [Task("search", 10, 1, lanes=2), Task("after", 1, 1, needs=("search",))]
    assert makespan(search, cpus=2) == 11
    assert makespan(search, cpus=1) == 21


def test_fractions_of_cores_add_up() -> None:
    """Would catch rounding: ten times 0.1 fit on one core."""
    assert makespan([Task(str(i), 1, 0.1) for i in range(10)], cpus=1) == 1


def test_patient_tasks_wait_until_the_urgent_ones_have_begun() -> None:
    """fit 2 has its core only at 6; only then may the cell, ready from the beginning, queue.

    Fits 0-6, 6-12 on the only GPU; the cell runs from 6 on a free core: 6 + 9.
    """
    tasks = [
        Task("fit 1", 6, 1, 1, urgent=True),
        Task("fit 2", 6, 1, 1, urgent=True),
        Task("cell", 9, 1, patient=True),
    ]
    assert makespan(tasks, cpus=3, gpus=1) == 15


def test_gpus_are_counted_apart() -> None:
    """Would catch GPU tasks that run side by side on one GPU because cores are free."""
    assert makespan([Task("a", 4, 1, 0.5), Task("b", 4, 1, 0.5)], cpus=8, gpus=1) == 4
    assert makespan([Task("a", 4, 1, 1), Task("b", 4, 1, 1)], cpus=8, gpus=1) == 8


def test_what_never_fits_is_refused() -> None:
    """Would catch a timeline that ends early because a task was left out in silence."""
    with pytest.raises(ValueError, match=r"^a .*3 CPU"):
        makespan([Task("a", 1, 3)], cpus=2)


def test_nothing_takes_no_time() -> None:
    assert makespan([], cpus=2) == 0
