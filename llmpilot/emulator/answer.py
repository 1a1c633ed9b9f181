"""One request's answer on its way: an engine makes tokens, these put them on the wire and keep the truth.

The next token's bytes are formatted ahead of its time, so that when it is due only the write is left.
"""

import asyncio
from array import array
from collections.abc import Callable
from time import monotonic_ns
from typing import TYPE_CHECKING, Any

from llmpilot.emulator import wire
from llmpilot.emulator.api import Generation
from llmpilot.emulator.prefixes import Words
from llmpilot.emulator.tokens import FIRST_ID, MASK
from llmpilot.emulator.truth import Sent

if TYPE_CHECKING:
    from llmpilot.emulator.connection import Connection

STALLED, UNREAD = 1, 2
FLUSH = 64
"""Tokens that are sent in one write after a pause: more would keep the other clients waiting."""


class Stream:
    """One prompt of a request: `copies` equal sequences, of which the engine makes a token at a time.

    `made` counts the tokens that the engine made, `written` those that were sent. `ticket` is the engine's.
    `swift` says that the next token is `prepared`, and that nothing else happens when it is sent.
    `cached_tokens` of the prompt were in a prefix cache; -1: nobody has looked.
    """

    __slots__ = (
        "_tail_prepared",
        "answer",
        "cached_tokens",
        "chunks",
        "connection",
        "copies",
        "due_ns",
        "fault_at",
        "input_tokens",
        "made",
        "offsets",
        "prepared",
        "prompt",
        "reason",
        "sent_ns",
        "swift",
        "ticket",
        "total",
        "written",
    )

    def __init__(self, answer: "Answer", prompt: int, output_tokens: int, reason: str) -> None:
        request = answer.request
        self.answer, self.connection = answer, answer.connection
        self.copies, self.input_tokens, self.total = request.n, request.prompt_tokens[prompt], output_tokens
        self.reason, self.prompt, self.cached_tokens = reason, request.prompts[prompt], -1
        self.made = self.written = 0
        self.due_ns, self.sent_ns = array("q"), array("q")
        self.fault_at = -1
        self.ticket: Any = None
        indices = range(prompt * request.n, (prompt + 1) * request.n)
        self.offsets = [31 * answer.number + 17 * index for index in indices]
        self.chunks = [
            wire.ChoiceChunks(
                request,
                answer.shared,
                index,
                prompt=prompt,
                offset=offset,
                total=output_tokens,
                finish_reason=reason,
            )
            for index, offset in zip(indices, self.offsets, strict=True)
            if request.stream
        ]
        self.prepared = b""
        self._tail_prepared = self.swift = False

    def emit(self, due_ns: int) -> None:
        """The engine has made the next token, which was due at `due_ns`: send it, or keep it while held."""
        answer = self.answer
        if answer.ended:
            return
        self.due_ns.append(due_ns)
        made = self.made = self.made + 1
        if made - 1 == self.fault_at:
            answer.strike()
            if answer.ended:
                return
        if self.prepared and not answer.held:
            payload, self.prepared, self.swift = self.prepared, b"", False
            self.sent_ns.append(monotonic_ns())
            answer.write(payload)
            self.written = made
            if made == self.total:
                answer.stream_written(self._tail_prepared)
        elif not answer.held:
            self.flush()

    def prepare(self) -> None:
        """Format the next token, if it will be the only one owed when it is made."""
        if self.chunks and self.written == self.made < self.total and not self.answer.ended:
            self.prepared = self._events(self.made, self.made + 1)
            # The last token takes the end of the answer along, unless others are still to come.
            self._tail_prepared = self.made == self.total - 1 and self.answer.unwritten == 1
            if self._tail_prepared:
                self.prepared += self.answer.tail()
            self.swift = (
                0 < self.made < self.total - 1 and self.made != self.fault_at and not self.answer.held
            )

    def words(self) -> Words:
        """Return what the prompt and the answer say, the first copy's where there are several."""
        return Words(self.prompt, self.offsets[0], self.total)

    def found(self, cached_tokens: int) -> None:
        """Note how much of the prompt was cached, which the end of the answer tells."""
        self.cached_tokens = cached_tokens
        if self._tail_prepared and not self.made:
            self.prepared, self._tail_prepared = b"", False

    def flush(self) -> None:
        """Send all that was made and not sent yet."""
        if self.written == self.made:
            return
        if not self.chunks:
            if self.made == self.total:
                self.written = self.total
                self.answer.stream_written(False)
            return
        self.prepared, self.swift = b"", False
        while self.written < self.made and not self.answer.held:
            until = min(self.made, self.written + FLUSH)
            payload = self._events(self.written, until)
            self.sent_ns.extend([monotonic_ns()] * (until - self.written))
            self.written = until
            self.answer.write(payload)
        if self.written == self.total:
            self.answer.stream_written(False)

    def whole(self) -> list[list[int]]:
        """Return the ids of all tokens of each copy."""
        return [[FIRST_ID + ((offset + k) & MASK) for k in range(self.total)] for offset in self.offsets]

    def _events(self, start: int, stop: int) -> bytes:
        framed = self.answer.framed
        if stop == start + 1 and self.copies == 1:
            return framed(self.chunks[0].token(start))
        return b"".join(framed(chunks.token(k)) for k in range(start, stop) for chunks in self.chunks)


def emit_all(streams: list[Stream], due_ns: int) -> int:
    """Do what `emit` does for each stream, but send first and keep the books afterwards.

    The tokens of a batch are all due at once, and each write makes those after it late. Returns how long
    one write took [ns], 0 where too few were made to tell.
    """
    swift = [stream for stream in streams if stream.swift]
    rest = [stream for stream in streams if not stream.swift]
    started_ns = monotonic_ns()
    for stream in swift:
        stream.sent_ns.append(monotonic_ns())
        stream.connection.send(stream.prepared)
    took_ns = monotonic_ns() - started_ns
    for stream in swift:
        stream.swift, stream.prepared = False, b""
        stream.due_ns.append(due_ns)
        stream.made = stream.written = stream.made + 1
    for stream in rest:
        stream.emit(due_ns)
    return took_ns // len(swift) if len(swift) > 3 else 0


class Answer:
    """All prompts of one request; ends exactly once, with an outcome, and then tells `on_end`."""

    stream_type: type[Stream] = Stream

    def __init__(
        self,
        request: Generation,
        *,
        number: int,
        response_id: str,
        created: int,
        arrived_ns: int,
        connection: "Connection",
        on_end: Callable[["Answer", str], None],
    ) -> None:
        self.request, self.number, self.id, self.arrived_ns = request, number, response_id, arrived_ns
        self.connection = connection
        self.shared = wire.envelope(request, response_id, created, connection.site.product)
        self.streams: list[Stream] = []
        self.unwritten = 0
        self.held = 0
        self.started = False
        self.ended = False
        self.fault: str | None = None
        self.stall_s = 0.0
        self._on_end = on_end
        self._http11 = connection.http11
        self.framed: Callable[[bytes], bytes] = wire.framed if self._http11 else bytes

    @property
    def extra_headers(self) -> dict[str, str]:
        """The headers that tell a client which answer this is."""
        return {"x-request-id": self.id}

    def add(self, prompt: int, output_tokens: int, reason: str) -> Stream:
        """Add the stream of one prompt."""
        stream = self.stream_type(self, prompt, output_tokens, reason)
        self.streams.append(stream)
        self.unwritten += 1
        return stream

    def write(self, payload: bytes) -> None:
        """Send a part of a streamed answer, the head before the first."""
        if not self.started:
            self.started = True
            headers = self.extra_headers | {"cache-control": "no-cache"}
            if self._http11:
                headers["transfer-encoding"] = "chunked"
            payload = self.connection.head(200, wire.EVENTS, length=None, extra=headers) + payload
        self.connection.send(payload)

    @property
    def cached_tokens(self) -> int:
        """How much of all prompts was in a prefix cache; -1: that is not known."""
        found = [stream.cached_tokens for stream in self.streams]
        return sum(found) if min(found) >= 0 else -1

    def tail(self) -> bytes:
        """Return what follows the last token."""
        end = wire.DONE
        if self.request.include_usage:
            completion_tokens = sum(stream.total * stream.copies for stream in self.streams)
            end = wire.usage_event(self.request, self.shared, completion_tokens, self.cached_tokens) + end
        return self.framed(end) + (wire.LAST_CHUNK if self._http11 else b"")

    def stream_written(self, tail_written: bool) -> None:
        """All tokens of one more stream were sent (or made, where the answer is not streamed)."""
        self.unwritten -= 1
        if self.unwritten:
            return
        if not self.request.stream:
            self._write_whole()
        elif not tail_written:
            self.write(self.tail())
        self._end("ok")

    def hold(self, reason: int) -> None:
        """Send nothing until `release` with the same reason; what is made meanwhile is only counted."""
        self.held |= reason
        for stream in self.streams:
            stream.swift = False

    def release(self, reason: int) -> None:
        """Send again, what was held back first."""
        self.held &= ~reason
        if self.held or self.ended:
            return
        for stream in self.streams:
            stream.flush()
            if self.held or self.ended:
                return

    def strike(self) -> None:
        """Let the fault happen that was drawn for this request."""
        if self.fault == "reset":
            self._end("reset")
            self.connection.reset()
        elif self.fault == "stall":
            self.fault = None
            self.hold(STALLED)
            asyncio.get_running_loop().call_later(self.stall_s, self.release, STALLED)

    def fail(self, status: int, message: str, outcome: str) -> None:
        """Fail the request: with an HTTP status, or inside the stream where that has begun."""
        if self.ended:
            return
        body = wire.error_body(message, "server_error", code=outcome)
        if self.started:
            event = b"data: " + wire.to_json(body) + b"\n\n" + wire.DONE
            self.connection.send(self.framed(event) + (wire.LAST_CHUNK if self._http11 else b""))
        else:
            self.connection.write_json(status, body, self.extra_headers)
        self._end(outcome)

    def abandon(self, outcome: str) -> None:
        """The client is gone."""
        if not self.ended:
            self._end(outcome)

    def rows(self, outcome: str) -> list[Sent]:
        """Return the truth about each prompt."""
        return [
            Sent(
                self.id,
                prompt,
                stream.copies,
                self.request.stream,
                self.arrived_ns,
                stream.input_tokens,
                stream.total,
                outcome,
                stream.due_ns,
                stream.sent_ns,
                stream.cached_tokens,
            )
            for prompt, stream in enumerate(self.streams)
        ]

    def _write_whole(self) -> None:
        choices = [
            (prompt, ids, stream.reason)
            for prompt, stream in enumerate(self.streams)
            for ids in stream.whole()
        ]
        body = wire.whole_answer(self.request, self.shared, choices, self.cached_tokens)
        now_ns = monotonic_ns()
        for stream in self.streams:
            stream.sent_ns.extend([now_ns] * stream.total)
        self.connection.write_body(200, wire.JSON, body, self.extra_headers)

    def _end(self, outcome: str) -> None:
        self.ended = True
        self._on_end(self, outcome)
