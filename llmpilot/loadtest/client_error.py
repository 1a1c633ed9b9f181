"""How wrong the client itself is: the same load on our own emulator, which knows when it sent every token.

Client and emulator share the machine and its monotonic clock, so the error of every single latency is known.
"""

from typing import Any

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from llmpilot.config import Load
from llmpilot.deploy.endpoint import ClientSettings, HttpEndpoint
from llmpilot.emulator import FixedTiming, Options, example_service, in_process
from llmpilot.engine.openai import OpenAIEngine
from llmpilot.loadtest.client import run_http_level
from llmpilot.loadtest.records import Records
from llmpilot.loadtest.traffic import Traffic
from llmpilot.workload import fit, from_lengths

BUSY_LIMIT = 0.8
"""Share of the time that a worker may compute: above, what waits in its queue decides what it measures."""

TTFT_LIMITS_MS = {"p50": 3.0, "p99": 10.0}
ITL_LIMIT_MS = 0.5
TOLERATED_SHARE = 0.05
"""An error is tolerated up to its limit, or up to this share of the latency itself, if that is more."""

Floats = NDArray[np.float64]


def client_error(
    users: int,
    *,
    settings: ClientSettings | None = None,
    ttft_ms: float = 50.0,
    itl_ms: float = 20.0,
    input_tokens: int = 64,
    output_tokens: int = 64,
    rounds: int = 4,
    seed: int = 0,
) -> dict[str, Any]:
    """Return how far the client's latencies are from what an emulator of fixed timing really sent.

    Every user sends `rounds` requests in the window, after two that warm up.

    `ttft_error_ms` and `itl_error_ms` are percentiles of what was reported less what was true, by request
    and by gap: true is the time from our sending a request to the emulator's sending its first token, and
    between its sending of two tokens. `unnoticed_ms` is how long requests lay in the emulator's socket: part
    of a service's latency, and of the true one, but not of `sent`. `reported` and `sent` are the latencies of
    either side by its own clock. `requests_per_s` is what was completed in the window,
    `requests_per_s_possible` what the fixed timing allows; `bottleneck` is why not to trust the client at
    this load, or "".
    """
    workload = fit(lambda: [from_lengths([input_tokens], [output_tokens])])
    # Whole rounds, and a ramp of one: otherwise requests/s would depend on where the window cuts them.
    round_s = (ttft_ms + (output_tokens - 1) * itl_ms) / 1e3
    load = Load(
        arrival="closed", users=[users], warmup_s=2 * round_s, duration_s=rounds * round_s, drain_s=60.0
    )
    service = example_service()
    with in_process(service, Options(fixed=FixedTiming(ttft_ms=ttft_ms, itl_ms=itl_ms))) as emulator:
        endpoint = HttpEndpoint(
            url=emulator.url,
            model=service.model_id,
            engine=OpenAIEngine(),
            dialect="vllm",
            client=settings or ClientSettings(),
            simulated=True,
        )
        records = run_http_level(endpoint, Traffic(load, workload, seed), users)
    return compare(records, emulator.truth()) | {
        "users": users,
        "requests_per_s_possible": users / round_s,
    }


def compare(records: Records, truth: pa.Table) -> dict[str, Any]:
    """Return the client's error: its records of the window against the truth (see `client_error`)."""
    start_us, end_us = records.window_us
    ok = records.failure == ""
    chosen = np.flatnonzero(ok & (records.sent_us >= start_us) & (records.sent_us < end_us))
    assert records.response_id is not None
    row_of = {name: row for row, name in enumerate(truth["request_id"].to_pylist())}
    sent_ns, arrived_ns = truth["sent_ns"], truth["arrived_ns"]
    start_ns = records.notes["start_ns"]
    ttft, true_ttft, itl, true_itl, unnoticed, late = [], [], [], [], [], []
    for i in chosen.tolist():
        row = row_of[str(records.response_id[i])]
        tokens_ns = sent_ns[row].values.to_numpy()
        sent_us, first_us = int(records.sent_us[i]), int(records.first_token_us[i])
        unnoticed.append((arrived_ns[row].as_py() - start_ns) / 1e6 - sent_us / 1e3)
        late.append(first_us / 1e3 - (int(tokens_ns[0]) - start_ns) / 1e6)
        gaps_us = records.gap_us[records.gap_offsets[i] : records.gap_offsets[i + 1]]
        ttft.append((first_us - sent_us) / 1e3)
        true_ttft.append((int(tokens_ns[0]) - arrived_ns[row].as_py()) / 1e6)
        itl.append(gaps_us / 1e3)
        true_itl.append(np.diff(tokens_ns) / 1e6)
    reported = {"ttft_ms": np.array(ttft), "itl_ms": np.concatenate([[], *itl])}
    sent = {"ttft_ms": np.array(true_ttft), "itl_ms": np.concatenate([[], *true_itl])}
    completed = ok & (records.done_us >= start_us) & (records.done_us < end_us)
    result = {
        "requests": len(chosen),
        "requests_failed": int((~ok & (records.failure != "unfinished")).sum()),
        "requests_per_s": float(completed.sum() / (end_us - start_us) * 1e6),
        "ttft_error_ms": _percentiles(np.array(late)),
        "itl_error_ms": _percentiles(reported["itl_ms"] - sent["itl_ms"]),
        "unnoticed_ms": _percentiles(np.array(unnoticed)),
        "reported": {name: _percentiles(values) for name, values in reported.items()},
        "sent": {name: _percentiles(values) for name, values in sent.items()},
        **records.notes["client"],
    }
    return result | {"bottleneck": bottleneck(records.notes["client"], result)}


def bottleneck(
    client: dict[str, Any], error: dict[str, Any] | None = None, level: dict[str, Any] | None = None
) -> str:
    """Return why the client, not the service, decided what was measured, or "" when it did not.

    `client` is `records.notes["client"]` of the level, `error` what `client_error` found at as many users,
    `level` the level's own figures (`metrics.summarize`), which say how large an error is tolerable.
    """
    reasons = []
    if client["busy_share"] > BUSY_LIMIT:
        reasons.append(f"a worker of the client was busy {client['busy_share']:.0%} of the time")
    if error is not None:
        for statistic, limit_ms in TTFT_LIMITS_MS.items():
            reasons += _excess(
                "TTFT", statistic, limit_ms, error["ttft_error_ms"], level and level["ttft_ms"]
            )
        reasons += _excess("ITL", "p50", ITL_LIMIT_MS, error["itl_error_ms"], level and level["itl_ms"])
    return "; ".join(reasons)


def _excess(
    name: str, statistic: str, limit_ms: float, error_ms: dict[str, Any], latency_ms: dict[str, Any] | None
) -> list[str]:
    value = error_ms[statistic]
    tolerable = max(limit_ms, TOLERATED_SHARE * ((latency_ms or {}).get(statistic) or 0.0))
    if value is None or abs(value) <= tolerable:
        return []
    return [f"the client's own error of {name} {statistic} is {value:.1f} ms (tolerable: {tolerable:.1f} ms)"]


def _percentiles(values: Floats) -> dict[str, float | None]:
    if not len(values):
        return {"p50": None, "p99": None}
    p50, p99 = np.percentile(values, (50, 99)).tolist()
    return {"p50": round(p50, 4), "p99": round(p99, 4)}
