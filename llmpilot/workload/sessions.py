"""Conversations of a trace whose requests name their session: what each turn added, and when it came.

Where prompts hold all that was said before, a turn adds what its prompt has beyond the last prompt and its
answer. A trace is taken for such a one if most of its later turns (HISTORY_SHARE) have a prompt at least so
long; there, a shorter prompt begins a new conversation, as its history was cut. In other traces a prompt is
what the turn adds, and the history comes on top of it.

A trace says when requests came and not when answers ended: the time from one turn to the next stands for
the user's thinking, though it holds the answer's time, too.
"""

import hashlib
from collections.abc import Iterable
from dataclasses import dataclass
from functools import cached_property

import numpy as np

from llmpilot.console import counted, note
from llmpilot.errors import ConfigError, TraceError
from llmpilot.workload.conversations import Conversation, bounded, drawn
from llmpilot.workload.requests import Floats, Ints
from llmpilot.workload.seeds import random_words
from llmpilot.workload.trace import Trace, TraceChunk

STREAM = 0x5E5
HISTORY_SHARE = 0.5
MOST_REQUESTS = 2_000_000
"""Of a trace that are read at most."""


@dataclass(frozen=True, eq=False)
class Sessions:
    """The conversations of a trace, in the order in which they begin.

    Conversation i has turns `offsets[i]` to `offsets[i + 1]`. `think_s` is the time since its last turn came,
    and `starts_s` when each conversation begins, None where the trace has no timestamps. `history_share` of
    the later turns have prompts that can hold what was said before; None: no session has a second turn.
    """

    added_tokens: Ints
    output_tokens: Ints
    think_s: Floats
    offsets: Ints
    starts_s: Floats | None
    history_share: float | None

    def __len__(self) -> int:
        return len(self.offsets) - 1

    @property
    def hold_history(self) -> bool:
        """Whether the trace's prompts are taken to hold all that was said before."""
        return self.history_share is not None and self.history_share >= HISTORY_SHARE

    def remarks(self, name: str) -> list[str]:
        """Return what a person should know of how the trace was understood."""
        turns = len(self.added_tokens) / len(self)
        found = f"{name}: {counted(len(self), 'conversation')}, of {turns:.1f} turns on average"
        if self.history_share is None:
            return [f"{found}: none has a second turn"]
        said = f"{self.history_share:.0%} of the later prompts are long enough to hold what was said before"
        what = "are taken to hold it" if self.hold_history else "are taken for what each turn adds"
        remarks = [f"{found}; {said}: prompts {what}"]
        if self.starts_s is None:
            remarks.append(
                f"{name}: no timestamps are read: users think as workload.think_time_s says, or not at all"
            )
        return remarks


def sessions_of(chunks: Iterable[TraceChunk]) -> Sessions:
    """Return the conversations of a trace whose chunks say whose session each request is.

    A request of no session is a conversation of one turn.

    Raises:
        TraceError: a request asks for several sequences.
    """
    parts = list(chunks)
    inputs = np.concatenate([part.requests.input_tokens for part in parts])
    outputs = np.concatenate([part.requests.output_tokens for part in parts])
    if any((part.requests.batch_size > 1).any() for part in parts):
        raise TraceError(
            "a turn of a conversation has one answer, and the trace asks for several sequences at once",
            cure="leave its column of batch sizes out",
        )
    stamps = [part.timestamps_s for part in parts if part.timestamps_s is not None]
    times = np.concatenate(stamps) if len(stamps) == len(parts) else None
    session = _numbered(parts)
    order = np.argsort(session, kind="stable")  # each session's turns together, in the trace's order
    session, inputs, outputs = session[order], inputs[order], outputs[order]
    later = np.append(False, session[1:] == session[:-1])
    beyond = inputs - np.append(0, (inputs + outputs)[:-1])
    share = float((beyond[later] >= 0).mean()) if later.any() else None
    added = inputs.copy()
    if share is not None and share >= HISTORY_SHARE:
        later &= beyond >= 0
        added[later] = np.maximum(1, beyond[later])
    think_s = np.zeros(len(inputs))
    if times is not None:
        in_order = times[order]
        think_s[later] = np.round(np.diff(in_order, prepend=0.0)[later], 6)
    first = np.flatnonzero(~later)
    lengths = np.diff(first, append=len(inputs))
    begins = np.argsort(order[first], kind="stable")  # cut sessions begin again later
    rows = np.concatenate([np.arange(first[i], first[i] + lengths[i]) for i in begins.tolist()])
    return Sessions(
        added[rows],
        outputs[rows],
        think_s[rows],
        np.append(0, np.cumsum(lengths[begins])),
        None if times is None else times[order[first[begins]]],
        share,
    )


def read_sessions(trace: Trace, key: str, *, until_s: float) -> Sessions:
    """Return the conversations of a trace's first `until_s` seconds, and say how it was understood.

    Raises:
        ConfigError: the trace does not say whose session a request is; `key` is where it was given.
    """
    if not trace.has_sessions:
        raise ConfigError(
            "the trace does not say which requests are of one conversation",
            given=f"{key}.path={trace.path}",
            cure=f"name the column that does: {key}.columns.session=<column>",
        )
    parts, count = [], 0
    for chunk in trace.chunks():
        parts.append(chunk)
        count += len(chunk.requests)
        if chunk.timestamps_s is not None and chunk.timestamps_s[-1] > until_s:
            break
        if count >= MOST_REQUESTS:
            note(f"{trace.path.name}: the first {count:,} requests are read, and no more")
            break
    sessions = sessions_of(parts)
    for remark in (*trace.remarks(), *sessions.remarks(trace.path.name)):
        note(remark)
    return sessions


def _numbered(parts: list[TraceChunk]) -> Ints:
    """Return the number of each request's session; a request of none has one of its own."""
    numbers: dict[str, int] = {}
    found: list[int] = []
    for part in parts:
        ids = [""] * len(part.requests) if part.sessions is None else part.sessions.tolist()
        found += [
            numbers.setdefault(name or f"\0{len(found) + i}", len(numbers)) for i, name in enumerate(ids)
        ]
    return np.array(found, dtype=np.int64)


class TracedConversations:
    """A trace's conversations: in its order, or with a `seed` drawn with replacement; both without end.

    In its order, the first follows the last. `think_s` are equally likely pauses in place of the recorded
    ones. A conversation ends before a turn that `max_context_tokens` cannot hold.
    """

    system_tokens = 0

    def __init__(
        self,
        sessions: Sessions,
        seed: int | None = None,
        *,
        think_s: Floats | None = None,
        max_context_tokens: int | None = None,
    ) -> None:
        self.sessions, self.seed = sessions, seed
        self.think_s, self.max_context_tokens = think_s, max_context_tokens

    @cached_property
    def longest_tokens(self) -> int:
        """The most tokens that the prompt of a turn and its answer can have together."""
        tokens = self.sessions.added_tokens + self.sessions.output_tokens
        longest = int(np.add.reduceat(tokens, self.sessions.offsets[:-1]).max())
        return min(longest, self.max_context_tokens or longest)

    @cached_property
    def content_hash(self) -> str:
        """sha256 (hex) of what decides the conversations, but for the seed."""
        known, digest = (
            self.sessions,
            hashlib.sha256(f"{self.max_context_tokens} {self.seed is None}".encode()),
        )
        pauses = known.think_s if self.think_s is None else self.think_s
        for column in (known.added_tokens, known.output_tokens, pauses, known.offsets):
            digest.update(np.ascontiguousarray(column).tobytes())
        return digest.hexdigest()

    def reseeded(self, seed: int) -> "TracedConversations":
        """Return other draws of the trace's conversations; in its order they are always the same."""
        return TracedConversations(
            self.sessions,
            None if self.seed is None else seed,
            think_s=self.think_s,
            max_context_tokens=self.max_context_tokens,
        )

    def conversation(self, number: int) -> Conversation:
        """Return conversation `number`."""
        known = self.sessions
        words = random_words(self.seed or 0, STREAM, number)
        chosen = number % len(known) if self.seed is None else int(drawn(words, 1, len(known))[0])
        turns = slice(known.offsets[chosen], known.offsets[chosen + 1])
        added, output, think_s = known.added_tokens[turns], known.output_tokens[turns], known.think_s[turns]
        if self.think_s is not None:
            think_s = self.think_s[drawn(words, len(added), len(self.think_s))]
        most = self.max_context_tokens or self.longest_tokens
        return bounded(most, 0, added.copy(), output.copy(), think_s.copy())
