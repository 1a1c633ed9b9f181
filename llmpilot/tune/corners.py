"""The corner cases that a max batch weight must survive: loads made to fill the batch to its cap.

A workload rarely fills a large batch within minutes; a service that is safe in production must hold the day
when it does.
"""

from collections.abc import Iterator
from dataclasses import dataclass, replace
from math import ceil

import numpy as np

from llmpilot.loadtest import Traffic
from llmpilot.workload import Requests, concatenate, from_lengths

SAMPLE = 20_000  # requests of the workload that are looked at for its shapes
WINDOW_S = 1.0
DRAIN_S = 3600.0  # being slow is no reason to call a weight infeasible: the objective judges that


@dataclass(frozen=True)
class SameTraffic(Traffic):
    """Closed-loop traffic of one request shape without end."""

    shape: tuple[int, int, int] = (1, 1, 1)  # input tokens, output tokens, sequences

    def requests(self) -> "_Same":
        """Return the endless source."""
        return _Same(self.shape)


@dataclass(frozen=True)
class Corner:
    """A corner case: its name, what is sent, and by how many users at once."""

    name: str
    traffic: Traffic
    users: int


def corner_cases(traffic: Traffic, weight: int, max_short_users: int) -> Iterator[Corner]:
    """Yield the corner cases of a service under max batch weight `weight`, the quickest first.

    The longest requests of all would leave up to one of themselves empty. So the full batch is of equal ones,
    of half that length or more, in the number that fills `weight` best: to the token, or nearly. They are
    equal because a padded batch counts every request as long as its longest.
    """
    sample = traffic.requests().take(SAMPLE)
    heaviest = int(sample.weights.argmax())
    copies = int(sample.batch_size[heaviest])
    output = int(sample.output_tokens[heaviest])
    longest = max(traffic.heaviest_request_tokens, int(sample.weights.max()))
    # The sample may miss the heaviest request of all: its input is stretched to weigh as much.
    one = (max(1, longest // copies - output), output, copies)
    yield Corner("one longest request", _same(traffic, one), 1)

    lightest = int(sample.weights.argmin())
    short = (int(sample.input_tokens[lightest]), int(sample.output_tokens[lightest]), 1)
    users = max(1, min(weight // (short[0] + short[1]), max_short_users))
    yield Corner(f"{users} short requests", _same(traffic, short), users)

    least = ceil(weight / longest)
    users = min(range(least, 2 * least), key=lambda n: (weight % n, n))
    each = weight // users
    full = (max(1, each - min(output, each - 1)), min(output, each - 1), 1)
    yield Corner(f"a full batch of {users} long requests", _same(traffic, full), users)


def _same(traffic: Traffic, shape: tuple[int, int, int]) -> SameTraffic:
    at_once = {"warmup_s": 0.0, "duration_s": WINDOW_S, "drain_s": DRAIN_S, "think_time_s": 0.0}
    load = traffic.load.model_copy(update=at_once)
    return SameTraffic(load, traffic.workload, traffic.seed, shape=shape)


class _Same:
    """An endless source of one request."""

    def __init__(self, shape: tuple[int, int, int]) -> None:
        self._shape = shape

    def take(self, n: int) -> Requests:
        inputs, outputs, copies = self._shape
        rows = concatenate([from_lengths(np.full(n, inputs), np.full(n, outputs))])
        return replace(rows, batch_size=np.full(n, copies, dtype=np.int64))
