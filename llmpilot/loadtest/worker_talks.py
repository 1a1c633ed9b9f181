"""Who sends the turns of conversations when, within one worker: users in a closed loop, or as they begin.

A turn needs the answer to the one before. That is read when it has ended, a slice at a time, so that the
stamps of other answers do not wait for it; see `openai_client.said`.
"""

from abc import abstractmethod
from array import array
from collections.abc import Iterator
from functools import partial
from typing import Any

from llmpilot.deploy.endpoint import HttpEndpoint
from llmpilot.engine.openai import Asked
from llmpilot.loadtest.first_look import looks_good
from llmpilot.loadtest.histories import IdHistories, histories_of
from llmpilot.loadtest.talk_rows import row_of
from llmpilot.loadtest.worker_sender import SECOND, Arrivals, Sender, User, Users
from llmpilot.openai_client.flight import Flight
from llmpilot.openai_client.http import Connection, clock_ns, head_of, request
from llmpilot.openai_client.said import Said, reading
from llmpilot.workload import PARAMETERS, Conversation, ConversationSource, from_lengths

DECODING = tuple(getattr(from_lengths([1], [1]), name)[0].item() for name in PARAMETERS[2:])
"""How turns are decoded, as `Asked` has it: one sequence, greedily."""


class Talk:
    """A conversation that goes on: what was said so far, and which of its turns is next.

    `due_ns` is when that is to be sent (0: at once). `tokens` is how long all of it is, -1 where only the
    server can tell.
    """

    __slots__ = ("due_ns", "number", "parts", "said", "tokens", "turn", "user")

    def __init__(self, number: int, said: Conversation) -> None:
        self.number, self.said = number, said
        self.turn = 0
        self.parts: list[bytes] = []
        self.tokens = 0
        self.due_ns = 0
        self.user: User | None = None

    @property
    def goes_on(self) -> bool:
        """Whether there is a next turn."""
        return self.turn < len(self.said)


class TurnWriter:
    """Writes turns as bytes; `heard` answers went into them."""

    def __init__(self, endpoint: HttpEndpoint, source: ConversationSource, seed: int, nonce: int) -> None:
        self._endpoint, self._source, self._nonce = endpoint, source, nonce
        self.histories = histories_of(endpoint, seed, nonce)
        self._exact = endpoint.engine.takes_token_ids
        self.heard = 0
        self._head = head_of(endpoint.access, endpoint.path, endpoint.headers)
        system = source.system_tokens
        self._system = self.histories.system(system) if system else b""

    def begin(self, number: int) -> Talk:
        """Return conversation `number`, of which nothing has been said."""
        talk = Talk(number, self._source.conversation(number))
        if self._system:
            talk.parts.append(self._system)
            talk.tokens = talk.said.system_tokens
        if not self._exact:
            talk.tokens = -1
        return talk

    def write(self, talk: Talk) -> Flight:
        """Return the conversation's next turn, ready to be sent."""
        turn, endpoint = talk.turn, self._endpoint
        added, output = int(talk.said.added_tokens[turn]), int(talk.said.output_tokens[turn])
        talk.parts.append(self.histories.message(talk.number, turn, added))
        asked = Asked(added, output, *DECODING)
        said = self.histories.prompt(talk.parts)
        body = endpoint.engine.turn_body(asked, said, endpoint.model, endpoint.dialect, endpoint.fields)
        row = row_of(talk.number, turn)
        wire = request(self._head, b"%05x-%d-%d" % (self._nonce, talk.number, turn), body)
        flight = Flight(row, wire, output, 1)
        if self._exact:
            talk.tokens += added
            flight.prompt_tokens = talk.tokens
        flight.owner = talk
        talk.turn += 1
        if not talk.goes_on:
            talk.parts = []
        return flight

    def listen(self, talk: Talk, pieces: list[bytes]) -> Iterator[None]:
        """Take the answer to the last turn that was written into the conversation, in slices."""
        try:
            said = yield from reading(pieces, ids_suffice=self._exact)
        except Exception:  # one answer that nobody has thought of must not cost the level its user
            said = Said()
        self.heard += 1
        turn = talk.turn - 1
        answer, tokens = self.histories.answer(said, talk.number, turn, int(talk.said.output_tokens[turn]))
        if answer:
            talk.parts.append(answer)
        if self._exact:
            talk.tokens += tokens
        yield  # what comes next, writing, is a slice of its own


class _Talks(Sender):
    """What both kinds of loop share: after an answer, the next turn is written, and sent when it is due."""

    turns: TurnWriter
    slices_ns: "array[int]"

    def hold(self, turns: TurnWriter) -> None:
        """Take the conversations that are written by `turns`."""
        self.turns, self.slices_ns = turns, array("q")

    def after(self, flight: Flight, broken: str, connection: Connection | None) -> None:
        """Let the user think and go on; a turn that failed has ended its conversation."""
        talk = flight.owner
        assert isinstance(talk, Talk)
        self.free(talk, connection)
        good = not broken and looks_good(flight)
        if not (good and talk.goes_on):
            self.ended(talk, good)
            return
        talk.due_ns = flight.times[-1] + round(float(talk.said.think_s[talk.turn]) * SECOND)
        # Others' answers may wait in the sockets: their clocks are read before this is looked at.
        self.loop.call_soon(self._listen, talk, self.turns.listen(talk, flight.pieces))

    @abstractmethod
    def free(self, talk: Talk, connection: Connection | None) -> None:
        """Keep the connection for another request."""

    @abstractmethod
    def ended(self, talk: Talk, good: bool) -> None:
        """A conversation has ended, with its last turn or (not `good`) with one that failed."""

    @abstractmethod
    def send_turn(self, talk: Talk, flight: Flight) -> None:
        """Send a turn that is due."""

    def _listen(self, talk: Talk, steps: Iterator[None]) -> None:
        if self._over:
            return
        begun_ns = clock_ns()
        more = next(steps, self) is None
        flight = None if more else self.turns.write(talk)
        now_ns = clock_ns()
        self.slices_ns.append(now_ns - begun_ns)
        if flight is None:
            self.loop.call_soon(self._listen, talk, steps)
        elif talk.due_ns > now_ns:
            self.at(talk.due_ns, partial(self._send, talk, flight))
        else:
            # It took us longer to read what was said than the user thinks: no delay of the service's.
            talk.due_ns = now_ns
            self._send(talk, flight)

    def _send(self, talk: Talk, flight: Flight) -> None:
        if not self._over:
            self.send_turn(talk, flight)

    def histories(self) -> dict[str, Any] | None:
        """Return what histories took."""
        histories, slices_ns = self.turns.histories, self.slices_ns
        made_up = histories.made_up if isinstance(histories, IdHistories) else 0
        return {
            "turns": self.turns.heard,
            "slices": len(slices_ns),
            "busy_ms": sum(slices_ns) / 1e6,
            "longest_slice_ms": max(slices_ns, default=0) / 1e6,
            "made_up_answers": made_up,
        }


class ClosedTalks(_Talks, Users):
    """Users who hold one conversation after the other, each the conversations of its own lane."""

    def write(self, user: User) -> Flight:
        """Return the first turn of the user's next conversation."""
        talk = self.turns.begin(user.number)
        talk.user = user
        return self.turns.write(talk)

    def go(self, user: User, flight: Flight) -> None:
        """Begin a conversation."""
        assert isinstance(flight.owner, Talk)
        self.send_turn(flight.owner, flight)

    def free(self, talk: Talk, connection: Connection | None) -> None:
        """Give the user its connection back."""
        assert talk.user is not None
        talk.user.connection = connection

    def ended(self, talk: Talk, good: bool) -> None:
        """Let the user begin its next conversation, after a while if this one has failed."""
        assert talk.user is not None
        if good:
            talk.user.failures = 0
            self.go_on(talk.user)
        else:
            self.loop.call_later(self.backoff_s(talk.user), self.go_on, talk.user)

    def send_turn(self, talk: Talk, flight: Flight) -> None:
        """Send a turn: its user sees it go out now."""
        assert talk.user is not None
        self.send(flight, talk.user.connection)
        if not talk.goes_on:
            self.loop.call_soon(self.write_next, talk.user)


class OpenTalks(_Talks, Arrivals):
    """Conversations that begin at their scheduled times, whatever the service does.

    Latency counts from when a turn is due: for the first of a conversation that is its schedule, for others
    the end of the answer before and the time to think (and to read that answer, where nobody thinks so long).
    """

    LOOK_AHEAD = 16

    def write(self, number: int) -> Flight:
        """Return the first turn of conversation `number`."""
        return self.turns.write(self.turns.begin(number))

    def go(self, flight: Flight, due_ns: int) -> None:
        """Begin a conversation."""
        talk = flight.owner
        assert isinstance(talk, Talk)
        talk.due_ns = due_ns
        self.send_turn(talk, flight)

    def free(self, talk: Talk, connection: Connection | None) -> None:
        """Keep the connection for another turn of anybody."""
        self.keep(connection)

    def ended(self, talk: Talk, good: bool) -> None:
        """Others begin at their own times."""

    def send_turn(self, talk: Talk, flight: Flight) -> None:
        """Send a turn over any connection that is free."""
        self.send(flight, self.idle(), begun_ns=talk.due_ns)
