"""How far the truth may lie from what the trees say: joint residuals of a prediction, over cells' scales."""

from collections.abc import Sequence
from functools import lru_cache
from typing import TypeVar

import numpy as np

from llmpilot.predict.pilot.residuals import Cluster, Residuals
from llmpilot.predict.prediction import Floats

KEPT_DRAWS = 8
"""Of 500 draws for 100 profiles under 8 loads, each takes 6 MB."""

T = TypeVar("T")
PerMetric = tuple[T, ...]
"""One for each metric."""
PerWidth = tuple[T, ...]
"""One for each account of how wide the residuals are."""
Strayed = PerMetric[PerWidth[tuple[Floats, Floats]]]
"""Joint residuals [draw, profile, users] and their mean [profile, users]."""


def strayed(
    residuals: PerMetric[PerWidth[Residuals]],
    known: PerMetric[Cluster | None],
    *,
    profiles: int,
    users: Sequence[int],
    draws: int,
    seed: int,
) -> Strayed:
    """Return how far the truth may lie from what the trees say; `known` is what was measured of it.

    There are as many `draws` of each width.
    """
    rng, doublings = np.random.default_rng(seed), np.log2(np.asarray(users, dtype=float))
    return tuple(
        tuple(one.draw(profiles, doublings, draws, rng, cells) for one in widths)
        for widths, cells in zip(residuals, known, strict=True)
    )


def replaced(ours: Strayed, others: Strayed, profiles: list[int]) -> Strayed:
    """Return the residuals, those of some profiles taken from the others."""

    def both(one: Floats, other: Floats, at: tuple[slice | list[int], ...]) -> Floats:
        mixed = one.copy()
        mixed[at] = other[at]
        return mixed

    return tuple(
        tuple(
            (both(drawn, drawn_there, (slice(None), profiles)), both(pull, pull_there, (profiles,)))
            for (drawn, pull), (drawn_there, pull_there) in zip(widths, widths_there, strict=True)
        )
        for widths, widths_there in zip(ours, others, strict=True)
    )


@lru_cache(maxsize=KEPT_DRAWS)
def strayed_unseen(
    residuals: PerMetric[PerWidth[Residuals]], profiles: int, users: tuple[int, ...], draws: int, seed: int
) -> Strayed:
    """Return what `strayed` does for an LLM that nobody has measured: it is the same for all of them.

    Half of a prediction's time would go into drawing it again.
    """
    nothing = (None,) * len(residuals)
    drawn = strayed(residuals, nothing, profiles=profiles, users=users, draws=draws, seed=seed)
    for array in (array for widths in drawn for both in widths for array in both):
        array.flags.writeable = False
    return drawn
