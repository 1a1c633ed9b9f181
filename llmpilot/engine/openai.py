"""The OpenAI-compatible wire: a request as JSON bytes, and which tokens a streamed payload carries.

Knows nothing of sockets, clocks or how the service was started.
"""

import json
import re
from typing import Any, ClassVar, Literal, NamedTuple

from pydantic import PositiveInt

from llmpilot.engine.inference import InferenceEngine

Dialect = Literal["vllm", "llamacpp", "standard"]
DIALECTS: tuple[Dialect, ...] = ("vllm", "llamacpp", "standard")

EXTRAS: dict[Dialect, dict[str, Any]] = {
    # vLLM and what follows its API (SGLang): exact lengths, and the tokens of every chunk.
    "vllm": {
        "ignore_eos": True,
        "return_token_ids": True,
        "stream_options": {"include_usage": True, "continuous_usage_stats": True},
    },
    # llama.cpp counts within `timings`; it would take an unknown `min_tokens` silently.
    "llamacpp": {"ignore_eos": True, "timings_per_token": True, "stream_options": {"include_usage": True}},
    "standard": {"stream_options": {"include_usage": True}},
}
"""Fields beyond OpenAI's own that make lengths exact and tokens countable, by the server's dialect."""

MOST_TOKENS = 2**31 - 1
"""That a count may state: beyond any context, and what a column of the records holds."""

_OUT_OF_MEMORY = re.compile(r"out of memory|OutOfMemory|can't allocate memory", re.IGNORECASE)


class Asked(NamedTuple):
    """What one request asks for."""

    input_tokens: int
    output_tokens: int
    sequences: int
    greedy: bool
    temperature: float
    top_k: int
    top_p: float


class OpenAIEngine(InferenceEngine):
    """Any server that speaks OpenAI's API: what it is made of is not known, only what it answers.

    `prompt=text` is for servers that refuse token ids; lengths are then as exact as its tokenizer lets
    them be, and the server's own count replaces ours. `sequences` says how a request of several sequences
    is sent: as so many prompts (each weighs its input and output, as the batch weight has it; works
    greedily) or as `n` (OpenAI's parameter; servers share the prompt, and vLLM refuses it without sampling).
    `vocabulary_size` bounds the ids of random prompts where the server has fewer than the model's facts say.
    `serves` is the engine that the server runs, where that is known: what is measured then counts as its.
    """

    name: ClassVar[str] = "openai"
    places: ClassVar[tuple[str, ...]] = ("external",)

    api: Literal["completions", "chat"] = "completions"
    prompt: Literal["token_ids", "text"] = "token_ids"
    sequences: Literal["prompts", "n"] = "prompts"
    dialect: Literal["auto", "vllm", "llamacpp", "standard"] = "auto"
    vocabulary_size: PositiveInt | None = None
    serves: Literal["vllm", "sglang", "trtllm"] | None = None

    @property
    def path(self) -> str:
        """Where requests are posted to, below the server's URL."""
        return "/v1/chat/completions" if self.api == "chat" else "/v1/completions"

    @property
    def takes_token_ids(self) -> bool:
        """Whether prompts are token ids, of exact length."""
        return self.api == "completions" and self.prompt == "token_ids"

    def dialects(self, owned_by: str) -> tuple[Dialect, ...]:
        """Return the dialects to try, best first, for a server whose model is `owned_by` somebody."""
        if self.dialect != "auto":
            return (self.dialect,)
        if owned_by == "llamacpp":
            return ("llamacpp", "standard")
        return ("vllm", "standard")

    def body(self, asked: Asked, prompts: list[bytes], model: str, dialect: Dialect) -> bytes:
        """Return the JSON body of a request; `prompts` are JSON already, one for each prompt sent."""
        fields: dict[str, Any] = {"model": model, "stream": True, "max_tokens": asked.output_tokens}
        fields |= EXTRAS[dialect]
        if dialect == "vllm":
            fields["min_tokens"] = asked.output_tokens
        fields["temperature"] = 0 if asked.greedy else round(asked.temperature, 6)
        if not asked.greedy:
            if asked.top_p < 1:
                fields["top_p"] = round(asked.top_p, 6)
            if asked.top_k > 0 and dialect != "standard":
                fields["top_k"] = asked.top_k
        if asked.sequences > len(prompts):
            fields["n"] = asked.sequences
        head = json.dumps(fields, separators=(",", ":")).encode()[:-1]
        if self.api == "chat":
            return head + b',"messages":[{"role":"user","content":' + prompts[0] + b"}]}"
        joined = prompts[0] if len(prompts) == 1 else b"[" + b",".join(prompts) + b"]"
        return head + b',"prompt":' + joined + b"}"

    def prompts_for(self, asked: Asked) -> int:
        """Return how many prompts a request is sent as."""
        return asked.sequences if self.api == "completions" and self.sequences == "prompts" else 1


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
