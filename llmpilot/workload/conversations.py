"""Conversations: turns that share a growing prefix, behind a system prompt that all of them share.

A turn's prompt is all that was said before: the system prompt, each earlier turn's added tokens and its
answer, and what this turn adds. So most of a prompt has been seen by the server a moment ago, and what it
keeps in its prefix cache decides what a turn costs.
"""

import hashlib
import json
from dataclasses import dataclass
from functools import cached_property
from typing import Annotated, Protocol

import numpy as np
from pydantic import Field, model_validator

from llmpilot.config import MOST_SECONDS, Facts, NonNegative
from llmpilot.workload.lengths import QUANTILES, gamma_quantiles
from llmpilot.workload.requests import Floats, Ints, Requests, from_lengths
from llmpilot.workload.seeds import random_words

STREAM = 0xC0F
MOST_TURNS = 1_000
MOST_DEVIATION = 3
"""Means (of what is above one): beyond it nearly all that is drawn is one turn or one token."""
NO_SPREAD = 1e-4
"""Means: below it all are alike."""
SAMPLED = 4_096
"""Conversations that stand for all of them where their means are told."""
Tokens = Annotated[int, Field(gt=0, le=10_000_000)]


@dataclass(frozen=True, eq=False)
class Conversation:
    """One conversation, turn by turn [turns].

    `added_tokens` are those of the user's message of each turn, `output_tokens` those of its answer,
    `think_s` how long the user thinks before it sends the turn, from the end of the last answer on (0 for the
    first).
    """

    system_tokens: int
    added_tokens: Ints
    output_tokens: Ints
    think_s: Floats

    def __len__(self) -> int:
        return len(self.added_tokens)

    def input_tokens(self) -> Ints:
        """Return how long each turn's prompt is [turns], with answers as long as they were asked for."""
        history = (self.added_tokens + self.output_tokens).cumsum() - self.output_tokens
        return self.system_tokens + history


class ConversationSource(Protocol):
    """Conversations by their numbers: the same number is the same conversation, in every process and level.

    User k of a closed loop holds conversations k, k + users, k + 2 users ...; in an open loop conversation i
    begins at arrival i. A turn is sent when the answer to the one before has ended and its user has thought.
    A turn that fails ends its conversation: there is no history to go on from.
    """

    @property
    def system_tokens(self) -> int:
        """Length of the system prompt that all conversations share [tokens]; 0: there is none."""
        ...

    @property
    def longest_tokens(self) -> int:
        """The most tokens that the prompt of a turn and its answer can have together."""
        ...

    @property
    def content_hash(self) -> str:
        """sha256 (hex) of what decides the conversations, but for the seed."""
        ...

    def conversation(self, number: int) -> Conversation:
        """Return conversation `number`."""
        ...

    def reseeded(self, seed: int) -> "ConversationSource":
        """Return the source with other conversations of the same kind."""
        ...


class Chat(Facts):
    """How conversations are drawn: means and standard deviations (None: the mean, where that can be).

    A conversation ends before a turn whose prompt and answer would be longer than `max_context_tokens`
    together; its first turn is cut to that.
    """

    turns: Annotated[float, Field(ge=1, le=MOST_TURNS)]
    turns_stdev: NonNegative | None = None
    added_tokens: Tokens
    added_stdev_tokens: NonNegative | None = None
    output_tokens: Tokens
    output_stdev_tokens: NonNegative | None = None
    think_time_s: Annotated[float, Field(ge=0, le=MOST_SECONDS)] = 0.0
    think_time_stdev_s: NonNegative | None = None
    system_prompt_tokens: Annotated[int, Field(ge=0, le=10_000_000)] = 0
    max_context_tokens: Tokens

    @model_validator(mode="after")
    def _is_possible(self) -> "Chat":
        for key, deviation in DEVIATIONS.items():
            mean, given = getattr(self, key), getattr(self, deviation)
            most = MOST_DEVIATION * (mean - _least(key))
            if given is not None and given > most:
                raise ValueError(
                    f"workload.{deviation}={given:g} is too much beside workload.{key}={mean:g}: "
                    f"take at most {most:g}"
                )
        if self.max_context_tokens < self.system_prompt_tokens + 2:
            raise ValueError(
                f"workload.max_context_tokens={self.max_context_tokens} leaves no room for a turn behind "
                f"workload.system_prompt_tokens={self.system_prompt_tokens}: take more of the one or less of "
                "the other"
            )
        return self

    def quantiles(self, key: str) -> Floats:
        """Return QUANTILES values of a quantity, equally likely, with its mean."""
        mean, stdev, least = getattr(self, key), getattr(self, DEVIATIONS[key]), _least(key)
        stdev = min(mean, MOST_DEVIATION * (mean - least)) if stdev is None else stdev
        if stdev <= NO_SPREAD * mean:
            return np.full(QUANTILES, float(mean))
        return least + gamma_quantiles(mean - least, stdev)


DEVIATIONS = {
    "turns": "turns_stdev",
    "added_tokens": "added_stdev_tokens",
    "output_tokens": "output_stdev_tokens",
    "think_time_s": "think_time_stdev_s",
}


def _least(key: str) -> int:
    return 0 if key == "think_time_s" else 1


class DrawnConversations:
    """Conversations of given means and spreads, without end; all that is kept are its tables."""

    def __init__(self, chat: Chat, seed: int) -> None:
        self.chat, self.seed = chat, seed
        random_words(seed)  # refuses an impossible one

    @property
    def system_tokens(self) -> int:
        """Length of the system prompt that all conversations share [tokens]."""
        return self.chat.system_prompt_tokens

    @property
    def longest_tokens(self) -> int:
        """The most tokens that the prompt of a turn and its answer can have together."""
        turns, added, output, _ = self._tables
        whole = self.system_tokens + int(turns.max()) * int(added.max() + output.max())
        return min(self.chat.max_context_tokens, whole)

    @cached_property
    def content_hash(self) -> str:
        """sha256 (hex) of what decides the conversations, but for the seed."""
        text = json.dumps(self.chat.model_dump(), sort_keys=True)
        digest = hashlib.sha256(text.encode())
        for table in self._tables:
            digest.update(np.ascontiguousarray(table).tobytes())
        return digest.hexdigest()

    def reseeded(self, seed: int) -> "DrawnConversations":
        """Return the source with other conversations of the same kind."""
        return DrawnConversations(self.chat, seed)

    def conversation(self, number: int) -> Conversation:
        """Return conversation `number`."""
        turns, added, output, think = self._tables
        words = random_words(self.seed, STREAM, number)
        count = int(turns[drawn(words, 1)[0]])
        picks = drawn(words, 3 * count).reshape(count, 3)
        return bounded(
            self.chat.max_context_tokens,
            self.system_tokens,
            added[picks[:, 0]],
            output[picks[:, 1]],
            think[picks[:, 2]],
        )

    @cached_property
    def _tables(self) -> tuple[Ints, Ints, Ints, Floats]:
        turns, added, output = (_whole(self.chat.quantiles(key)) for key in list(DEVIATIONS)[:3])
        think_s: Floats = np.rint(self.chat.quantiles("think_time_s") * 1e6) / 1e6
        return turns, added, output, think_s


def bounded(most: int, system: int, added: Ints, output: Ints, think_s: Floats) -> Conversation:
    """Return the conversation of these turns, as far as the context of `most` tokens lets it go on.

    The columns become its own.
    """
    think_s[0] = 0.0
    added[0] = min(int(added[0]), most - system - 1)
    output[0] = min(int(output[0]), most - system - int(added[0]))
    lasts = int(
        (system + (added + output).cumsum() <= most).sum()
    )  # the sum rises: a turn too long is the last
    return Conversation(system, added[:lasts], output[:lasts], think_s[:lasts])


def drawn(words: np.random.PCG64, count: int, rows: int = QUANTILES) -> Ints:
    """Return `count` random rows of a table."""
    return (words.random_raw(count) % np.uint64(rows)).astype(np.int64)


def _whole(values: Floats) -> Ints:
    """Return whole numbers, each within one of its value, with the values' mean: rests are handed on."""
    sums = np.floor(np.cumsum(values) + 0.5)
    return np.diff(sums, prepend=0.0).astype(np.int64)


def sample_of(source: ConversationSource, count: int = SAMPLED) -> dict[str, Ints | Floats]:
    """Return what the first `count` conversations are made of.

    `turns` of each; `added_tokens`, `input_tokens` (the whole prompt) and `output_tokens` of each turn;
    `think_time_s` before each but the first.
    """
    talks = [source.conversation(number) for number in range(count)]
    return {
        "turns": np.array([len(talk) for talk in talks]),
        "added_tokens": np.concatenate([talk.added_tokens for talk in talks]),
        "input_tokens": np.concatenate([talk.input_tokens() for talk in talks]),
        "output_tokens": np.concatenate([talk.output_tokens for talk in talks]),
        "think_time_s": np.concatenate([talk.think_s[1:] for talk in talks]),
    }


def means_of(sample: dict[str, Ints | Floats]) -> dict[str, float]:
    """Return the means of a sample, and what of its prompts had been sent before.

    `repeated_share` of all prompt tokens are the system prompt and what was said before: a cache that
    forgets nothing finds them.
    """
    means = {key: float(values.mean()) if len(values) else 0.0 for key, values in sample.items()}
    return means | {"repeated_share": 1 - means["added_tokens"] / means["input_tokens"]}


class TurnRequests:
    """The turns of conversations 0, 1, 2 ... one behind the other, as a stream of requests."""

    def __init__(self, source: ConversationSource) -> None:
        self._source, self._number = source, 0
        self._inputs: Ints = np.empty(0, np.int64)
        self._outputs: Ints = np.empty(0, np.int64)

    def take(self, n: int) -> Requests:
        """Return the next `n` requests."""
        inputs, outputs, there = [self._inputs], [self._outputs], len(self._inputs)
        while there < n:
            talk = self._source.conversation(self._number)
            self._number += 1
            inputs.append(talk.input_tokens())
            outputs.append(talk.output_tokens)
            there += len(talk)
        every_input, every_output = np.concatenate(inputs), np.concatenate(outputs)
        self._inputs, self._outputs = every_input[n:], every_output[n:]
        return from_lengths(every_input[:n], every_output[:n])
