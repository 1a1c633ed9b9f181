"""A first visit to a service that is there: which models it lists, and how it wants to be asked.

What goes wrong is said here, with what mends it; `probe` and `refusal` find out what that is.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field

from llmpilot.console import note
from llmpilot.deploy import trouble
from llmpilot.deploy.exchange import Answer, Caller, NoAnswerError, insists_on_http2
from llmpilot.deploy.listing import Listing, read_listing
from llmpilot.deploy.probe import GATEWAY, STATED, NoWayError, Probe, Refused, Settled, Way
from llmpilot.deploy.served_text import shown
from llmpilot.deploy.service_url import ServiceUrl
from llmpilot.deploy.trouble import ServiceError
from llmpilot.engine.openai import OpenAIEngine
from llmpilot.openai_client.connecting import FAILURES
from llmpilot.openai_client.pages import is_page

ADVICE_TIMEOUT_S = 30.0
"""How long a list of models is waited for that need not be there."""


@dataclass
class FirstVisit:
    """One visit. `key_words` says which key was sent, and `key_cure` what to type for another.

    `turns_to_http2`: HTTP/2 is spoken with a server that insists on it.
    """

    place: ServiceUrl
    caller: Caller
    key_words: str
    key_cure: str
    turns_to_http2: bool = True
    _understood: bool = field(default=False, init=False)
    _broken: ServiceError | None = field(default=None, init=False)

    @property
    def url(self) -> str:
        """What is said of where the service is."""
        return self.place.root

    def models(self, given: str | None) -> tuple[Listing, tuple[str, ...]]:
        """Return what the service lists, and below which paths its API may begin.

        Raises:
            ServiceError: there is no connection; or there is no list, and no model was `given`.
        """
        said = ""
        for api_path in self.place.api_paths:
            path = f"{api_path}/models"
            try:
                answer = self._ask("GET", path, timeout_s=ADVICE_TIMEOUT_S if given else None)
            except _NotWholeError as error:
                if given is None:
                    raise
                return Listing({}, error.wrong), self.place.api_paths
            found = read_listing(answer.text) if answer.status == 200 else {}
            if found:
                return Listing(found), (api_path,)
            said = said or f"GET {path} answered {answer.status} {shown(answer.text)}".strip()
            if given is None and answer.status != 404:
                self._raise_refusal(answer, path)
                if answer.status in GATEWAY:
                    raise ServiceError(
                        f"{self.url} is not ready: {said}", cure=trouble.cure_of(answer.status)
                    )
            if answer.status != 404 and not is_page(answer.text):
                break
        return Listing({}, said), self.place.api_paths

    def choose(self, listing: Listing, given: str | None) -> str:
        """Return the model to ask for: the given one, else the only one there is.

        Raises:
            ServiceError: there are none, or several.
        """
        if given is not None:
            return given
        if self.place.deployment is not None:
            return self.place.deployment
        if not listing.models:
            raise ServiceError(
                f"{self.url} is not an OpenAI-compatible server, or lists no model: {listing.said}",
                cure="if it is one, name the model: deployment.model=NAME; or correct deployment.url, or "
                "wait until the server has finished loading",
            )
        if len(listing.names) != 1:
            raise ServiceError(
                f"{self.url} serves several models: {listing.shown}",
                cure="choose one with deployment.model=...",
            )
        return listing.names[0]

    def settle(
        self, engine: OpenAIEngine, api_paths: tuple[str, ...], model: str, listing: Listing, owner: str
    ) -> Settled:
        """Return how the service is to be asked.

        Raises:
            ServiceError: it answers no request, with the most telling of its refusals.
        """
        ways = [Way(path, way) for path in api_paths for way in engine.ways(self.place.api)]
        match self.place.may_be_whole:
            case "first":
                ways = [*_whole_ways(engine), *ways]
            case "last":
                ways += _whole_ways(engine)
        probe = Probe(self.post, ways, model, owner, self.caller.timeout_s)
        try:
            return probe.settle()
        except NoWayError as error:
            raise self._no_way(error, engine, model, listing) from None

    def post(self, path: str, body: bytes, timeout_s: float | None = None) -> Answer:
        """Return the answer to a request.

        Raises:
            ServiceError: there is none, it sends elsewhere, or the service takes no more requests.
        """
        try:
            answer = self._ask("POST", path, body, {"Content-Type": "application/json"}, timeout_s=timeout_s)
        except _NotWholeError as error:
            # So a server ends that stumbles over a request, which another one may not do.
            if error.so_far is None or error.so_far.status:
                raise
            self._broken = error
            return error.so_far
        self._raise_elsewhere(answer, path)
        return answer

    def _ask(
        self,
        method: str,
        path: str,
        content: bytes | None = None,
        headers: Mapping[str, str] | None = None,
        *,
        timeout_s: float | None = None,
    ) -> Answer:
        timeout_s = min(timeout_s or self.caller.timeout_s, self.caller.timeout_s)
        try:
            answer = self._caller_ask(method, path, content, headers, timeout_s)
        except NoAnswerError as error:
            first = not self._understood
            waited_s = self.caller.timeout_s if method == "POST" else timeout_s
            wrong, cure = trouble.of_no_answer(
                error, self.url, f"{method} {path}".rstrip(), waited_s, first=first
            )
            if error.kind in FAILURES:
                raise ServiceError(wrong, cure=cure) from None
            reset = error.kind == "reset_before_response" and error.so_far is not None
            raise _NotWholeError(
                wrong, cure, Answer(error.so_far) if reset and error.so_far else None
            ) from None
        self._understood = True
        return answer

    def _caller_ask(
        self,
        method: str,
        path: str,
        content: bytes | None,
        headers: Mapping[str, str] | None,
        timeout_s: float,
    ) -> Answer:
        """Return the answer; of a server that insists on HTTP/2, over that, and from then on."""
        failed: NoAnswerError | None = None
        try:
            answer = self.caller.ask(method, path, content, headers, timeout_s=timeout_s)
        except NoAnswerError as error:
            failed = error
        may_turn = self.turns_to_http2 and not (self.caller.access.http2 or self._understood)
        if may_turn and insists_on_http2(failed or answer.exchange):
            self.caller = self.caller.over_http2()
            note("the server insists on HTTP/2")
            return self.caller.ask(method, path, content, headers, timeout_s=timeout_s)
        if failed is not None:
            raise failed
        return answer

    def _raise_refusal(self, answer: Answer, path: str) -> None:
        if answer.status in (401, 403):
            raise self._refused_key(answer)
        self._raise_elsewhere(answer, path)

    def _raise_elsewhere(self, answer: Answer, path: str) -> None:
        api_path = self.place.api_paths[0]
        keep = path if self.place.api is not None else api_path if api_path != "/v1" else ""
        found = trouble.of_redirect(answer, self.url, path, keep) or trouble.of_limit(answer, self.url, path)
        if found is not None:
            raise ServiceError(found[0], cure=found[1])

    def _refused_key(self, answer: Answer) -> ServiceError:
        said = shown(answer.text)
        return ServiceError(
            f"{self.url} {self.key_words} ({answer.status}){f': {said}' if said else ''}", cure=self.key_cure
        )

    def _no_way(self, error: NoWayError, engine: OpenAIEngine, model: str, listing: Listing) -> ServiceError:
        """Return what is to be said of a service that takes no request, and what mends it."""
        told = error.telling
        if not told.answer.status and self._broken is not None:
            return self._broken
        answer, said = told.answer, shown(told.said) or "(no reason given)"
        asked = f"{self.url} answered a request of two tokens for {shown(model)} with"
        match told.refusal.about:
            case "key":
                return self._refused_key(answer)
            case "tls":
                rest = self.url.partition("://")[2]
                return ServiceError(f"{self.url} wants TLS: {said}", cure=f"deployment.url=https://{rest}")
            case "model":
                return ServiceError(
                    f"{self.url} does not serve this model: {said}",
                    given=f"deployment.model={model}",
                    cure=listing.hint(model)
                    or "give the name by which the server calls it: deployment.model=NAME",
                )
            case "context":
                return ServiceError(
                    f"{asked} {answer.status}: {said}",
                    cure="its context has no room for a request: start the server with a longer one",
                )
            case "loading":
                return ServiceError(f"{asked} {answer.status}: {said}", cure=trouble.cure_of(503))
            case "api":
                return self._no_api(error.refused, engine)
        hint = listing.hint(model) if model not in listing.models else ""
        if answer.status == 200:
            return ServiceError(f"{asked} {said}", cure=hint or _cure_of_answer(told))
        cure = trouble.cure_of(answer.status)
        if answer.status in (400, 422) and not is_page(answer.text):
            cure = "see what its message names"
            if engine.prompt == "token_ids" and told.way.engine.takes_token_ids:
                cure = "if it refuses token ids as a prompt, send text: engine.prompt=text"
        return ServiceError(f"{asked} {answer.status}: {said}", cure=f"{cure}; {hint}" if hint else cure)

    def _no_api(self, refused: list[Refused], engine: OpenAIEngine) -> ServiceError:
        tried = dict.fromkeys((one.way.words, one.answer.status) for one in refused)
        paths = " nor ".join(
            f"{path} ({'a web page' if status == 200 else status})" for path, status in tried
        )
        said = next((shown(one.answer.text) for one in refused if one.answer.text.strip()), "")
        cure = trouble.PASTE
        if engine.api != "auto":
            other = "chat" if engine.api == "completions" else "completions"
            cure = f"try the other API: engine.api={other}, or leave engine.api out; or {cure}"
        if any(one.way.whole for one in refused):
            answered = ", ".join(f"{path} answered {status}" for path, status in tried)
            return ServiceError(
                f"{self.url} takes no requests: {answered}", cure=f"correct deployment.url: {cure}"
            )
        has = "has neither" if len(tried) > 1 else "has no"
        return ServiceError(f"{self.url} {has} {paths}{f': {said}' if said else ''}", cure=cure)


class _NotWholeError(ServiceError):
    """There was a connection, and no whole answer on it; `so_far` is set where none of it had come."""

    def __init__(self, wrong: str, cure: str, so_far: Answer | None) -> None:
        super().__init__(wrong, cure=cure)
        self.so_far = so_far


def _whole_ways(engine: OpenAIEngine) -> list[Way]:
    """Return how requests go to a path that says nothing of its API: chat first, as most of these have it."""
    ways = [Way("", way, whole=True) for way in engine.ways()]
    return sorted(ways, key=lambda way: way.engine.api != "chat")


def _cure_of_answer(told: Refused) -> str:
    """Return how to mend an answer of status 200 that is none."""
    failure = told.answer.reading(2).failure
    if failure == "out_of_memory":
        return "see the server's log; it has not the memory for its own settings"
    if failure in STATED:
        return "see what its message names, and the server's log"
    return "see the server's log; another service may be at this URL"


def say_how(settled: Settled, model: str, listing: Listing, engine: OpenAIEngine) -> None:
    """Say on screen what a person may not expect of how the service is asked."""
    way = settled.way
    if listing.models and model not in listing.models and not any("*" in name for name in listing.models):
        note(f"deployment.model={shown(model)} is not among the models that are listed ({listing.shown})")
    if settled.refused and way.engine != engine.ways()[0]:
        first = settled.refused[0]
        answered = f"answered {first.answer.status} {shown(first.said)[:120]}".rstrip()
        if not first.answer.status:
            answered = "hung up without an answer"
        note(f"requests go to {way.words} as text: {first.way.words} {answered}")
    if settled.not_taken:
        note(f"the server does not take {', '.join(settled.not_taken)}{_meaning(settled)}", style="yellow")
    if settled.whole:
        note(
            "the server sends its answer in one piece, not as a stream: when its tokens came is not known",
            style="yellow",
        )


def _meaning(settled: Settled) -> str:
    taken = settled.not_taken
    means = []
    if "ignore_eos" in taken:
        means.append("answers may end before the length that is asked for")
    if "stream_options" in taken or "include_usage" in taken:
        means.append("it need not say how many tokens there were")
    if "temperature" in taken:
        means.append("it samples as it likes")
    return f": {'; '.join(means)}" if means else ""
