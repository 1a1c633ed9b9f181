"""Whether a level's streams show when single tokens came: what was held back says nothing of the service.

No LLM serves one user faster than 10,000 tokens/s. Gaps below 0.1 ms are those between tokens of one piece,
or between the pieces into which a proxy cuts what it has held back. A percentile of mostly such gaps is no
latency, and neither is a time to the first token that came with all others.
"""

from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from llmpilot.config import LATENCIES, Limit, Sla

SHORT_GAP_US = 100
MOST = 0.5
ONE_PIECE, BURSTS = "one piece", "bursts"

Ints = NDArray[np.int64]
Bools = NDArray[np.bool_]


def streams_of(gap_us: Ints, gap_counts: Ints, decode_us: Ints, chosen: Bools) -> dict[str, Any]:
    """Return how the answers of the chosen requests came, and which latencies that does not show.

    `gap_us` holds their gaps; `gap_counts` and their sum `decode_us` are those of every request of the level.
    `one_piece_share` is that of answers with several tokens which came in one piece (their mean gap is below
    0.1 ms); `short_gap_share` that of gaps below 0.1 ms. Both are null without a gap.
    """
    several = chosen & (gap_counts > 0)
    if not several.any():
        return {"one_piece_share": None, "short_gap_share": None, "not_shown": []}
    one_piece = int((several & (decode_us < SHORT_GAP_US * gap_counts)).sum())
    share = one_piece / int(several.sum())
    short_gaps = int((gap_us < SHORT_GAP_US).sum()) / len(gap_us)
    not_shown: set[str] = set()
    if share > MOST:
        not_shown |= {"itl_ms", "tpot_ms"}
        # Answers of a single token show when it came.
        if one_piece > MOST * int(chosen.sum()):
            not_shown |= {"ttft_ms", "nttft_ms"}
    elif short_gaps > MOST:
        not_shown |= {"itl_ms"}
    return {
        "one_piece_share": round(share, 6),
        "short_gap_share": round(short_gaps, 6),
        "not_shown": [name for name in LATENCIES if name in not_shown],
    }


def kind_of(level: dict[str, Any]) -> str | None:
    """Return how a level's streams came, ONE_PIECE or BURSTS; None where they show every latency."""
    not_shown = _not_shown(level)
    if not not_shown:
        return None
    return ONE_PIECE if "tpot_ms" in not_shown else BURSTS


def shows(level: dict[str, Any], latency: str, statistic: str) -> bool:
    """Whether a level's streams show a statistic of a latency.

    Bursts show the mean of all gaps: it depends on first and last tokens only.
    """
    not_shown = _not_shown(level)
    return latency not in not_shown or (statistic == "mean" and "tpot_ms" not in not_shown)


def unseen_limits(level: dict[str, Any], sla: Sla) -> list[Limit]:
    """Return the limits of an SLA on what a level's streams do not show: whether it keeps them is unknown."""
    return [limit for limit in sla.limits if not shows(level, limit.latency, limit.statistic)]


def problem_of(levels: Sequence[dict[str, Any]], sla: Sla) -> str | None:
    """Return what the streams of these levels, all of one kind, do not show, why, and the cure; or None."""
    kind = kind_of(levels[0])
    if kind is None:
        return None
    cure = _cure(levels, sla)
    if kind == ONE_PIECE:
        names = and_(named(name) for name in _not_shown(levels[0]))
        return (
            f"{_shares(levels, 'one_piece_share')} of the answers with several tokens came in one piece, so "
            f"{names} say nothing of the service, and E2E does. A proxy holds the stream back, or the server "
            "does not stream: turn buffering off (nginx: proxy_buffering off, or a header from the server, "
            f"X-Accel-Buffering: no){f'; or limit what can be seen: {cure}' if cure else ''}"
        )
    return (
        f"{_shares(levels, 'short_gap_share')} of the gaps between tokens are below 0.1 ms, so percentiles "
        "of ITL say nothing of the service, and TTFT and TPOT do. Tokens come several at a time, by "
        "speculative decoding, the engine's stream interval or a proxy's buffer, or faster than a client can "
        f"tell them apart{f'. Limit what can be seen: {cure}' if cure else ''}"
    )


def named(latency: str) -> str:
    """Return a latency's name as people write it: `nTTFT`."""
    return {"nttft_ms": "nTTFT"}.get(latency, latency.removesuffix("_ms").upper())


def and_(words: Any) -> str:
    """Return `a, b and c`."""
    *first, last = list(words)
    return f"{', '.join(first)} and {last}" if first else str(last)


def _not_shown(level: dict[str, Any]) -> list[str]:
    return list(level.get("streams", {}).get("not_shown", ()))


def _shares(levels: Sequence[dict[str, Any]], name: str) -> str:
    shares = [f"{share:.0%}" for share in sorted(level["streams"][name] for level in levels)]
    return shares[0] if shares[0] == shares[-1] else f"{shares[0]} to {shares[-1]}"


def _cure(levels: Sequence[dict[str, Any]], sla: Sla) -> str:
    """Return the keys that limit what can be seen in place of what cannot; "" where nothing is limited."""
    latencies = {limit.latency for level in levels for limit in unseen_limits(level, sla)}
    if not latencies:
        return ""
    instead = "e2e_ms" if kind_of(levels[0]) == ONE_PIECE else "tpot_ms"
    dropped = [f"sla.{name}=null" for name in LATENCIES if name in latencies]
    already = [] if sla.limits_on(instead) else [f"sla.{instead}=<ms>"]
    return " ".join([*already, *dropped])
