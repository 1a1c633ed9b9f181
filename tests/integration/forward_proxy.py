"""A small HTTP proxy that remembers what went through it: single requests, and tunnels made by CONNECT."""

import socket
import socketserver
import ssl
import threading
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from typing import Any
from urllib.parse import urlsplit


@dataclass
class Passed:
    """What a proxy was asked for: the first line and the fields (names in lower case) of every request."""

    url: str = ""
    asked: list[tuple[str, dict[str, str]]] = field(default_factory=list)


@contextmanager
def forward_proxy(refusal: bytes = b"", tls: ssl.SSLContext | None = None) -> Iterator[Passed]:
    """Yield what passes a proxy; one with a refusal answers nothing but that."""
    passed = Passed()

    class Handler(socketserver.StreamRequestHandler):
        def handle(self) -> None:
            with suppress(OSError):
                while line := self.rfile.readline().decode():
                    lines = []
                    while (more := self.rfile.readline().decode()).strip():
                        lines.append(more.strip().partition(": "))
                    fields = {name.lower(): value for name, _, value in lines}
                    passed.asked.append((line.strip(), fields))
                    body = self.rfile.read(int(fields.get("content-length", "0")))
                    method, goal, version = line.split()
                    if refusal:
                        self.request.sendall(refusal)
                        return
                    if method == "CONNECT":
                        host, _, port = goal.rpartition(":")
                        there = socket.create_connection(("127.0.0.1", int(port)))
                        assert host
                        self.request.sendall(b"HTTP/1.1 200 Connection established\r\nX-Proxy: 1\r\n\r\n")
                        relay(self.request, there)
                        return
                    parts = urlsplit(goal)
                    assert parts.port
                    with socket.create_connection(("127.0.0.1", parts.port)) as there:
                        kept = [f"{n}: {v}" for n, v in fields.items() if not n.startswith("proxy-")]
                        head = "\r\n".join([f"{method} {parts.path} {version}", *kept])
                        there.sendall(head.encode() + b"\r\n\r\n" + body)
                        there.shutdown(socket.SHUT_WR)
                        pump(there, self.request)
                    return

    class Server(socketserver.ThreadingTCPServer):
        daemon_threads = True
        request_queue_size = 64

        def get_request(self) -> Any:
            connection, place = super().get_request()
            if tls:
                connection = tls.wrap_socket(connection, server_side=True, do_handshake_on_connect=False)
            return connection, place

        def handle_error(self, *_: Any) -> None:
            pass

    server = Server(("127.0.0.1", 0), Handler)
    threading.Thread(target=server.serve_forever, args=(0.02,), daemon=True).start()
    passed.url = f"{'https' if tls else 'http'}://127.0.0.1:{server.server_address[1]}"
    try:
        yield passed
    finally:
        server.shutdown()
        server.server_close()


def relay(one: socket.socket, other: socket.socket) -> None:
    there = threading.Thread(target=pump, args=(one, other), daemon=True)
    there.start()
    pump(other, one)
    there.join(5)
    other.close()


def pump(source: socket.socket, sink: socket.socket) -> None:
    with suppress(OSError):
        while data := source.recv(65536):
            sink.sendall(data)
    with suppress(OSError):
        sink.shutdown(socket.SHUT_WR)
