"""Conversations in virtual time: each turn is sent when the answer to the one before has ended and its user
has thought, and its prompt begins with all that was said before."""

from collections.abc import Iterable
from dataclasses import dataclass, field, replace
from heapq import heappop, heappush
from itertools import count
from math import inf

import numpy as np
from numpy.typing import NDArray

from llmpilot.simulator.level import REFUSED_PAUSE_MS, Run, SimulatedRequests
from llmpilot.simulator.prefix_cache import Keys
from llmpilot.simulator.scheduling import Outcome, Sequence
from llmpilot.simulator.service import VirtualService
from llmpilot.workload import Conversation, ConversationSource, Requests, from_lengths

MOST_PAGES = 1 << 32
"""Of one conversation: the keys of another one's begin behind them."""


def converse_closed(
    service: VirtualService,
    conversations: ConversationSource,
    users: int,
    stop_sending_ms: float,
    drain_ms: float,
    *,
    gaps: bool = True,
) -> SimulatedRequests:
    """Simulate users who each hold one conversation after the other: user k holds k, k + users ...

    They keep the load up until every request sent before `stop_sending_ms` has ended, or `drain_ms` more have
    passed; what is open then is UNFINISHED.
    """
    run = _TurnRun(service, conversations, stop_sending_ms, drain_ms, users)
    run.begin((0.0, user) for user in range(users))
    return run.to_the_end(gaps)


def converse_open(
    service: VirtualService,
    conversations: ConversationSource,
    starts_ms: NDArray[np.float64],
    stop_sending_ms: float,
    drain_ms: float,
    *,
    gaps: bool = True,
) -> SimulatedRequests:
    """Simulate conversations that begin at `starts_ms` [n], in their order, whatever the service does.

    It ends when every request sent before `stop_sending_ms` has, or `drain_ms` behind it.
    """
    run = _TurnRun(service, conversations, stop_sending_ms, drain_ms, None)
    run.begin((start_ms, number) for number, start_ms in enumerate(sorted(starts_ms.tolist())))
    return run.to_the_end(gaps)


@dataclass(frozen=True, slots=True)
class _TurnContent:
    """The tokens of a turn: the system prompt, the same in all conversations, then its conversation's own."""

    conversation: int
    system_tokens: int
    tokens: int

    def page_keys(self, page_tokens: int) -> Keys:
        """Return a key for each whole page of prompt and answer; see prefix_cache.Content."""
        pages = self.tokens // page_tokens
        shared = min(self.system_tokens // page_tokens, pages)
        own = (self.conversation + 1) * MOST_PAGES
        return [*range(shared), *range(own + shared, own + pages)]


@dataclass(slots=True, eq=False)
class _Talk:
    """A conversation that goes on, and which of its turns is next."""

    number: int
    turn: int = 0
    said: Conversation | None = None
    inputs: list[int] = field(default_factory=list)
    outputs: list[int] = field(default_factory=list)


class _TurnRun(Run):
    """A level of conversations."""

    def __init__(
        self,
        service: VirtualService,
        conversations: ConversationSource,
        stop_sending_ms: float,
        drain_ms: float,
        users: int | None,
    ) -> None:
        super().__init__(service, stop_sending_ms, drain_ms)
        self.resend_until_ms = inf
        self._source, self._users = conversations, users
        self._order = count()
        self._paused: list[tuple[float, int, _Talk]] = []  # a heap: whose next turn is due when
        self._sent: list[tuple[_Talk, int]] = []  # of each request, its conversation and turn

    def begin(self, starts: Iterable[tuple[float, int]]) -> None:
        """Let conversations begin at these times [ms]."""
        for start_ms, number in starts:
            self._wait(start_ms, _Talk(number))

    def go_on(self, sequence: Sequence) -> None:
        """Let a user think whose turn has ended, and begin with another conversation where that was the last.

        After a turn that failed there is no history to go on from: its conversation has ended, too.
        """
        talk, turn = self._sent[sequence.index]
        seen_ms = self.now_ms + max(0.0, sequence.late_ms)
        if sequence.outcome is Outcome.OK and turn + 1 < len(talk.inputs):
            assert talk.said is not None
            talk.turn = turn + 1
            self._wait(seen_ms + 1e3 * float(talk.said.think_s[talk.turn]), talk)
        elif self._users is not None:
            refused_ms = REFUSED_PAUSE_MS if sequence.outcome is Outcome.TOO_LONG else 0.0
            self._wait(seen_ms + refused_ms, _Talk(talk.number + self._users))
        self.resume_paused()

    def next_pause_ms(self) -> float:
        """Return when the next turn is due."""
        return self._paused[0][0] if self._paused else inf

    def resume_paused(self) -> None:
        """Send the turns that are due by now."""
        while self._paused and self._paused[0][0] <= self.now_ms:
            due_ms, _, talk = heappop(self._paused)
            self._send(talk, due_ms)

    def requests_of(self, log: list[Sequence]) -> Requests:
        """Return the requests that were sent, as a table."""
        return from_lengths([s.input_tokens for s in log], [s.output_tokens for s in log])

    def to_the_end(self, gaps: bool) -> SimulatedRequests:
        """Run until no awaited request is open; say of each whose turn it was, and what of it was cached."""
        found = super().to_the_end(gaps)
        sent = self._sent[: len(found.sent_us)]
        return replace(
            found,
            conversation=np.array([talk.number for talk, _ in sent], dtype=np.int64),
            turn=np.array([turn for _, turn in sent], dtype=np.int64),
            cached_tokens=np.array([_cached(s) for s in self.log[: len(sent)]], dtype=np.int64),
        )

    def _wait(self, until_ms: float, talk: _Talk) -> None:
        heappush(self._paused, (until_ms, next(self._order), talk))

    def _send(self, talk: _Talk, sent_ms: float) -> None:
        if talk.said is None:
            talk.said = self._source.conversation(talk.number)
            talk.inputs, talk.outputs = talk.said.input_tokens().tolist(), talk.said.output_tokens.tolist()
        prompt, answer = talk.inputs[talk.turn], talk.outputs[talk.turn]
        sequence = Sequence(len(self.log), prompt, answer, 1, sent_ms + self.overhead_ms)
        sequence.content = _TurnContent(talk.number, talk.said.system_tokens, prompt + answer)
        self._sent.append((talk, talk.turn))
        self.dispatch(sequence, sent_ms)


def _cached(sequence: Sequence) -> int:
    """Return what of a prompt was cached when it was let in; -1 if it never was."""
    return 0 if sequence.hits < 0 and sequence.first_token_ms >= 0 else sequence.hits
