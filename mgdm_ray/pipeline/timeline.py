"""How long a plan takes on given CPUs and GPUs: an event simulation of its tasks."""

from __future__ import annotations

import heapq
from collections import Counter, defaultdict, deque
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

_ROUNDING = 1e-9  # ten times 0.1 CPU are one CPU


@dataclass(frozen=True)
class Task:
    """A job of ``lanes`` equal parts that may run one after another.

    Each part holds ``cpus`` and ``gpus`` for ``seconds``. ``needs`` are keys of tasks; unknown ones
    count as done. ``patient`` tasks wait until all ``urgent`` ones have begun.
    """

    key: str
    seconds: float
    cpus: float
    gpus: float = 0.0
    lanes: int = 1
    needs: Sequence[str] = ()
    urgent: bool = False
    patient: bool = False


def makespan(tasks: Sequence[Task], cpus: float, gpus: float = 0.0) -> float:
    """Seconds until all tasks are done, if each part starts as soon as it can.

    First ready, first started, ties by the order of the list; a part that does not fit lets later
    ones pass. Raises ValueError for a task that never fits.
    """
    for task in tasks:
        if task.cpus > cpus + _ROUNDING or task.gpus > gpus + _ROUNDING:
            raise ValueError(
                f"{task.key} needs {task.cpus:g} CPU and {task.gpus:g} GPU; "
                f"there are {cpus:g} and {gpus:g}"
            )
    return _Clock(tasks, cpus, gpus).run()


class _Clock:
    def __init__(self, tasks: Sequence[Task], cpus: float, gpus: float) -> None:
        self.tasks, self.cpus, self.gpus = tasks, cpus, gpus
        self.now = 0.0
        self.ends: list[tuple[float, int]] = []
        # Parts with the same request share a queue: if its first does not fit, none does.
        self.queues: Mapping[tuple[float, float], deque[tuple[int, int]]] = defaultdict(deque)
        self.turn = 0
        index = {task.key: number for number, task in enumerate(tasks)}
        needs = [{index[need] for need in task.needs if need in index} for task in tasks]
        self.open_needs = list(map(len, needs))
        self.users: Mapping[int, list[int]] = defaultdict(list)
        for number, needed in enumerate(needs):
            for need in needed:
                self.users[need].append(number)
        self.open_lanes = Counter({number: task.lanes for number, task in enumerate(tasks)})
        self.unstarted = {number for number, task in enumerate(tasks) if task.urgent}
        self.patient: list[int] = []

    def run(self) -> float:
        for number in range(len(self.tasks)):
            if not self.open_needs[number]:
                self.make_ready(number)
        self.start_what_fits()
        while self.ends:
            self.now, number = heapq.heappop(self.ends)
            self.release(number)
            while self.ends and self.ends[0][0] <= self.now + _ROUNDING:
                self.release(heapq.heappop(self.ends)[1])
            self.start_what_fits()
        return self.now

    def make_ready(self, number: int) -> None:
        task = self.tasks[number]
        if task.patient and self.unstarted:
            self.patient.append(number)
            return
        for _ in range(task.lanes):
            self.queues[task.cpus, task.gpus].append((self.turn, number))
            self.turn += 1

    def release(self, number: int) -> None:
        task = self.tasks[number]
        self.cpus += task.cpus
        self.gpus += task.gpus
        self.open_lanes[number] -= 1
        if self.open_lanes[number]:
            return
        for user in self.users[number]:
            self.open_needs[user] -= 1
            if not self.open_needs[user]:
                self.make_ready(user)

    def start_what_fits(self) -> None:
        while True:
            heads = [
                (queue[0], request)
                for request, queue in self.queues.items()
                if queue
                and request[0] <= self.cpus + _ROUNDING
                and request[1] <= self.gpus + _ROUNDING
            ]
            if not heads:
                return
            (_, number), request = min(heads)
            self.queues[request].popleft()
            self.cpus -= request[0]
            self.gpus -= request[1]
            heapq.heappush(self.ends, (self.now + self.tasks[number].seconds, number))
            self.unstarted.discard(number)
            if not self.unstarted and self.patient:
                waiting, self.patient = self.patient, []
                for patient in waiting:
                    self.make_ready(patient)
