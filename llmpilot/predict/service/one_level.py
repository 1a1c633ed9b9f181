"""What one measured level of an LLM says of everything else that is predicted of it.

Step times err alike where `nearby` says that they do. First tokens err beside them as much alike.
"""

from collections.abc import Mapping, Sequence

import numpy as np
from numpy.typing import NDArray

from llmpilot.predict.service.levels import Level
from llmpilot.predict.service.measured_curves import MeasuredCurve
from llmpilot.predict.service.nearby import TOTAL, alikeness, nearby, places
from llmpilot.predict.service.recommended import Expected
from llmpilot.simulator.service_scales import NARROWER

Numbers = NDArray[np.float64]

KNOWN_USERS = 16.0
"""The level that is measured is the one nearest to so many users."""


def level_to_measure(curves: Sequence[MeasuredCurve]) -> tuple[int, ...]:
    """Return the rows of the one level of an LLM that is taken for measured.

    Of its most measured service, the curve with the most levels (of several the first), its level nearest to
    KNOWN_USERS.
    """
    levels: dict[tuple[object, ...], int] = {}
    for curve in curves:
        levels[curve.service] = levels.get(curve.service, 0) + len(curve.rows)
    service = max(levels, key=lambda key: levels[key])
    chosen = max((curve for curve in curves if curve.service == service), key=lambda one: len(one.rows))
    return chosen.rows[int(np.argmin(np.abs(np.log2(chosen.concurrency / KNOWN_USERS))))]


def after_one_level(
    expected: Expected,
    levels: Sequence[Level | None],
    known: Mapping[tuple[int, ...], Sequence[int]],
    *,
    tpot_ms: Numbers,
    ttft_ms: Numbers,
) -> Expected:
    """Return what is expected of the rows of a table after some of its levels were measured.

    `known` maps the rows of a measured level to the rows that may learn from it; `levels` are the table's
    rows, None for one that cannot be simulated, `tpot_ms` and `ttft_ms` what was measured of each.
    """
    tpot, ttft = expected.tpot_ms.copy(), expected.ttft_ms.copy()
    steps, beside = expected.steps_spread.copy(), expected.first_token_spread.copy()
    for rows, about in known.items():
        at, of = np.array(rows), np.array(about)
        there, here = (places([one for row in some if (one := levels[row])]) for some in (rows, about))
        errors = np.log(tpot_ms[at] / expected.tpot_ms[at])
        mean, variance = nearby(there, errors).mean_and_variance(here)
        factors = np.maximum((expected.steps_spread[of] / NARROWER) ** 2 - TOTAL, 0.0)
        steps[of] = NARROWER * np.sqrt(variance + factors)
        # As much of the first tokens' variance is shared as of the steps'.
        alike = alikeness(here, there)[:, 0] / TOTAL
        late = float(np.mean(np.log(ttft_ms[at] / expected.ttft_ms[at]) - errors))
        beside[of] = expected.first_token_spread[of] * np.sqrt(1.0 - alike**2)
        tpot[of] *= np.exp(mean)
        ttft[of] *= np.exp(mean + alike * late)
    return Expected(tpot, ttft, steps, beside)
