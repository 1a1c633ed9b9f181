"""Turns as rows: whose they were, and what was asked for in each."""

import time

import numpy as np

from llmpilot.loadtest.talk_rows import conversation_of, requests_of, row_of, turn_of
from llmpilot.workload import Conversation


class Counting:
    """Conversation k has three turns; the first adds k + 1 tokens, all others ten."""

    system_tokens = 5

    def conversation(self, number: int) -> Conversation:
        added = np.array([number + 1, 10, 10])
        return Conversation(5, added, np.array([1, 2, 3]), np.zeros(3))


def test_each_turn_has_the_lengths_of_its_own_conversation() -> None:
    row = np.array([row_of(7, 1), row_of(2, 0), row_of(7, 0), row_of(2, 2)])
    assert conversation_of(row).tolist() == [7, 2, 7, 2]
    assert turn_of(row).tolist() == [1, 0, 0, 2]
    requests, wanted = requests_of(Counting(), row, np.array([-1, 4, -1, -1]))
    assert wanted.tolist() == [5 + 8 + 1 + 10, 5 + 3, 5 + 8, 5 + 3 + 1 + 10 + 2 + 10]
    assert requests.input_tokens.tolist() == [24, 4, 13, 31]
    assert requests.output_tokens.tolist() == [2, 1, 1, 3]


def test_a_level_without_a_turn_has_no_rows() -> None:
    nothing = np.empty(0, np.int64)
    requests, wanted = requests_of(Counting(), nothing, nothing)
    assert len(requests) == len(wanted) == 0


def test_time_grows_with_turns_and_not_with_turns_times_conversations() -> None:
    row = np.array([row_of(number, turn) for turn in range(3) for number in range(20_000)])
    begun = time.thread_time()
    requests_of(Counting(), row, np.full(len(row), -1))
    assert time.thread_time() - begun < 1  # 1.5 s and more where each is looked for in all rows
