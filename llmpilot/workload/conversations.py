"""Conversations: turns that share a growing prefix, behind a system prompt that all of them share.

A turn's prompt is all that was said before: the system prompt, each earlier turn's added tokens and its
answer, and what this turn adds. So most of a prompt has been seen by the server a moment ago, and what it
keeps in its prefix cache decides what a turn costs.
"""

from dataclasses import dataclass
from typing import Protocol

from llmpilot.workload.requests import Floats, Ints


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
    """

    @property
    def system_tokens(self) -> int:
        """Length of the system prompt that all conversations share [tokens]; 0: there is none."""
        ...

    def conversation(self, number: int) -> Conversation:
        """Return conversation `number`."""
        ...
