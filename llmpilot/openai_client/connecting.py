"""Makes connections: straight to a service or through a proxy, with TLS where its URL asks for it."""

import asyncio
import errno
import os
import socket
import ssl

from llmpilot.openai_client.access import Address, Target
from llmpilot.openai_client.framing import BLANK_LINE
from llmpilot.openai_client.http import MAX_HEAD, Connection
from llmpilot.openai_client.http2 import Http2Connection
from llmpilot.openai_client.proxies import ProxyError, ProxyRefusedError, ProxyUnreachableError, refused

OUT_OF_SOCKETS = (errno.EMFILE, errno.ENFILE, errno.EADDRNOTAVAIL)
"""This machine has no more sockets or ports: not the server's fault."""

NEXT_AFTER_S = 0.25
"""How long one address of a name may take to answer before the next one is tried as well."""


async def connect(target: Target, timeout_s: float) -> Connection:
    """Return a new connection, there within `timeout_s`, TLS and proxy included.

    Raises:
        OSError: nobody answers at any of the addresses; TimeoutError and ProxyError are of its kind.
    """
    loop = asyncio.get_running_loop()
    async with asyncio.timeout(timeout_s):
        sock = await _reach(loop, target)
        try:
            if target.proxy is not None and target.tunnel:
                return await _through(loop, sock, target)
            return await _straight(loop, sock, target)
        except BaseException:
            sock.close()
            raise


async def _reach(loop: asyncio.AbstractEventLoop, target: Target) -> socket.socket:
    """Return a socket that is connected to the first of the target's addresses that answers."""
    try:
        if len(target.addresses) == 1:
            return await _dial(loop, target.addresses[0])
        return await _first_of(loop, target)
    except OSError as error:
        if target.proxy is None or error.errno in OUT_OF_SOCKETS:
            raise
        words = f"the proxy {target.proxy.shown} cannot be reached: {said_of(error)}"
        raise ProxyUnreachableError(words) from error


async def _first_of(loop: asyncio.AbstractEventLoop, target: Target) -> socket.socket:
    """Try the addresses as RFC 8305 says: the next one where one has failed or does not answer for a while.

    The one that answers goes first from then on: an address that leads nowhere delays one connection only.
    """
    left = list(target.addresses)
    trying: dict[asyncio.Task[socket.socket], Address] = {}
    problem: OSError = ConnectionError("the name has no address")
    try:
        while left or trying:
            if left:
                address = left.pop(0)
                trying[loop.create_task(_dial(loop, address))] = address
            done, _ = await asyncio.wait(
                trying, timeout=NEXT_AFTER_S if left else None, return_when=asyncio.FIRST_COMPLETED
            )
            for task in done:
                error = task.exception()
                if error is None:
                    address = trying.pop(task)
                    target.addresses.remove(address)
                    target.addresses.insert(0, address)
                    return task.result()
                del trying[task]
                if not isinstance(error, OSError):
                    raise error
                problem = error
        raise problem
    finally:
        for task in trying:
            task.cancel()
            task.add_done_callback(_hang_up)


async def _dial(loop: asyncio.AbstractEventLoop, address: Address) -> socket.socket:
    family, place = address
    sock = socket.socket(family, socket.SOCK_STREAM)
    try:
        sock.setblocking(False)
        sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        await loop.sock_connect(sock, place)
    except BaseException:
        sock.close()
        raise
    return sock


def _hang_up(late: asyncio.Task[socket.socket]) -> None:
    if not late.cancelled() and late.exception() is None:
        late.result().close()


async def _straight(loop: asyncio.AbstractEventLoop, sock: socket.socket, target: Target) -> Connection:
    """Speak with the other end itself: the service, or a proxy that passes on single requests."""
    if target.proxy is None:
        tls, host = target.tls, target.host
    else:
        tls, host = target.proxy_tls, target.proxy.host
    _, connection = await loop.create_connection(
        lambda: _new(target, None if tls else sock),
        sock=sock,
        ssl=tls,
        server_hostname=host if tls else None,
    )
    return connection


def _new(target: Target, sock: socket.socket | None) -> Connection:
    if target.http2:
        return Http2Connection(sock, b"https" if target.tls else b"http")
    return Connection(sock)


async def _through(loop: asyncio.AbstractEventLoop, sock: socket.socket, target: Target) -> Connection:
    """Have the proxy connect us to the service, and speak with that."""
    proxy, tls = target.proxy, target.proxy_tls
    assert proxy is not None
    transport, opening = await loop.create_connection(
        lambda: _Opening(loop, proxy.shown),
        sock=sock,
        ssl=tls,
        server_hostname=proxy.host if tls else None,
    )
    try:
        head = f"CONNECT {target.tunnel} HTTP/1.1\r\nHost: {target.tunnel}\r\n"
        if proxy.authorization:
            head += f"Proxy-Authorization: {proxy.authorization}\r\n"
        transport.write(head.encode() + b"\r\n")
        await opening.open
        connection = _new(target, None if target.tls or tls else sock)
        if target.tls is None:
            transport.set_protocol(connection)
            connection.connection_made(transport)
            return connection
        inner = await loop.start_tls(transport, connection, target.tls, server_hostname=target.host)
        if inner is None:
            raise ConnectionResetError(errno.ECONNRESET, os.strerror(errno.ECONNRESET))
        connection.connection_made(inner)
        return connection
    except BaseException:
        transport.abort()
        raise


class _Opening(asyncio.Protocol):
    """What a proxy answers to CONNECT; `open` is done once it has connected us."""

    def __init__(self, loop: asyncio.AbstractEventLoop, proxy: str) -> None:
        self.open: asyncio.Future[None] = loop.create_future()
        self._proxy, self._received = proxy, b""

    def data_received(self, data: bytes) -> None:
        """Look whether the answer's head is whole: the tunnel begins behind it."""
        if self.open.done():
            return
        self._received += data
        head, blank_line, _ = self._received.partition(BLANK_LINE)
        version, _, rest = head.split(b"\r\n")[0].partition(b" ")
        status, _, reason = rest.partition(b" ")
        if not b"HTTP/1.".startswith(head[:7]) or len(head) > MAX_HEAD:
            self._fail(refused(self._proxy, 0))
        elif not blank_line:
            return
        elif not version.startswith(b"HTTP/1.") or len(status) != 3 or not status.isdigit():
            self._fail(refused(self._proxy, 0))
        elif status.startswith(b"2"):
            self.open.set_result(None)
        elif status.startswith(b"1"):
            self._received = self._received[len(head) + len(BLANK_LINE) :]
            self.data_received(b"")
        else:
            words = "".join(c for c in reason.decode("utf-8", "replace") if c.isprintable())[:80]
            self._fail(refused(self._proxy, int(status), words))

    def connection_lost(self, exc: Exception | None) -> None:
        """The proxy has hung up."""
        self._fail(
            ProxyRefusedError(f"the proxy {self._proxy} closed the connection, and did not connect us")
        )

    def _fail(self, error: ProxyRefusedError) -> None:
        if not self.open.done():
            self.open.set_exception(error)
            self.open.exception()  # nobody may be left to look at it


FAILURES = {
    "connection_refused": "nothing listens there",
    "connect_timeout": "connecting to it timed out",
    "tls_failed": "no TLS that both sides agree on",
    "unknown_name": "no address is known for its name",
    "proxy_unreachable": "its proxy cannot be reached",
    "proxy_refused": "its proxy does not connect us",
    "client_out_of_sockets": "this machine has no more sockets or ports",
    "connect_failed": "it cannot be reached",
}
"""The kinds of failure when no connection could be made, and what they say of the service."""


def connect_failure(error: OSError) -> str:
    """Return the failure's kind, one of `FAILURES`, when no connection could be made."""
    if isinstance(error, ProxyError):
        return error.kind
    if isinstance(error, ConnectionRefusedError):
        return "connection_refused"
    if isinstance(error, TimeoutError):
        return "connect_timeout"
    if isinstance(error, ssl.SSLError):
        return "tls_failed"
    if isinstance(error, socket.gaierror):
        return "unknown_name"
    return "client_out_of_sockets" if error.errno in OUT_OF_SOCKETS else "connect_failed"


def said_of(error: OSError) -> str:
    """Return what the operating system or OpenSSL says of it, in words and without numbers."""
    if isinstance(error, ssl.SSLCertVerificationError):
        return error.verify_message
    if isinstance(error, ssl.SSLError):
        return (error.reason or str(error)).replace("_", " ").lower()
    if isinstance(error, socket.gaierror):
        return error.strerror or str(error)
    if error.errno:
        return os.strerror(error.errno)
    return str(error) or FAILURES[connect_failure(error)]
