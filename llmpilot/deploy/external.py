"""A service that is already there: nothing is started or stopped, only looked at.

Asks which models it serves, and sends one request of two tokens to learn which of our fields it takes.
"""

import json
import os
from base64 import b64encode
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, ClassVar, Literal
from urllib.parse import unquote, urlsplit

import httpx
from pydantic import field_validator

from llmpilot.config import Facts, Gpu, Model, VariableName
from llmpilot.deploy import trouble
from llmpilot.deploy.endpoint import ClientSettings, HttpEndpoint
from llmpilot.deploy.exchange import Answer, Caller, TooLongError
from llmpilot.deploy.first_answer import PROBE, PROBE_IDS, fault_in_stream
from llmpilot.deploy.metrics_page import discover
from llmpilot.deploy.served_text import shown
from llmpilot.deploy.service_url import checked
from llmpilot.engine.openai import Dialect, OpenAIEngine
from llmpilot.errors import PilotError, did_you_mean

EMULATOR_OWNER = "llm-pilot-emulator"


class ServiceError(PilotError):
    """A service cannot be reached, or is not what it should be."""


class ExternalDeployment(Facts):
    """An OpenAI-compatible server at `url`. `model` may be left out where it serves only one.

    The API key is read from the environment variable `api_key_env`; without one, none is sent.
    """

    name: ClassVar[str] = "external"
    measurement: ClassVar[Literal["measured", "simulated"]] = "measured"
    starts_services: ClassVar[bool] = False

    url: str
    model: str | None = None
    api_key_env: VariableName = "OPENAI_API_KEY"
    verify_tls: bool = True
    client: ClientSettings = ClientSettings()

    @field_validator("url")
    @classmethod
    def _http(cls, url: str) -> str:
        return checked(url)

    @property
    def service_name(self) -> str | None:
        """What the server calls its model, where that was given."""
        return self.model

    def memory(self, engine: OpenAIEngine, model: Model, gpu: Gpu) -> None:
        """Return None: where the memory of a service goes that we did not start is not known."""
        return

    def facts(self, engine: OpenAIEngine, model: Model | None, gpu: Gpu | None) -> dict[str, Any]:
        """Return nothing: no more is known of it than was said."""
        return {}

    def headline(self, engine: OpenAIEngine, model: Model | None, gpu: Gpu | None) -> str:
        """Return what is measured."""
        return f"the service at {self.url}"

    @contextmanager
    def start(
        self,
        engine: OpenAIEngine,
        model: Model | None,
        gpu: Gpu | None,
        max_batch_weight: int | None = None,
        *,
        heaviest_request_tokens: int = 0,
    ) -> Iterator[HttpEndpoint]:
        """Yield the endpoint, once the service has shown that it answers.

        Raises:
            ServiceError: it does not: unreachable, unauthorized, no such model, or not such a server.
        """
        headers = self._authorization()
        caller = Caller(
            self.url,
            headers,
            self.verify_tls,
            connect_timeout_s=self.client.connect_timeout_s,
            timeout_s=self.client.request_timeout_s,
        )
        served, facts = self._find_model(caller)
        owner = str(facts.get("owned_by", ""))
        engine = engine.ways()[0]
        dialect = self._find_dialect(caller, engine, served, owner)
        metrics = discover(caller)
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

    def _authorization(self) -> dict[str, str]:
        """Return the header that says who we are: the API key, else the user and password of the URL.

        Raises:
            ServiceError: the key has characters that no key has.
        """
        if key := os.environ.get(self.api_key_env, "").strip():  # of a mounted secret, a newline is no part
            if not (key.isascii() and key.isprintable()):
                raise ServiceError(
                    f"the API key in ${self.api_key_env} (not shown) is not all printable ASCII",
                    cure=f"export {self.api_key_env}=..., the key alone, on one line",
                )
            return {"Authorization": f"Bearer {key}"}
        parts = urlsplit(self.url)
        if user := parts.username:
            pair = f"{unquote(user)}:{unquote(parts.password or '')}"
            return {"Authorization": f"Basic {b64encode(pair.encode()).decode()}"}
        return {}

    def _find_model(self, caller: Caller) -> tuple[str, dict[str, Any]]:
        """Return the model to ask for, and what the server says of it."""
        answer = self._ask(caller, "GET", "/v1/models")
        try:
            models = {str(entry["id"]): dict(entry) for entry in json.loads(answer.text)["data"]}
        except (ValueError, KeyError, TypeError, AttributeError, RecursionError):
            models = {}
        if answer.status != 200 or not models:
            raise ServiceError(
                f"{self.url} is not an OpenAI-compatible server, or serves no model yet: "
                f"GET /v1/models answered {answer.status} {shown(answer.text)}",
                cure="check deployment.url (without /v1/...), and that the server has finished loading",
            )
        if self.model is None and len(models) > 1:
            raise ServiceError(
                f"{self.url} serves several models: {shown(', '.join(models))}",
                cure="choose one with deployment.model=...",
            )
        chosen = self.model or next(iter(models))
        if chosen not in models:
            hint = did_you_mean(chosen, models)
            raise ServiceError(
                f"{self.url} does not serve this model",
                given=f"deployment.model={chosen}",
                cure=f"{hint}it serves {shown(', '.join(models))}",
            )
        return chosen, models[chosen]

    def _find_dialect(self, caller: Caller, engine: OpenAIEngine, model: str, owner: str) -> Dialect:
        """Return the first dialect in which the server answers a request of two tokens.

        An answer that begins well and then states an error in its stream is a refusal like any other.
        """
        fault = ""
        for dialect in engine.dialects(owner):
            prompt = PROBE_IDS if engine.takes_token_ids else b'"the of and to"'
            body = engine.body(PROBE, [prompt], model, dialect)
            answer = self._ask(
                caller,
                "POST",
                f"/v1{engine.path}",
                content=body,
                headers={"Content-Type": "application/json"},
            )
            if answer.status == 200:
                fault = fault_in_stream(answer.text)
                if not fault:
                    return dialect
            elif answer.status not in (400, 422):
                break
        status = answer.status
        if status == 200:
            raise ServiceError(
                f"{self.url} serves {shown(model)}, but answered a request of two tokens with {fault}",
                cure="see the server's log; it may not have the memory or the context for its own settings",
            )
        if status == 404:
            other = "chat" if engine.api == "completions" else "completions"
            raise ServiceError(
                f"{self.url} has no /v1{engine.path}", cure=f"try the other API: engine.api={other}"
            )
        cure = trouble.cure_of(status)
        if status in (400, 422) and engine.takes_token_ids:
            cure = "if it refuses token ids as a prompt, send text: engine.prompt=text"
        raise ServiceError(
            f"{self.url} serves {shown(model)}, but answered a request of two tokens with {status}: "
            f"{shown(answer.text)}",
            cure=cure,
        )

    def _ask(
        self,
        caller: Caller,
        method: str,
        path: str,
        content: bytes | None = None,
        headers: dict[str, str] | None = None,
    ) -> Answer:
        """Return an answer that is neither a refusal of us nor sends us elsewhere."""
        try:
            answer = caller.ask(method, path, content, headers)
        except (httpx.HTTPError, httpx.InvalidURL, TimeoutError, TooLongError, UnicodeError) as error:
            wrong, cure = trouble.of_no_answer(error, self.url, f"{method} {path}", caller.timeout_s)
            raise ServiceError(wrong, cure=cure) from None
        if answer.status in (401, 403):
            raise self._refused(answer.status, caller.headers.get("Authorization", ""))
        found = trouble.of_redirect(answer, self.url, path) or trouble.of_limit(answer, self.url, path)
        if found is not None:
            raise ServiceError(found[0], cure=found[1])
        return answer

    def _refused(self, status: int, sent: str) -> ServiceError:
        cure = f"export {self.api_key_env}=..., or name another variable: deployment.api_key_env=KEY"
        if sent.startswith("Basic "):
            what = "refuses the user and password of deployment.url"
            cure = f"correct them; if it wants an API key: {cure}"
        elif sent:
            what = f"refuses the key in ${self.api_key_env}"
        else:
            what = f"wants an API key, and ${self.api_key_env} is not set"
        return ServiceError(f"{self.url} {what} ({status})", cure=cure)


def _smallest_vocabulary(model: Model | None, facts: dict[str, Any]) -> int | None:
    """Return the fewest ids that the LLM, or the one that is really served (as llama.cpp says), can have."""
    meta = facts.get("meta")
    served = meta.get("n_vocab") if isinstance(meta, dict) else None
    sizes = [model.vocabulary_size if model else None, served]
    return min((size for size in sizes if isinstance(size, int) and size > 0), default=None)
