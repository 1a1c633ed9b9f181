"""What all kinds of load have in common, within one worker: requests under way, and who begins when.

Closed loops have users (`Users`), open ones a schedule (`Arrivals`); what a user or an arrival sends is for
those who derive from them to say. Parses nothing.
"""

import asyncio
from abc import ABC, abstractmethod
from array import array
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Any

from llmpilot.deploy.endpoint import HttpEndpoint
from llmpilot.loadtest.worker_log import Log
from llmpilot.openai_client.access import Target
from llmpilot.openai_client.connecting import connect, connect_failure, said_of
from llmpilot.openai_client.flight import Flight
from llmpilot.openai_client.http import Connection, clock_ns

SECOND = 1_000_000_000
TOUCH_S = 0.05
STALE_ALLOWED, STALE_SHARE = 3, 0.1
"""A server that closes more connections than this right behind its answers (llama.cpp) gets new ones."""


@dataclass
class Plan:
    """When things happen [ns of the clock], and which lanes are this worker's."""

    start_ns: int
    stop_ns: int
    deadline_ns: int


class Sender(ABC):
    """What closed and open loop share: flights under way, their timeouts, and when the level is over."""

    def __init__(
        self, endpoint: HttpEndpoint, target: Target, log: Log, on_quiet: Callable[[], None]
    ) -> None:
        self.loop = asyncio.get_running_loop()
        self.settings = endpoint.client
        self.target, self.log = target, log
        self.active: set[Flight] = set()
        self.lags_ns = array("q")
        self._on_quiet = on_quiet
        self._awaited = 0
        self._keep_alive = True
        self._quiet = self._over = False
        self._tasks: set[asyncio.Task[None]] = set()
        self.plan = Plan(0, 0, 0)
        self._touched_ns = 0

    def begin(self, plan: Plan) -> None:
        """Start at the plan's time; `finish` ends it."""
        self.plan = plan
        self.at(plan.start_ns, self.start)
        self.at(plan.stop_ns, self._look_for_quiet)
        self._touched_ns = clock_ns()
        self.loop.call_later(TOUCH_S, self._touch)

    @abstractmethod
    def start(self) -> None:
        """Send the first requests."""

    @abstractmethod
    def after(self, flight: Flight, broken: str, connection: Connection | None) -> None:
        """A request has ended; its connection is given where it can be used again."""

    def at(self, when_ns: int, action: Callable[[], object]) -> None:
        """Call `action` at a time of our clock, which need not be the event loop's."""
        self.loop.call_later(max(0, when_ns - clock_ns()) / SECOND, action)

    def send(self, flight: Flight, connection: Connection | None, begun_ns: int = 0) -> None:
        """Send a request whose latency counts from `begun_ns`, or from now."""
        flight.begun_ns = begun_ns or clock_ns()
        flight.awaited = flight.begun_ns < self.plan.stop_ns
        self._awaited += flight.awaited
        flight.on_end = self._ended
        self.active.add(flight)
        if connection is not None and connection.usable:
            connection.send(flight)
            if not begun_ns:
                flight.begun_ns = flight.sent_ns
        else:
            self._connect_and_send(flight)

    def histories(self) -> dict[str, Any] | None:
        """Return what conversations took beside sending; see the notes of `Records`. None: there are none."""
        return None

    def finish(self) -> None:
        """End the level: what is still open stays unfinished."""
        self._over = True
        for flight in tuple(self.active):
            self._give_up(flight, "unfinished")
        for task in self._tasks:
            task.cancel()

    def _connect_and_send(self, flight: Flight) -> None:
        task = self.loop.create_task(self._connect(flight))
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    async def _connect(self, flight: Flight) -> None:
        try:
            connection = await connect(self.target, self.settings.connect_timeout_s)
        except OSError as error:
            if flight in self.active:
                flight.sent_ns = flight.sent_ns or clock_ns()
                kind = connect_failure(error)
                self.log.messages.setdefault(kind, said_of(error))
                self._ended(flight, kind)
            return
        if flight in self.active:
            connection.send(flight)
        else:
            connection.close()

    def _ended(self, flight: Flight, broken: str) -> None:
        connection = flight.connection
        if broken == "stale_connection":
            # The server closed an idle connection just as we wrote to it: nothing was begun, so send again.
            self.log.stale_connections += 1
            self._keep_alive = self.log.stale_connections <= STALE_ALLOWED + len(self.log) * STALE_SHARE
            flight.connection = None
            self._connect_and_send(flight)
            return
        ended_ns = flight.times[-1] if flight.times and not broken else clock_ns()
        self.active.discard(flight)
        self._awaited -= flight.awaited
        flight.connection = None
        if connection is not None and not (connection.usable and self._keep_alive):
            connection.close()
            connection = None
        if not self._over:
            self.after(flight, broken, connection)
        # Others' answers may wait in the sockets: their clocks are read before this is filed.
        self.loop.call_soon(self.log.add, flight, broken, ended_ns)
        self._look_for_quiet()

    def _give_up(self, flight: Flight, kind: str) -> None:
        connection = flight.connection
        if connection is not None:
            connection.close()
        flight.sent_ns = flight.sent_ns or clock_ns()
        self._ended(flight, kind)

    def _look_for_quiet(self) -> None:
        if not (self._awaited or self._quiet) and clock_ns() >= self.plan.stop_ns:
            self._quiet = True
            self._on_quiet()

    def _touch(self) -> None:
        """Every so often: measure how late the loop runs, and give up on what takes, or is, too long."""
        if self._over:
            return
        now_ns = clock_ns()
        self.lags_ns.append(now_ns - self._touched_ns - int(TOUCH_S * SECOND))
        self._touched_ns = now_ns
        token_ns = self.settings.token_timeout_s * SECOND
        request_ns = self.settings.request_timeout_s * SECOND
        for flight in tuple(self.active):
            if flight.endless():
                self._give_up(flight, "endless_answer")
            elif flight.streaming and now_ns - flight.times[-1] > token_ns:
                self._give_up(flight, "stall_timeout")
            elif now_ns - flight.begun_ns > request_ns:
                self._give_up(flight, "request_timeout")
        self.loop.call_later(TOUCH_S, self._touch)


class User:
    """A closed-loop user: its connection, what it sends next, its number, and its failures in a row."""

    __slots__ = ("connection", "failures", "next", "number")

    def __init__(self, lane: int) -> None:
        self.number = lane
        self.connection: Connection | None = None
        self.next: Flight | None = None
        self.failures = 0


class Users(Sender):
    """Users of a closed loop; the one of lane k begins with k, then k + lanes, k + 2 lanes ..."""

    lanes: int
    users: list[User]

    async def prepare(self, users: range, lanes: int, ramp_ns: int) -> None:
        """Connect every user (the level begins without that burst) and write what everyone begins with."""
        self.lanes, self.users, self._ramp_ns = lanes, [User(lane) for lane in users], ramp_ns
        for user in self.users:
            self.write_next(user)
            try:
                user.connection = await connect(self.target, self.settings.connect_timeout_s)
            except OSError:
                return  # it will be counted when its request is due

    def start(self) -> None:
        """Let the users begin one after the other: they would march in step for long."""
        for user in self.users:
            lane = user.number % self.lanes  # what it begins with is written: its number is the second's
            self.at(self.plan.start_ns + self.waits_ns(lane), partial(self.go_on, user))

    def waits_ns(self, lane: int) -> int:
        """Return how long a user waits before it begins: its share of the ramp."""
        return self._ramp_ns * lane // self.lanes

    @abstractmethod
    def write(self, user: User) -> Flight:
        """Return what the user begins with under its number, ready to be sent and owned."""

    @abstractmethod
    def go(self, user: User, flight: Flight) -> None:
        """Send what `write` has written."""

    def go_on(self, user: User) -> None:
        """Let the user begin with what is written."""
        if self._over:
            return
        if user.next is None:
            self.write_next(user)
        flight, user.next = user.next, None
        assert flight is not None
        self.go(user, flight)

    def write_next(self, user: User) -> None:
        """Write what the user will begin with, ahead of its time."""
        if user.next is None:
            user.next = self.write(user)
            user.number += self.lanes

    def backoff_s(self, user: User) -> float:
        """Return how long a user waits who has failed once more in a row."""
        settings = self.settings
        pause_s = min(settings.max_backoff_s, settings.backoff_s * 2.0**user.failures)
        user.failures = min(user.failures + 1, 30)
        return pause_s


class Arrivals(Sender):
    """What begins at scheduled times, whatever the service does; latency counts from the schedule."""

    LOOK_AHEAD = 64

    async def prepare(self, arrivals_ns: "array[int]", lane: int, lanes: int, connections: int) -> None:
        """Open some connections; write the first requests. `arrivals_ns` count from the level's start."""
        self._arrivals_ns, self._number, self._lanes = arrivals_ns, lane, lanes
        self._at = self._written = 0
        self._ready: deque[Flight] = deque()
        self._idle: list[Connection] = []
        self._write_ahead()
        for _ in range(connections):
            try:
                self._idle.append(await connect(self.target, self.settings.connect_timeout_s))
            except OSError:
                return

    def start(self) -> None:
        """Wait for the first arrival."""
        self._send_due()

    @abstractmethod
    def write(self, number: int) -> Flight:
        """Return what arrival `number` sends."""

    @abstractmethod
    def go(self, flight: Flight, due_ns: int) -> None:
        """Send what `write` has written, which is due at `due_ns`."""

    def keep(self, connection: Connection | None) -> None:
        """Keep a connection for whatever comes next."""
        if connection is not None:
            self._idle.append(connection)

    def idle(self) -> Connection | None:
        """Return a connection that was kept and can be used, if there is one."""
        while self._idle:
            connection = self._idle.pop()
            if connection.usable:
                return connection
        return None

    def _send_due(self) -> None:
        if self._over:
            return
        start_ns, arrivals_ns = self.plan.start_ns, self._arrivals_ns
        while self._at < len(arrivals_ns) and (due_ns := start_ns + arrivals_ns[self._at]) <= clock_ns():
            self._at += 1
            if not self._ready:
                self._write_ahead()
            self.go(self._ready.popleft(), due_ns)
        if self._at < len(arrivals_ns):
            self.at(start_ns + arrivals_ns[self._at], self._send_due)
        self.loop.call_soon(self._write_ahead)

    def _write_ahead(self) -> None:
        while len(self._ready) < self.LOOK_AHEAD and self._written < len(self._arrivals_ns):
            self._ready.append(self.write(self._number))
            self._number += self._lanes
            self._written += 1
