"""A server that keeps every request it gets, and what it answered: token ids and texts of its own."""

import itertools
import json
import socketserver
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from typing import Any

WORDS = (" so", ' "yes"', "\n", " naïve", " 🙂", " \\n", " token_ids", " end.")
"""What it answers, in turn: texts that a history must repeat as they are."""


@dataclass
class Turn:
    """A request's body, what was answered to it, and when it came and was answered [ns]."""

    asked: dict[str, Any]
    ids: list[int] = field(default_factory=list)
    text: str = ""
    came_ns: int = 0
    ended_ns: int = 0
    failed: bool = False


def _never(_turn: Turn) -> bool:
    return False


@contextmanager
def talking(
    fails: Callable[[Turn], bool] = _never,
    *,
    ids: bool = True,
    stream: bool = True,
    tokens: Callable[[int], int] = lambda asked: asked,
    delay_s: float = 0.0,
) -> Iterator[tuple[str, list[Turn]]]:
    """Yield the server's URL and all that was said; requests of which `fails` is true are answered 500.

    Without `ids` it tells no token ids; without `stream` it answers in one piece. Of so many tokens as are
    asked for, it answers `tokens`.
    """
    said: list[Turn] = []
    number = itertools.count(5000)
    lock = threading.Lock()

    def answered(turn: Turn) -> bytes:
        asked = turn.asked
        chat = "messages" in asked
        count = tokens(asked["max_tokens"])
        events = []
        for at in range(count):
            one, word = next(number), WORDS[(len(said) + at) % len(WORDS)]
            turn.ids.append(one)
            turn.text += word
            choice: dict[str, Any] = {"index": 0, "finish_reason": "length" if at == count - 1 else None}
            choice |= {"delta": {"content": word}} if chat else {"text": word}
            if ids and asked.get("return_token_ids"):
                choice["token_ids"] = [one]
            events.append({"id": str(len(said)), "choices": [choice]})
        usage = {"choices": [], "usage": {"prompt_tokens": 1, "completion_tokens": count}}
        if stream:
            lines = b"".join(b"data: " + json.dumps(one).encode() + b"\n\n" for one in [*events, usage])
            body, kind = lines + b"data: [DONE]\n\n", b"text/event-stream"
            # In chunks that end anywhere: within events and characters.
            pieces = [body[at : at + 37] for at in range(0, len(body), 37)]
            framed = b"".join(b"%x\r\n%b\r\n" % (len(piece), piece) for piece in pieces) + b"0\r\n\r\n"
            return b"HTTP/1.1 200 OK\r\nContent-Type: %b\r\nTransfer-Encoding: chunked\r\n\r\n%b" % (
                kind,
                framed,
            )
        choice = {"index": 0, "finish_reason": "length", "message" if chat else "text": turn.text}
        if chat:
            choice["message"] = {"role": "assistant", "content": turn.text}
        body = json.dumps({"id": "1", "choices": [choice], "usage": usage["usage"]}, indent=1).encode()
        head = b"HTTP/1.1 200 OK\r\nContent-Type: application/json\r\nContent-Length: %d\r\n\r\n"
        return head % len(body) + body

    class Handler(socketserver.StreamRequestHandler):
        def handle(self) -> None:
            with suppress(OSError):
                while self.rfile.readline():
                    length = 0
                    while (line := self.rfile.readline().lower()).strip():
                        length = int(line.split(b":")[1]) if line.startswith(b"content-length:") else length
                    turn = Turn(json.loads(self.rfile.read(length)), came_ns=time.perf_counter_ns())
                    time.sleep(delay_s)
                    with lock:
                        said.append(turn)
                        turn.failed = fails(turn)
                        answer = (
                            b"HTTP/1.1 500 No\r\nContent-Length: 0\r\n\r\n" if turn.failed else answered(turn)
                        )
                    turn.ended_ns = time.perf_counter_ns()
                    self.request.sendall(answer)

    class Server(socketserver.ThreadingTCPServer):
        daemon_threads, request_queue_size = True, 128

        def handle_error(self, *_: Any) -> None:
            pass

    server = Server(("127.0.0.1", 0), Handler)
    threading.Thread(target=server.serve_forever, args=(0.02,), daemon=True).start()
    try:
        yield f"http://127.0.0.1:{server.server_address[1]}", said
    finally:
        server.shutdown()
        server.server_close()
