"""A service that is already there: nothing is started or stopped, only looked at.

Asks which models it serves, and sends one request of two tokens to learn which of our fields it takes.
"""

import json
import os
from base64 import b64encode
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, ClassVar
from urllib.parse import unquote, urlsplit

import httpx
from pydantic import field_validator

from llmpilot.config import Facts, Gpu, Model, VariableName
from llmpilot.deploy.endpoint import ClientSettings, HttpEndpoint
from llmpilot.deploy.metrics_page import discover
from llmpilot.engine.openai import Asked, Dialect, OpenAIEngine, StreamError, Tokens
from llmpilot.errors import PilotError, did_you_mean
from llmpilot.secrets import redact

PROBE = Asked(4, 2, 1, True, 1.0, 0, 1.0)
PROBE_IDS = b"[100,101,102,103]"  # which even a tiny vocabulary has
EMULATOR_OWNER = "llm-pilot-emulator"


class ServiceError(PilotError):
    """A service cannot be reached, or is not what it should be."""


class ExternalDeployment(Facts):
    """An OpenAI-compatible server at `url`. `model` may be left out where it serves only one.

    The API key is read from the environment variable `api_key_env`; without one, none is sent.
    """

    name: ClassVar[str] = "external"

    url: str
    model: str | None = None
    api_key_env: VariableName = "OPENAI_API_KEY"
    verify_tls: bool = True
    client: ClientSettings = ClientSettings()

    @field_validator("url")
    @classmethod
    def _http(cls, url: str) -> str:
        parts = urlsplit(url)
        if parts.scheme not in ("http", "https") or not parts.hostname:
            raise ValueError(
                f"deployment.url={url} is no URL of a server: give one such as http://127.0.0.1:8000"
            )
        return url.rstrip("/").removesuffix("/v1").rstrip("/")

    @contextmanager
    def start(
        self, engine: OpenAIEngine, model: Model | None, gpu: Gpu | None, max_batch_weight: int | None
    ) -> Iterator[HttpEndpoint]:
        """Yield the endpoint, once the service has shown that it answers.

        Raises:
            ServiceError: it does not: unreachable, unauthorized, no such model, or not such a server.
        """
        headers = {}
        if user := urlsplit(self.url).username:
            pair = f"{unquote(user)}:{unquote(urlsplit(self.url).password or '')}"
            headers["Authorization"] = f"Basic {b64encode(pair.encode()).decode()}"
        if key := os.environ.get(self.api_key_env):
            headers["Authorization"] = f"Bearer {key}"
        with httpx.Client(
            base_url=self.url,
            headers=headers,
            verify=self.verify_tls,
            timeout=httpx.Timeout(self.client.request_timeout_s, connect=self.client.connect_timeout_s),
            trust_env=False,
        ) as http:
            served, facts = self._find_model(http)
            owner = str(facts.get("owned_by", ""))
            dialect = self._find_dialect(http, engine, served, owner)
            metrics = discover(http)
        yield HttpEndpoint(
            url=self.url,
            model=served,
            engine=engine,
            dialect=dialect,
            headers=headers,
            verify_tls=self.verify_tls,
            vocabulary_size=engine.vocabulary_size or _smallest_vocabulary(model, facts),
            client=self.client,
            simulated=owner == EMULATOR_OWNER,
            metrics=metrics,
        )

    def _find_model(self, http: httpx.Client) -> tuple[str, dict[str, Any]]:
        """Return the model to ask for, and what the server says of it."""
        answer = self._ask(http, "GET", "/v1/models")
        try:
            models = {str(entry["id"]): dict(entry) for entry in answer.json()["data"]}
        except (ValueError, KeyError, TypeError, AttributeError):
            models = {}
        if answer.status_code != 200 or not models:
            raise ServiceError(
                f"{self.url} is not an OpenAI-compatible server, or serves no model yet: "
                f"GET /v1/models answered {answer.status_code} {_excerpt(answer)}",
                cure="check deployment.url (without /v1/...), and that the server has finished loading",
            )
        if self.model is None and len(models) > 1:
            raise ServiceError(
                f"{self.url} serves several models: {', '.join(models)}",
                cure="choose one with deployment.model=...",
            )
        chosen = self.model or next(iter(models))
        if chosen not in models:
            hint = did_you_mean(chosen, models)
            raise ServiceError(
                f"{self.url} does not serve this model",
                given=f"deployment.model={chosen}",
                cure=f"{hint}it serves {', '.join(models)}",
            )
        return chosen, models[chosen]

    def _find_dialect(self, http: httpx.Client, engine: OpenAIEngine, model: str, owner: str) -> Dialect:
        """Return the first dialect in which the server answers a request of two tokens.

        An answer that begins well and then states an error in its stream is a refusal like any other.
        """
        fault = ""
        for dialect in engine.dialects(owner):
            prompt = PROBE_IDS if engine.takes_token_ids else b'"the of and to"'
            body = engine.body(PROBE, [prompt], model, dialect)
            answer = self._ask(
                http, "POST", engine.path, content=body, headers={"Content-Type": "application/json"}
            )
            if answer.status_code == 200:
                fault = _fault_in_stream(answer.text)
                if not fault:
                    return dialect
            elif answer.status_code not in (400, 422):
                break
        status = answer.status_code
        if status == 200:
            raise ServiceError(
                f"{self.url} serves {model}, but answered a request of two tokens with {fault}",
                cure="see the server's log; it may not have the memory or the context for its own settings",
            )
        if status == 404:
            other = "chat" if engine.api == "completions" else "completions"
            raise ServiceError(
                f"{self.url} has no {engine.path}", cure=f"try the other API: engine.api={other}"
            )
        cure = "see the server's log; another service may be at this URL"
        if status in (400, 422) and engine.takes_token_ids:
            cure = "if it refuses token ids as a prompt, send text: engine.prompt=text"
        raise ServiceError(
            f"{self.url} serves {model}, but answered a request of two tokens with {status}: "
            f"{_excerpt(answer)}",
            cure=cure,
        )

    def _ask(self, http: httpx.Client, method: str, path: str, **more: Any) -> httpx.Response:
        try:
            answer = http.request(method, path, **more)
        except httpx.TimeoutException:
            raise ServiceError(
                f"{self.url} does not answer: {method} {path} timed out",
                cure="see whether the server is overloaded",
            ) from None
        except httpx.HTTPError as error:
            raise ServiceError(
                f"{self.url} cannot be reached: {redact(str(error)) or type(error).__name__}",
                cure="start the server, or correct deployment.url",
            ) from None
        if answer.status_code in (401, 403):
            sent = "Authorization" in http.headers
            what = (
                f"refuses the key in ${self.api_key_env}"
                if sent
                else f"wants an API key, and ${self.api_key_env} is not set"
            )
            raise ServiceError(
                f"{self.url} {what} ({answer.status_code})",
                cure=f"export {self.api_key_env}=..., or name another variable: deployment.api_key_env=KEY",
            )
        return answer


def _smallest_vocabulary(model: Model | None, facts: dict[str, Any]) -> int | None:
    """Return the fewest ids that the LLM, or the one that is really served (as llama.cpp says), can have."""
    meta = facts.get("meta")
    served = meta.get("n_vocab") if isinstance(meta, dict) else None
    sizes = [model.vocabulary_size if model else None, served]
    return min((size for size in sizes if isinstance(size, int) and size > 0), default=None)


def _fault_in_stream(text: str) -> str:
    """Return what is wrong with the body of a successful answer, or ""; an answer may be of no tokens."""
    events = [line.removeprefix("data:").strip() for line in text.splitlines() if line.startswith("data:")]
    stated = [line for line in text.splitlines() if line.startswith("error:")]  # llama.cpp before 2025
    if stated or not events:
        kind = "an error in its stream" if stated else "what is no stream of events"
        return f"{kind}: {_short(stated[0] if stated else text) or '(nothing)'}"
    tokens, pending = Tokens(PROBE.sequences), ""
    for event in events:
        if event == "[DONE]":
            break
        try:
            payload = json.loads(pending + event)
        except ValueError:
            pending += event + "\n"  # data may go on over several lines
            continue
        pending = ""
        try:
            tokens.feed(payload)
        except StreamError as error:
            return f"an error in its stream: {_short(str(error))}"
        except (ValueError, TypeError, AttributeError):
            return f"an event that is none of this API: {_short(event)}"
    return f"an event that is no JSON: {_short(pending)}" if pending else ""


def _short(text: str) -> str:
    return redact(" ".join(text[:300].split()))


def _excerpt(answer: httpx.Response) -> str:
    return _short(answer.text)
