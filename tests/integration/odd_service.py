"""A server whose answers to some requests are a test's own bytes, and to all others as they should be."""

import socketserver
import ssl
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from typing import Any

MODELS = b'{"data": [{"id": "m"}]}'
SOUND = b'data: {"choices": [{"index": 0, "text": " a b"}]}\n\ndata: [DONE]\n\n'
HEAD = b"HTTP/1.1 200 OK\r\nContent-Type: text/event-stream\r\n"

Way = Callable[[Callable[[bytes], Any]], None]


def whole(body: bytes, status: str = "200 OK", *fields: str) -> Way:
    head = "\r\n".join([f"HTTP/1.1 {status}", f"Content-Length: {len(body)}", *fields])
    return lambda send: send(head.encode() + b"\r\n\r\n" + body)


def again_and_again(first: bytes, then: bytes, pause_s: float) -> Way:
    def way(send: Callable[[bytes], Any]) -> None:
        send(first)
        while True:
            send(then)
            time.sleep(pause_s)

    return way


@contextmanager
def service(way: Way, at: str = "POST", tls: ssl.SSLContext | None = None) -> Iterator[str]:
    """Yield the URL of a server that answers what begins with `at` this way, and all else as it should."""

    class Handler(socketserver.StreamRequestHandler):
        disable_nagle_algorithm = True  # pieces go out as they come, not held for the answer to the last one

        def handle(self) -> None:
            with suppress(OSError):
                while asked := self.rfile.readline():
                    length = 0
                    while (line := self.rfile.readline().lower()).strip():
                        length = int(line.split(b":")[1]) if line.startswith(b"content-length:") else length
                    self.rfile.read(length)
                    sound = {b"POST": SOUND, b"GET ": MODELS if b"/models" in asked else b""}.get(
                        asked[:4], b""
                    )
                    (way if asked.startswith(at.encode()) else whole(sound))(self.request.sendall)

    class Server(socketserver.ThreadingTCPServer):
        daemon_threads = True

        def get_request(self) -> Any:
            connection, place = super().get_request()
            # The handshake is the handler's, that none holds up the next connection.
            return (
                tls.wrap_socket(connection, server_side=True, do_handshake_on_connect=False)
                if tls
                else connection
            ), place

        def handle_error(self, *_: Any) -> None:
            pass

    server = Server(("127.0.0.1", 0), Handler)
    threading.Thread(target=server.serve_forever, args=(0.02,), daemon=True).start()
    try:
        yield f"{'https' if tls else 'http'}://127.0.0.1:{server.server_address[1]}"
    finally:
        server.shutdown()
        server.server_close()
