"""What PARIS knows of an LLM beside its features: its measurements on the reference profiles, as features."""

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise

import numpy as np
import pandas as pd

from llmpilot.predict.evaluation import rows_of
from llmpilot.predict.paper.features import MISSING

METRICS = ("nttft_ms", "itl_ms", "throughput_tok_s")


@dataclass(frozen=True)
class Fingerprints:
    """How measured rows become features: of which profiles and user counts, within which limits [ms]."""

    references: tuple[str, ...]
    users: tuple[int, ...]
    nttft_ms: float
    itl_ms: float

    def of(self, measured: pd.DataFrame | None) -> dict[str, float]:
        """Return one LLM's features from its measured rows; -1 for what was not measured.

        Per reference profile: the users within each limit and within both, and every metric at each of the
        user counts.
        """
        features: dict[str, float] = {}
        for reference in self.references:
            rows = rows_of(measured, [reference]) if measured is not None else None
            features |= (
                self._missing(reference) if rows is None or rows.empty else self._known(reference, rows)
            )
        return features

    def join(self, features: pd.DataFrame, prints: Sequence[dict[str, float]]) -> pd.DataFrame:
        """Return the features with each row's fingerprint as further columns."""
        return pd.concat([features, pd.DataFrame(prints, index=features.index)], axis=1)

    def _missing(self, reference: str) -> dict[str, float]:
        counts = [f"{reference}_users_within_{limit}" for limit in ("nttft", "itl", "both")]
        levels = [f"{reference}_{metric}_{level}" for metric in METRICS for level in self.users]
        return dict.fromkeys([*counts, *levels], MISSING)

    def _known(self, reference: str, rows: pd.DataFrame) -> dict[str, float]:
        levels = rows.groupby("users")[list(METRICS)].mean()
        nttft = users_within(levels["nttft_ms"], self.nttft_ms)
        itl = users_within(levels["itl_ms"], self.itl_ms)
        values = [nttft, itl, min(nttft, itl)]
        # One of the published cells' throughputs is not known; the trees take no holes.
        values += [levels[metric].get(level, np.nan) for metric in METRICS for level in self.users]
        filled = np.nan_to_num(np.array(values, dtype=np.float64), nan=MISSING)
        return dict(zip(self._missing(reference), filled.tolist(), strict=True))


def users_within(latencies: pd.Series, limit_ms: float) -> int:
    """Return how many users stay within a limit, between the levels by linear interpolation, rounded down.

    `latencies` [ms] is indexed by rising users; where none is above the limit, it is the last of them.
    """
    levels = list(zip(latencies.index.astype(float), latencies.astype(float), strict=True))
    if limit_ms < min(value for _, value in levels):
        return 0
    if limit_ms > max(value for _, value in levels):
        return int(levels[-1][0])
    for (low, before), (high, after) in pairwise(levels):
        if before <= limit_ms <= after:
            share = 1.0 if before == after else (limit_ms - before) / (after - before)
            return int(low + (high - low) * share)
    return 0
