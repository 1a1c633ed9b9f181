"""Which tokens a streamed payload of OpenAI's API carries. Knows nothing of sockets or clocks."""

import re
from typing import Any

MOST_TOKENS = 2**31 - 1
"""That a count may state: beyond any context, and what a column of the records holds."""

_OUT_OF_MEMORY = re.compile(r"out of memory|OutOfMemory|can't allocate memory", re.IGNORECASE)


def error_kind(text: str, otherwise: str) -> str:
    """Return the failure's kind for a server's error message: `out_of_memory`, or what it is otherwise."""
    return "out_of_memory" if _OUT_OF_MEMORY.search(text) else otherwise


class StreamError(Exception):
    """The server sent an error object within the stream."""


class Tokens:
    """Counts the tokens of one answer, payload by payload: exactly where the server says how many.

    `method` says by what they were counted, decided by the first payload that has any: `token_ids`,
    `usage` (a running count of each choice in every chunk), `timings` (llama.cpp's running count), or
    `chunks`: the server gave no counts, so each chunk with text is one token. `total` is the server's own
    count of the whole answer, over all sequences, where it came at the end.
    """

    __slots__ = ("counts", "finish", "input_tokens", "method", "response_id", "total")

    def __init__(self, sequences: int) -> None:
        self.counts = [0] * sequences
        self.method = ""
        self.finish = ""
        self.response_id = ""
        self.total: int | None = None
        self.input_tokens: int | None = None

    def feed(self, payload: Any) -> int:
        """Return how many tokens the payload adds to the first sequence.

        Raises:
            StreamError: it is an error object.
            ValueError, TypeError, AttributeError: it is nothing that this API sends.
        """
        if payload is None:  # so llama.cpp's server begins the answer to several prompts
            return 0
        if not isinstance(payload, dict):
            raise ValueError("not an object")
        if payload.get("error"):
            raise StreamError(_message(payload["error"]))
        choices = payload.get("choices")
        if choices is None:
            raise ValueError("an object without choices")
        self.response_id = self.response_id or str(payload.get("id") or "")
        usage, timings = payload.get("usage"), payload.get("timings")
        running = predicted = None
        if usage:
            stated = usage.get("prompt_tokens")
            if stated != self.input_tokens:
                self.input_tokens = _count(stated)
            running = _count(usage.get("completion_tokens"))
            if not choices:
                self.total = running
        if timings:
            predicted = _count(timings.get("predicted_n"))
        first = 0
        for choice in choices:
            index = choice.get("index", 0)
            if not 0 <= index < len(self.counts):
                raise ValueError(f"a choice that was not asked for: index {index}")
            tokens = self._tokens(choice, self.counts[index], running, predicted)
            self.counts[index] += tokens
            if index == 0:
                first += tokens
            if choice.get("finish_reason"):
                finish = choice["finish_reason"]
                self.finish = "stop" if finish == "eos_token" else finish  # TGI's word for it
        return first

    def _tokens(self, choice: dict[str, Any], so_far: int, running: int | None, predicted: int | None) -> int:
        ids = choice.get("token_ids")
        if not self.method:
            if ids is not None:
                self.method = "token_ids"
            elif running is not None:
                self.method = "usage"
            elif predicted is not None:
                self.method = "timings"
            elif _has_text(choice):
                self.method = "chunks"
        if self.method == "usage":
            return max(0, (running or 0) - so_far)
        if running is not None:
            self.total = running
        if self.method == "token_ids":
            return len(ids or ())
        if self.method == "timings":
            return max(0, (predicted or 0) - so_far)
        return int(_has_text(choice))


def _count(stated: Any) -> int | None:
    """Return a number of tokens as the server states it; proxies make 64.0 of 64."""
    if stated is None:
        return None
    if type(stated) is float and stated.is_integer():
        stated = int(stated)
    if type(stated) is not int or not 0 <= stated <= MOST_TOKENS:
        raise ValueError("what should be a number of tokens is none")
    return stated


def _has_text(choice: dict[str, Any]) -> bool:
    delta = choice.get("delta")
    if delta is None:
        return bool(choice.get("text"))
    return bool(
        delta.get("content")
        or delta.get("reasoning_content")
        or delta.get("reasoning")
        or delta.get("tool_calls")
    )


def _message(error: Any) -> str:
    if isinstance(error, dict):
        return str(error.get("message", error))
    return str(error)
