"""Where a trial gets its service: a deployment of its own, or one that is running already."""

from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, ExitStack, contextmanager

from llmpilot.deploy.place import Endpoint

Start = Callable[[int], AbstractContextManager[Endpoint]]
Change = Callable[[Endpoint, int], Endpoint]


class Services:
    """Starts services under a max batch weight, one at a time, and only where the last one will not do.

    The last one does for the same weight again; and for any other where its engine has `live_weight`: then
    `change` gives a running service another weight. A service that failed is not trusted any further:
    `discard` ends it. To be closed (`discard`) in the end.
    """

    def __init__(self, start: Start, change: Change | None = None) -> None:
        self._start, self._change = start, change
        self._stack = ExitStack()
        self._running: tuple[int, Endpoint] | None = None
        self.deployments = 0

    @contextmanager
    def under(self, weight: int) -> Iterator[Endpoint]:
        """Yield a service under `weight`; it runs on behind the block, unless that raises."""
        if self._running is not None and self._running[0] != weight:
            if self._change is not None:
                self._running = weight, self._change(self._running[1], weight)
            else:
                self.discard()
        if self._running is None:
            self.deployments += 1
            self._running = weight, self._stack.enter_context(self._start(weight))
        try:
            yield self._running[1]
        except BaseException:
            self.discard()
            raise

    def discard(self) -> None:
        """End the running service, if there is one."""
        self._running = None
        self._stack.close()
