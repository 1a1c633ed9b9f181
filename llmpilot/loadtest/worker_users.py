"""Single requests, within one worker: of closed-loop users, or at scheduled times."""

from llmpilot.deploy.endpoint import HttpEndpoint
from llmpilot.engine.openai import Asked
from llmpilot.engine.words import TextPrompts
from llmpilot.loadtest.client_prompts import TokenIdPrompts
from llmpilot.loadtest.first_look import looks_good
from llmpilot.loadtest.worker_sender import SECOND, Arrivals, User, Users
from llmpilot.openai_client.flight import Flight
from llmpilot.openai_client.http import Connection, head_of, request
from llmpilot.simulator import RequestSource
from llmpilot.workload import PARAMETERS, Requests, ThinkTimes

BLOCK_ROWS = 512


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


class ClosedLoop(Users):
    """Users that each send their next request as soon as the last one has ended, or have thought about it.

    `thinking` has a pause for every user's beginning, then one for every request that has ended.
    """

    writer: Writer
    thinking: ThinkTimes | None = None

    def waits_ns(self, lane: int) -> int:
        """Return how long a user waits before it begins; those who think are out of step by that."""
        return (
            super().waits_ns(lane) if self.thinking is None else round(self.thinking.pause_s(lane) * SECOND)
        )

    def write(self, user: User) -> Flight:
        """Return the request of the user's row."""
        flight = self.writer.write(user.number)
        flight.owner = user
        return flight

    def go(self, user: User, flight: Flight) -> None:
        """Send a request, and write the next one behind it."""
        self.send(flight, user.connection)
        self.loop.call_soon(self.write_next, user)

    def after(self, flight: Flight, broken: str, connection: Connection | None) -> None:
        """Let the user send its next request, after a while if it has failed."""
        user = flight.owner
        assert isinstance(user, User)
        user.connection = connection
        thought_s = 0.0 if self.thinking is None else self.thinking.pause_s(self.lanes + flight.row)
        if broken or not looks_good(flight):
            self.loop.call_later(max(thought_s, self.backoff_s(user)), self.go_on, user)
            return
        user.failures = 0
        if thought_s:
            self.loop.call_later(thought_s, self.go_on, user)
        else:
            self.go_on(user)


class OpenLoop(Arrivals):
    """Requests at their scheduled times."""

    writer: Writer

    def write(self, number: int) -> Flight:
        """Return the request of row `number`."""
        return self.writer.write(number)

    def go(self, flight: Flight, due_ns: int) -> None:
        """Send a request over any connection that is free."""
        self.send(flight, self.idle(), begun_ns=due_ns)

    def after(self, flight: Flight, broken: str, connection: Connection | None) -> None:
        """Keep the connection for another request."""
        self.keep(connection)
