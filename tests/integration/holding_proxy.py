"""A proxy before a server that holds streams of events back: to their end, or until so many have gathered."""

import socket
import threading
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from urllib.parse import urlsplit

END = b"0\r\n\r\n"


def _relay(client: socket.socket, url: str, every: int | None) -> None:
    place = urlsplit(url)
    with suppress(OSError), client, socket.create_connection((place.hostname, place.port)) as server:
        for one in (client, server):
            one.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        threading.Thread(target=_copy, args=(client, server), daemon=True).start()
        held, streams = b"", False
        while data := server.recv(1 << 16):
            held += data
            if held.startswith(b"HTTP/1.1"):
                streams = b"event-stream" in held.partition(b"\r\n\r\n")[0]
            enough = every is not None and held.count(b"\n\n") >= every
            if enough or held.endswith(END) or not streams:
                client.sendall(held)
                held = b""


def _copy(source: socket.socket, target: socket.socket) -> None:
    with suppress(OSError):
        while data := source.recv(1 << 16):
            target.sendall(data)
        target.shutdown(socket.SHUT_WR)


@contextmanager
def holding(url: str, every: int | None = None) -> Iterator[str]:
    """Yield the URL of a proxy that passes so many events on at once; None: all at the stream's end."""
    listener = socket.create_server(("127.0.0.1", 0))

    def accept() -> None:
        with suppress(OSError):
            while True:
                client, _ = listener.accept()
                threading.Thread(target=_relay, args=(client, url, every), daemon=True).start()

    threading.Thread(target=accept, daemon=True).start()
    try:
        yield f"http://127.0.0.1:{listener.getsockname()[1]}"
    finally:
        # Closing alone does not wake a thread that waits in accept.
        with suppress(OSError):
            listener.shutdown(socket.SHUT_RDWR)
        listener.close()
