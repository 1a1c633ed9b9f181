"""What was simulated is kept: another load, SLA, risk or price of the same services needs no simulation.

Step times of a service are kept apart from its curves: another workload needs only the curves.
"""

from collections import OrderedDict
from collections.abc import Callable, Hashable, Sequence
from concurrent.futures import Future
from dataclasses import dataclass
from threading import Lock
from typing import Generic, TypeVar

from llmpilot.predict.service.curves import Curve, Speeds
from llmpilot.predict.service.knowledge import Knowledge
from llmpilot.recommendation.forecast import Simulated
from llmpilot.recommendation.offers import kv_capacity_or_why
from llmpilot.recommendation.question import Offered, Question
from llmpilot.recommendation.today import DRAWS, assembled, curves_of, service_of
from llmpilot.simulator.lanes import LaneService

KEPT_SERVICES = 256
"""Of which the step times are kept: half a megabyte each."""
KEPT_CURVES = 4096
"""Services under a workload whose curves are kept: 20 kB each."""

K = TypeVar("K", bound=Hashable)
V = TypeVar("V")


class Kept(Generic[K, V]):
    """What was made of some keys; the least lately used is dropped. Whoever asks for what another thread is
    making waits for it."""

    def __init__(self, most: int) -> None:
        self._most, self._lock = most, Lock()
        self._found: OrderedDict[K, Future[V]] = OrderedDict()

    def __len__(self) -> int:
        return len(self._found)

    def get(self, keys: Sequence[K], make: Callable[[list[int]], Sequence[V]]) -> list[V]:
        """Return what there is of each key; `make` makes those at some places of `keys`, all at once."""
        mine: list[int] = []
        with self._lock:
            futures = []
            for place, key in enumerate(keys):
                future = self._found.get(key)
                if future is None:
                    future = self._found[key] = Future()
                    mine.append(place)
                self._found.move_to_end(key)
                futures.append(future)
            while len(self._found) > max(self._most, len(keys)):
                self._found.popitem(last=False)
        if mine:
            try:
                for place, value in zip(mine, make(mine), strict=True):
                    futures[place].set_result(value)
            except BaseException as error:
                with self._lock:
                    for place in mine:
                        if self._found.get(keys[place]) is futures[place]:
                            del self._found[keys[place]]
                for place in mine:
                    if not futures[place].done():
                        futures[place].set_exception(error)
                raise
        return [future.result() for future in futures]


@dataclass(frozen=True)
class _Service:
    """A service that can be started, and the draws of how fast it may be."""

    lane: LaneService
    speeds: Speeds


class Shelf:
    """Simulates the services of questions, from many threads at once."""

    def __init__(
        self, knowledge: Knowledge, kept_services: int = KEPT_SERVICES, kept_curves: int = KEPT_CURVES
    ) -> None:
        self.knowledge = knowledge
        self._services: Kept[Hashable, _Service] = Kept(kept_services)
        self._curves: Kept[tuple[Hashable, Hashable], tuple[Curve, Speeds] | str] = Kept(kept_curves)

    def simulated(self, question: Question, services: Sequence[Hashable], sent: Hashable) -> Simulated:
        """Return what `today.simulate` does. `services` tell the question's offers apart, whatever their
        prices; `sent` tells what is sent and how it arrives from all else. All questions have one seed."""
        keys = [(one, (sent, question.effort)) for one in services]

        def make(places: list[int]) -> list[tuple[Curve, Speeds] | str]:
            return self._simulate(question, [(keys[at], question.offered[at]) for at in places])

        return assembled(question, self._curves.get(keys, make))

    def _simulate(
        self, question: Question, wanted: Sequence[tuple[tuple[Hashable, Hashable], Offered]]
    ) -> list[tuple[Curve, Speeds] | str]:
        rooms = [kv_capacity_or_why(offered, question.request_tokens) for _, offered in wanted]
        fit = [(*one, room) for one, room in zip(wanted, rooms, strict=True) if not isinstance(room, str)]
        services = self._services.get(
            [key[0] for key, _, _ in fit],
            lambda places: [self._service(question.seed, *fit[at][1:]) for at in places],
        )
        found = curves_of([one.lane for one in services], question, self.knowledge)
        pairs = iter([(curve, one.speeds) for curve, one in zip(found, services, strict=True)])
        return [room if isinstance(room, str) else next(pairs) for room in rooms]

    def _service(self, seed: int, offered: Offered, kv_capacity_tokens: int) -> _Service:
        lane = service_of(offered, kv_capacity_tokens, self.knowledge)
        (speeds,) = self.knowledge.speeds([lane.step_model], DRAWS, seed)
        return _Service(lane, speeds)
