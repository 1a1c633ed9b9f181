"""Rows of conversations: whose turn it was, and what was asked for in it."""

import numpy as np
from numpy.typing import NDArray

from llmpilot.workload import ConversationSource, Requests, from_lengths

TURN_BITS = 20
Ints = NDArray[np.int64]


def row_of(conversation: int, turn: int) -> int:
    """Return the row of a turn: one number for both."""
    return (conversation << TURN_BITS) + turn


def conversation_of(row: Ints) -> Ints:
    """Return whose turns these rows are."""
    return row >> TURN_BITS


def turn_of(row: Ints) -> Ints:
    """Return which turns these rows are, counted from 0."""
    return row & ((1 << TURN_BITS) - 1)


def requests_of(source: ConversationSource, row: Ints, prompt_tokens: Ints) -> tuple[Requests, Ints]:
    """Return the turns that were sent [n], and how long the workload wanted their prompts to be [n].

    `prompt_tokens` is how long they were, -1 where that is not known: then they have the wanted length.
    """
    conversations, turns = conversation_of(row), turn_of(row)
    wanted, outputs = np.empty(len(row), np.int64), np.empty(len(row), np.int64)
    order = np.argsort(conversations, kind="stable")
    numbers, begins = np.unique(conversations[order], return_index=True)
    for number, own in zip(numbers.tolist(), np.split(order, begins[1:]), strict=False):
        talk = source.conversation(number)
        wanted[own], outputs[own] = talk.input_tokens()[turns[own]], talk.output_tokens[turns[own]]
    return from_lengths(np.where(prompt_tokens >= 0, prompt_tokens, wanted), outputs), wanted
