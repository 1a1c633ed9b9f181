"""Answers of real tokens, in the emulator's formats: here the ids come from a model, a step at a time.

There is no tokenizer: a token's text is made up from its id, four characters, and says nothing.
"""

from time import monotonic_ns
from typing import Any

from llmpilot.emulator import wire
from llmpilot.emulator.answer import Answer, Stream
from llmpilot.emulator.tokens import MASK, TEXTS

OWNER = "llm-pilot-transformers"


class TokenChunks(wire.ChoiceChunks):
    """The events of one choice whose tokens are `ids`, which grow while they are sent."""

    __slots__ = ("ids",)

    def __init__(self, ids: list[int], stream: Stream, prompt: int) -> None:
        super().__init__(
            stream.answer.request,
            stream.answer.shared,
            prompt,
            prompt=prompt,
            offset=0,
            total=stream.total,
            finish_reason=stream.reason,
        )
        self.ids = ids

    def token(self, k: int) -> bytes:
        """Return the event of token `k`, counted from 0."""
        token = self.ids[k]
        finish = self._finish if k == self._total - 1 else b"null"
        event = (self._left if k else self._first) + TEXTS[token & MASK] + self._right + finish
        if self._ids:
            event += b',"token_ids":[%d]' % token
            if k == 0:
                event += b',"prompt_token_ids":' + self._prompt_ids
        if self._continuous:
            return event + b'}],"usage":' + wire.to_json(wire.usage(self._prompt_tokens, k + 1)) + b"}\n\n"
        return event + b"}]" + self._null_usage + b"}\n\n"


class TokenStream(Stream):
    """One prompt's answer; `push` sends its next token."""

    __slots__ = ("ids",)

    def __init__(self, answer: "TokenAnswer", prompt: int, output_tokens: int, reason: str) -> None:
        super().__init__(answer, prompt, output_tokens, reason)
        self.ids: list[int] = []
        if self.chunks:
            self.chunks = [TokenChunks(self.ids, self, prompt)]

    def push(self, token: int) -> None:
        """Send the next token, or keep it while the answer is held."""
        if not self.answer.ended:
            self.ids.append(token)
            self.emit(monotonic_ns())


class TokenAnswer(Answer):
    """All prompts of one request."""

    def __init__(self, *args: Any, **named: Any) -> None:
        super().__init__(*args, **named)
        self.shared["system_fingerprint"] = OWNER

    def add(self, prompt: int, output_tokens: int, reason: str) -> TokenStream:
        """Add the stream of one prompt."""
        stream = TokenStream(self, prompt, output_tokens, reason)
        self.streams.append(stream)
        self.unwritten += 1
        return stream

    def _write_whole(self) -> None:
        request = self.request
        choices: list[dict[str, Any]] = []
        for prompt, stream in enumerate(self.streams):
            assert isinstance(stream, TokenStream)
            text = b"".join(TEXTS[token & MASK] for token in stream.ids).decode()
            said = {"message": {"role": "assistant", "content": text}} if request.chat else {"text": text}
            choice: dict[str, Any] = {
                "index": prompt,
                **said,
                "logprobs": None,
                "finish_reason": stream.reason,
            }
            if request.return_token_ids:
                choice |= {"token_ids": stream.ids, "prompt_token_ids": request.prompt_ids(prompt)}
            choices.append(choice)
            stream.sent_ns.extend([monotonic_ns()] * stream.total)
        usage = wire.usage(sum(request.prompt_tokens), sum(stream.total for stream in self.streams))
        self.connection.write_json(
            200, {**self.shared, "choices": choices, "usage": usage}, self.extra_headers
        )
