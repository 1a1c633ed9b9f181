"""What the OpenAI API takes: bodies of /v1/completions and /v1/chat/completions, checked field by field.

Unknown fields are ignored, as engines do, so that clients with extensions of their own are served.
Knows neither HTTP nor time.
"""

import json
from dataclasses import dataclass
from typing import Any, NoReturn

from llmpilot.emulator.service import EmulatedService
from llmpilot.emulator.tokens import CHARACTERS_PER_TOKEN, TOKENS_PER_MESSAGE, count_text, ids_of_text

INVALID = "invalid_request_error"
COMPLETION_TOKENS = 16
"""`max_tokens` of a completion that does not say, as OpenAI has it."""
MAX_CHOICES = 1024
_ROLE_CHARACTERS = TOKENS_PER_MESSAGE * CHARACTERS_PER_TOKEN
ROLES = ("system", "developer", "user", "assistant", "tool", "function")


class ApiError(Exception):
    """A request that the API refuses: HTTP status, and the four fields of OpenAI's error object."""

    def __init__(
        self,
        status: int,
        message: str,
        *,
        param: str | None = None,
        code: str | None = None,
        kind: str = INVALID,
    ) -> None:
        super().__init__(message)
        self.status, self.message, self.param, self.code, self.kind = status, message, param, code, kind


@dataclass(frozen=True, slots=True)
class Generation:
    """A checked request. `prompts` are texts or lists of token ids, `prompt_tokens` their lengths.

    `max_tokens` None leaves the output's length to the server (chat only).
    """

    chat: bool
    model: str
    prompts: list[str | list[int]]
    prompt_tokens: list[int]
    n: int
    max_tokens: int | None
    min_tokens: int
    ignore_eos: bool
    stream: bool
    include_usage: bool
    continuous_usage: bool
    return_token_ids: bool
    vocabulary_size: int

    def prompt_ids(self, prompt: int) -> list[int]:
        """Return the token ids of one prompt: its own, or made-up ones for a text."""
        given = self.prompts[prompt]
        return ids_of_text(given, self.vocabulary_size) if isinstance(given, str) else given

    def output_tokens(self, drawn: int, room: int) -> tuple[int, str]:
        """Return how many tokens a sequence gets and why it ends; `room` is what its context has left."""
        most = room if self.max_tokens is None else self.max_tokens
        if self.ignore_eos or drawn >= most:
            return most, "length"
        return max(drawn, self.min_tokens), "length" if self.min_tokens == most else "stop"


@dataclass(frozen=True, slots=True)
class _Prompts:
    """What shall be continued, `n` times each; `tokens` holds the length of each of `texts`."""

    texts: list[str | list[int]]
    tokens: list[int]
    n: int
    chat: bool


def read_json(body: bytes) -> dict[str, Any]:
    """Return the body's JSON object.

    Raises:
        ApiError: it is none.
    """
    try:
        value = json.loads(body, parse_constant=_no_constant)
    except (ValueError, RecursionError) as error:
        message = "it is nested too deeply" if isinstance(error, RecursionError) else str(error)
        raise ApiError(400, f"We could not parse the JSON body of your request: {message}") from None
    if not isinstance(value, dict):
        raise ApiError(400, f"the body must be a JSON object, not {_kind(value)}")
    return value


def read_completion(body: dict[str, Any], service: EmulatedService) -> Generation:
    """Return the generation that a body of /v1/completions asks for.

    Raises:
        ApiError: a field is missing or impossible; the message and `param` name it.
    """
    model = _model(body, service)
    if _flag(body, "echo"):
        raise ApiError(400, "echo is not supported by this server", param="echo")
    prompts, lengths = _prompts(body.get("prompt"), service)
    n = _whole(body, "n", 1, least=1, most=128)
    best_of = _whole(body, "best_of", n, least=1, most=128)
    if best_of < n:
        raise ApiError(400, f"best_of must be at least n, got best_of={best_of} and n={n}", param="best_of")
    return _generation(body, service, model, _Prompts(prompts, lengths, n, chat=False))


def read_chat(body: dict[str, Any], service: EmulatedService) -> Generation:
    """Return the generation that a body of /v1/chat/completions asks for.

    Raises:
        ApiError: a field is missing or impossible; the message and `param` name it.
    """
    model = _model(body, service)
    prompt, length = _messages(body.get("messages"))
    n = _whole(body, "n", 1, least=1, most=128)
    return _generation(body, service, model, _Prompts([prompt], [length], n, chat=True))


def _generation(body: dict[str, Any], service: EmulatedService, model: str, given: _Prompts) -> Generation:
    choices = len(given.texts) * given.n
    if choices > MAX_CHOICES:
        raise ApiError(400, f"prompts x n must not exceed {MAX_CHOICES}, got {choices}", param="n")
    _check_sampling(body)
    name = "max_completion_tokens" if body.get("max_completion_tokens") is not None else "max_tokens"
    max_tokens = _optional_whole(body, name, least=1)
    min_tokens = _whole(body, "min_tokens", 0, least=0)
    if max_tokens is None:
        max_tokens = None if given.chat else max(COMPLETION_TOKENS, min_tokens)
    elif min_tokens > max_tokens:
        raise ApiError(
            400, f"min_tokens must not exceed {name}={max_tokens}, got {min_tokens}", param="min_tokens"
        )
    _check_room(service, given, max(1, min_tokens) if max_tokens is None else max_tokens)
    stream = _flag(body, "stream")
    options = _stream_options(body, stream)
    return Generation(
        chat=given.chat,
        model=model,
        prompts=given.texts,
        prompt_tokens=given.tokens,
        n=given.n,
        max_tokens=max_tokens,
        min_tokens=min_tokens,
        ignore_eos=_flag(body, "ignore_eos"),
        stream=stream,
        include_usage=_flag(options, "include_usage", "stream_options."),
        continuous_usage=_flag(options, "continuous_usage_stats", "stream_options."),
        return_token_ids=_flag(body, "return_token_ids"),
        vocabulary_size=service.vocabulary_size,
    )


def _check_room(service: EmulatedService, given: _Prompts, wanted: int) -> None:
    """Refuse what could never be served: longer than the context, or heavier than the batch may become."""
    room, field = service.max_model_tokens, "messages" if given.chat else "prompt"
    longest, n = max(given.tokens), given.n
    if longest + wanted > room:
        raise ApiError(
            400,
            f"This model's maximum context length is {room} tokens. However, you requested "
            f"{longest + wanted} tokens ({longest} in the {field}, {wanted} in the completion). "
            f"Please reduce the length of the {field} or completion.",
            param=field if longest >= room else "max_tokens",
            code="context_length_exceeded",
        )
    if longest + wanted > service.service.longest_request_tokens(n):
        raise ApiError(
            400, f"n={n} sequences of {longest + wanted} tokens exceed the largest batch", param="n"
        )


def _model(body: dict[str, Any], service: EmulatedService) -> str:
    model = body.get("model")
    if model is None:
        raise ApiError(400, "you must provide a model parameter", param="model")
    if not isinstance(model, str):
        _refuse("model", "a string", model)
    if model != service.model_id and model not in service.aliases:
        raise ApiError(
            404, f"The model `{model[:200]}` does not exist", param="model", code="model_not_found"
        )
    return model


def _prompts(prompt: Any, service: EmulatedService) -> tuple[list[str | list[int]], list[int]]:
    """Return the prompts and their lengths; a prompt is a text, a list of texts, ids, or a list of lists."""
    if prompt is None:
        raise ApiError(400, "you must provide a prompt parameter", param="prompt")
    if isinstance(prompt, str):
        return [prompt], [count_text(prompt)]
    if not isinstance(prompt, list) or not prompt:
        _refuse("prompt", "a string, an array of strings, of token ids, or of arrays of token ids", prompt)
    kinds = set(map(type, prompt))
    if kinds == {str}:
        return prompt, [count_text(text) for text in prompt]
    lists = [prompt] if kinds == {int} else prompt
    for ids in lists:
        if not isinstance(ids, list) or not ids or set(map(type, ids)) != {int}:
            _refuse("prompt", "a string, an array of strings, of token ids, or of arrays of token ids", ids)
        low, high = min(ids), max(ids)
        if low < 0 or high >= service.vocabulary_size:
            wrong = low if low < 0 else high
            raise ApiError(
                400,
                f"prompt: token id {_brief(wrong)} is out of vocabulary (0 to {service.vocabulary_size - 1})",
                param="prompt",
            )
    return list(lists), [len(ids) for ids in lists]


def _messages(messages: Any) -> tuple[str, int]:
    """Return the text of a conversation, 4 characters a token, and how many tokens it counts."""
    if messages is None:
        raise ApiError(400, "you must provide a messages parameter", param="messages")
    if not isinstance(messages, list) or not messages:
        _refuse("messages", "a non-empty array", messages)
    texts, tokens = [], 0
    for at, message in enumerate(messages):
        where = f"messages[{at}]"
        if not isinstance(message, dict):
            _refuse(where, "an object", message)
        if message.get("role") not in ROLES:
            _refuse(f"{where}.role", f"one of {', '.join(ROLES)}", message.get("role"))
        text = _content(message.get("content"), where, message["role"])
        own = (count_text(text) if text else 0) * CHARACTERS_PER_TOKEN
        # Its role comes behind a message: an answer goes on where the prompt ended, as with chat templates.
        texts.append(text.ljust(own, "\0") + f"<{message['role']}>".ljust(_ROLE_CHARACTERS, "\0"))
        tokens += TOKENS_PER_MESSAGE + own // CHARACTERS_PER_TOKEN
    return "".join(texts), tokens


def _content(content: Any, where: str, role: str) -> str:
    if isinstance(content, str):
        return content
    if content is None and role in ("assistant", "function"):
        return ""  # a call of a tool has none
    if not isinstance(content, list):
        _refuse(f"{where}.content", "a string or an array of content parts", content)
    for at, part in enumerate(content):
        if not isinstance(part, dict) or part.get("type") not in ("text", "refusal"):
            _refuse(f"{where}.content[{at}]", "a part of type text: this model reads no other", part)
        if not isinstance(part.get(part["type"]), str):
            _refuse(f"{where}.content[{at}].{part['type']}", "a string", part.get(part["type"]))
    return "".join(part[part["type"]] for part in content)


def _check_sampling(body: dict[str, Any]) -> None:
    """Check what engines check, although nothing here is sampled."""
    for name, low, high in (
        ("temperature", 0.0, 2.0),
        ("top_p", 0.0, 1.0),
        ("presence_penalty", -2.0, 2.0),
        ("frequency_penalty", -2.0, 2.0),
    ):
        value = body.get(name)
        if value is not None and (type(value) not in (int, float) or not low <= value <= high):
            _refuse(name, f"a number from {low:g} to {high:g}", value)
    for name in ("top_k", "seed"):
        _optional_whole(body, name, least=-(2**63))
    stop = body.get("stop")
    if stop is not None and not isinstance(stop, str) and not _all_strings(stop):
        _refuse("stop", "a string or an array of strings", stop)
    if body.get("logprobs") not in (None, False):
        raise ApiError(400, "logprobs is not supported by this server", param="logprobs")


def _stream_options(body: dict[str, Any], stream: bool) -> dict[str, Any]:
    options = body.get("stream_options")
    if options is None:
        return {}
    if not isinstance(options, dict):
        _refuse("stream_options", "an object", options)
    if not stream:
        raise ApiError(400, "stream_options is only allowed when stream is enabled", param="stream_options")
    return options


def _all_strings(value: Any) -> bool:
    return isinstance(value, list) and all(isinstance(item, str) for item in value)


def _flag(body: dict[str, Any], name: str, prefix: str = "") -> bool:
    value = body.get(name)
    if value is None or isinstance(value, bool):
        return bool(value)
    _refuse(prefix + name, "true or false", value)


def _whole(body: dict[str, Any], name: str, default: int, *, least: int, most: int = 2**63 - 1) -> int:
    value = _optional_whole(body, name, least=least, most=most)
    return default if value is None else value


def _optional_whole(body: dict[str, Any], name: str, *, least: int, most: int = 2**63 - 1) -> int | None:
    value = body.get(name)
    if value is None or (type(value) is int and least <= value <= most):
        return value
    ends = f"of at least {least}" if most > 2**32 else f"from {least} to {most}"
    _refuse(name, f"an integer {ends}" if least > -(2**63) else "an integer", value)


def _refuse(param: str, wanted: str, given: Any) -> NoReturn:
    raise ApiError(400, f"{param} must be {wanted}, got {_brief(given)}", param=param)


def _brief(value: Any) -> str:
    if isinstance(value, (bool, float, str)) or value is None:
        text = json.dumps(value)
    elif isinstance(value, int):
        text = str(value) if abs(value) < 10**30 else "a huge integer"
    else:
        text = _kind(value)
    return text if len(text) <= 80 else f"{text[:80]}..."


def _kind(value: Any) -> str:
    names = {dict: "an object", list: "an array", str: "a string", bool: "a boolean", type(None): "null"}
    return names.get(type(value), "a number")


def _no_constant(name: str) -> NoReturn:
    raise ValueError(f"{name} is no JSON")
