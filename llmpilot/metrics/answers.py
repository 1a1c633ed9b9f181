"""What a level's answers were beside what was asked for: lengths, thoughts, cached prompts, turns."""

from math import fsum
from typing import Any

import numpy as np
from numpy.typing import NDArray

from llmpilot.loadtest import Records
from llmpilot.metrics.statistics import statistics_us

Ints = NDArray[np.int64]
Bools = NDArray[np.bool_]

TOLERATED_DIFFERENCE = 0.05
TOLERATED_BESIDE = 2
"""Tokens of a prompt that servers put before it, such as that of its beginning."""
LAST_TURN = 10
"""From which on turns of conversations are one figure."""


def received_tokens(records: Records) -> Ints:
    """Return how many output tokens came of each request's first sequence, those never shown among them."""
    tokens = np.where(records.first_token_us >= 0, np.diff(records.gap_offsets) + 1, 0)
    return np.asarray(tokens + hidden_tokens(records))


def hidden_tokens(records: Records) -> Ints:
    """Return how many output tokens of each request were counted by the server and never shown."""
    if records.hidden_tokens is None:
        return np.zeros(len(records), dtype=np.int64)
    return records.hidden_tokens


def fidelity(records: Records, good: Bools) -> dict[str, Any]:
    """Return how the lengths of the `good` requests kept to what the workload asked for.

    Means in tokens a sequence; shares of the requests that ended early or were longer. `problem` is in what
    way the workload that was measured is another one, or null. `input_tokens_counted` is the mean of what the
    server counted, null where it does not say. All are null without a request.
    """
    asked, received = records.requests.output_tokens[good], received_tokens(records)[good]
    before = (
        records.requests.input_tokens if records.asked_input_tokens is None else records.asked_input_tokens
    )
    counted = (
        np.full(len(records), -1) if records.counted_input_tokens is None else records.counted_input_tokens
    )
    both = good & (counted > 0)
    found: dict[str, Any] = {
        "output_tokens_asked": _mean(asked),
        "output_tokens_received": _mean(received),
        "ended_early_share": _mean(received < asked),
        "longer_share": _mean(received > asked),
        "input_tokens_asked": _mean(before[both] if both.any() else before[good]),
        "input_tokens_counted": _mean(counted[both]),
    }
    return found | {"problem": fidelity_problem(found)}


def fidelity_problem(found: dict[str, Any]) -> str | None:
    """Return in what way another workload was measured than the one that was configured, or None."""
    problems = []
    asked, received = found["output_tokens_asked"], found["output_tokens_received"]
    if asked is not None and abs(received - asked) > TOLERATED_DIFFERENCE * asked:
        early, longer = found["ended_early_share"], found["longer_share"]
        how = f"{early:.0%} of them ended early" if received < asked else f"{longer:.0%} of them were longer"
        problems.append(
            f"answers had {received:,.1f} tokens on average where {asked:,.1f} were asked for; {how}"
        )
    sent, counted = found["input_tokens_asked"], found["input_tokens_counted"]
    if counted is not None and abs(counted - sent) > TOLERATED_DIFFERENCE * sent + TOLERATED_BESIDE:
        problems.append(
            f"prompts had {counted:,.1f} tokens on average by the server's count where {sent:,.1f} were meant"
        )
    return "; ".join(problems) or None


def thoughts(records: Records, good: Bools) -> dict[str, Any]:
    """Return the time to the first token of the answer itself, where models thought aloud before it; or {}.

    `ttfa_ms` are its statistics, `thought_aloud` the number of `good` requests behind them.
    """
    if records.first_answer_us is None:
        return {}
    aloud = good & (records.first_answer_us >= 0)
    if not aloud.any():
        return {}
    waited_us = records.first_answer_us[aloud] - records.sent_us[aloud]
    return {"ttfa_ms": statistics_us(waited_us), "thought_aloud": int(aloud.sum())}


def cached_share(records: Records, chosen: Bools) -> float | None:
    """Return the share of the chosen requests' prompt tokens that the server says it had in its cache.

    Of those requests of which it says so; null where there is none.
    """
    if records.cached_tokens is None:
        return None
    said = chosen & (records.cached_tokens >= 0)
    prompts = int(_prompt_tokens(records)[said].sum())
    return round(int(records.cached_tokens[said].sum()) / prompts, 6) if prompts else None


def turns(records: Records, good: Bools) -> list[dict[str, Any]]:
    """Return TTFT by turn of a conversation, counted from 1; the last gathers LAST_TURN and all later ones.

    An entry has `turn`, `and_later`, `requests`, `ttft_ms`, `input_tokens_mean` and `cached_share`.
    """
    if records.turn is None:
        return []
    number = np.minimum(records.turn + 1, LAST_TURN)
    ttft_us = records.first_token_us - records.sent_us
    found = []
    for turn in np.unique(number[good]).tolist():
        own = good & (number == turn)
        found.append(
            {
                "turn": turn,
                "and_later": bool((records.turn[own] >= LAST_TURN).any()),
                "requests": int(own.sum()),
                "ttft_ms": statistics_us(ttft_us[own]),
                "input_tokens_mean": _mean(records.requests.input_tokens[own]),
                "cached_share": cached_share(records, own),
            }
        )
    return found


def _prompt_tokens(records: Records) -> Ints:
    """Return how long each prompt was: by the server's own count where it gave one."""
    own = records.requests.input_tokens
    if records.counted_input_tokens is None:
        return own
    return np.where(records.counted_input_tokens > 0, records.counted_input_tokens, own)


def _mean(values: NDArray[Any]) -> float | None:
    return round(fsum(values.tolist()) / len(values), 6) if len(values) else None
