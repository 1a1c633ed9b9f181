"""The batching of engine=transformers, without PyTorch: who runs under which weight, what memory costs."""

import threading
from collections.abc import Iterator
from contextlib import contextmanager

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from llmpilot.engine.torch_server.batching import Batch, Job
from llmpilot.engine.torch_server.loop import Loop, OutOfMemoryError

PATIENCE_S = 20.0


def job(inputs: int, outputs: int) -> Job:
    return Job(list(range(inputs)), outputs)


class Counting:
    """A runner that counts up, and lacks memory for more than `most` requests in one step."""

    def __init__(self, batch: Batch, most: int = 10**9) -> None:
        self.batch, self.most = batch, most
        self.steps: list[tuple[str, int]] = []
        self.heaviest = self.most_running = 0
        self.released: list[Job] = []

    def prefill(self, jobs: list[Job]) -> list[int]:
        return self._step("prefill", jobs)

    def decode(self, jobs: list[Job]) -> list[int]:
        return self._step("decode", jobs)

    def release(self, job: Job) -> None:
        self.released.append(job)

    def _step(self, kind: str, jobs: list[Job]) -> list[int]:
        if len(jobs) > self.most:
            raise OutOfMemoryError("CUDA out of memory. Tried to allocate 1 GiB")
        self.steps.append((kind, len(jobs)))
        held = sum(job.weight for job in self.batch.running)
        assert held == self.batch.weight
        self.heaviest = max(self.heaviest, held)
        self.most_running = max(self.most_running, len(self.batch.running))
        return [job.made for job in jobs]


class Served:
    """What came of requests: their tokens, and those that were given up."""

    def __init__(self, jobs: list[Job]) -> None:
        self.tokens: dict[int, list[int]] = {id(job): [] for job in jobs}
        self.lost: list[tuple[Job, str]] = []
        self.error: BaseException | None = None
        self.open = {id(job) for job in jobs}
        self.done = threading.Event()

    def deliver(self, tokens: list[tuple[Job, int]]) -> None:
        for got, token in tokens:
            self.tokens[id(got)].append(token)
            if got.made == got.output_tokens:
                self.end(got)

    def give_up(self, lost: Job, why: str) -> None:
        self.lost.append((lost, why))
        self.end(lost)

    def died(self, error: BaseException) -> None:
        self.error = error
        self.done.set()

    def end(self, ended: Job) -> None:
        self.open.discard(id(ended))
        if not self.open:
            self.done.set()


@contextmanager
def serving(batch: Batch, runner: Counting, served: Served) -> Iterator[Loop]:
    loop = Loop(batch, runner, deliver=served.deliver, give_up=served.give_up, died=served.died)
    loop.start()
    try:
        yield loop
    finally:
        loop.close()


def serve(jobs: list[Job], batch: Batch, most: int = 10**9) -> tuple[Counting, Served]:
    runner, served = Counting(batch, most), Served(jobs)
    with serving(batch, runner, served) as loop:
        for each in jobs:
            loop.submit(each)
        assert served.done.wait(PATIENCE_S)
    return runner, served


SIZES = st.lists(st.tuples(st.integers(1, 30), st.integers(1, 20)), min_size=1, max_size=30)


@settings(deadline=None, max_examples=60)
@given(SIZES, st.integers(50, 200), st.integers(1, 8), st.integers(1, 60))
def test_every_request_gets_its_tokens_and_the_weight_is_kept(
    sizes: list[tuple[int, int]], weight: int, requests: int, prefill: int
) -> None:
    jobs = [job(*size) for size in sizes]
    batch = Batch(weight, requests, prefill)
    runner, served = serve(jobs, batch)
    for each in jobs:
        assert served.tokens[id(each)] == list(range(each.output_tokens))
    assert runner.heaviest <= weight
    assert runner.most_running <= requests
    assert len(runner.released) == len(jobs)
    assert (batch.running, list(batch.waiting), batch.weight) == ([], [], 0)
    assert served.lost == []


@given(SIZES, st.integers(50, 200), st.integers(1, 60))
def test_first_come_first_admitted(sizes: list[tuple[int, int]], weight: int, prefill: int) -> None:
    batch = Batch(weight, 100, prefill)
    jobs = [job(*size) for size in sizes]
    batch.waiting.extend(jobs)
    admitted = batch.admit()
    assert admitted == jobs[: len(admitted)]
    assert admitted
    assert len(admitted) == 1 or sum(len(each.prompt) for each in admitted) <= prefill
    if len(admitted) < len(jobs):
        after = jobs[len(admitted)]
        too_heavy = batch.weight + after.weight > weight
        too_long = sum(len(each.prompt) for each in (*admitted, after)) > prefill
        assert too_heavy or too_long


def test_what_does_not_fit_waits_until_there_is_room() -> None:
    jobs = [job(10, 10) for _ in range(4)]
    runner, _ = serve(jobs, Batch(40, 100, 1000))
    assert runner.most_running == 2
    assert [size for kind, size in runner.steps if kind == "prefill"] in ([2, 2], [1, 1, 2], [1, 1, 1, 1])


def test_lack_of_memory_costs_the_newest_request_and_no_other() -> None:
    jobs = [job(5, 3) for _ in range(6)]
    batch = Batch(1000, 100, 5)  # one prompt a prefill, so that it is decoding that grows too large
    runner, served = serve(jobs, batch, most=4)
    lost = {id(each) for each, _ in served.lost}
    assert {why for _, why in served.lost} <= {"CUDA out of memory. Tried to allocate 1 GiB"}
    for each in jobs:
        if id(each) not in lost:
            assert served.tokens[id(each)] == [0, 1, 2]
    assert id(jobs[0]) not in lost
    assert len(runner.released) == 6
    assert (batch.running, batch.weight) == ([], 0)


def test_prefill_without_memory_gives_up_all_it_must() -> None:
    jobs = [job(5, 1) for _ in range(3)]
    batch = Batch(1000, 100, 1000)
    batch.waiting.extend(jobs)
    runner, served = Counting(batch, most=1), Served(jobs)
    with serving(batch, runner, served):
        assert served.done.wait(PATIENCE_S)
    assert [each for each, _ in served.lost] == [jobs[2], jobs[1]]
    assert served.tokens[id(jobs[0])] == [0]


def test_cancelled_requests_leave_their_place() -> None:
    long, waiting, last = job(10, 10**9), job(10, 10**9), job(10, 3)
    batch = Batch(10 + 10**9, 100, 1000)
    runner, served = Counting(batch), Served([last])
    served.tokens |= {id(long): [], id(waiting): []}
    with serving(batch, runner, served) as loop:
        for each in (long, waiting, last):
            loop.submit(each)
        loop.cancel(waiting)
        loop.cancel(long)
        assert served.done.wait(PATIENCE_S)
    assert served.tokens[id(last)] == [0, 1, 2]
    assert served.tokens[id(waiting)] == []
    assert batch.weight == 0


def test_an_error_that_is_no_lack_of_memory_ends_the_loop() -> None:
    class Broken(Counting):
        def prefill(self, jobs: list[Job]) -> list[int]:
            raise ZeroDivisionError("a bug")

    jobs, batch = [job(1, 1)], Batch(100, 10, 10)
    served = Served(jobs)
    with serving(batch, Broken(batch), served) as loop:
        loop.submit(jobs[0])
        assert served.done.wait(PATIENCE_S)
    with pytest.raises(ZeroDivisionError):
        raise served.error or AssertionError("it went on")
