"""Searches the most that a service takes within its SLA: what to measure next, and how sure the answer is.

A climb finds a level that breaks the SLA: it doubles the load, and goes faster (up to 8 times) while the
figures are further from their limits than that. Between the last level kept and the first broken, the next
one is where a straight line between their margins (`boundary.margin`, over the logarithm of the load) crosses
0, until the two are close. Both are then measured again, with other requests, so that luck does not decide:
margins are made to fall with the load by isotonic regression, weighted by how long each was measured, and the
boundary is where that crosses 0. A level whose window was too short is measured for longer at its repeats.

The interval is where the crossing lies with 95% confidence, by what repeats of one level differ in (a
parametric bootstrap: each level's mean is drawn anew with that noise, of which few repeats know little, so it
is drawn too); it never is narrower than from the last level kept to the first broken. Without repeats it is
just that. It knows the noise between one window and the next, not what all windows have in common.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from math import ceil, exp, floor, inf, sqrt
from typing import Any

import numpy as np
from numpy.typing import NDArray

from llmpilot.boundary import MOST_MARGIN, Boundary
from llmpilot.config import Load
from llmpilot.metrics import Level

CONFIDENCE = 0.95
DRAWS = 1000
SEED = 20_240_607
FASTEST = 8.0
"""The climb multiplies the load by so much at the most, and by 2 at the least."""
FAST = 4.0
"""And by so much where two levels foretell it."""
EDGE = 0.1
"""A level between two others keeps this share of their distance from both."""
DIGITS = 3
"""Significant digits of the rates that are tried."""
MOST_WINDOWS = 4.0
"""A level whose window is too short is measured for at most so many times load.duration_s."""

Floats = NDArray[np.float64]


@dataclass(frozen=True)
class Range:
    """Where and how to search: from `first` to `last`, to a distance of `until` between kept and broken.

    Both ends of it are measured `repeats` times. `whole`: levels are whole numbers, of users. `lengthens`:
    whether a level can be measured for longer than load.duration_s (a trace may end).
    """

    first: float
    last: float
    until: float
    repeats: int
    whole: bool
    lengthens: bool = True


@dataclass(frozen=True)
class Seen:
    """One measurement of a level: its margin, and for how many times load.duration_s it was measured.

    `wanted` is how many times that it would have taken, where it was too short to be judged by.
    """

    level: float
    margin: float
    windows: float = 1.0
    wanted: float | None = None


@dataclass(frozen=True)
class Step:
    """What to measure next: the how-manieth measurement of a level this is, and how long [windows]."""

    level: float
    repeat: int = 0
    windows: float = 1.0


@dataclass(frozen=True)
class Found:
    """What a search has come to: the boundary, where the margin is 0, and between which loads that is.

    `low` is 0 where no lower bound is known, `high` None; so is `estimate` where the margin is 0 nowhere.
    `noise` is the standard deviation of the margin from window to window; None without repeats.
    """

    boundary: Boundary
    estimate: float | None
    low: float
    high: float | None
    noise: float | None


def range_of(load: Load, *, repeats: bool = True) -> Range:
    """Return where `load` says to search; without `repeats` where a level always shows the same."""
    return Range(
        first=load.levels[0],
        last=load.levels[-1],
        until=load.search_until,
        repeats=load.search_repeats if repeats else 1,
        whole=load.arrival == "closed",
        lengthens=load.arrival != "replay",
    )


def seen_in(measured: Sequence[Level], duration_s: float) -> list[Seen]:
    """Return what measurements of a search tell, in their order."""
    return [
        Seen(
            one["level"],
            one["sla_margin"],
            one["duration_s"] / duration_s,
            None if one["window_wanted_s"] is None else one["window_wanted_s"] / duration_s,
        )
        for one in measured
    ]


def next_step(seen: Sequence[Seen], within: Range) -> Step | None:
    """Return what to measure next, None when the search is done. `seen` is in the order of measuring."""
    if not seen:
        return Step(within.first)
    levels, means, weights = _by_level(seen)
    kept, broken = _ends(levels, isotonic(means, weights))
    if broken is None and levels[-1] < within.last:
        return Step(_climbed(levels, means, within))
    if kept is not None and broken is not None and not _close(levels[kept], levels[broken], within):
        found = conclude(seen, within)
        # Where the noise is as wide as the gap, levels within it tell no more than repeats of its ends.
        if not found.noise or found.low >= levels[kept] or (found.high or inf) <= levels[broken]:
            margins = (float(means[kept]), float(means[broken]))
            return Step(_between((levels[kept], levels[broken]), margins, seen, within))
    ends = [levels[at] for at in (kept, broken) if at is not None]
    for level in sorted(ends, key=lambda end: sum(one.level == end for one in seen)):
        if (step := _again(level, seen, within)) is not None:
            return step
    if broken is not None and levels[-1] < within.last and conclude(seen, within).high is None:
        # So flat a curve, or so much noise, that the first level broken bounds nothing: one that surely does.
        return Step(_climbed(levels, np.zeros(len(levels)), within))
    return None


def conclude(seen: Sequence[Seen], within: Range) -> Found:
    """Return what the measurements have come to, one or more of them."""
    levels, means, weights = _by_level(seen)
    fitted = isotonic(means, weights)
    kept, broken = _ends(levels, fitted)
    boundary = Boundary(*(None if at is None else levels[at] for at in (kept, broken)))
    low, high = boundary.kept or 0.0, inf if boundary.broken is None else boundary.broken
    spread, freedom = _noise(seen)
    if spread:
        random = np.random.default_rng(SEED)
        scale = spread * np.sqrt(freedom / random.chisquare(freedom, DRAWS))
        drawn = means + random.normal(size=(DRAWS, len(levels))) * scale[:, None] / np.sqrt(weights)
        drawn = np.clip(drawn, -MOST_MARGIN, MOST_MARGIN)
        crossings = _crossings(levels, isotonic(drawn, weights))
        tail = (1 - CONFIDENCE) / 2
        low = min(low, float(np.quantile(crossings, tail, method="lower")))
        high = max(high, float(np.quantile(crossings, 1 - tail, method="higher")))
    estimate = float(_crossings(levels, fitted[None])[0])
    return Found(
        boundary,
        estimate if 0 < estimate < inf else None,
        low,
        high if high < inf else None,
        spread if freedom else None,
    )


def stated(found: Found, seen: Sequence[Seen], within: Range) -> dict[str, Any]:
    """Return it as the result has it: the interval is of the most that is taken, [least, most or None]."""
    low, high = found.low, found.high
    if within.whole:  # the most users lie below the first that break it
        low, high = floor(low + 1e-9), None if high is None else ceil(high - 1e-9) - 1
    return {
        "estimate": found.estimate,
        "interval": [low, high],
        "confidence": CONFIDENCE,
        "noise": found.noise,
        "levels": len({one.level for one in seen}),
        "windows": len(seen),
    }


def isotonic(margins: Floats, weights: Floats) -> Floats:
    """Return the closest margins that never rise along the last axis, by weighted squares."""
    n = margins.shape[-1]
    sums = np.concatenate([np.zeros((*margins.shape[:-1], 1)), np.cumsum(margins * weights, -1)], -1)
    total = np.concatenate([[0.0], np.cumsum(weights)])
    means = np.full((*margins.shape[:-1], n, n), -inf)  # of the levels from a to b
    for a in range(n):
        means[..., a, a:] = (sums[..., a + 1 :] - sums[..., a : a + 1]) / (total[a + 1 :] - total[a])
    # The min-max formula: the least, over where a block begins, of the most, over where it ends.
    fitted = np.empty(margins.shape)
    for i in range(n):
        fitted[..., i] = means[..., : i + 1, i:].max(-1).min(-1)
    return fitted


def _by_level(seen: Sequence[Seen]) -> tuple[list[float], Floats, Floats]:
    """Return the levels going up, the mean margin of each, and its weight: how long it was measured."""
    levels = sorted({one.level for one in seen})
    weights = np.array([sum(one.windows for one in seen if one.level == level) for level in levels])
    sums = [sum(one.windows * one.margin for one in seen if one.level == level) for level in levels]
    return levels, np.array(sums) / weights, weights


def _ends(levels: Sequence[float], fitted: Floats) -> tuple[int | None, int | None]:
    """Return which level is the last kept, and which the first broken."""
    n = int((fitted >= 0).sum())
    return n - 1 if n else None, n if n < len(levels) else None


def _close(kept: float, broken: float, within: Range) -> bool:
    return broken / kept - 1 <= within.until or (within.whole and broken - kept <= 1)


def _climbed(levels: Sequence[float], means: Floats, within: Range) -> float:
    """Return the next level above all that were measured, none of which breaks the SLA."""
    # Latencies grow with the load at most in proportion to it, up to where requests begin to wait.
    factor = min(FASTEST, exp(means[-1]))
    if len(levels) > 1:  # or on a straight line through the last two
        before, last = np.exp(-means[-2:])
        slope = (last - before) / (levels[-1] - levels[-2])
        factor = max(factor, min(FAST, 1 + (1 - last) / max(slope * levels[-1], 1e-9)))
    higher = levels[-1] * max(2.0, factor)
    return min(within.last, round(higher) if within.whole else _rounded(higher))


def _between(
    ends: tuple[float, float], margins: tuple[float, float], seen: Sequence[Seen], within: Range
) -> float:
    """Return the level to measure between the last kept and the first broken."""
    low, high = ends
    after = seen[_climbs(seen) :]
    splits = sum(one.level < max(known.level for known in seen[: _climbs(seen)]) for one in after)
    if high / low <= (1 + within.until) ** 2 or (splits % 3 == 2 and not _noise(seen)[1]):
        # Near enough that the middle ends it; and a curve that bends is met by halves at last.
        at = sqrt(low * high)
    else:
        at = float(_crossing(low, high, margins[0], max(margins[1], -1.0)))
        # A little beyond it, to the side that is further away: the ends close in from both sides.
        at *= 1 + within.until / 2 if high - at > at - low else 1 - within.until / 2
        edge = min(EDGE * (high - low), within.until / 2 * low) if _noise(seen)[1] else EDGE * (high - low)
        at = min(max(at, low + edge), high - edge)
    if within.whole:
        return int(min(max(round(at), low + 1), high - 1))
    level = _rounded(at)
    return level if low < level < high else sqrt(low * high)


def _climbs(seen: Sequence[Seen]) -> int:
    """Return how many measurements the climb took."""
    broken = [i for i, one in enumerate(seen) if one.margin < 0]
    return broken[0] + 1 if broken else len(seen)


def _again(level: float, seen: Sequence[Seen], within: Range) -> Step | None:
    """Return the next measurement of a level at the boundary; None when it has enough."""
    own = [one for one in seen if one.level == level]
    wanted = own[-1].wanted
    short = within.lengthens and wanted is not None and max(one.windows for one in own) < MOST_WINDOWS
    if len(own) >= within.repeats and not short:
        return None
    windows = max(one.windows for one in own)
    if short and wanted is not None:
        windows = MOST_WINDOWS if windows > 1 else min(MOST_WINDOWS, max(2.0, float(ceil(wanted))))
    return Step(level, len(own), windows)


def _noise(seen: Sequence[Seen]) -> tuple[float, int]:
    """Return the standard deviation of a margin measured for one window, and its degrees of freedom."""
    squares, freedom = 0.0, 0
    for level in {one.level for one in seen}:
        own = [one for one in seen if one.level == level and abs(one.margin) < MOST_MARGIN]
        if len(own) < 2:
            continue
        weights = np.array([one.windows for one in own])
        margins = np.array([one.margin for one in own])
        squares += float((weights * (margins - np.average(margins, weights=weights)) ** 2).sum())
        freedom += len(own) - 1
    return (sqrt(squares / freedom) if freedom else 0.0), freedom


def _crossings(levels: Sequence[float], fitted: Floats) -> Floats:
    """Return where each row of margins crosses 0, [row]: 0 where all are below, inf where none is."""
    loads = np.array(levels)
    n = (fitted >= 0).sum(-1)
    inside = (n > 0) & (n < len(levels))
    rows = np.flatnonzero(inside)
    at = n[rows]
    crossings = np.where(n > 0, inf, 0.0)
    crossings[rows] = _crossing(loads[at - 1], loads[at], fitted[rows, at - 1], fitted[rows, at])
    return crossings


def _crossing(kept: Any, broken: Any, margin_kept: Any, margin_broken: Any) -> Any:
    """Return the load at which a figure that grows in a straight line between two reaches its limit."""
    below, above = -np.expm1(-margin_kept), np.expm1(-margin_broken)
    return kept + (broken - kept) * below / (below + above)


def _rounded(rate: float) -> float:
    return float(f"{rate:.{DIGITS}g}")
