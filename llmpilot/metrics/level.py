"""One level's figures, and what they come to: within the SLA or not, u_max and cost.

Definitions, after the LLM-Pilot paper (section III) and the field's usage:
TTFT is the time from sending to the first output token, nTTFT that divided by the input tokens, ITL every
single gap between two output tokens (over all gaps of all requests), TPOT a request's mean gap, E2E the
time from sending to the last token. Latencies are those of successful requests sent in the steady window;
throughput counts what happened within the window, whenever it was sent.

A window can be too short to say anything (`window_problem`). A percentile p of n requests is one of their
order statistics, whose rank is binomial; fewer than BEYOND = 10 requests expected on either side of it, and
the rank's own spread decides the figure (the rule by which a binomial is near normal, n min(p, 1-p) >= 10):
20 requests for a median or a mean, 1,000 for a p99. The highest percentile that the SLA limits decides.
And rates count completions: a window of w mean latencies sees floor(w) or ceil(w) of each user's requests,
so below w = 3 where its edges fall decides a third or more.
"""

from math import ceil, fsum, inf
from typing import Any

import numpy as np
from numpy.typing import NDArray

from llmpilot.config import LATENCIES, Sla
from llmpilot.loadtest import Records
from llmpilot.loadtest.server_samples import ServerSamples
from llmpilot.metrics import answers, streams
from llmpilot.metrics.statistics import statistics, statistics_us

RATES = (
    "requests_per_s",
    "goodput_per_s",
    "throughput_tok_s",
    "input_tok_s",
    "total_tok_s",
    "concurrency_mean",
    "failure_rate",
)

GAUGES = ("answer_ms", "running", "waiting", "kv_usage", "gpu_power_w", "gpu_memory_gb")
BEYOND = 10
LATENCIES_IN_WINDOW = 3

Level = dict[str, Any]


def summarize(records: Records, sla: Sla, unit: str = "users") -> Level:
    """Return one level's figures: counts, failures by kind, latency statistics and rates.

    Latencies are in ms (nTTFT: ms per input token), null without a successful request; rates are per
    second, tokens are output tokens unless named otherwise. `window_problem` is why the window was too
    short for them, with the cure, or null, and `window_wanted_s` how long would do; `stream_problem` which
    latencies its streams do not show (see `streams`). `hidden_tokens`, where there are any: output tokens
    that the server counted and never showed, which throughput counts at the time of the first token.
    `server`, where it was looked at: see `server_figures`; for the rest, `answers`.
    """
    start_us, end_us = records.window_us
    window_s = (end_us - start_us) / 1e6
    ok = records.failure == ""
    measured = (records.sent_us >= start_us) & (records.sent_us < end_us)
    good, bad = ok & measured, ~ok & measured
    copies, inputs = records.requests.batch_size, records.requests.input_tokens

    ttft_us = records.first_token_us - records.sent_us
    e2e_us = records.done_us - records.sent_us
    gap_counts = np.diff(records.gap_offsets)
    decode_us = _sums(records.gap_us, records.gap_offsets)
    several = good & (gap_counts > 0)
    tpot_ms = decode_us / np.maximum(gap_counts, 1) / 1e3
    nttft_ms = ttft_us / inputs / 1e3

    gaps_wanted = np.repeat(np.where(good, copies, 0), gap_counts)
    gaps_us = np.repeat(records.gap_us, gaps_wanted)

    token_us, token_weight = _token_times(records, np.where(ok, copies, 0), gap_counts)
    prefilled = ok & (records.first_token_us >= start_us) & (records.first_token_us < end_us)
    hidden_tokens = int((answers.hidden_tokens(records) * copies)[prefilled].sum())
    output_tokens = int(token_weight[(token_us >= start_us) & (token_us < end_us)].sum()) + hidden_tokens
    input_tokens = int((inputs * copies)[prefilled].sum())
    completed = ok & (records.done_us >= start_us) & (records.done_us < end_us)

    requests_ms = {"ttft_ms": ttft_us / 1e3, "nttft_ms": nttft_ms, "tpot_ms": tpot_ms, "e2e_ms": e2e_us / 1e3}
    came = {"streams": streams.streams_of(gaps_us, gap_counts, decode_us, good)}
    # What its stream does not show, no request is known to keep.
    within = completed & _within_sla(sla, requests_ms, gap_counts) & (not streams.unseen_limits(came, sla))
    n_ok, n_bad = int(good.sum()), int(bad.sum())
    kinds, counts = np.unique(records.failure[bad], return_counts=True)
    unfinished = int((bad & (records.failure == "unfinished")).sum())
    ended = (n_ok + n_bad - unfinished, fsum((e2e_us[good] / 1e6).tolist()) / max(n_ok, 1))
    all_failed = not n_ok and ended[0] > 0  # which is judged by that, and not by a longer window either
    level = {
        "users": int(records.level) if unit == "users" else None,
        "level": records.level,
        "requests_ok": n_ok,
        "requests_failed": n_bad,
        "ttft_ms": statistics_us(ttft_us[good]),
        "nttft_ms": statistics(nttft_ms[good]),
        "itl_ms": statistics_us(gaps_us),
        "tpot_ms": statistics(tpot_ms[several]),
        "e2e_ms": statistics_us(e2e_us[good]),
        "requests_per_s": int(completed.sum()) / window_s,
        "goodput_per_s": int(within.sum()) / window_s,
        "throughput_tok_s": output_tokens / window_s,
        "input_tok_s": input_tokens / window_s,
        "total_tok_s": (input_tokens + output_tokens) / window_s,
        "concurrency_mean": _concurrency(records) / (end_us - start_us),
        "failure_rate": n_bad / (n_ok + n_bad) if n_ok + n_bad else 0.0,
        "failures": {str(kind): int(count) for kind, count in zip(kinds, counts, strict=True)},
        "excluded": {
            "warmup": int((records.sent_us < start_us).sum()),
            "drain": int((records.sent_us >= end_us).sum()),
        },
        "window_problem": None if all_failed else window_problem(window_s, *ended, sla),
        "window_wanted_s": None if all_failed else window_wanted_s(window_s, *ended, sla),
        **came,
        "stream_problem": streams.problem_of([came], sla),
        "fidelity": answers.fidelity(records, good),
        **answers.thoughts(records, good),
    }
    if hidden_tokens:
        level["hidden_tokens"] = {"total": hidden_tokens, "share": round(hidden_tokens / output_tokens, 6)}
    if (share := answers.cached_share(records, good)) is not None:
        level["cached_share"] = share
    if by_turn := answers.turns(records, good):
        level["turns"] = by_turn
    if records.server is not None:
        level["server"] = server_figures(records.server, records.window_us)
    return level


def window_problem(window_s: float, ended: int, e2e_mean_s: float, sla: Sla) -> str | None:
    """Return why a window is too short to be judged by (see above), and how long would do; None if it is not.

    `ended` requests of those sent in the window came to an end, well or not.
    """
    wanted_s = window_wanted_s(window_s, ended, e2e_mean_s, sla)
    if wanted_s is None:
        return None
    problems, needed = [], _requests_wanted(sla)
    if ended < needed:
        percentile = sla.strictest_percentile
        problems.append(f"{ended} of the requests sent in it ended, and a p{percentile} wants {needed}")
    if window_s < LATENCIES_IN_WINDOW * e2e_mean_s:
        lasts = f"{window_s / e2e_mean_s:.1f} mean request latencies"
        problems.append(f"it lasts {lasts}, and rates want {LATENCIES_IN_WINDOW}")
    return f"{'; '.join(problems)}: set load.duration_s={wanted_s} or more"


def window_wanted_s(window_s: float, ended: int, e2e_mean_s: float, sla: Sla) -> int | None:
    """Return how long a window would be long enough to be judged by [s]; None: this one is."""
    needed, least_s = _requests_wanted(sla), LATENCIES_IN_WINDOW * e2e_mean_s
    if ended >= needed and window_s >= least_s:
        return None
    wanted_s = max(window_s, least_s, window_s * needed / max(ended, 1) if ended < needed else 0.0)
    return ceil(wanted_s * 1.1)


def _requests_wanted(sla: Sla) -> int:
    return ceil(BEYOND / (1 - sla.strictest_percentile / 100) - 1e-9)


def server_figures(samples: ServerSamples, window_us: tuple[int, int]) -> Level:
    """Return what the server said of itself in the steady window: mean and max of each gauge it has.

    Requests running and waiting, share of the KV cache in use, GPU power [W] and memory [GB]; `preemptions`
    counts those between the window's first and last sample (a server that began anew counts from zero).
    Samples outside the window do not count; `samples` and `missed` say how many there were and failed.
    `answer_ms` is how long its answers took: a server whose front end is busy answers when it has time again,
    and then says how things stand at that time.
    """
    inside = samples.inside(window_us)
    figures: Level = {"samples": int(inside.sum()), "missed": samples.missed}
    for gauge in GAUGES:
        values = samples.columns[gauge][inside]
        values = values[~np.isnan(values)]
        if len(values):
            mean = fsum(values.tolist()) / len(values)
            figures[gauge] = {"mean": round(mean, 6), "max": round(float(values.max()), 6)}
    counts = samples.columns["preemptions"][inside]
    counts = counts[~np.isnan(counts)]
    if len(counts) > 1:
        steps = np.diff(counts)
        figures["preemptions"] = int(np.where(steps < 0, counts[1:], steps).sum())
    return figures


def meets_sla(level: Level, sla: Sla) -> bool:
    """Whether a level is known to keep every limit on a statistic of a latency, and the failure rate."""
    return not breaks_sla(level, sla) and not streams.unseen_limits(level, sla)


def breaks_sla(level: Level, sla: Sla) -> bool:
    """Whether a level is known to break a limit on a latency that its streams show, or the failure rate."""
    if level["requests_ok"] == 0 or level["failure_rate"] > sla.max_failure_rate:
        return True
    seen = (limit for limit in sla.limits if streams.shows(level, limit.latency, limit.statistic))
    figures = ((level[limit.latency][limit.statistic], limit.limit_ms) for limit in seen)
    return any(figure is not None and figure > limit_ms for figure, limit_ms in figures)


def last_within_sla(levels: list[Level], sla: Sla) -> Level | None:
    """Return the last level, going up, before the first that breaks the SLA (the paper's u_max)."""
    last = None
    for level in sorted(levels, key=lambda item: item["level"]):
        if not meets_sla(level, sla):
            break
        last = level
    return last


def cost_per_million_output_tokens(level: Level | None, cost_per_hour: float | None) -> float | None:
    """Return $ per 1e6 output tokens when the service runs at this level all the time; None: not known."""
    if level is None or cost_per_hour is None or level["throughput_tok_s"] == 0:
        return None
    return float(cost_per_hour / (level["throughput_tok_s"] * 3600) * 1e6)


def _within_sla(
    sla: Sla, requests_ms: dict[str, NDArray[np.float64]], gap_counts: NDArray[np.int64]
) -> NDArray[np.bool_]:
    """Whether each request by itself kept the limits; its ITL is judged by its mean gap.

    Of several limits on a latency (p50 <= 300, p99 <= 2000 ms) the largest counts: a request may be as slow
    as the slowest that the SLA has in mind.
    """
    largest = {
        name: max((limit.limit_ms for limit in sla.limits_on(name)), default=inf) for name in LATENCIES
    }
    limits = {name: largest[name] for name in requests_ms}
    limits["tpot_ms"] = min(largest["tpot_ms"], largest["itl_ms"])
    kept = np.ones(len(gap_counts), dtype=bool)
    for name, values in requests_ms.items():
        kept &= (values <= limits[name]) | ((name == "tpot_ms") & (gap_counts == 0))
    return kept


def _sums(values: NDArray[np.int64], offsets: NDArray[np.int64]) -> NDArray[np.int64]:
    """Return the sum of each segment `values[offsets[i]:offsets[i + 1]]`."""
    total = np.concatenate([[0], np.cumsum(values)])
    return np.asarray(total[offsets[1:]] - total[offsets[:-1]])


def _token_times(
    records: Records, copies: NDArray[np.int64], gap_counts: NDArray[np.int64]
) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """Return when each output token of the wanted requests arrived [us], and for how many sequences."""
    total = np.concatenate([[0], np.cumsum(records.gap_us)])
    base_us = records.first_token_us - total[records.gap_offsets[:-1]]
    later_us = total[1:] + np.repeat(base_us, gap_counts)
    started = np.where(records.first_token_us >= 0, copies, 0)
    return (
        np.concatenate([records.first_token_us, later_us]),
        np.concatenate([started, np.repeat(copies, gap_counts)]),
    )


def _concurrency(records: Records) -> int:
    """Return the time [us] that requests spent in flight within the window, summed."""
    start_us, end_us = records.window_us
    done_us = np.where(records.done_us >= 0, records.done_us, end_us)
    overlap_us = np.minimum(done_us, end_us) - np.maximum(records.sent_us, start_us)
    return int(np.maximum(overlap_us, 0).sum())
