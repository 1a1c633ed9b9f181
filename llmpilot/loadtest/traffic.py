"""What is sent and when: requests drawn from a workload model or replayed from a trace, and arrivals."""

import hashlib
from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray

from llmpilot.config import Load
from llmpilot.console import note
from llmpilot.errors import ConfigError, TraceError
from llmpilot.simulator import RequestSource
from llmpilot.workload import (
    PARAMETERS,
    ConversationSource,
    Requests,
    ThinkTimes,
    Trace,
    TracedConversations,
    TurnRequests,
    WorkloadModel,
    concatenate,
    gamma,
    open_trace,
    poisson,
    read_sessions,
    replay,
)


@dataclass(frozen=True)
class Traffic:
    """The load of one run: where its requests come from, and for a replay, their own timestamps [s].

    With `conversations`, users of a closed loop hold these, and in an open loop they begin at the arrivals;
    each turn's prompt is all that was said before.
    """

    load: Load
    workload: WorkloadModel | None
    """None: conversations."""
    seed: int
    replayed: Requests | None = None
    timestamps_s: NDArray[np.float64] | None = None
    name: str | None = None
    """What is sent, where that is not the workload: the trace that is replayed."""
    conversations: ConversationSource | None = None

    def requests(self) -> RequestSource:
        """Return the requests of a level from their beginning: every level and GPU sees the same ones.

        Of conversations: their turns, one conversation after the other, which is not the order of sending.
        """
        if self.conversations is not None:
            return TurnRequests(self.conversations)
        if self.replayed is not None:
            return _Rows(self.replayed)
        assert self.workload is not None
        return self.workload.stream(self.seed)

    def reseeded(self, seed: int) -> "Traffic":
        """Return the same traffic with other requests."""
        conversations = None if self.conversations is None else self.conversations.reseeded(seed)
        return replace(self, seed=seed, conversations=conversations)

    @property
    def unit(self) -> str:
        """What a level of the ladder is: an open loop's rate is that of the conversations that begin."""
        if self.conversations is not None and self.load.unit == "requests/s":
            return "conversations/s"
        return self.load.unit

    def arrivals_s(self, level: float, until_s: float) -> NDArray[np.float64]:
        """Return when requests are sent, or conversations begin, in an open loop at this level, up to
        `until_s`."""
        if self.load.arrival == "poisson":
            return poisson(level, until_s, self.seed)
        if self.load.arrival == "gamma":
            return gamma(level, self.load.burstiness, until_s, self.seed)
        assert self.timestamps_s is not None
        return replay(self.timestamps_s, level, until_s)

    def think_times(self) -> ThinkTimes | None:
        """Return how long users of a closed loop think before their requests; None: not at all."""
        return ThinkTimes(self.load.think_time_s, self.seed) if self.load.think_time_s else None

    @property
    def content_hash(self) -> str:
        """sha256 (hex) of what is sent: two traffics with this and the load in common send the same."""
        if self.conversations is not None and self.timestamps_s is None:
            return self.conversations.content_hash
        if self.conversations is not None:
            starts = np.ascontiguousarray(self.timestamps_s)
            return hashlib.sha256(self.conversations.content_hash.encode() + starts.tobytes()).hexdigest()
        if self.replayed is None or self.timestamps_s is None:
            assert self.workload is not None
            return self.workload.content_hash
        digest = hashlib.sha256(self.timestamps_s.tobytes())
        for parameter in PARAMETERS:
            digest.update(np.ascontiguousarray(getattr(self.replayed, parameter)).tobytes())
        return digest.hexdigest()

    @property
    def heaviest_request_tokens(self) -> int:
        """The largest batch weight that a single request can have."""
        if self.conversations is not None:
            return self.conversations.longest_tokens
        if self.replayed is not None:
            return int(self.replayed.weights.max())
        assert self.workload is not None
        return self.workload.heaviest_weight


def open_traffic(
    load: Load, workload: WorkloadModel | None, seed: int, conversations: ConversationSource | None = None
) -> Traffic:
    """Return the traffic of a run; for a replay, read as much of the trace as the ladder can need.

    Raises:
        ConfigError, TraceError: load.trace is missing or cannot be used; or users are told twice how long
            they think.
    """
    if conversations is not None and load.think_time_s:
        raise ConfigError(
            "users who hold conversations think as these say",
            given=f"load.think_time_s={load.think_time_s:g}",
            cure=f"workload.think_time_s={load.think_time_s:g}, between the turns of a conversation",
        )
    if load.arrival != "replay":
        traffic = Traffic(load, workload, seed, conversations=conversations)
        if load.arrival != "closed":
            traffic.arrivals_s(
                max(load.levels), load.warmup_s + load.duration_s + load.drain_s
            )  # or an error
        return traffic
    return _replayed(load, workload, seed)


def _replayed(load: Load, workload: WorkloadModel | None, seed: int) -> Traffic:
    given = dict(load.trace or {})
    talks = given.pop("conversations", False)
    if not isinstance(talks, bool):
        raise ConfigError(
            "load.trace.conversations is not possible", given=talks, cure="it is true, or false (requests)"
        )
    trace = open_trace(given, timed=True, key="load.trace")
    name = f"replay of {trace.path.name}"
    window_s = load.warmup_s + load.duration_s
    # A conversation's turns come at the trace's own pace, whatever the speed at which they begin.
    until_s = (window_s + load.drain_s) * (max(load.levels) + talks)
    if talks:
        sessions = read_sessions(trace, "load.trace", until_s=until_s)
        assert sessions.starts_s is not None
        _require_length(load, trace, sessions.starts_s)
        source = TracedConversations(sessions)
        return Traffic(load, None, seed, None, sessions.starts_s, name, conversations=source)
    parts: list[Requests] = []
    times: list[NDArray[np.float64]] = []
    for chunk in trace.chunks():
        assert chunk.timestamps_s is not None
        parts.append(chunk.requests)
        times.append(chunk.timestamps_s)
        if chunk.timestamps_s[-1] > until_s:
            break
    for remark in trace.remarks():
        note(remark)
    if trace.has_sessions:
        note(
            f"{trace.path.name} has sessions, whose requests are sent as if they had nothing in common: "
            "load.trace.conversations=true holds them as conversations"
        )
    timestamps = np.concatenate(times)
    _require_length(load, trace, timestamps)
    return Traffic(load, workload, seed, concatenate(parts), timestamps, name)


def _require_length(load: Load, trace: Trace, timestamps_s: NDArray[np.float64]) -> None:
    """Raise TraceError where the trace ends before the window of the fastest level does."""
    lasts_s, window_s = timestamps_s[-1] / max(load.levels), load.warmup_s + load.duration_s
    if lasts_s < window_s:
        raise TraceError(
            f"the trace lasts {lasts_s:.1f} s at {max(load.levels):g} x its own speed, less than the "
            f"{load.warmup_s:g} s of warm-up and {load.duration_s:g} s of measuring",
            given=f"{trace.path}, its timestamps taken for {trace.unit}",
            cure="shorten load.warmup_s and load.duration_s, lower load.speedups, or take a longer trace; "
            "of other timestamps: load.trace.timestamp_unit=s, ms, us or ns",
        )


class _Rows:
    """A table of requests as a source that ends."""

    def __init__(self, requests: Requests) -> None:
        self._requests, self._taken = requests, 0

    def take(self, n: int) -> Requests:
        part = self._requests.take(slice(self._taken, self._taken + n))
        self._taken += len(part)
        return part
