"""A server that a test makes as choosy as it likes: a function of each request says what it answers."""

import json
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

from llmpilot.deploy.endpoint import ClientSettings, HttpEndpoint
from llmpilot.deploy.external import ExternalDeployment
from llmpilot.engine.openai import OpenAIEngine

MODELS = {"object": "list", "data": [{"id": "m", "owned_by": "somebody"}]}
Answer = tuple[int, Any] | tuple[int, Any, dict[str, str]] | None


@dataclass
class Asked:
    """One request as it came."""

    method: str
    path: str
    headers: dict[str, str]
    body: dict[str, Any] = field(default_factory=dict)

    @property
    def fields(self) -> set[str]:
        """The names of its fields, those of its options too."""
        return {*self.body, *self.body.get("stream_options", {})}


@dataclass
class Picky:
    """A running server, and what it was asked."""

    url: str
    asked: list[Asked] = field(default_factory=list)

    @property
    def posts(self) -> list[Asked]:
        return [one for one in self.asked if one.method == "POST"]


def refused(message: str, status: int = 400, **more: Any) -> Answer:
    """An error as OpenAI states it."""
    return status, {"error": {"message": message, "type": "invalid_request_error", **more}}


def stream(body: dict[str, Any], *, usage: bool = True, prompt_tokens: int = 4) -> Answer:
    """A sound answer to a body: as many tokens as asked for, in the shape of the API it was sent to."""
    chat = "messages" in body
    count = body.get("max_tokens", body.get("max_completion_tokens", 16))
    events: list[Any] = [
        {
            "id": "r",
            "choices": [{"index": 0, "delta": {"content": " a"}} if chat else {"index": 0, "text": " a"}],
        }
        for _ in range(count)
    ]
    events.append({"id": "r", "choices": [{"index": 0, "finish_reason": "length", "delta": {}, "text": ""}]})
    if usage and body.get("stream_options", {}).get("include_usage"):
        counts = {"prompt_tokens": prompt_tokens, "completion_tokens": count}
        events.append({"id": "r", "choices": [], "usage": counts})
    text = "".join(f"data: {json.dumps(event)}\n\n" for event in events) + "data: [DONE]\n\n"
    return 200, text.encode(), {"Content-Type": "text/event-stream"}


@contextmanager
def picky(answers: Callable[[Asked], Answer], models: Any = MODELS) -> Iterator[Picky]:
    """Yield a server that answers as `answers` says; where that is None: lists of models, and streams."""

    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def do_GET(self) -> None:
            self._handle()

        def do_POST(self) -> None:
            self._handle()

        def _handle(self) -> None:
            length = int(self.headers.get("Content-Length", 0))
            body = json.loads(self.rfile.read(length)) if length else {}
            headers = {name.lower(): value for name, value in self.headers.items()}
            asked = Asked(self.command, self.path, headers, body)
            server.asked.append(asked)
            status, content, *more = answers(asked) or self._usual(asked)
            content = content if isinstance(content, bytes) else json.dumps(content).encode()
            self.send_response(status)
            for name, value in (more[0] if more else {}).items():
                self.send_header(name, value)
            self.send_header("Content-Length", str(len(content)))
            self.end_headers()
            self.wfile.write(content)

        def _usual(self, asked: Asked) -> Any:
            if asked.path == "/v1/models":
                return 200, models
            if asked.path in ("/v1/completions", "/v1/chat/completions"):
                return stream(asked.body)
            return 404, {"detail": "Not Found"}

        def log_message(self, *_args: Any) -> None:
            pass

    class Server(ThreadingHTTPServer):
        def handle_error(self, *_: Any) -> None:
            pass

    http = Server(("127.0.0.1", 0), Handler)
    http.daemon_threads = True
    server = Picky(f"http://127.0.0.1:{http.server_port}")
    threading.Thread(target=http.serve_forever, args=(0.02,), daemon=True).start()
    try:
        yield server
    finally:
        http.shutdown()
        http.server_close()


def visited(url: str, engine: OpenAIEngine | None = None, **settings: Any) -> HttpEndpoint:
    """Return the endpoint that a first visit comes to."""
    client = ClientSettings(request_timeout_s=20, connect_timeout_s=2)
    deployment = ExternalDeployment(url=url, client=client, **settings)
    with deployment.start(engine or OpenAIEngine(), None, None, None) as found:
        return found
