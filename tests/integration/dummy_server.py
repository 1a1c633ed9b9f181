"""A server in the place of an inference engine: `dummy_server.py PORT MODE...`, standard library only.

Also the engine that describes it, for tests of what starts, watches and stops servers.
"""

import json
import os
import re
import signal
import subprocess
import sys
import time
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

CHUNK = {"id": "r", "choices": [{"index": 0, "text": " a", "finish_reason": None}]}
LOST_PORT = "couldn't bind HTTP server socket, hostname: 127.0.0.1"


class Handler(BaseHTTPRequestHandler):
    """Health, one model, and as many tokens as were asked for."""

    def do_GET(self) -> None:
        if self.path == "/die":
            print("CUDA out of memory" if "dies_of_memory" in sys.argv else "it hurts", flush=True)
            os._exit(3)
        ready = "loading" not in sys.argv
        self.send_response(200 if ready else 503)
        self.end_headers()
        self.wfile.write(json.dumps({"data": [{"id": "dummy", "owned_by": "llamacpp"}]}).encode())

    def do_POST(self) -> None:
        asked = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        body = [f"data: {json.dumps(CHUNK)}\n\n"] * asked["max_tokens"] + ["data: [DONE]\n\n"]
        self.send_response(200)
        self.send_header("Content-Type", "text/event-stream")
        self.end_headers()
        if "fragile" in sys.argv:
            print("RuntimeError: that was too much", flush=True)
            os._exit(1)
        self.wfile.write("".join(body).encode())

    def log_message(self, *_args: Any) -> None:
        pass


def main(port: int, *modes: str) -> None:
    """Do as the modes say, then serve."""
    print(f"dummy server, pid {os.getpid()}", flush=True)
    if "stubborn" in modes:
        signal.signal(signal.SIGTERM, signal.SIG_IGN)
    if "child" in modes:
        child = subprocess.Popen([sys.executable, "-I", "-S", "-c", "import time; time.sleep(600)"])
        print(f"child, pid {child.pid}", flush=True)
    if "tells" in modes:
        print("my token is", os.environ["DUMMY_TOKEN"], flush=True)
    for mode in modes:
        if mode.startswith("says:"):
            print(mode.removeprefix("says:"), file=sys.stderr, flush=True)
            sys.exit(1)
    if "killed" in modes:
        os.kill(os.getpid(), signal.SIGKILL)
    if "mute" in modes:
        time.sleep(600)
    ThreadingHTTPServer(("127.0.0.1", port), Handler).serve_forever()


if __name__ == "__main__":
    main(int(sys.argv[1]), *sys.argv[2:])
else:
    from llmpilot.config import Model
    from llmpilot.engine.openai import OpenAIEngine
    from llmpilot.engine.server import Assignment, Command, ServerMetrics

    class DummyEngine:
        """The engine of this server; `modes` of one start each, the last for all that follow."""

        name = "dummy"
        health_path = "/health"
        metrics = ServerMetrics(path="/metrics", running="running", waiting="waiting")
        out_of_memory = re.compile("CUDA out of memory")
        wire = OpenAIEngine(dialect="llamacpp")

        def __init__(self, *modes: tuple[str, ...]) -> None:
            self.modes, self.ports = list(modes) or [()], list[int]()

        def served_model(self, model: Model) -> str:
            return "dummy"

        def command(self, assignment: Assignment) -> Command:
            self.ports.append(assignment.port)
            modes = self.modes.pop(0) if len(self.modes) > 1 else self.modes[0]
            argv = (sys.executable, "-I", "-S", __file__, str(assignment.port), *modes)
            return Command(argv, {"DUMMY_FLAG": "1", "DUMMY_UNSET": None})
