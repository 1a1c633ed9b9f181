"""What the payloads of one answer say of its tokens, gathered piece by piece; `settling` decides by it all.

Knows nothing of sockets or clocks. Servers differ in every field here, so what is odd is ignored, and only
an error that the server states is one.
"""

import re
from functools import lru_cache
from typing import Any

MOST_TOKENS = 2**31 - 1
"""That a count may state: beyond any context, and what a column of the records holds."""
DEEPEST = 8
"""How far into a field output is looked for: an answer's own nesting must not cost us a stack."""

NOTHING, ANSWER, THOUGHT = 0, 1, 2

_OUT_OF_MEMORY = re.compile(r"out of memory|OutOfMemory|can't allocate memory", re.IGNORECASE)
_THINKING = re.compile(r"reason|think|thought", re.IGNORECASE)
_HOUSEKEEPING = frozenset(
    {
        *("annotations", "citations", "context", "created", "format", "id", "index", "model", "name"),
        *("object", "provider_specific_fields", "role", "signature", "sources", "type"),
    }
)
"""Fields of a piece that are no output of the model, whatever they hold."""
_BROKEN_OFF = frozenset(("error", "abort", "aborted"))
"""Reasons to finish that say that the server gave the answer up."""


def error_kind(text: str, otherwise: str) -> str:
    """Return the failure's kind for a server's error message: `out_of_memory`, or what it is otherwise."""
    return "out_of_memory" if _OUT_OF_MEMORY.search(text) else otherwise


class StreamError(Exception):
    """The server sent an error object within the stream."""


Row = tuple[int, int, int, int, int, int, int, bool]
"""What one payload says of one sequence: (at, sequence, size, kind, ids, running, predicted, opens).

`at` is where in the stream the payload was complete. It carries `size` bytes of output, of `kind` ANSWER,
THOUGHT or both, and `ids` token ids; `running` tokens so far says its usage and `predicted` its timings; -1
is a count that it does not give. `opens`: it only says whose the answer will be.
"""


class Tokens:
    """The evidence of one answer: a `Row` for every choice of every payload, and the server's totals.

    `done` and `finish` say that and how the answer ended, `whole` that it was not streamed. `final` is the
    usage that came by itself, `usage` the last one of all and `opening` the first.
    """

    __slots__ = (
        "_only",
        "cached",
        "done",
        "final",
        "finish",
        "opening",
        "response_id",
        "rows",
        "sequences",
        "usage",
        "whole",
    )

    def __init__(self, sequences: int) -> None:
        self.sequences = sequences
        self.rows: list[Row] = []
        self.done = self.whole = False
        self.finish = ""
        self.response_id = ""
        self.cached: Any = None
        self.opening: dict[str, Any] | None = None
        self.usage: dict[str, Any] | None = None
        self.final: dict[str, Any] | None = None
        self._only: Any = None

    def feed(self, payload: Any, at: int = 0) -> bool:
        """Take in a payload that was complete at `at`; return whether it is one of this API's, with choices.

        Raises:
            StreamError: it is, or holds, an error object.
        """
        if type(payload) is not dict:  # llama.cpp's server begins the answer to several prompts with null
            if type(payload) is list and payload and (error := _member(payload[0], "error")):
                raise StreamError(message_of(error))  # as Gemini answers
            return False
        choices = payload.get("choices")
        if payload.get("error"):
            raise StreamError(message_of(payload["error"]))
        usage, timings = payload.get("usage"), payload.get("timings")
        running = predicted = -1
        if usage is None and "x_groq" in payload:
            usage = _member(payload["x_groq"], "usage")
        if type(usage) is dict and usage:
            running = completion_of(usage)
            self.usage = usage
            if self.opening is None:
                self.opening = usage
            if not choices and running >= 0:
                self.final = usage
        if type(timings) is dict:
            predicted = number(timings.get("predicted_n"))
            self.cached = timings.get("cache_n")
        if type(choices) is not list:
            if choices is None and (stated := _stated_error(payload)):
                raise StreamError(stated)
            return False
        if not self.response_id:
            self.response_id = str(payload.get("id") or "")
        for choice in choices:
            if type(choice) is dict:
                self._choice(choice, at, running, predicted)
        return True

    def _choice(self, choice: dict[str, Any], at: int, running: int, predicted: int) -> None:
        index = choice.get("index", 0)
        if self.sequences == 1:
            # One was asked for: whatever number the server gives it, but always the same.
            if self._only is None:
                self._only = index
            if index != self._only:
                return
            index = 0
        elif type(index) is not int or not 0 <= index < self.sequences:
            return
        if choice.get("error"):
            raise StreamError(message_of(choice["error"]))
        size, kind, role = 0, NOTHING, False
        delta = choice.get("delta")
        if delta is None:
            text = choice.get("text")
            if text is None:
                delta = choice.get("message")  # the whole answer at once
            elif size := size_of(text):
                kind = ANSWER
        if type(delta) is dict:
            role = "role" in delta
            for name, value in delta.items():
                if value and (sort := _sort(name)) and (length := size_of(value)):
                    size += length
                    kind |= _sort_of_parts(value) if type(value) is list and sort == ANSWER else sort
        ids = choice.get("token_ids")
        given = len(ids) if type(ids) is list else -1
        self.rows.append((at, index, size, kind, given, running, predicted, role and not size))
        if finish := choice.get("finish_reason"):
            self.finish = finish if type(finish) is str else "other"
            if self.finish in _BROKEN_OFF:
                raise StreamError(f"finish_reason is {self.finish}")


def number(stated: Any) -> int:
    """Return a number of tokens as the server states it; proxies make 64.0 of 64. -1: it is none."""
    if type(stated) is float and stated.is_integer():
        stated = int(stated)
    return stated if type(stated) is int and 0 <= stated <= MOST_TOKENS else -1


def completion_of(usage: dict[str, Any]) -> int:
    """Return the output tokens that a usage states, -1 where it does not."""
    stated = usage.get("completion_tokens")
    return number(usage.get("output_tokens") if stated is None else stated)


def size_of(value: Any, depth: int = 0) -> int:
    """Return how many bytes of output a field's value holds: those of all texts in it."""
    if type(value) is str:
        return len(value) if value.isascii() else len(value.encode("utf-8", "surrogatepass"))
    if depth == DEEPEST:
        return 0
    if type(value) is list:
        return sum(size_of(one, depth + 1) for one in value)
    if type(value) is dict:
        # The name of a function to call is output; that of the author is not.
        return sum(
            size_of(one, depth + 1)
            for name, one in value.items()
            if one and (name == "name" or name not in _HOUSEKEEPING)
        )
    return 0


def message_of(error: Any) -> str:
    """Return what an error object says."""
    if isinstance(error, dict):
        return str(error.get("message") or error)
    return str(error)


@lru_cache(1024)
def _sort(name: str) -> int:
    """Return what a field of this name holds: NOTHING of the model's, its ANSWER, or a THOUGHT."""
    if name in _HOUSEKEEPING:
        return NOTHING
    return THOUGHT if _THINKING.search(name) else ANSWER


def _sort_of_parts(value: list[Any]) -> int:
    """Return what the parts of a field are, some of which may be thoughts (Mistral's content)."""
    kind = NOTHING
    for part in value:
        thought = type(part) is dict and _THINKING.search(str(part.get("type", "")))
        kind |= THOUGHT if thought else ANSWER
    return kind


def _stated_error(payload: dict[str, Any]) -> str:
    """Return the error that a payload without choices is, in the words of servers without an error object."""
    if payload.get("object") == "error" or payload.get("type") == "error":
        return message_of(payload)
    if payload.get("error_code") or payload.get("detail"):
        return str(payload.get("detail") or payload.get("text") or message_of(payload))
    return ""


def _member(value: Any, name: str) -> Any:
    return value.get(name) if type(value) is dict else None
