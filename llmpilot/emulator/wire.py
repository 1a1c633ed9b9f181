"""The bytes of answers: HTTP heads, JSON bodies, and preformatted SSE chunks of one token each."""

import json
from http.client import responses
from typing import Any

import llmpilot
from llmpilot.emulator.api import Generation
from llmpilot.emulator.tokens import IDS, MASK, TEXTS

JSON = "application/json"
EVENTS = "text/event-stream; charset=utf-8"
DONE = b"data: [DONE]\n\n"
LAST_CHUNK = b"0\r\n\r\n"


def head(
    status: int,
    content_type: str,
    *,
    product: str,
    length: int | None,
    close: bool,
    extra: dict[str, str],
) -> bytes:
    """Return an answer's head; `length` None means a chunked body, or in HTTP/1.0 one until the end."""
    lines = [
        f"HTTP/1.1 {status} {responses.get(status, 'Unknown')}",
        f"server: {product}/{llmpilot.__version__}",
        f"content-type: {content_type}",
    ]
    if length is not None:
        lines.append(f"content-length: {length}")
    lines.extend(f"{name}: {value}" for name, value in extra.items())
    if close:
        lines.append("connection: close")
    return ("\r\n".join(lines) + "\r\n\r\n").encode("latin-1")


def to_json(value: Any) -> bytes:
    """Return compact JSON, ASCII only: whatever was sent to us can be quoted in it."""
    return json.dumps(value, separators=(",", ":")).encode()


def error_body(message: str, kind: str, param: str | None = None, code: str | None = None) -> dict[str, Any]:
    """Return the body of an OpenAI error."""
    return {"error": {"message": message, "type": kind, "param": param, "code": code}}


def usage(prompt_tokens: int, completion_tokens: int, cached_tokens: int = -1) -> dict[str, Any]:
    """Return an OpenAI usage object, with what was cached of the prompt where that is not -1."""
    counted: dict[str, Any] = {
        "prompt_tokens": prompt_tokens,
        "completion_tokens": completion_tokens,
        "total_tokens": prompt_tokens + completion_tokens,
    }
    if cached_tokens >= 0:
        counted["prompt_tokens_details"] = {"cached_tokens": cached_tokens}
    return counted


def framed(event: bytes) -> bytes:
    """Return `event` as one chunk of a chunked body."""
    return b"%x\r\n%b\r\n" % (len(event), event)


def envelope(request: Generation, response_id: str, created: int, product: str) -> dict[str, Any]:
    """Return the fields that all objects of one answer share."""
    chat_kind = "chat.completion.chunk" if request.stream else "chat.completion"
    return {
        "id": response_id,
        "object": chat_kind if request.chat else "text_completion",
        "created": created,
        "model": request.model,
        "system_fingerprint": product,
    }


class ChoiceChunks:
    """The SSE events of one choice: everything but the token itself is formatted once."""

    __slots__ = (
        "_continuous",
        "_finish",
        "_first",
        "_ids",
        "_left",
        "_null_usage",
        "_offset",
        "_prompt_ids",
        "_prompt_tokens",
        "_right",
        "_total",
    )

    def __init__(
        self,
        request: Generation,
        shared: dict[str, Any],
        index: int,
        *,
        prompt: int,
        offset: int,
        total: int,
        finish_reason: str,
    ) -> None:
        before = b"data: " + to_json(shared)[:-1] + b',"choices":[{"index":%d,' % index
        text, close = (b'"delta":{"content":"', b'"}') if request.chat else (b'"text":"', b'"')
        first = b'"delta":{"role":"assistant","content":"' if request.chat else text
        self._left, self._first = before + text, before + first
        self._right = close + b',"logprobs":null,"finish_reason":'
        self._finish = b'"' + finish_reason.encode() + b'"'
        self._ids = request.return_token_ids
        self._prompt_ids = to_json(request.prompt_ids(prompt)) if self._ids else b""
        self._continuous = request.continuous_usage
        self._null_usage = b',"usage":null' if request.include_usage else b""
        self._prompt_tokens = request.prompt_tokens[prompt]
        self._offset, self._total = offset, total

    def token(self, k: int) -> bytes:
        """Return the event of token `k`, counted from 0."""
        word = (self._offset + k) & MASK
        return self._event(k, TEXTS[word], IDS[word])

    def _event(self, k: int, text: bytes, token_id: bytes) -> bytes:
        finish = self._finish if k == self._total - 1 else b"null"
        event = (self._left if k else self._first) + text + self._right + finish
        if self._ids:
            event += b',"token_ids":[' + token_id + b"]"
            if k == 0:
                event += b',"prompt_token_ids":' + self._prompt_ids
        if self._continuous:
            return event + b'}],"usage":' + to_json(usage(self._prompt_tokens, k + 1)) + b"}\n\n"
        return event + b"}]" + self._null_usage + b"}\n\n"


def usage_event(
    request: Generation, shared: dict[str, Any], completion_tokens: int, cached_tokens: int
) -> bytes:
    """Return the event that closes a stream with `include_usage`: no choices, only the usage."""
    counted = usage(sum(request.prompt_tokens), completion_tokens, cached_tokens)
    return b"data: " + to_json({**shared, "choices": [], "usage": counted}) + b"\n\n"


def whole_answer(
    request: Generation,
    shared: dict[str, Any],
    choices: list[tuple[int, list[int], str]],
    cached_tokens: int,
) -> bytes:
    """Return the body of an answer that is not streamed; a choice is (prompt, token ids, finish reason)."""
    listed: list[dict[str, Any]] = []
    for index, (prompt, ids, finish_reason) in enumerate(choices):
        text = b"".join(TEXTS[token & MASK] for token in ids).decode()
        choice: dict[str, Any] = {"index": index}
        if request.chat:
            choice["message"] = {"role": "assistant", "content": text}
        else:
            choice["text"] = text
        choice |= {"logprobs": None, "finish_reason": finish_reason}
        if request.return_token_ids:
            choice["token_ids"] = ids
            choice["prompt_token_ids"] = request.prompt_ids(prompt)
        listed.append(choice)
    counted = usage(sum(request.prompt_tokens), sum(len(ids) for _, ids, _ in choices), cached_tokens)
    return to_json({**shared, "choices": listed, "usage": counted})
