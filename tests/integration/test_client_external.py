"""`deployment=external` looks before it measures: what is wrong with a service, and how to mend it."""

import json
import pickle
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

import pytest

from llmpilot.config import build
from llmpilot.deploy.endpoint import HttpEndpoint
from llmpilot.deploy.external import EMULATOR_OWNER, ExternalDeployment, ServiceError
from llmpilot.emulator import Emulator
from llmpilot.engine.openai import OpenAIEngine
from llmpilot.engine.vllm import VllmEngine
from llmpilot.errors import ConfigError

MODELS = {"data": [{"id": "m", "owned_by": "vllm"}]}


@contextmanager
def service(
    models: Any = MODELS,
    *,
    completion: int = 200,
    refuses: tuple[str, ...] = (),
    key: str = "",
    stream: bytes = b"data: [DONE]\n\n",
    metrics: bytes | None = None,
) -> Iterator[str]:
    """Yield the URL of a server that answers like this; bodies with a field of `refuses` get a 400."""

    class Handler(BaseHTTPRequestHandler):
        def _answer(self, status: int, body: bytes) -> None:
            self.send_response(status)
            self.send_header("Content-Length", str(len(body)))
            self.end_headers()
            self.wfile.write(body)

        def _refused(self) -> bool:
            if key and self.headers.get("Authorization") != f"Bearer {key}":
                self._answer(401, b"{}")
                return True
            return False

        def do_GET(self) -> None:
            if not self._refused():
                body = models if isinstance(models, bytes) else json.dumps(models).encode()
                if self.path == "/metrics" and metrics is not None:
                    self._answer(200, metrics)
                else:
                    self._answer(200 if self.path == "/v1/models" else 404, body)

        def do_POST(self) -> None:
            body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
            if not self._refused():
                status = 400 if set(refuses) & body.keys() else completion
                self._answer(status, b'{"error": {"message": "no"}}' if status != 200 else stream)

        def log_message(self, *_args: Any) -> None:
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    threading.Thread(target=server.serve_forever, args=(0.02,), daemon=True).start()
    try:
        yield f"http://127.0.0.1:{server.server_port}"
    finally:
        server.shutdown()
        server.server_close()


def endpoint(url: str, engine: OpenAIEngine | None = None, **settings: Any) -> HttpEndpoint:
    with ExternalDeployment(url=url, **settings).start(engine or OpenAIEngine(), None, None, None) as found:
        return found


@pytest.mark.parametrize("suffix", ["", "/", "/v1", "/v1/"])
def test_takes_the_only_model(suffix: str) -> None:
    with service() as url:
        found = endpoint(url + suffix)
    assert (found.url, found.model, found.dialect, found.headers) == (url, "m", "vllm", {})


def test_asks_which_fields_the_server_takes() -> None:
    with service(refuses=("ignore_eos",)) as url:
        assert endpoint(url).dialect == "standard"
        assert endpoint(url, OpenAIEngine(dialect="vllm")).dialect == "standard", (
            "it only says where to begin"
        )
    with service({"data": [{"id": "m", "owned_by": "llamacpp"}]}) as url:
        assert endpoint(url).dialect == "llamacpp"


def test_chooses_among_models() -> None:
    models = {"data": [{"id": "llama"}, {"id": "starcoder"}]}
    with service(models) as url:
        assert endpoint(url, model="starcoder").model == "starcoder"
        with pytest.raises(ServiceError, match="several models: llama, starcoder"):
            endpoint(url)


def test_key_comes_from_the_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    with service(key="s3cret-key") as url:
        monkeypatch.delenv("OPENAI_API_KEY", raising=False)
        with pytest.raises(ServiceError, match="OPENAI_API_KEY is not set"):
            endpoint(url)
        monkeypatch.setenv("MY_KEY", "wrong-key")
        with pytest.raises(ServiceError, match="refuses the key in \\$MY_KEY"):
            endpoint(url, api_key_env="MY_KEY")
        monkeypatch.setenv("MY_KEY", "s3cret-key")
        found = endpoint(url, api_key_env="MY_KEY")
    assert found.headers == {"Authorization": "Bearer s3cret-key"}
    assert "s3cret" not in repr(found)


def test_says_what_is_not_such_a_server() -> None:
    with pytest.raises(ServiceError, match="cannot be reached"):
        endpoint("http://127.0.0.1:9")
    for models in (b"<html>", {"data": []}, {"models": 3}, b"[]"):
        with service(models) as url, pytest.raises(ServiceError, match="not an OpenAI-compatible server"):
            endpoint(url)
    with service(completion=404) as url:
        with pytest.raises(ServiceError, match=r"neither /v1/completions \(404\) nor /v1/chat/completions"):
            endpoint(url)
        with pytest.raises(ServiceError, match=r"engine\.api=chat"):
            endpoint(url, OpenAIEngine(api="completions"))
    with service(completion=422) as url, pytest.raises(ServiceError, match=r"engine\.prompt=text"):
        endpoint(url, OpenAIEngine(prompt="token_ids"))
    with service(completion=500) as url, pytest.raises(ServiceError, match="with 500"):
        endpoint(url)


TOKEN = b'data: {"id": "r", "choices": [{"index": 0, "text": " a"}]}\n\n'


@pytest.mark.parametrize(
    ("stream", "said"),
    [
        (TOKEN + b'data: {"error": {"message": "context too small", "code": 500}}\n\n', "context too small"),
        (b'data: {"error": "CUDA out of memory"}\n\ndata: [DONE]\n\n', "CUDA out of memory"),
        (TOKEN + b'error: {"message": "slot is gone"}\n\n', "slot is gone"),
        (b"<html>log in first</html>", "log in first"),
        (b"", r"\(nothing\)"),
        (b'data: {"status": "loading"}\n\n', "with (an event that cannot be read|no output): "),
        (TOKEN + b'data: {"choices": [\n\n', "an event that cannot be read"),
    ],
)
def test_a_success_that_states_an_error_in_its_stream_is_none(stream: bytes, said: str) -> None:
    with service(stream=stream) as url, pytest.raises(ServiceError, match=said) as refused:
        endpoint(url)
    assert "200" not in str(refused.value)


@pytest.mark.parametrize(
    "stream",
    [TOKEN * 2 + b"data: [DONE]\n\n", b'data: {"choices":\r\ndata: []}\r\n\r\n', b": hi\n\n" + TOKEN * 2],
)
def test_a_sound_stream_is_taken(stream: bytes) -> None:
    with service(stream=stream) as url:
        assert endpoint(url).dialect == "vllm"


def test_known_metrics_are_found() -> None:
    with service(metrics=b'vllm:num_requests_running{engine="0"} 0.0\n') as url:
        found = endpoint(url)
        assert found.metrics == VllmEngine.metrics
        assert pickle.loads(pickle.dumps(found)).metrics is None, "workers do not look"
    for shown in (None, b"process_cpu_seconds_total 3\n", b"\xff\xfe"):
        with service(metrics=shown) as url:
            assert endpoint(url).metrics is None


@pytest.mark.parametrize("url", ["???", "127.0.0.1:8000", "ftp://x", "http://"])
def test_url_must_be_one(url: str) -> None:
    target = "llmpilot.deploy.external.ExternalDeployment"
    with pytest.raises(ConfigError, match=r"deployment\.url"):
        build({"_target_": target, "url": url}, "deployment")  # type: ignore[arg-type]


def test_our_own_emulator_is_recognised() -> None:
    assert Emulator.product == EMULATOR_OWNER
    with service({"data": [{"id": "m", "owned_by": EMULATOR_OWNER}]}) as url:
        assert endpoint(url).simulated
