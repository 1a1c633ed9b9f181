"""A service that is already there: nothing is started or stopped, only looked at.

Asks which models it serves, and sends requests of two tokens to learn how it wants to be asked.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Annotated, Any, ClassVar, Literal

from pydantic import BeforeValidator, Field, field_validator

from llmpilot.config import Facts, Gpu, Model, VariableName
from llmpilot.console import note
from llmpilot.deploy import credentials
from llmpilot.deploy.endpoint import ClientSettings, HttpEndpoint
from llmpilot.deploy.exchange import Caller
from llmpilot.deploy.first_visit import FirstVisit, say_how
from llmpilot.deploy.id_count import misread_ids
from llmpilot.deploy.listing import Listing
from llmpilot.deploy.metrics_page import discover
from llmpilot.deploy.probe import Settled
from llmpilot.deploy.service_url import checked, taken_apart
from llmpilot.deploy.trouble import ServiceError
from llmpilot.deploy.word_count import count_words
from llmpilot.engine.openai import OpenAIEngine
from llmpilot.engine.words import WordCount
from llmpilot.openai_client.access import Access
from llmpilot.openai_client.proxies import proxy_for, read_proxy
from llmpilot.secrets import remember

__all__ = ["EMULATOR_OWNER", "ExternalDeployment", "ServiceError"]

EMULATOR_OWNER = "llm-pilot-emulator"
USUAL_VARIABLE = "OPENAI_API_KEY"
HeaderValue = Annotated[str, BeforeValidator(str)]


class ExternalDeployment(Facts):
    """An OpenAI-compatible server at `url`. `model` may be left out where it serves only one.

    The API key is read from the environment variable `api_key_env`; without one, none is sent. `headers` go
    with every request; the value `env:NAME` is read from that variable. `ca_file` has certificates to trust
    besides the system's. `proxy` is a proxy's URL, none, or auto: as the environment says.
    """

    name: ClassVar[str] = "external"
    measurement: ClassVar[Literal["measured", "simulated"]] = "measured"
    starts_services: ClassVar[bool] = False

    url: str
    model: str | None = None
    api_key_env: VariableName = USUAL_VARIABLE
    headers: dict[str, HeaderValue] = Field(default_factory=dict)
    verify_tls: bool = True
    ca_file: str | None = None
    proxy: str = "auto"
    http_version: Annotated[Literal["auto", "1.1", "2"], BeforeValidator(str)] = "auto"
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
        return f"the service at {taken_apart(self.url).root}"

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
            ConfigError: a file of certificates, or a proxy, cannot be used.
        """
        visit = self._visit()
        listing, api_paths = visit.models(self.model)
        served = visit.choose(listing, self.model)
        facts = listing.facts_of(served)
        owner = str(facts.get("owned_by", ""))
        settled = visit.settle(engine, api_paths, served, listing, owner)
        if settled.way.engine.takes_token_ids and (misread := misread_ids(visit.post, settled, served)):
            as_text = None
            if engine.prompt == "auto":
                as_text = _as_text(visit, engine, api_paths, served, listing)
            note(
                f"the server counts {misread}: "
                + ("prompts are sent as text" if as_text else "what it makes of them is not known"),
                style="yellow",
            )
            settled = as_text or settled
        say_how(settled, served, listing, engine)
        words = _count_words(visit, settled, served)
        way, caller = settled.way, visit.caller
        metrics = discover(caller)
        yield HttpEndpoint(
            url=caller.access.url,
            model=served,
            engine=way.engine,
            dialect=settled.dialect,
            headers=dict(caller.headers),
            verify_tls=self.verify_tls,
            vocabulary_size=engine.vocabulary_size or _smallest_vocabulary(model, facts),
            client=self.client,
            simulated=owner == EMULATOR_OWNER,
            metrics=metrics,
            ca_file=self.ca_file,
            proxy=caller.access.proxy,
            http2=caller.access.http2,
            api_path=way.api_path,
            posts_to_url=way.whole,
            query=caller.query,
            fields=settled.fields,
            not_taken=settled.not_taken,
            words=words,
        )

    def _visit(self) -> FirstVisit:
        """Return a visit that goes where this says, with the keys that it names."""
        place = taken_apart(self.url)
        remember(place.secrets)
        own = credentials.own_headers(self.headers)
        ours = {}
        if not (credentials.has_key(own) and self.api_key_env == USUAL_VARIABLE):
            ours = credentials.authorization(self.api_key_env, place.user)
        headers = credentials.together(own, ours)
        proxy = proxy_for(place.root, self.proxy)
        if proxy is not None:
            through = read_proxy(proxy)
            remember(through.secrets)
            note(f"requests go through the proxy {through.shown}: its time is part of every latency")
        caller = Caller(
            Access(place.root, self.verify_tls, self.ca_file, proxy, http2=self.http_version == "2"),
            headers,
            place.query,
            connect_timeout_s=self.client.connect_timeout_s,
            timeout_s=self.client.request_timeout_s,
        )
        words, cure = self._of_key(own, ours)
        return FirstVisit(place, caller, words, cure, turns_to_http2=self.http_version == "auto")

    def _of_key(self, own: dict[str, str], ours: dict[str, str]) -> tuple[str, str]:
        """Return what a server that refuses us refuses, and how to mend it."""
        cure = f"export {self.api_key_env}=..., or name another variable: deployment.api_key_env=KEY"
        if credentials.has_key(own):
            names = ", ".join(f"deployment.headers.{name}" for name in own)
            return f"refuses the key in {names}", f"correct it: {names}=env:MY_KEY"
        sent = ours.get("Authorization", "")
        if sent.startswith("Basic "):
            what = "refuses the user and password of deployment.url"
            return what, f"correct them; if it wants an API key: {cure}"
        if sent:
            return f"refuses the key in ${self.api_key_env}", cure
        other = "; a key in a header of its own: deployment.headers.api-key=env:MY_KEY"
        return f"wants an API key, and ${self.api_key_env} is not set", cure + other


def _as_text(
    visit: FirstVisit, engine: OpenAIEngine, api_paths: tuple[str, ...], model: str, listing: Listing
) -> Settled | None:
    """Return how the service is asked with prompts of text, where it counts their tokens; or None."""
    owner = str(listing.facts_of(model).get("owned_by", ""))
    try:
        settled = visit.settle(engine.model_copy(update={"prompt": "text"}), api_paths, model, listing, owner)
    except ServiceError:
        return None
    return settled if count_words(visit.post, settled, model).measured else None


def _count_words(visit: FirstVisit, settled: Settled, model: str) -> WordCount:
    """Return how the server counts prompts of words, where such are sent, and say so."""
    if settled.way.engine.takes_token_ids:
        return WordCount()
    words = count_words(visit.post, settled, model)
    if words.measured:
        note(
            f"the server counts {words.tokens_per_word:.2f} tokens for each word of a prompt and "
            f"{words.extra_tokens:.0f} besides: prompts have as many words as meet the workload's tokens"
        )
    else:
        note(
            "the server does not say how many tokens a prompt has: each word is taken for one", style="yellow"
        )
    return words


def _smallest_vocabulary(model: Model | None, facts: dict[str, Any]) -> int | None:
    """Return the fewest ids that the LLM, or the one that is really served (as llama.cpp says), can have."""
    meta = facts.get("meta")
    served = meta.get("n_vocab") if isinstance(meta, dict) else None
    sizes = [model.vocabulary_size if model else None, served]
    return min((size for size in sizes if isinstance(size, int) and size > 0), default=None)
