"""Work shared among processes."""

import os
from collections.abc import Iterator

import pytest

from llmpilot.processes import Map, WorkerDiedError, workers


def where_and(value: int, more: int) -> tuple[int, int]:
    return os.getpid(), value + more


def doubled(value: int) -> tuple[int, int]:
    return os.getpid(), 2 * value


def killed(value: int) -> int:
    if value == 3:
        os._exit(9)
    return value


def wrong(value: int) -> int:
    raise ValueError(f"not {value}")


@pytest.fixture(scope="module")
def run() -> Iterator[Map]:
    with workers(2, "evaluate.workers") as run:
        yield run


def test_answers_come_in_order_and_maps_share_the_processes(run: Map) -> None:
    summed = list(run(where_and, range(20), [1] * 20))
    assert [answer for _, answer in summed] == list(range(1, 21))
    twice = list(run(doubled, range(20)))
    assert [answer for _, answer in twice] == list(range(0, 40, 2))
    used = {process for process, _ in (*summed, *twice)}
    assert os.getpid() not in used
    assert len(used) == 2


def test_an_abandoned_map_leaves_nothing_to_the_next_one(run: Map) -> None:
    abandoned = run(where_and, range(20), [1] * 20)
    next(abandoned)
    abandoned.close()
    assert [answer for _, answer in run(doubled, range(5))] == [0, 2, 4, 6, 8]


def test_an_error_of_the_function_is_raised(run: Map) -> None:
    with pytest.raises(ValueError, match="not 7"):
        list(run(wrong, [7]))


def test_a_worker_that_dies_is_an_error_naming_the_option(run: Map) -> None:
    with pytest.raises(WorkerDiedError, match=r"use one: evaluate\.workers=1"):
        list(run(killed, range(5)))


def test_one_worker_is_this_process() -> None:
    with workers(1) as run:
        assert list(run(doubled, [4])) == [(os.getpid(), 8)]
