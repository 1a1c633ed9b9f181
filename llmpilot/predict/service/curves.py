"""What one pod of a service does as its load rises, and how much of it an SLA allows.

A curve is simulated once, at the step times that are expected. Step times that are k times as long need no
other simulation: at 1/k of the request rate everything is the same, k times slower. So a curve says all
there is to know under every draw of how fast the service really is.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from llmpilot.config import Limit

Numbers = NDArray[np.float64]


@dataclass(frozen=True)
class Speeds:
    """Joint draws of what may be true of one service, factors [draws] on what is expected: of its step times,
    and, beside them, of its time to the first token."""

    steps: Numbers
    first_token: Numbers


@dataclass(frozen=True)
class Curve:
    """One pod under rising load, points [n].

    `latencies` maps (latency, statistic) to [n] ms, as `lanes.LaneFigures` has them; `overhead_ms` comes on
    top of TTFT and E2E, whatever the speed. `rate_per_s` are the requests that end a second.
    """

    rate_per_s: Numbers
    output_tokens_per_s: Numbers
    latencies: Mapping[tuple[str, str], Numbers]
    failures: Numbers
    overhead_ms: float
    mean_input_tokens: float

    def capacity(
        self,
        limits: Sequence[Limit],
        max_failure_rate: float,
        speeds: Speeds,
        think_time_s: float | None = None,
    ) -> Numbers:
        """Return the largest load within all limits under each draw [draws]; 0 where none is.

        Loads are requests/s, or with `think_time_s` the users of a closed loop, who think so long between
        two requests.
        """
        raise NotImplementedError

    def figure(self, limit: Limit, load: float, speeds: Speeds, think_time_s: float | None = None) -> Numbers:
        """Return the latency that a limit is about under each draw [draws] ms at a load as in `capacity`."""
        raise NotImplementedError
