"""Answers of real tokens, in the emulator's formats: here the ids come from a model, a step at a time.

There is no tokenizer: a token's text is made up from its id, four characters, and says nothing.
"""

from time import monotonic_ns

from llmpilot.emulator import wire
from llmpilot.emulator.answer import Answer, Stream
from llmpilot.emulator.tokens import MASK, TEXTS


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
        return self._event(k, TEXTS[token & MASK], b"%d" % token)


class TokenStream(Stream):
    """One prompt's answer; `push` sends its next token."""

    __slots__ = ("ids",)

    def __init__(self, answer: Answer, prompt: int, output_tokens: int, reason: str) -> None:
        super().__init__(answer, prompt, output_tokens, reason)
        self.ids: list[int] = []
        if self.chunks:
            self.chunks = [TokenChunks(self.ids, self, prompt)]

    def push(self, token: int) -> None:
        """Send the next token, or keep it while the answer is held."""
        if not self.answer.ended:
            self.ids.append(token)
            self.emit(monotonic_ns())

    def whole(self) -> list[list[int]]:
        """Return the ids of all tokens."""
        return [self.ids]


class TokenAnswer(Answer):
    """All prompts of one request."""

    stream_type = TokenStream
