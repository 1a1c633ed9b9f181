"""Many services under many loads at once, in arrays: a hundred pods are simulated in a second.

The same step times and the same rules as the simulation of one service (virtual.py, schedulers/), told in
numbers a lane and not in objects a request. A lane is one service under one load; all lanes go forward
together, each from event to event on its own clock.

Queues are first come, first served, so one number says how far prompts are: the tokens computed so far,
beside the running sum of all requests' prompts. What decodes is counted, by the step in which it ends.
Nobody is preempted; whoever waits is let in by what the engine reserves (SGLang, TensorRT-LLM), or when a
small share of what is owed fits beside what runs (vLLM).
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from math import inf
from typing import Any

import numpy as np
from numpy.typing import NDArray

from llmpilot.simulator.schedulers.paged import PagedRule
from llmpilot.simulator.schedulers.sglang import DECAY_STEPS, FIRST_RATIO, LEAST_RATIO, LONGEST_RESERVED
from llmpilot.simulator.scheduling import STRAIGHT_STEPS
from llmpilot.simulator.service_model import service_at
from llmpilot.simulator.step_model import StepModel
from llmpilot.simulator.step_times import CHUNKS, CONTEXTS, DEPTHS, LENGTHS, SEQUENCES, OperatorStepTimes
from llmpilot.workload import Requests

Numbers = NDArray[np.float64]
Ints = NDArray[np.int64]
Counts = NDArray[np.signedinteger]

OWED = 0.07
"""Share of the output still owed that vLLM's lanes keep free, as they preempt nobody: with it as many run as
in the engine, which lets in whose prompt fits and preempts when it must (experiments/19_recommendations)."""
ROUNDS = 2
"""Requests a user that a closed loop's figures are of at least, behind a first one each that is left out."""
WARM_UP, TAIL = 0.2, 0.1
"""Shares of an open loop's requests that come before and behind those that its figures are of."""
DIVERGED = 0.4
"""A queue of so many of all its requests is that of an overloaded open loop: its lane ends there."""
NO_GAP_MS = 1e-3
"""Between the tokens of answers that have one each: none, but figures have logarithms."""
LATENCIES = ("ttft_ms", "nttft_ms", "itl_ms", "tpot_ms", "e2e_ms")
STATISTICS = ("p50", "p90", "p95", "p99", "mean")
_QUANTILES = np.array([0.5, 0.9, 0.95, 0.99])
GAP_SHARES = np.concatenate([np.arange(0.005, 0.99, 0.01), [0.9925, 0.995, 0.9975, 0.999]])
_WORD = 64
_AHEAD = 16
"""Words of steps that are searched for the next end at once."""


@dataclass(frozen=True)
class LaneService:
    """One pod: its settings and model (in `step_model`), its step times, what its KV cache holds [tokens]."""

    step_model: StepModel
    times: OperatorStepTimes
    kv_capacity_tokens: int

    @cached_property
    def rule(self) -> PagedRule:
        """The engine's settings that decide who is in a step."""
        rule = service_at(self.step_model, self.times, self.kv_capacity_tokens).rule
        assert isinstance(rule, PagedRule)
        return rule


@dataclass(frozen=True)
class ClosedLanes:
    """Closed loops: `users` [lanes] clients, each of which thinks for an exponential time of mean
    `think_time_ms` between the end of a request and the next one."""

    users: NDArray[np.int64]
    think_time_ms: float = 0.0


@dataclass(frozen=True)
class OpenLanes:
    """Open loops: requests arrive at `arrivals_ms` [lanes, n requests], rising along the second axis.

    A lane with fewer of them has infinity behind its last one. The first `begun` [lanes] of them are under
    way at the start, as far as they fit: a loop is then soon as busy as it will be, which takes long from an
    empty service.
    """

    arrivals_ms: Numbers
    begun: NDArray[np.int64] | None = None


@dataclass(frozen=True)
class LaneFigures:
    """What clients saw in each lane's steady part.

    `latencies` maps (latency, statistic), as `config.Limit` names them, to [lanes] ms (nTTFT: ms per
    input token), without the overhead of a request before the engine's queue; infinite where the queue grew
    and grew. `rate_per_s` [lanes] is how many requests end a second (until it was given up, of such a lane),
    `output_tokens_per_s` their tokens, `running` how many sequences decode on average, `failures` the share
    that can never be served.
    """

    latencies: Mapping[tuple[str, str], Numbers]
    rate_per_s: Numbers
    output_tokens_per_s: Numbers
    running: Numbers
    failures: Numbers
    gap_ms: Numbers
    """What GAP_SHARES of the gaps between tokens are shorter than [lanes, shares]."""


def run_lanes(
    services: Sequence[LaneService],
    lane_service: NDArray[np.int64],
    load: ClosedLanes | OpenLanes,
    requests: Requests,
    seed: int,
) -> LaneFigures:
    """Return the figures of each lane: service `lane_service[i]` under the i-th load.

    Every lane is sent the same `requests` in order, and again from the first one as long as it needs more;
    each of a request's `batch_size` sequences counts. Requests that a service never takes are left out of
    its stream.

    In open loops the first WARM_UP and the last TAIL of the arrivals are not in the figures, nor are those
    that had begun. In closed loops each user's first request is not: its output is cut, as of a request that
    is met under way, so that users do not march in step. Their figures are of as many requests as there are
    in `requests`, of ROUNDS a user at least. The load is kept up until all of these have ended.
    """
    lanes = _Lanes(services, lane_service, load, requests, seed)
    while len(lanes.lane):
        lanes.advance()
    return lanes.figures()


@dataclass(frozen=True)
class _Streams:
    """The requests of every kind of service, stream after stream along one axis, each with an end entry.

    `computed`, `reserved`, `pairs` and `copies_before` are sums over the requests before each one, of prompt
    tokens that are computed, KV tokens that are reserved, pairs that prompts attend to, and copies; all
    but the pairs rise from stream to stream.
    """

    inputs: Ints
    outputs: Ints
    cut_outputs: Ints
    passed_outputs: Ints
    copies: Ints
    cached: Numbers
    reserves: Ints
    computed: Ints
    reserved: Ints
    pairs: Numbers
    copies_before: Ints
    starts: Ints
    """Where each service's stream begins [services]."""
    failures: Numbers
    """Share of the requests that the service never takes [services]."""


def _streams(services: Sequence[LaneService], requests: Requests, n: int, seed: int) -> _Streams:
    """Return streams of `n` requests for all services."""
    columns = requests.input_tokens, requests.output_tokens, requests.batch_size
    random = np.random.default_rng(seed).random((n, 2)).T
    known: dict[tuple[object, ...], int] = {}
    parts: list[dict[str, NDArray[np.generic]]] = []
    starts, failures = [], []
    computed_before = reserved_before = copies_before = 0
    for service in services:
        rule, engine = service.rule, service.step_model.settings.engine
        taken = _taken(service, *columns)
        failures.append(1.0 - float(taken.mean()))
        key = (taken.tobytes(), rule.prefix_hit_share, engine, rule.block_size)
        if key in known:
            starts.append(known[key])
            continue
        known[key] = len(parts) * (n + 1)
        starts.append(known[key])
        if taken.any():
            inputs, outputs, copies = (np.resize(column[taken], n) for column in columns)
        else:
            inputs, outputs, copies = (np.ones(n, dtype=np.int64) for _ in columns)
        cached = np.minimum(np.rint(rule.prefix_hit_share * inputs).astype(np.int64), inputs - 1)
        reserves = copies * _reserves(engine, rule.block_size, inputs, outputs)
        new = inputs - cached
        left, passed = _under_way(outputs[: len(requests)], *random)
        part = {
            "inputs": inputs,
            "outputs": outputs,
            "cut_outputs": left,
            "passed_outputs": passed,
            "copies": copies,
            "cached": cached.astype(np.float64),
            "reserves": reserves,
        }
        part = {name: np.append(column, column[-1:]) for name, column in part.items()}
        part["computed"] = _before(copies * new, computed_before)
        part["reserved"] = _before(reserves, reserved_before)
        part["pairs"] = _before(copies * new * (2.0 * cached + new + 1) / 2, 0.0)
        part["copies_before"] = _before(copies, copies_before)
        computed_before = int(part["computed"][-1]) + 1
        reserved_before = int(part["reserved"][-1]) + 1
        copies_before = int(part["copies_before"][-1]) + 1
        parts.append(part)
    joined = {name: np.concatenate([part[name] for part in parts]) for name in parts[0]}
    return _Streams(**joined, starts=np.array(starts), failures=np.array(failures))


def _under_way(outputs: Ints, random: Numbers, share: Numbers) -> tuple[Ints, Ints]:
    """Return how many tokens requests owe that are met under way, and how many they have, given two random
    numbers each [n]: the long ones are met more often, each at a random part of its output."""
    met = np.searchsorted(np.cumsum(outputs) / outputs.sum(), random)
    left = np.maximum(np.ceil(outputs[met] * share), 1).astype(np.int64)
    return left, outputs[met] - left


def _before(values: NDArray[np.generic], first: float) -> NDArray[np.generic]:
    """Return the sums of the values before each one, and of all, on top of `first`."""
    sums = np.cumsum(np.append(np.zeros(1, values.dtype), values))
    return np.asarray(sums + np.asarray(first, dtype=values.dtype))


def _taken(service: LaneService, inputs: Ints, outputs: Ints, copies: Ints) -> NDArray[np.bool_]:
    """Return which requests the service takes at all."""
    rule = service.rule
    longest = np.zeros_like(inputs)
    for count in np.unique(copies).tolist():
        longest[copies == count] = rule.longest_request_tokens(service.kv_capacity_tokens, count)
    taken = inputs + outputs <= longest
    if service.step_model.settings.engine == "trtllm" and not rule.chunked_prefill:
        taken &= inputs <= rule.max_num_batched_tokens
    return np.asarray(taken)


def _reserves(engine: str, block_size: int, inputs: Ints, outputs: Ints) -> Ints:
    """Return the KV tokens that must be free for a sequence that is let in."""
    if engine == "sglang":
        return inputs + np.minimum(outputs, LONGEST_RESERVED)
    if engine == "trtllm":
        return -(-(inputs + outputs) // block_size) * block_size
    return np.asarray(inputs + np.ceil(OWED * outputs).astype(np.int64) + block_size // 2)


class _StepTables:
    """Step times of many services, to be looked up for a batch of each lane at once."""

    def __init__(self, services: Sequence[LaneService], most_decodes: int, most_tokens: int) -> None:
        tables = [service.times.tables for service in services]
        self.decodes, self.tokens = most_decodes + 1, most_tokens + most_decodes + 1
        decodes, tokens = np.arange(self.decodes), np.arange(self.tokens)
        steps, heads, matrices, scans = [], [], [], []
        for one in tables:
            at = tokens / one.ranks
            by_tokens = np.interp(at, one.tokens, one.matrices_ms)
            head = np.interp(at[: 2 * self.decodes], one.tokens, one.head_ms)
            head = np.append(head, np.full(2 * self.decodes - len(head), head[-1]))
            step = one.fixed_ms + one.sequence_ms * np.maximum(decodes, 1)
            step += by_tokens[: self.decodes]
            step += np.interp(at[: self.decodes], one.tokens, one.states_ms) + head[: self.decodes]
            steps.append(step)
            heads.append(head)
            matrices.append(one.prefill * by_tokens)
            scans.append(
                one.prefill * np.interp(at, one.tokens, one.scans_ms) if one.scans_ms.any() else None
            )
        self.step = np.concatenate(steps)
        self.head = np.concatenate(heads)
        self.matrices = np.concatenate(matrices)
        self.scans = None
        if any(scan is not None for scan in scans):
            none = np.zeros(self.tokens)
            self.scans = np.concatenate([none if scan is None else scan for scan in scans])
        self.attention = np.concatenate([one.attention_ms.ravel() for one in tables])
        self.prompts = np.concatenate([(one.prefill * one.prompts_ms).ravel() for one in tables])
        self.ranks = np.array([one.ranks for one in tables])
        self.scale = np.array([one.scale for one in tables])

    def attention_ms(self, service: Ints, decodes: Numbers, contexts: Numbers) -> Numbers:
        """Return the attention of `decodes` sequences a rank [n] over mean `contexts` [2, n]."""
        n = len(service)
        asked = np.empty((3, n))
        asked[0], asked[1:] = decodes, contexts
        at, share = _places(asked, *_DECODE_GRID)
        width = len(CONTEXTS)
        flat = at[1:] + (service * (width * len(SEQUENCES)) + at[0] * width)
        values, table, across = np.empty((2, 2, n)), self.attention, share[1:]
        for row in (0, 1):
            low = table.take(flat + row * width)
            values[row] = low + (table.take(flat + (row * width + 1)) - low) * across
        return np.asarray(values[0] + (values[1] - values[0]) * share[0])

    def prompts_ms(self, service: Ints, chunks: Numbers, lengths: Numbers, depths: Numbers) -> Numbers:
        """Return what prompts' attention adds to a step [n]: chunks a rank, their length, their depth."""
        at, share = _places(np.stack([chunks, lengths, depths]), *_PROMPT_GRID)
        shape = len(CHUNKS), len(LENGTHS), len(DEPTHS)
        flat = ((service * shape[0] + at[0]) * shape[1] + at[1]) * shape[2] + at[2]
        values = self.prompts.take(flat + _CORNERS[:, None]).reshape(2, 2, 2, -1)
        for axis in range(3):
            values = values[0] + (values[1] - values[0]) * share[axis]
        return np.asarray(values)


def _grid(*axes: tuple[Numbers, float]) -> tuple[Numbers, Numbers, Numbers, Numbers]:
    """Return what `_places` must know of axes whose points are powers of 2^(1 / parts): parts [axes, 1], the
    logarithms of the first and of the last but one point in units of 1 / parts, the width of an interval."""
    parts = np.array([[each] for _, each in axes])
    first = np.array([[round(each * float(np.log2(points[0])))] for points, each in axes])
    last = first + np.array([[len(points) - 2] for points, _ in axes])
    return parts, first.astype(float), last.astype(float), np.exp2(1 / parts) - 1


_DECODE_GRID = _grid((SEQUENCES, 2.0), (CONTEXTS, 2.0), (CONTEXTS, 2.0))
_PROMPT_GRID = _grid((CHUNKS, 1.0), (LENGTHS, 2.0), (DEPTHS, 2.0))
_CORNERS = np.array(
    [(i * len(LENGTHS) + j) * len(DEPTHS) + k for i in (0, 1) for j in (0, 1) for k in (0, 1)]
)


def _places(
    asked: Numbers, parts: Numbers, first: Numbers, last: Numbers, width: Numbers
) -> tuple[Ints, Numbers]:
    """Return below which point of its axis each number [axes, n] lies, and how far on the way to the next."""
    logs = np.floor(np.log2(np.maximum(asked, 1e-3)) * parts + 1e-9)
    np.maximum(logs, first, out=logs)
    np.minimum(logs, last, out=logs)
    share = (asked * np.exp2(-logs / parts) - 1) / width
    return (logs - first).astype(np.int64), share


class _Lanes:
    """All lanes that have not ended: arrays [lanes], and the records of all, by the lanes' numbers.

    Requests are counted along the axis of `_Streams`: those before `known` are in the engine's queue, those
    before `started` have their first token.
    """

    _BY_LANE = (
        *("lane", "service", "begin", "end", "users", "budget", "seats", "capacity", "queue_limit"),
        *("alone", "whole", "late", "conserving", "sglang", "half_block", "blocked", "ranks", "scale"),
        *("now", "step", "computed", "pairs", "known", "started", "next_ms", "decodes", "context", "due"),
        *(
            "ended",
            "freed",
            "late_ended",
            "late_freed",
            "late_length",
            "full",
            "late_sent",
            "awaited",
            "ratio",
            "thinking",
            "drawn",
        ),
    )

    def __init__(
        self,
        services: Sequence[LaneService],
        lane_service: Ints,
        load: ClosedLanes | OpenLanes,
        requests: Requests,
        seed: int,
    ) -> None:
        n = len(lane_service)
        self.load, self.n = load, n
        rules = [service.rule for service in services]
        longest_output = int(requests.output_tokens.max())
        if isinstance(load, ClosedLanes):
            users = np.asarray(load.users, dtype=np.int64)
            self.first = users.copy()
            self.cut = np.zeros_like(users) if load.think_time_ms else users
            self.last = users + np.maximum(len(requests), ROUNDS * users)
            # Whoever is slowest goes on long after: the load must be kept up as long.
            after = 1.0 + longest_output / float(requests.output_tokens.mean())
            total = self.last + np.ceil(after * users).astype(np.int64)
            in_flight = int(users.max())
        else:
            users = np.zeros(n, dtype=np.int64)
            total = np.isfinite(load.arrivals_ms).sum(axis=1)
            self.cut = users if load.begun is None else np.asarray(load.begun, dtype=np.int64)
            self.first = self.cut + np.ceil(WARM_UP * (total - self.cut)).astype(np.int64)
            self.last = np.maximum(self.first + 1, np.floor((1 - TAIL) * total).astype(np.int64))
            in_flight = int(total.max())
        most = int(total.max())
        self.streams = streams = _streams(services, requests, most, seed)
        self.one_each = bool((requests.batch_size == 1).all())
        copies = int(requests.batch_size.max())
        decodes = min(in_flight * copies, max(rule.max_num_seqs for rule in rules))
        tokens = max(
            int((requests.input_tokens * requests.batch_size).max()),
            *(r.max_num_batched_tokens for r in rules),
        )
        self.tables = _StepTables(services, decodes, tokens)

        def of_rule(name: str, kind: type) -> Any:
            return np.array([getattr(rule, name) for rule in rules], dtype=kind)[lane_service]

        self.lane = np.arange(n)
        self.service_of_all, self.begin_of_all = lane_service, streams.starts[lane_service]
        self.users_of_all = users
        self.service = np.asarray(lane_service, dtype=np.int64)
        self.begin = streams.starts[lane_service]
        self.end = self.begin + total
        self.users = users
        self.budget = of_rule("max_num_batched_tokens", np.int64)
        self.seats = of_rule("max_num_seqs", np.int64)
        self.capacity = np.array([s.kv_capacity_tokens for s in services])[lane_service]
        reserved_before = streams.reserved[self.begin]
        engines = np.array([s.step_model.settings.engine for s in services])[lane_service]
        self.whole = ~of_rule("chunked_prefill", np.bool_)
        self.alone = (engines == "sglang") | ((engines == "vllm") & self.whole)
        """Prompts have steps of their own."""
        self.late = of_rule("overlapped", np.bool_)
        self.conserving = engines != "trtllm"
        self.sglang = engines == "sglang"
        self.half_block = np.where(self.sglang, 0, of_rule("block_size", np.int64) // 2)
        self.conserves, self.some_whole = bool(self.conserving.any()), bool(self.whole.any())
        self.ranks, self.scale = self.tables.ranks[lane_service], self.tables.scale[lane_service]

        self.now = np.zeros(n)
        self.step = np.zeros(n, dtype=np.int64)
        self.computed = streams.computed[self.begin]
        self.pairs = np.zeros(n)  # of the prompt that is computed in part
        self.started = self.begin.copy()
        self.decodes = np.zeros(n, dtype=np.int64)
        self.context = np.zeros(n, dtype=np.int64)
        self.due = np.zeros(n, dtype=np.int64)  # lengths to which the sequences that decode will grow
        self.ended = streams.copies_before[self.begin].copy()  # copies
        self.freed = reserved_before.copy()  # reserved tokens
        self.late_ended, self.late_freed = np.zeros(n, dtype=np.int64), np.zeros(n, dtype=np.int64)
        self.late_length, self.late_sent = np.zeros(n, dtype=np.int64), np.zeros(n, dtype=np.int64)
        self.awaited = self.last.copy()
        self.full = np.zeros(n, dtype=np.bool_)
        self.ratio = np.full(n, FIRST_RATIO)
        self.thinking = np.zeros(n, dtype=np.int64)
        self.drawn = np.zeros(n, dtype=np.int64)
        self.known = self.begin.copy()
        self.blocked = np.zeros(n, dtype=np.bool_)
        self.next_ms = np.full(n, inf)
        self.sent_ms = np.full((n, most + 1), inf)
        self._send_first(load, seed, most)

        self.start_ms = np.full((n, most), inf)
        self.finish = np.zeros((n, most), dtype=np.int64)
        self.start_at = np.zeros((n, most), dtype=np.int32)
        self.words = -(-max(longest_output + 2, 2 * _WORD) // _WORD) + 1
        self.words = 1 << (self.words - 1).bit_length()
        self.ring = self.words * _WORD
        self.ends = np.zeros((n * self.ring, 5), dtype=np.float32)
        """What ends in a step, by lane and step: copies, their length, reserve, requests, those awaited."""
        self.marks = np.zeros(n * self.words, dtype=np.uint64)
        """A bit of each step in which something ends."""

        self.passed = 0
        self.time_log, self.step_log = np.zeros((n, 512)), np.zeros((n, 512), dtype=np.int32)
        self.log_length = np.zeros(n, dtype=np.int64)
        self.diverged = np.zeros(n, dtype=np.bool_)
        closed = isinstance(load, ClosedLanes)
        self.queue_limit = total + 1 if closed else np.ceil(DIVERGED * total).astype(np.int64)
        self.closed_at_once = closed and not self.think_ms
        self.some_cut = bool(self.cut.any())
        if not closed and self.some_cut:
            self._begin()

    def _send_first(self, load: ClosedLanes | OpenLanes, seed: int, most: int) -> None:
        """Put the first requests on their way."""
        self.think_ms = 0.0
        if isinstance(load, OpenLanes):
            self.sent_ms[:, : load.arrivals_ms.shape[1]] = load.arrivals_ms[:, :most]
            self.next_ms = self.sent_ms[:, 0].copy()
        elif load.think_time_ms:
            self.think_ms = load.think_time_ms
            self.thoughts = np.random.default_rng(seed + 1).standard_exponential(4 * most + 64)
            self.thinking = self.users.copy()
            self._think(np.arange(self.n), self.now)
        else:
            self.known = self.begin + self.users
            for lane, users in enumerate(self.users.tolist()):
                self.sent_ms[lane, :users] = 0.0

    def _begin(self) -> None:
        """Let those decode that are under way at the start, as far as there is room; the others wait."""
        streams, begin = self.streams, self.begin
        self.known = begin + self.cut
        self.next_ms = self.sent_ms[self.lane, self.cut]
        held = np.cumsum(np.append(0, streams.copies * (streams.inputs + streams.passed_outputs)))
        by_memory = np.searchsorted(held, held[begin] + self.capacity, "right") - 1
        by_seats = (
            np.searchsorted(streams.copies_before, streams.copies_before[begin] + self.seats, "right") - 1
        )
        by_reserve = np.searchsorted(streams.reserved, streams.reserved[begin] + self.capacity, "right") - 1
        reached = np.minimum(np.minimum(self.known, by_memory), np.minimum(by_seats, by_reserve))
        nothing = np.zeros(self.n)
        self._start(self.lane, streams.computed[reached], (reached, nothing, reached, nothing))

    def _think(self, who: Ints, since_ms: Numbers) -> None:
        """Draw when the next of those who think will send: however long they did, they have as long to go."""
        thoughts, drawn, thinking = self.thoughts, self.drawn[who], self.thinking[who]
        wait_ms = thoughts[drawn % len(thoughts)] * self.think_ms / np.maximum(thinking, 1)
        sends = (thinking > 0) & (self.known[who] < self.end[who])
        self.next_ms[who] = np.where(sends, since_ms + wait_ms, inf)
        self.drawn[who] = drawn + 1

    def advance(self) -> None:
        """Take every lane to the end of its next step, or of the next ones that are alike."""
        until = self._until()
        tokens = until - self.computed
        prompts = np.flatnonzero(tokens)
        running = self.decodes
        if len(prompts):
            running = np.where(self.alone & (tokens > 0), 0, running)
        steps, ending = self._steps(running, tokens)
        first_ms, last_ms = self._decode_ms(running, steps)
        if len(prompts):
            reading = self._reading(prompts, until[prompts])
            added_ms = self._prompts_ms(prompts, running[prompts], tokens[prompts], reading)
            first_ms[prompts] += added_ms
            last_ms[prompts] += added_ms
        slope_ms = (last_ms - first_ms) / np.maximum(steps - 1, 1)
        # Whoever comes is let in behind this step, or where steps are composed ahead behind the next one.
        wait_ms = np.maximum(self.next_ms - self.now, 0.0)
        about = np.minimum(wait_ms / first_ms, steps)
        within = np.ceil(wait_ms / (first_ms + slope_ms * np.maximum(about - 1, 0.0) / 2)) + self.late
        taken = np.where(self.blocked, steps, np.minimum(steps, np.maximum(within, 1.0)))
        taken_ms = taken * (first_ms + slope_ms * (taken - 1) / 2)
        unseen_ms = np.where(self.late, first_ms + slope_ms * (taken - 1), 0.0)
        seen_ms = self.now + (taken_ms - unseen_ms)
        self.now = self.now + taken_ms
        idle = (running == 0) & (tokens == 0)
        if idle.any():
            taken[idle] = 0.0
            self.now[idle] = seen_ms[idle] = self.next_ms[idle]
        stepped = np.where(running > 0, taken, 0.0).astype(np.int64)
        self.step = self.step + stepped
        self.context = self.context + stepped * running
        self._arrive(seen_ms)
        self.ended, self.freed = self.ended + self.late_ended, self.freed + self.late_freed
        self.full = self.full & (self.late_ended == 0)
        self.late_ended, self.late_freed, self.late_length = np.zeros((3, len(idle)), dtype=np.int64)
        over = np.flatnonzero((stepped == ending) & (stepped > 0))
        if len(over):
            self._end(over)
        if len(prompts):
            self._start(prompts, until[prompts], reading)
        if self.conserves:
            decay = FIRST_RATIO * (1 - LEAST_RATIO) / DECAY_STEPS
            self.ratio = np.maximum(FIRST_RATIO * LEAST_RATIO, self.ratio - stepped * decay)
            self.ratio[idle] = FIRST_RATIO
        self._note()

    def _until(self) -> Ints:
        """Return up to which token prompts are computed behind the next step."""
        streams, started, known = self.streams, self.started, self.known
        begun = started + (self.computed > streams.computed[started])
        if self.one_each:
            seats = self.ended + self.seats
        else:
            seats = np.searchsorted(streams.copies_before, self.ended + self.seats, "right") - 1
        fit = np.minimum(known, seats)
        room = self.freed + self.capacity
        if self.conserves:
            # What runs, a share of what it owes, and the whole of what is let in.
            partial = np.where(begun > started, streams.inputs[started] * streams.copies[started], 0)
            owed = np.where(self.sglang, self.ratio, OWED) * (self.due - self.context)
            held = self.context + self.late_length + partial + self.half_block * self.decodes
            conserved = streams.reserved[begun] + self.capacity - held - owed
            room = np.where(self.conserving, conserved, room)
            fit = np.where(self.full, begun, fit)
        tight = np.flatnonzero(streams.reserved[fit] > room)
        if len(tight):
            last = np.searchsorted(streams.reserved, room[tight], "right") - 1
            fit[tight] = np.minimum(fit[tight], last)
            self.full[tight] = self.sglang[tight] & (self.decodes[tight] > 0)
        # Whoever is in stays, and whoever is alone fits.
        nobody = (self.decodes == 0) & (known > started)
        fit = np.maximum(fit, np.maximum(begun, started + nobody))
        left = np.maximum(self.budget - np.where(self.alone, 0, self.decodes), 0)
        until: Ints = np.minimum(streams.computed[fit], self.computed + left)
        if self.some_whole:
            self._whole_prompts(until)
        self.blocked = (until == self.computed) & (known > started)
        return until

    def _whole_prompts(self, until: Ints) -> None:
        """Let lanes without chunked prompts stop behind a whole one; one longer than a step is alone."""
        who = np.flatnonzero(self.whole & (until > self.computed))
        computed = self.streams.computed
        before = computed[np.searchsorted(computed, until[who], "right") - 1]
        none = before <= self.computed[who]
        alone = none & (self.alone[who] | (self.decodes[who] == 0))
        other = np.where(none, self.computed[who], before)
        until[who] = np.where(alone, computed[self.started[who] + 1], other)

    def _steps(self, running: Ints, tokens: Ints) -> tuple[Ints, Ints]:
        """Return how many steps may follow each other, and behind how many of them a sequence ends."""
        words, marks, step = self.words, self.marks, self.step + 1
        word, bit = step >> 6, (step & 63).astype(np.uint64)
        begin = self.lane * words
        seen = marks[begin + (word & (words - 1))] >> bit
        seen |= marks[begin + ((word + 1) & (words - 1))] << (np.uint64(_WORD) - bit)
        ending = 1 + _lowest(seen)
        steps = ending
        far = np.flatnonzero((seen == 0) & (running > 0))
        if len(far):
            next_words = word[far, None] + _NEXT_WORDS
            found = marks[begin[far, None] + (next_words & (words - 1))]
            at = (found != 0).argmax(axis=1)
            found = found[np.arange(len(far)), at]
            steps = ending.copy()
            ending[far] = _WORD * next_words[np.arange(len(far)), at] + _lowest(found) - self.step[far]
            steps[far] = ending[far]
            none = far[found == 0]
            ending[none], steps[none] = 0, _WORD * _AHEAD
        straight = np.maximum(STRAIGHT_STEPS, self.context // (4 * np.maximum(running, 1)))
        one = (tokens > 0) | (self.blocked & (self.late_ended > 0)) | (running == 0)
        return np.where(one, 1, np.minimum(steps, straight)), ending

    def _decode_ms(self, running: Ints, steps: Ints) -> Numbers:
        """Return how long the first and the last of the steps take [2, n] without their prompts."""
        tables = self.tables
        mean = self.context / np.maximum(running, 1)
        contexts = np.stack([mean, mean + (steps - 1)])
        attention = tables.attention_ms(self.service, running / self.ranks, contexts)
        base = tables.step[self.service * tables.decodes + running]
        return np.asarray((base + attention * (running > 0)) * self.scale)

    def _reading(self, who: Ints, until: Ints) -> tuple[Ints, Numbers, Ints, Numbers]:
        """Return which request lanes reach that read prompts, the pairs of its begun part; chunks, pairs."""
        streams, started = self.streams, self.started[who]
        reached = np.searchsorted(streams.computed, until, "right") - 1
        inside = until - streams.computed[reached]
        begun = inside * (streams.cached[reached] + (inside / streams.copies[reached] + 1) / 2)
        chunks = streams.copies_before[reached + (inside > 0)] - streams.copies_before[started]
        pairs = streams.pairs[reached] - streams.pairs[started] + begun - self.pairs[who]
        return reached, begun, chunks, pairs

    def _prompts_ms(
        self, who: Ints, running: Ints, tokens: Ints, reading: tuple[Ints, Numbers, Ints, Numbers]
    ) -> Numbers:
        """Return how much longer steps take for their prompts."""
        tables, service, ranks = self.tables, self.service[who], self.ranks[who]
        _, _, chunks, pairs = reading
        each, all_tokens = chunks / ranks, tokens / ranks
        several = np.maximum(each, 1.0)
        added = tables.prompts_ms(service, several, all_tokens / several, pairs / tokens)
        added *= np.minimum(each, 1.0)
        at = service * tables.tokens + running
        added += tables.matrices[at + tokens] - tables.matrices[at]
        if tables.scans is not None:
            added += tables.scans[service * tables.tokens + tokens]
        at = 2 * service * tables.decodes + running
        last = 2 * tables.decodes - 1 - running
        added += tables.head[at + np.minimum(np.minimum(chunks, tokens), last)] - tables.head[at]
        return np.asarray(added * self.scale[who])

    def _arrive(self, seen_ms: Numbers) -> None:
        """Put into the queue who came until then."""
        if self.closed_at_once:
            came = self.next_ms <= seen_ms
            self.known = self.known + np.where(came, self.late_sent, 0)
            self.late_sent = np.where(came, 0, self.late_sent)
            self.next_ms = np.where(came, inf, self.next_ms)
            return
        who = np.flatnonzero(self.next_ms <= seen_ms)
        while len(who):
            came_ms = self.next_ms[who]
            at = self.known[who] - self.begin[who]
            self.known[who] += 1
            if self.think_ms:
                self.sent_ms[self.lane[who], at] = came_ms
                self.thinking[who] -= 1
                self._think(who, came_ms)
            else:
                self.next_ms[who] = self.sent_ms[self.lane[who], at + 1]
            who = who[self.next_ms[who] <= seen_ms[who]]

    def _end(self, who: Ints) -> None:
        """Let the sequences go that end in the last step."""
        lane, step = self.lane[who], self.step[who]
        at = lane * self.ring + (step & (self.ring - 1))
        self._go(who, self.ends[at].astype(np.int64))
        self.ends[at] = 0.0
        word = lane * self.words + ((step >> 6) & (self.words - 1))
        self.marks[word] &= ~(np.uint64(1) << (step & 63).astype(np.uint64))

    def _go(self, who: Ints, gone: Ints, *, decoded: bool = True) -> None:
        """Take what ended [n, 5] out, see `ends`; what never `decoded` was in no step."""
        copies, length, reserve, requests, awaited = gone.T
        if decoded:
            self.decodes[who] -= copies
            self.context[who] -= length
            self.due[who] -= length
        late = self.late[who]
        self.late_ended[who] += np.where(late, copies, 0)
        self.late_freed[who] += np.where(late, reserve, 0)
        self.late_length[who] += np.where(late, length, 0)
        self.ended[who] += np.where(late, 0, copies)
        self.freed[who] += np.where(late, 0, reserve)
        self.full[who] &= late
        self.awaited[who] -= awaited
        if self.think_ms:
            self.thinking[who] += requests
            # Who has sent already, and is not seen yet, stays so.
            who = who[self.next_ms[who] > self.now[who]]
            self._think(who, self.now[who])
        elif self.closed_at_once:
            sent = np.minimum(requests, self.end[who] - self.known[who] - self.late_sent[who])
            self.late_sent[who] += np.where(late, sent, 0)
            self.known[who] += np.where(late, 0, sent)
            self.next_ms[who] = np.where(self.late_sent[who] > 0, self.now[who], inf)

    def _start(self, who: Ints, until: Ints, reading: tuple[Ints, Numbers, Ints, Numbers]) -> None:
        """Count prompts as computed, and let the sequences decode whose prompts are whole."""
        reached, begun, *_ = reading
        started = self.started[who]
        count = reached - started
        self.computed[who], self.pairs[who], self.started[who] = until, begun, reached
        total = int(count.sum())
        if not total:
            return
        streams = self.streams
        row = np.repeat(np.arange(len(who)), count)
        request = np.arange(total) + np.repeat(started - (np.cumsum(count) - count), count)
        owner = who[row]
        lane, number = self.lane[owner], request - self.begin[owner]
        copies, inputs, outputs = streams.copies[request], streams.inputs[request], streams.outputs[request]
        if self.some_cut:
            cut = number < self.cut[lane]
            outputs = np.where(cut, streams.cut_outputs[request], outputs)
            if not self.passed:
                inputs = inputs + np.where(cut, streams.passed_outputs[request], 0)
        finish = self.step[owner] + outputs - 1
        self.start_ms[lane, number] = self.now[owner]
        self.start_at[lane, number] = self.passed
        self.finish[lane, number] = finish
        gone = np.empty((total, 5), dtype=np.float32)
        gone[:, 0], gone[:, 1], gone[:, 2] = copies, copies * (inputs + outputs), streams.reserves[request]
        gone[:, 3], gone[:, 4] = 1, number < self.last[lane]
        single = outputs == 1
        if single.any():
            for at in np.flatnonzero(single).tolist():
                self._go(owner[at : at + 1], gone[at : at + 1].astype(np.int64), decoded=False)
            several = ~single
            owner, lane, copies, inputs = owner[several], lane[several], copies[several], inputs[several]
            finish, gone = finish[several], gone[several]
        np.add.at(self.decodes, owner, copies)
        np.add.at(self.context, owner, copies * (inputs + 1))
        np.add.at(self.due, owner, gone[:, 1].astype(np.int64))
        at = 5 * (lane * self.ring + (finish & (self.ring - 1)))
        np.add.at(self.ends.reshape(-1), (at[:, None] + np.arange(5)).ravel(), gone.ravel())
        word = lane * self.words + ((finish >> 6) & (self.words - 1))
        np.bitwise_or.at(self.marks, word, np.uint64(1) << (finish & 63).astype(np.uint64))

    def _note(self) -> None:
        """Note what the clocks show, and drop the lanes that have ended."""
        at = self.passed
        if at == self.time_log.shape[1]:
            self.time_log, self.step_log = (
                np.concatenate([log, np.zeros_like(log)], axis=1) for log in (self.time_log, self.step_log)
            )
        lane = self.lane
        self.time_log[lane, at] = self.now
        self.step_log[lane, at] = self.step
        self.passed = at + 1
        queue = self.known - self.started > self.queue_limit
        ended = (self.awaited <= 0) | queue
        if ended.any():
            self.log_length[lane[ended]] = self.passed
            self.diverged[lane[ended & queue]] = True
            kept = ~ended
            for name in self._BY_LANE:
                setattr(self, name, getattr(self, name)[kept])

    def figures(self) -> LaneFigures:
        """Return the figures of all lanes' steady parts."""
        seen = [self._seen(lane) for lane in range(self.n)]
        failures = self.streams.failures[self.service_of_all]
        never = failures == 1.0
        lost = never | self.diverged
        values = np.stack([each.latencies for each in seen])
        rate, tokens, decoding_s = np.array([[s.rate_per_s, s.tokens, s.decoding_s] for s in seen]).T
        rate[never] = 0.0
        return LaneFigures(
            latencies={
                (latency, statistic): np.where(lost, inf, values[:, i, j])
                for i, latency in enumerate(LATENCIES)
                for j, statistic in enumerate(STATISTICS)
            },
            rate_per_s=rate,
            output_tokens_per_s=rate * tokens,
            running=rate * decoding_s,
            failures=failures,
            gap_ms=np.where(lost[:, None], inf, np.stack([each.gap_ms for each in seen])),
        )

    def _seen(self, lane: int) -> "_Seen":
        """Return what the clients of one lane saw in its steady part."""
        passed, begin, streams = int(self.log_length[lane]), int(self.begin_of_all[lane]), self.streams
        time_ms, step = self.time_log[lane, :passed], self.step_log[lane, :passed]
        count = int(np.isfinite(self.start_ms[lane]).sum())
        start_ms, start_at = self.start_ms[lane, :count], self.start_at[lane, :count]
        done_at = np.maximum(np.searchsorted(step, self.finish[lane, :count]), start_at)
        done_ms = np.append(time_ms, inf)[np.minimum(done_at, passed)]
        users, users_wait_ms = int(self.users_of_all[lane]), self.think_ms
        if self.closed_at_once:
            # Whoever has an answer sends again: the m-th to send is the m-th whose request ended.
            self.sent_ms[lane, users : users + count] = np.sort(done_ms)[: self.sent_ms.shape[1] - 1 - users]
        part = slice(int(self.first[lane]), min(int(self.last[lane]), count))
        request = slice(begin + part.start, begin + max(part.start, part.stop))
        inputs, outputs = streams.inputs[request], streams.outputs[request]
        copies = streams.copies[request]
        start, done, sent = start_ms[part], done_ms[part], self.sent_ms[lane, part]
        if self.diverged[lane] or not len(done):
            # Of what ended before it was given up, the rate.
            ended = np.sort(done_ms[np.isfinite(done_ms)])
            rate = _rate_per_s(ended) if len(ended) > 1 else 0.0
            tokens = float((streams.copies * streams.outputs)[begin : begin + max(count, 1)].mean())
            lost = np.full((len(LATENCIES), len(STATISTICS)), inf)
            return _Seen(lost, rate, tokens, 0.0, np.full(len(GAP_SHARES), inf))
        decoding_ms = done - start
        several = outputs > 1
        gaps = np.maximum(outputs - 1, 1)
        e2e_ms = done - sent
        latencies = np.full((len(LATENCIES), len(STATISTICS)), inf)
        gap_ms = np.full(len(GAP_SHARES), inf)
        latencies[0], latencies[1] = _statistics(start - sent), _statistics((start - sent) / inputs)
        if several.any():
            latencies[3] = _statistics((decoding_ms / gaps)[several])
            found = _gap_quantiles(
                time_ms, step, start_at[part][several], done_at[part][several], copies[several]
            )
            latencies[2, :-1], gap_ms = found[: len(_QUANTILES)], found[len(_QUANTILES) :]
            latencies[2, -1] = (copies * decoding_ms)[several].sum() / (copies * gaps)[several].sum()
        else:
            latencies[2:4] = NO_GAP_MS
        latencies[4] = _statistics(e2e_ms)
        if users:  # by Little's law
            rate = 1e3 * users / (float(e2e_ms.mean()) + users_wait_ms)
        else:
            rate = _rate_per_s(np.sort(done))
        decoding_s = float((copies * decoding_ms).mean()) / 1e3
        return _Seen(latencies, rate, float((copies * outputs).mean()), decoding_s, gap_ms)


@dataclass(frozen=True)
class _Seen:
    """Latencies [LATENCIES, STATISTICS] ms of one lane, requests/s, a request's mean output tokens, how long
    it decodes, all its sequences together, and what GAP_SHARES of the gaps are shorter than [shares] ms."""

    latencies: Numbers
    rate_per_s: float
    tokens: float
    decoding_s: float
    gap_ms: Numbers


def _rate_per_s(ends_ms: Numbers) -> float:
    """Return how many of the requests that end at rising times ended a second, in the middle of the time."""
    low, high = len(ends_ms) // 10, max(len(ends_ms) * 9 // 10, len(ends_ms) // 10)
    lasted_ms = float(ends_ms[min(high, len(ends_ms) - 1)] - ends_ms[low])
    return 1e3 * (high - low) / lasted_ms if lasted_ms > 0 else 0.0


def _statistics(values: Numbers) -> Numbers:
    """Return the STATISTICS of values."""
    ordered = np.sort(values)
    place = _QUANTILES * (len(ordered) - 1)
    low = place.astype(np.int64)
    below = ordered[low]
    between = (ordered[np.minimum(low + 1, len(ordered) - 1)] - below) * (place - low)
    return np.append(below + between, ordered.mean())


def _gap_quantiles(
    time_ms: Numbers, step: Counts, start_at: Counts, done_at: Counts, copies: Ints
) -> Numbers:
    """Return quantiles of the gaps between tokens, first those of the statistics, then GAP_SHARES.

    Of requests that decode from behind one entry of a lane's log up to another one; step k of the log's is
    over at a time of it.
    """
    n = len(time_ms) + 1
    begun = np.bincount(start_at + 1, copies, n) - np.bincount(done_at + 1, copies, n + 1)[:n]
    decoding = np.cumsum(begun)
    steps = np.diff(step, prepend=0)
    before_ms = np.append(0.0, time_ms[:-1])
    at = np.flatnonzero((steps > 0) & (decoding[:-1] > 0))
    several = steps[at]
    took_ms = (time_ms[at] - before_ms[at]) / several
    # The decode step before, wherever prompts had steps of their own in between.
    last = np.maximum.accumulate(np.where(steps > 0, np.arange(n - 1), 0))
    previous = last[np.maximum(at - 1, 0)]
    waited_ms = before_ms[at] - time_ms[previous]
    waiting = np.where(waited_ms > 1e-9, decoding[previous + 1], 0)
    weights = np.concatenate([decoding[at] * several - waiting, waiting])
    gaps_ms = np.concatenate([took_ms, took_ms + waited_ms])
    order = np.argsort(gaps_ms)
    sums = np.cumsum(weights[order])
    return np.asarray(gaps_ms[order[np.searchsorted(sums, _ALL_QUANTILES * sums[-1])]])


def _lowest(words: NDArray[np.uint64]) -> Ints:
    """Return the number of the lowest bit that is set; of none, something below 0."""
    alone = words & (~words + np.uint64(1))
    return (alone.astype(np.float64).view(np.int64) >> 52) - 1023


_ALL_QUANTILES = np.concatenate([_QUANTILES, GAP_SHARES])
_NEXT_WORDS = np.arange(1, _AHEAD + 1)
