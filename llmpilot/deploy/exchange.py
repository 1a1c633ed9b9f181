"""One HTTP exchange with a service, bounded in time and size, whatever comes back.

The library's own limits begin anew with every piece: a server that always sends another one never meets them.
"""

import asyncio
from collections.abc import Mapping
from dataclasses import dataclass, field

import httpx

from llmpilot.secrets import HIDDEN

MOST_BYTES = 8_000_000
SHORTEST_SECRET = 6


class TooLongError(Exception):
    """The answer is far longer than such an answer is."""


@dataclass(frozen=True)
class Answer:
    """A whole answer; header names are in lower case."""

    status: int
    headers: Mapping[str, str]
    text: str


@dataclass(frozen=True)
class Caller:
    """Asks the service at `url`; all its requests carry `headers`."""

    url: str
    headers: dict[str, str] = field(default_factory=dict, repr=False)
    verify_tls: bool = True
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

        Our own credentials, which some servers repeat, are hidden in it.

        Raises:
            TimeoutError, httpx.TimeoutException: it is not.
            TooLongError: it goes on after MOST_BYTES.
            httpx.HTTPError: no connection, or no HTTP on it.
        """
        return asyncio.run(self._ask(method, path, content, headers or {}, timeout_s or self.timeout_s))

    async def _ask(
        self, method: str, path: str, content: bytes | None, headers: Mapping[str, str], timeout_s: float
    ) -> Answer:
        async with (
            asyncio.timeout(timeout_s),
            httpx.AsyncClient(
                base_url=self.url,
                headers={"Accept-Encoding": "identity"} | self.headers,
                verify=self.verify_tls,
                timeout=httpx.Timeout(timeout_s, connect=min(timeout_s, self.connect_timeout_s)),
                trust_env=False,
            ) as http,
            http.stream(method, path, content=content, headers=dict(headers)) as answer,
        ):
            body = bytearray()
            async for piece in answer.aiter_bytes():
                body += piece
                if len(body) > MOST_BYTES:
                    raise TooLongError
            text = body.decode("utf-8", "replace")
            return Answer(answer.status_code, answer.headers, self._without_credentials(text))

    def _without_credentials(self, text: str) -> str:
        _, _, credentials = self.headers.get("Authorization", "").partition(" ")
        return text.replace(credentials, HIDDEN) if len(credentials) >= SHORTEST_SECRET else text
