"""The emulator's engine: clients that leave, and the same times as the simulator in virtual time."""

import asyncio
import json
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from llmpilot.emulator import EmulatedService, FixedTiming, Options, example_service, serve
from llmpilot.emulator.engines import FixedEngine
from llmpilot.simulator import (
    Batch,
    BatchingRule,
    SglangRule,
    SteppedService,
    TrtllmRule,
    VllmRule,
    simulate_open,
)
from llmpilot.simulator.scheduling import Sequence
from llmpilot.simulator.service import SchedulingRule
from llmpilot.simulator.tgis import TgisCore
from llmpilot.workload import Requests, from_lengths

STEP_TIMES = example_service().service.step_times
EVENTS = st.lists(
    st.one_of(
        st.tuples(st.just("arrive"), st.integers(1, 40), st.integers(1, 20)),
        st.tuples(st.just("step"), st.integers(1, 4), st.just(0)),
        st.tuples(st.just("leave"), st.integers(0, 50), st.just(0)),
    ),
    max_size=60,
)


@settings(deadline=None, max_examples=100)
@given(EVENTS, st.booleans(), st.sampled_from([0, 3]))
def test_leaving_frees_exactly_what_was_held(
    events: list[tuple[str, int, int]], padded: bool, waits: int
) -> None:
    rule = BatchingRule(max_batch_weight=150, max_waiting_steps=waits, padded=padded)
    batcher = TgisCore(rule, STEP_TIMES, 10_000)
    present: list[Sequence] = []
    now_ms = 0.0

    def step() -> bool:
        nonlocal now_ms
        action = batcher.begin(now_ms)
        if action is None:
            return False
        now_ms += 1.0
        for sequence in batcher.finish(action, 1).done:
            present.remove(sequence)
        assert padded or batcher.kv_tokens <= rule.max_batch_weight
        return True

    for index, (kind, first, second) in enumerate(events):
        if kind == "arrive":
            sequence = Sequence(index, first, second, 1, now_ms)
            if batcher.enqueue(sequence):
                present.append(sequence)
        elif kind == "step":
            for _ in range(first):
                step()
        elif present:
            sequence = present.pop(first % len(present))
            batcher.leave(sequence)
            if not padded:
                members = [entry[2] for entry in batcher.running]
                assert batcher.weight == sum(s.weight for s in members)
                held = sum(s.input_tokens + 1 + batcher.step - s.first_step for s in members)
                assert batcher.kv_tokens == held
    while step():
        pass
    assert not present
    assert (batcher.weight, batcher.kv_tokens, batcher.sequences) == (0, 0, 0)


class Rows:
    """A table of requests as a source for the simulator."""

    def __init__(self, requests: Requests) -> None:
        self.requests = requests

    def take(self, n: int) -> Requests:
        head, self.requests = self.requests.take(slice(n)), self.requests.take(slice(n, None))
        return head


def small(service: EmulatedService, max_batch_weight: int) -> EmulatedService:
    rule = service.service.rule.model_copy(update={"max_batch_weight": max_batch_weight, "overtake_ms": 0.0})
    return replace(service, service=replace(service.service, rule=rule))


class Linear:
    """Step times of a slow GPU."""

    def step_ms(self, batch: Batch) -> float:
        return 20.0 + 0.5 * batch.decodes + 0.1 * batch.prefill_tokens


def stepped(rule: SchedulingRule) -> EmulatedService:
    return replace(example_service(), service=SteppedService(Linear(), rule, 288, 1.0), max_model_tokens=288)


SERVICES = {
    "tgis": small(example_service(), 300),
    "vllm": stepped(VllmRule(max_num_seqs=8, max_num_batched_tokens=64)),
    "vllm 0.6": stepped(VllmRule(max_num_seqs=8, max_num_batched_tokens=256, chunked_prefill=False)),
    "sglang": stepped(SglangRule(max_num_seqs=8, max_num_batched_tokens=64, conservativeness=0.1)),
    "trtllm": stepped(TrtllmRule(max_num_seqs=8, max_num_batched_tokens=256)),
}


@pytest.mark.parametrize("engine", SERVICES)
def test_tokens_are_due_when_the_simulator_has_them(engine: str) -> None:
    """The emulator is the simulator on the real clock: same arrivals, same token times."""
    service, speed = SERVICES[engine], 4.0
    lengths = [(20, 30), (50, 10), (120, 20), (10, 40), (60, 60), (30, 1), (200, 5), (7, 25)]

    async def drive() -> tuple[list[dict[str, object]], int]:
        async with serve(service, Options(speed=speed)) as emulator:
            host, port = emulator.url.removeprefix("http://").split(":")
            await asyncio.gather(*(ask(host, int(port), k, *pair) for k, pair in enumerate(lengths)))
            rows, slips = emulator.truth().to_pylist(), emulator.slips
            if engine.startswith("vllm"):
                assert emulator.preemptions, "the cache was to run full"
            return rows, slips

    async def ask(host: str, port: int, k: int, input_tokens: int, output_tokens: int) -> None:
        await asyncio.sleep(0.02 * k)
        reader, writer = await asyncio.open_connection(host, port)
        body = '{"model":"starcoder","stream":true,"ignore_eos":true,"max_tokens":%d,"prompt":%s}'
        content = body % (output_tokens, [300 + k] * input_tokens)  # with nothing in common
        head = "POST /v1/completions HTTP/1.1\r\nhost: x\r\nconnection: close\r\ncontent-length: %d\r\n\r\n"
        writer.write((head % len(content) + content).encode())
        await reader.read()
        writer.close()

    for _ in range(5):
        rows, slips = asyncio.run(drive())
        if not slips:  # a machine that was too busy could not keep the pace: once more
            break
    else:
        return
    rows.sort(key=lambda row: row["arrived_ns"])
    arrived_ns = np.array([row["arrived_ns"] for row in rows])
    arrivals_ms = (arrived_ns - arrived_ns[0]) / 1e6 * speed
    requests = from_lengths([row["input_tokens"] for row in rows], [row["output_tokens"] for row in rows])
    simulated = simulate_open(service.service, Rows(requests), arrivals_ms, 1e9, 1e9)
    for index, row in enumerate(rows):
        due_us = (np.array(row["due_ns"]) - arrived_ns[0]) / 1e3 * speed
        gaps = simulated.gap_us[simulated.gap_offsets[index] : simulated.gap_offsets[index + 1]]
        expected_us = simulated.first_token_us[index] + np.concatenate([[0], np.cumsum(gaps)])
        np.testing.assert_allclose(due_us, expected_us, atol=5.0)


async def answered(url: str, body: dict[str, Any]) -> Any:
    host, port = url.removeprefix("http://").split(":")
    reader, writer = await asyncio.open_connection(host, int(port))
    content = json.dumps({"model": "starcoder", "max_tokens": 2, "temperature": 1} | body)
    head = "POST /v1/completions HTTP/1.1\r\nhost: x\r\nconnection: close\r\ncontent-length: %d\r\n\r\n"
    writer.write((head % len(content) + content).encode())
    try:
        answer = await reader.read()
    finally:
        writer.close()
    return json.loads(answer.partition(b"\r\n\r\n")[2])


@pytest.mark.parametrize("copies", [1, 2])
def test_a_share_of_prompts_that_is_told_to_be_cached_is_cached(copies: int) -> None:
    told = stepped(VllmRule(max_num_seqs=8, max_num_batched_tokens=256, prefix_hit_share=0.5))

    async def drive() -> Any:
        async with serve(told, Options(speed=50)) as emulator:
            return await answered(emulator.url, {"prompt": [300] * 40, "n": copies})

    usage = asyncio.run(drive())["usage"]
    assert usage["prompt_tokens"] == 40
    assert usage["prompt_tokens_details"] == {"cached_tokens": 20}


def test_of_clients_that_leave_before_the_first_token_nothing_is_kept() -> None:
    slow = Options(fixed=FixedTiming(ttft_ms=60_000, itl_ms=1), prefix_cache_tokens=1000)

    async def drive() -> tuple[list[int], int]:
        async with serve(example_service(), slow) as emulator:
            engine = emulator._engine
            assert isinstance(engine, FixedEngine)
            asking = asyncio.create_task(answered(emulator.url, {"prompt": [300] * 40}))
            known = []
            for asked in (True, False):
                while bool(engine.gauges()[0]) != asked:
                    await asyncio.sleep(0.005)
                known.append(len(engine._words))
                asking.cancel()
            return known, engine.gauges()[0]

    assert asyncio.run(asyncio.wait_for(drive(), 10)) == ([1, 0], 0)
