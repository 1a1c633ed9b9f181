"""A server that speaks HTTP/2 alone; how it answers a request is a test's own function."""

import socket
import socketserver
import ssl
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from typing import Any

from h2.config import H2Configuration
from h2.connection import H2Connection
from h2.events import DataReceived, RequestReceived, StreamEnded
from h2.exceptions import ProtocolError

FIELDS = [(":status", "200"), ("content-type", "text/event-stream")]


class Asked:
    """One request, and how to answer it."""

    def __init__(self, connection: H2Connection, sock: Any, stream: int, fields: dict[str, str]) -> None:
        self.connection, self.sock, self.stream, self.fields = connection, sock, stream, fields
        self.body = b""
        self.number = 0

    def head(self, *more: tuple[str, str], fields: list[tuple[str, str]] = FIELDS, end: bool = False) -> None:
        self.connection.send_headers(self.stream, [*fields, *more], end_stream=end)
        self.flush()

    def data(self, data: bytes, end: bool = False, padding: int | None = None) -> None:
        self.connection.send_data(self.stream, data, end_stream=end, pad_length=padding)
        self.flush()

    def flush(self) -> None:
        self.sock.sendall(self.connection.data_to_send())


Way = Callable[[Asked], Any]


@contextmanager
def http2_service(way: Way, tls: ssl.SSLContext | None = None, alpn: bool = True) -> Iterator[str]:
    """Yield the URL of the server; with `alpn` it refuses clients that do not offer h2 in the handshake."""
    if tls and alpn:
        tls.set_alpn_protocols(["h2"])

    class Handler(socketserver.BaseRequestHandler):
        def handle(self) -> None:
            with suppress(OSError, ProtocolError):
                self.talk()

        def talk(self) -> None:
            connection = H2Connection(H2Configuration(client_side=False, header_encoding="utf-8"))
            connection.initiate_connection()
            self.request.sendall(connection.data_to_send())
            asked: dict[int, Asked] = {}
            while data := self.request.recv(65536):
                for event in connection.receive_data(data):
                    if isinstance(event, RequestReceived):
                        stream = event.stream_id
                        asked[stream] = Asked(connection, self.request, stream, dict(event.headers))
                        asked[stream].number = len(asked)
                    elif isinstance(event, DataReceived):
                        asked[event.stream_id].body += event.data
                        connection.acknowledge_received_data(event.flow_controlled_length, event.stream_id)
                    elif isinstance(event, StreamEnded):
                        self.request.sendall(connection.data_to_send())
                        way(asked[event.stream_id])
                self.request.sendall(connection.data_to_send())

    class Server(socketserver.ThreadingTCPServer):
        daemon_threads = True

        def get_request(self) -> Any:
            connection, place = super().get_request()
            connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            if tls:
                connection = tls.wrap_socket(connection, server_side=True, do_handshake_on_connect=False)
            return connection, place

        def handle_error(self, *_: Any) -> None:
            pass

    server = Server(("127.0.0.1", 0), Handler)
    threading.Thread(target=server.serve_forever, args=(0.02,), daemon=True).start()
    try:
        yield f"{'https' if tls else 'http'}://127.0.0.1:{server.server_address[1]}"
    finally:
        server.shutdown()
        server.server_close()


def tokens(events: list[bytes], pause_s: float, sent_ns: list[int] | None = None) -> Way:
    """Answer with these events, each in a frame of its own; when each was sent is written down."""

    def way(asked: Asked) -> None:
        asked.head()
        for i, event in enumerate(events):
            time.sleep(pause_s)
            if sent_ns is not None:
                sent_ns.append(time.perf_counter_ns())
            asked.data(event, end=i == len(events) - 1)

    return way
