"""Requests to a service before it is measured, on the load test's own connections and with its own reader."""

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from functools import cached_property

from llmpilot.openai_client.access import Access, Target, resolve
from llmpilot.openai_client.connecting import connect_failure, said_of
from llmpilot.openai_client.exchange import Exchange, NoAnswerError, ask_now, insists_on_http2, wire_of
from llmpilot.openai_client.reading import Reading, read_answer

__all__ = ["Answer", "Caller", "NoAnswerError", "insists_on_http2"]


@dataclass(frozen=True)
class Answer:
    """A whole answer."""

    exchange: Exchange = field(repr=False)

    @property
    def status(self) -> int:
        """Its status."""
        return self.exchange.status

    @property
    def headers(self) -> Mapping[str, str]:
        """Its header fields, their names in lower case."""
        return self.exchange.headers

    @property
    def text(self) -> str:
        """Its body. What is to be shown of it goes through `served_text.shown`."""
        return self.exchange.text

    @property
    def whole(self) -> bool:
        """Whether it is one JSON object, not a stream of events."""
        return self.text.lstrip()[:1] == "{"

    def reading(self, output_tokens: int) -> Reading:
        """Return what the load test would read in it; `failure` is "" where it would count it.

        Nor is an answer of no tokens a failure here, where it is one of this API: two tokens may be none yet.
        """
        reading = read_answer(
            self.exchange.raw,
            self.exchange.ends,
            self.exchange.flight.times,
            output_tokens=output_tokens,
            sequences=1,
        )
        if reading.failure == "no_tokens" and ("[DONE]" in self.text or '"choices"' in self.text):
            reading.failure = reading.message = ""
        return reading


@dataclass(frozen=True)
class Caller:
    """Asks a service; all its requests carry `headers`, and `query` behind their path."""

    access: Access
    headers: Mapping[str, str] = field(default_factory=dict, repr=False)
    query: str = field(default="", repr=False)
    connect_timeout_s: float = 10.0
    timeout_s: float = 600.0

    def ask(
        self,
        method: str,
        path: str,
        content: bytes | None = None,
        headers: Mapping[str, str] | None = None,
        *,
        timeout_s: float | None = None,
    ) -> Answer:
        """Return the whole answer, which is there within `timeout_s`, connecting included.

        Raises:
            NoAnswerError: it is not, or there is no connection, or no HTTP on it.
            ConfigError: a file of certificates cannot be used.
        """
        goal = f"{path}?{self.query}" if self.query else path
        fields = dict(headers or {}) | dict(self.headers)
        wire = wire_of(self.access, method, goal, fields, content)
        exchange = ask_now(
            self._target,
            wire,
            connect_timeout_s=self.connect_timeout_s,
            timeout_s=timeout_s or self.timeout_s,
        )
        return Answer(exchange)

    def over_http2(self) -> "Caller":
        """Return the same over HTTP/2."""
        return replace(self, access=replace(self.access, http2=True))

    @cached_property
    def _target(self) -> Target:
        try:
            return resolve(self.access)
        except OSError as error:
            raise NoAnswerError(connect_failure(error), said_of(error)) from error
