"""One request and its answer, on the connection that the load test uses, bounded in time and size.

For looking at a service before it is measured: what answers here answers there, in the same words.
"""

import asyncio
import ssl
from collections.abc import Mapping
from dataclasses import dataclass, field
from itertools import accumulate

from llmpilot.openai_client.access import Access, Target
from llmpilot.openai_client.arrivals import CODINGS, UndecodableError, decoded
from llmpilot.openai_client.connecting import connect, connect_failure, said_of
from llmpilot.openai_client.flight import Flight
from llmpilot.openai_client.framing import BLANK_LINE, body_of, encoding_of, is_interim, split_head
from llmpilot.openai_client.http import Connection, head_of
from llmpilot.openai_client.http2 import begins_with_settings
from llmpilot.openai_client.proxies import refused

MOST_BYTES = 8_000_000
LOOK_S = 0.02
"""How often an answer under way is asked whether it is too long."""


@dataclass(frozen=True)
class Exchange:
    """An answer as it came: `status` 0 is no HTTP; names of header fields are in lower case.

    `text` is the body, without the framing and decompressed.
    """

    flight: Flight = field(repr=False)
    status: int
    headers: Mapping[str, str]
    text: str

    @property
    def raw(self) -> bytes:
        """All that came."""
        return b"".join(self.flight.pieces)

    @property
    def ends(self) -> list[int]:
        """How much had come with each piece [bytes]; `flight.times` says when [ns]."""
        return list(accumulate(map(len, self.flight.pieces)))


class NoAnswerError(Exception):
    """There is no whole answer. `kind` is the failure's, as the load test names it.

    `so_far` is what has come of the answer; None where there was no connection. The cause of that is the
    `__cause__`. The text says what happened in a few words.
    """

    def __init__(self, kind: str, words: str, so_far: Exchange | None = None) -> None:
        super().__init__(words)
        self.kind, self.so_far = kind, so_far


BROKEN = {
    "reset_before_response": "it closed the connection without an answer",
    "reset_mid_stream": "it closed the connection within its answer",
    "bad_http": "what it answered is no HTTP",
}
"""How an answer fails whose connection stood, beside `request_timeout` and `endless_answer`."""


NO_HTTP1 = (426, 464, 505)
"""Upgrade Required; "incompatible protocol versions" of AWS's load balancers; HTTP Version Not Supported."""


def insists_on_http2(failed: NoAnswerError | Exchange) -> bool:
    """Whether a server has shown, by how it took a request over HTTP/1.1, that it wants HTTP/2."""
    if isinstance(failed, NoAnswerError):
        cause = failed.__cause__
        if isinstance(cause, ssl.SSLError) and "NO_APPLICATION_PROTOCOL" in (cause.reason or ""):
            return True
        if failed.so_far is None:
            return False
        failed = failed.so_far
    if failed.status == 426:
        return "h2" in failed.headers.get("upgrade", "")
    return failed.status in NO_HTTP1 or begins_with_settings(failed.raw)


def wire_of(
    access: Access, method: str, path: str, headers: Mapping[str, str], content: bytes | None = None
) -> bytes:
    """Return a whole request; `path` is joined to the URL's own."""
    head = head_of(access, path, headers, method)
    if content is None:
        return head + b"\r\n"
    return b"%bContent-Length: %d\r\n\r\n%b" % (head, len(content), content)


def ask_now(
    target: Target,
    wire: bytes,
    *,
    connect_timeout_s: float = 10.0,
    timeout_s: float = 600.0,
    most_bytes: int = MOST_BYTES,
) -> Exchange:
    """Do as `ask` does, where no event loop runs."""
    return asyncio.run(
        ask(target, wire, connect_timeout_s=connect_timeout_s, timeout_s=timeout_s, most_bytes=most_bytes)
    )


async def ask(
    target: Target,
    wire: bytes,
    *,
    connect_timeout_s: float = 10.0,
    timeout_s: float = 600.0,
    most_bytes: int = MOST_BYTES,
) -> Exchange:
    """Return the whole answer to one request, which is there within `timeout_s`, connecting included.

    The connection is a new one, and closed behind it.

    Raises:
        NoAnswerError: there is none, or no whole one; see its `kind`.
    """
    flight = Flight(0, wire, 0, 1, room=most_bytes)
    connection: Connection | None = None
    try:
        async with asyncio.timeout(timeout_s):
            try:
                connection = await connect(target, min(timeout_s, connect_timeout_s))
            except OSError as error:
                raise NoAnswerError(connect_failure(error), said_of(error)) from error
            broken = await _fly(connection, flight)
    except TimeoutError:
        words = f"no whole answer in {timeout_s:g} s"
        raise NoAnswerError("request_timeout", words, _read(flight)) from None
    finally:
        if connection is not None:
            connection.close()
            await asyncio.sleep(0)  # in which the socket is closed
    answer = _read(flight)
    if broken == "endless_answer":
        raise NoAnswerError(broken, f"more than {most_bytes / 1e6:g} MB", answer)
    if broken:
        raise NoAnswerError(broken, BROKEN.get(broken, broken), answer)
    if answer.status == 407 and target.proxy is not None:
        refusal = refused(target.proxy.shown, 407)
        raise NoAnswerError(refusal.kind, str(refusal), answer) from refusal
    return answer


async def _fly(connection: Connection, flight: Flight) -> str:
    """Send the request and wait for its end; return how it failed, or ""."""
    if connection.unasked:
        # A server that speaks first does not speak HTTP/1.1.
        flight.pieces.append(connection.unasked)
        flight.times.append(0)
        return "bad_http"
    ended: asyncio.Future[str] = asyncio.get_running_loop().create_future()
    flight.on_end = lambda _, kind: None if ended.done() else ended.set_result(kind)
    connection.send(flight)
    while True:
        done, _ = await asyncio.wait([ended], timeout=LOOK_S)
        if flight.endless():
            return "endless_answer"
        if done:
            return ended.result()


def _read(flight: Flight) -> Exchange:
    raw, ends = b"".join(flight.pieces), list(accumulate(map(len, flight.pieces)))
    status, lowered, start = split_head(raw)
    if not status:
        return Exchange(flight, 0, {}, "")
    body, segments, _, _ = body_of(raw, lowered, start)
    coding = encoding_of(lowered)
    if coding in CODINGS:
        try:
            body, _, _ = decoded(body, coding, segments, ends, flight.times)
        except UndecodableError:
            body = b""
    return Exchange(flight, status, _fields(raw[:start]), body.decode("utf-8", "replace"))


def _fields(heads: bytes) -> dict[str, str]:
    """Return the header fields of the last head, their values as they were written."""
    at = 0
    while is_interim(heads[at + 9 : at + 12]):
        at = heads.index(BLANK_LINE, at) + len(BLANK_LINE)
    fields = (line.partition(":") for line in heads[at:].decode("latin-1").split("\r\n")[1:])
    return {name.strip().lower(): value.strip() for name, colon, value in fields if colon}
