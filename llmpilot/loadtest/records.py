"""The record of every request of one load level: columnar, times in whole microseconds. No statistics."""

import json
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from llmpilot.loadtest.server_samples import ServerSamples
from llmpilot.workload import Requests

Int = NDArray[np.int64]
OF_REAL_SERVICES = (
    "first_answer_us",
    "hidden_tokens",
    "cached_tokens",
    "conversation",
    "turn",
    "counted_input_tokens",
    "asked_input_tokens",
)
"""Columns that only some records have."""


@dataclass(frozen=True)
class Records:
    """Requests in the order of sending; times [us] count from the level's start, -1 where one never came.

    `failure` is "" for a success, else the failure's kind. `gap_us` holds the gaps between consecutive
    output tokens of one sequence of each request, back to back; request i owns
    `gap_us[gap_offsets[i]:gap_offsets[i + 1]]`. `window_us` is the steady window that counts: what was
    sent before it is warm-up, what was sent after it keeps the load up (drain).

    In an open loop `sent_us` is the scheduled time, and `dispatch_delay_us` how much later the request
    really went out (for a closed loop: how long a connection took, where one was needed). `notes` is what
    columns cannot say: how tokens were counted, samples of failures' messages, how the client itself did.
    `server` is what the server said of itself meanwhile, where it does so at all.

    Notes on the answers of a real service, over all successful requests (of the window and around it):
    `answers` is how many had output, `pieces_per_answer` in how many pieces of the stream it came on
    average. `in_one_piece` of those with two tokens or more had all of them arrive at the same time, and
    `in_one_piece_share` is their share: no gaps can be measured in them. `ended_early` answers were shorter
    and `longer_than_asked` ones longer than asked. `hidden_tokens` were counted by the server and never
    shown; `thinking_share` of the output tokens were thoughts. `tokens_counted_by` says how many answers'
    tokens were counted in which way (see `openai_client.counting`). Of conversations, `histories` says what
    the client took to read answers and write the turns behind them: `busy_ms_per_turn`, in slices of
    `slice_ms_mean` of which the longest was `slice_ms_longest`; and of how many answers (`made_up_answers`)
    the server told no token ids, so that others stood for them in what followed.

    Of real services besides: `first_answer_us` is when the first token of the answer itself came, behind
    what the model thought aloud (-1: it did not think); `hidden_tokens` are output tokens that the server
    counted and never showed, which have no times; `cached_tokens` those of the prompt that it says it had in
    its cache (-1: it does not say). `counted_input_tokens` is the prompt's length by the server's own count
    (-1: it does not say), `asked_input_tokens` what the workload asked for, where prompts are texts and
    `requests` has the count of the server. Of conversations, `conversation` is its number and `turn` counts
    from 0.
    """

    level: float
    window_us: tuple[int, int]
    requests: Requests
    sent_us: Int
    first_token_us: Int
    done_us: Int
    failure: NDArray[np.str_]
    gap_us: Int
    gap_offsets: Int
    dispatch_delay_us: Int | None = None
    response_id: NDArray[np.str_] | None = None
    notes: dict[str, Any] = field(default_factory=dict)
    server: ServerSamples | None = None
    first_answer_us: Int | None = None
    hidden_tokens: Int | None = None
    cached_tokens: Int | None = None
    conversation: Int | None = None
    turn: Int | None = None
    counted_input_tokens: Int | None = None
    asked_input_tokens: Int | None = None

    def __len__(self) -> int:
        return len(self.sent_us)

    def to_table(self) -> pa.Table:
        """Return one row per request, with its token gaps as a list column."""
        gaps = pa.ListArray.from_arrays(
            pa.array(self.gap_offsets, pa.int32()), pa.array(self.gap_us, pa.int64())
        )
        requests = self.requests
        columns = {
            "level": pa.array(np.full(len(self), self.level)),
            "sent_us": pa.array(self.sent_us),
            "first_token_us": pa.array(self.first_token_us),
            "done_us": pa.array(self.done_us),
            "failure": pa.array(self.failure.tolist(), pa.string()).dictionary_encode(),
            "input_tokens": pa.array(requests.input_tokens, pa.int32()),
            "output_tokens": pa.array(requests.output_tokens, pa.int32()),
            "batch_size": pa.array(requests.batch_size, pa.int32()),
            "in_window": pa.array((self.sent_us >= self.window_us[0]) & (self.sent_us < self.window_us[1])),
            "token_gaps_us": gaps,
        }
        if self.dispatch_delay_us is not None:
            columns["dispatch_delay_us"] = pa.array(self.dispatch_delay_us)
        for name in OF_REAL_SERVICES:
            if (column := getattr(self, name)) is not None:
                columns[name] = pa.array(column)
        if self.response_id is not None:
            columns["response_id"] = pa.array(self.response_id.tolist(), pa.string())
        metadata = {"level": self.level, "window_us": list(self.window_us), "notes": self.notes}
        return pa.table(columns).replace_schema_metadata({"llmpilot": json.dumps(metadata)})
