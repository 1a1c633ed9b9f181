"""Who sends when, within one worker: closed-loop users, or requests at scheduled times. Parses nothing."""

import asyncio
from abc import ABC, abstractmethod
from array import array
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial

from llmpilot.deploy.endpoint import HttpEndpoint
from llmpilot.engine.openai import Asked
from llmpilot.engine.words import TextPrompts
from llmpilot.loadtest.client_prompts import TokenIdPrompts
from llmpilot.loadtest.first_look import looks_good
from llmpilot.loadtest.worker_log import Log
from llmpilot.openai_client.access import Target
from llmpilot.openai_client.connecting import connect, connect_failure, said_of
from llmpilot.openai_client.flight import Flight
from llmpilot.openai_client.http import Connection, clock_ns, head_of, request
from llmpilot.simulator import RequestSource
from llmpilot.workload import PARAMETERS, Requests, ThinkTimes

SECOND = 1_000_000_000
BLOCK_ROWS = 512
TOUCH_S = 0.05
STALE_ALLOWED, STALE_SHARE = 3, 0.1
"""A server that closes more connections than this right behind its answers (llama.cpp) gets new ones."""


class Rows:
    """The level's request stream, of which lane k owns rows k, k + lanes, k + 2 lanes ..."""

    def __init__(self, source: RequestSource, lanes: int) -> None:
        self._source, self._lanes = source, lanes
        self._block_rows = lanes * max(1, BLOCK_ROWS // lanes)
        self._blocks: list[Requests] = []

    def get(self, row: int) -> Asked:
        """Return request `row`; the stream is drawn a block at a time, when first needed."""
        block, at = divmod(row, self._block_rows)
        while block >= len(self._blocks):
            self._blocks.append(self._source.take(self._block_rows))
        requests = self._blocks[block]
        return Asked(*(getattr(requests, name)[at].item() for name in PARAMETERS))


class Writer:
    """Writes requests as bytes, before they are needed."""

    def __init__(self, endpoint: HttpEndpoint, rows: Rows, seed: int, nonce: int) -> None:
        self._endpoint, self._rows, self._nonce = endpoint, rows, nonce
        engine = endpoint.engine
        self._prompts = (
            TokenIdPrompts(seed, endpoint.vocabulary_size)
            if engine.takes_token_ids
            else TextPrompts(seed, endpoint.words)
        )
        self._head = head_of(endpoint.access, endpoint.path, endpoint.headers)

    def write(self, row: int) -> Flight:
        """Return request `row`, ready to be sent."""
        asked = self._rows.get(row)
        endpoint = self._endpoint
        count = endpoint.engine.prompts_for(asked)
        # Low digits come first in a prompt: requests differ at once, levels and repeated runs soon after.
        number = (self._nonce << 44) + (row << 12)
        prompts = [self._prompts.prompt(number + j, asked.input_tokens) for j in range(count)]
        body = endpoint.engine.body(asked, prompts, endpoint.model, endpoint.dialect, endpoint.fields)
        wire = request(self._head, b"%05x-%d" % (self._nonce, row), body)
        return Flight(row, wire, asked.output_tokens, asked.sequences)


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
    """A closed-loop user: its connection, its next request, and how often it failed in a row."""

    __slots__ = ("connection", "failures", "next", "row")

    def __init__(self, lane: int) -> None:
        self.row = lane
        self.connection: Connection | None = None
        self.next: Flight | None = None
        self.failures = 0


class ClosedLoop(Sender):
    """Users that each send their next request as soon as the last one has ended, or have thought about it.

    `thinking` has a pause for every user's beginning, then one for every request that has ended.
    """

    writer: Writer
    lanes: int
    users: list[User]
    thinking: ThinkTimes | None = None

    async def prepare(self, users: range, lanes: int, ramp_ns: int) -> None:
        """Connect every user (the level begins without that burst) and write everyone's first request."""
        self.lanes, self.users, self._ramp_ns = lanes, [User(lane) for lane in users], ramp_ns
        for user in self.users:
            self._write_next(user)
            try:
                user.connection = await connect(self.target, self.settings.connect_timeout_s)
            except OSError:
                return  # it will be counted when its request is due

    def start(self) -> None:
        """Let the users begin one after the other, over the ramp: they would march in step for long.

        Users who think are out of step from the beginning.
        """
        for user in self.users:
            lane = user.row % self.lanes  # its first request is written: its row is the second's
            wait_ns = self._ramp_ns * lane // self.lanes
            if self.thinking is not None:
                wait_ns = round(self.thinking.pause_s(lane) * SECOND)
            self.at(self.plan.start_ns + wait_ns, partial(self._next, user))

    def after(self, flight: Flight, broken: str, connection: Connection | None) -> None:
        """Let the user send its next request, after a while if it has failed."""
        user = flight.owner
        assert isinstance(user, User)
        user.connection = connection
        thought_s = 0.0 if self.thinking is None else self.thinking.pause_s(self.lanes + flight.row)
        if not broken and looks_good(flight):
            user.failures = 0
            if thought_s:
                self.loop.call_later(thought_s, self._next, user)
            else:
                self._next(user)
            return
        settings = self.settings
        pause_s = max(thought_s, min(settings.max_backoff_s, settings.backoff_s * 2.0**user.failures))
        user.failures = min(user.failures + 1, 30)
        self.loop.call_later(pause_s, self._next, user)

    def _next(self, user: User) -> None:
        if self._over:
            return
        if user.next is None:
            self._write_next(user)
        flight = user.next
        assert flight is not None
        user.next = None
        self.send(flight, user.connection)
        self.loop.call_soon(self._write_next, user)

    def _write_next(self, user: User) -> None:
        if user.next is None:
            user.next = self.writer.write(user.row)
            user.next.owner = user
            user.row += self.lanes


class OpenLoop(Sender):
    """Requests at their scheduled times, whatever the service does; latency counts from the schedule."""

    LOOK_AHEAD = 64
    writer: Writer

    async def prepare(self, arrivals_ns: "array[int]", lane: int, lanes: int, connections: int) -> None:
        """Open some connections; write the first requests. `arrivals_ns` count from the level's start."""
        self._arrivals_ns, self._row, self._lanes = arrivals_ns, lane, lanes
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

    def after(self, flight: Flight, broken: str, connection: Connection | None) -> None:
        """Keep the connection for another request."""
        if connection is not None:
            self._idle.append(connection)

    def _send_due(self) -> None:
        if self._over:
            return
        start_ns, arrivals_ns = self.plan.start_ns, self._arrivals_ns
        while self._at < len(arrivals_ns) and (due_ns := start_ns + arrivals_ns[self._at]) <= clock_ns():
            self._at += 1
            if not self._ready:
                self._write_ahead()
            connection = None
            while self._idle and connection is None:
                connection = self._idle.pop()
                connection = connection if connection.usable else None
            self.send(self._ready.popleft(), connection, begun_ns=due_ns)
        if self._at < len(arrivals_ns):
            self.at(start_ns + arrivals_ns[self._at], self._send_due)
        self.loop.call_soon(self._write_ahead)

    def _write_ahead(self) -> None:
        while len(self._ready) < self.LOOK_AHEAD and self._written < len(self._arrivals_ns):
            self._ready.append(self.writer.write(self._row))
            self._row += self._lanes
            self._written += 1
