"""The OpenAI-compatible wire: a request as JSON bytes.

Knows nothing of sockets, clocks or how the service was started.
"""

import json
from dataclasses import dataclass
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

IDS_OF_ANSWERS: dict[Dialect, dict[str, Any]] = {"llamacpp": {"return_tokens": True, "verbose": True}}
"""Fields besides with which a server tells the ids of what it answers, for the next turn."""


STREAM_OPTIONS = ("include_usage", "continuous_usage_stats")


@dataclass(frozen=True)
class Fields:
    """Which fields of its dialect a server takes: all but `left_out`; `length` names that of the length.

    `left_out` may also hold members of `stream_options` (`continuous_usage_stats`).
    """

    left_out: frozenset[str] = frozenset()
    length: str = "max_tokens"

    def of(self, fields: dict[str, Any]) -> dict[str, Any]:
        """Return those of a request's fields that are sent."""
        kept = {
            self.length if name == "max_tokens" else name: value
            for name, value in fields.items()
            if name not in self.left_out
        }
        if "stream" not in kept:
            kept.pop("stream_options", None)
        elif "stream_options" in kept:
            options = {k: v for k, v in kept["stream_options"].items() if k not in self.left_out}
            kept["stream_options"] = options
            if not options:
                del kept["stream_options"]
        return kept


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

    What `api` and `prompt` auto come to, a service's first answers say (`ways`); until then they stand for
    completions of token ids. `prompt=text` is for servers that refuse token ids; lengths are then as exact as
    its tokenizer lets them be, and the server's own count replaces ours. `sequences` says how a request of
    several sequences is sent: as so many prompts (each weighs its input and output, as the batch weight has
    it; works greedily) or as `n` (OpenAI's parameter; servers share the prompt, and vLLM refuses it without
    sampling).
    `vocabulary_size` bounds the ids of random prompts where the server has fewer than the model's facts say.
    `serves` is the engine that the server runs, where that is known: what is measured then counts as its.
    """

    name: ClassVar[str] = "openai"
    places: ClassVar[tuple[str, ...]] = ("external",)

    api: Literal["auto", "completions", "chat"] = "auto"
    prompt: Literal["auto", "token_ids", "text"] = "auto"
    sequences: Literal["prompts", "n"] = "prompts"
    dialect: Literal["auto", "vllm", "llamacpp", "standard"] = "auto"
    vocabulary_size: PositiveInt | None = None
    serves: Literal["vllm", "sglang", "trtllm"] | None = None

    @property
    def path(self) -> str:
        """Where requests are posted to, below the base of the server's API (`/v1`)."""
        return "/chat/completions" if self.api == "chat" else "/completions"

    @property
    def takes_token_ids(self) -> bool:
        """Whether prompts are token ids, of exact length."""
        return self.api != "chat" and self.prompt != "text"

    @property
    def repeats_prompts(self) -> bool:
        """Whether a request of several sequences is sent as so many prompts."""
        return self.api != "chat" and self.sequences == "prompts"

    def ways(self, api: Literal["completions", "chat"] | None = None) -> list["OpenAIEngine"]:
        """Return the engine as it may be settled, best first; `api` is the one that the URL names, if any."""
        wanted = self.api if self.api != "auto" else api or "auto"
        both = ("completions",) if self.prompt == "token_ids" else ("completions", "chat")
        apis = both if wanted == "auto" else (wanted,)
        prompts = ("token_ids", "text") if self.prompt == "auto" else (self.prompt,)
        pairs = [(api, prompt) for api in apis for prompt in (prompts if api == "completions" else ("text",))]
        return [self.model_copy(update={"api": api, "prompt": prompt}) for api, prompt in pairs]

    def dialects(self, owned_by: str) -> tuple[Dialect, ...]:
        """Return the dialects to try, best first, for a server whose model is `owned_by` somebody."""
        first: Dialect = "llamacpp" if owned_by == "llamacpp" else "vllm"
        if self.dialect != "auto":
            first = self.dialect
        return (first,) if first == "standard" else (first, "standard")

    def body(
        self,
        asked: Asked,
        prompts: list[bytes],
        model: str,
        dialect: Dialect,
        taken: Fields = Fields(),
    ) -> bytes:
        """Return the JSON body of a request; `prompts` are JSON already, one for each prompt sent."""
        head = self._begun(asked, len(prompts), model, dialect, taken)
        if self.api == "chat":
            return head + b',"messages":[{"role":"user","content":' + prompts[0] + b"}]}"
        joined = prompts[0] if len(prompts) == 1 else b"[" + b",".join(prompts) + b"]"
        return head + b',"prompt":' + joined + b"}"

    def turn_body(
        self, asked: Asked, said: bytes, model: str, dialect: Dialect, taken: Fields = Fields()
    ) -> bytes:
        """Return the JSON body of a conversation's turn; `said` is its prompt, or all messages."""
        field = b',"messages":' if self.api == "chat" else b',"prompt":'
        ids = IDS_OF_ANSWERS.get(dialect, {}) if self.takes_token_ids else {}
        return self._begun(asked, 1, model, dialect, taken, **ids) + field + said + b"}"

    def _begun(
        self, asked: Asked, prompts: int, model: str, dialect: Dialect, taken: Fields, **besides: Any
    ) -> bytes:
        """Return a body up to its prompts."""
        fields: dict[str, Any] = {"model": model, "stream": True, "max_tokens": asked.output_tokens}
        fields |= EXTRAS[dialect] | besides
        if dialect == "vllm":
            fields["min_tokens"] = asked.output_tokens
        fields["temperature"] = 0 if asked.greedy else round(asked.temperature, 6)
        if not asked.greedy:
            if asked.top_p < 1:
                fields["top_p"] = round(asked.top_p, 6)
            if asked.top_k > 0 and dialect != "standard":
                fields["top_k"] = asked.top_k
        if asked.sequences > prompts:
            fields["n"] = asked.sequences
        return json.dumps(taken.of(fields), separators=(",", ":")).encode()[:-1]

    def prompts_for(self, asked: Asked) -> int:
        """Return how many prompts a request is sent as."""
        return asked.sequences if self.repeats_prompts else 1
