"""How a service wants to be asked: the API, the kind of prompt, and the fields that it takes.

The first request is tried as it would be best measured; what a refusal says decides what the next one leaves
out or puts otherwise. Knows nothing of keys and connections.
"""

import json
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from typing import Any, NamedTuple

from llmpilot.deploy.exchange import Answer
from llmpilot.deploy.refusal import OPTIONAL, Refusal, read_refusal
from llmpilot.engine.openai import STREAM_OPTIONS, Asked, Dialect, Fields, OpenAIEngine

PROBE = Asked(4, 2, 1, True, 1.0, 0, 1.0)
SAMPLED = PROBE._replace(greedy=False, temperature=0.7, top_k=40, top_p=0.9)
LONGER = PROBE._replace(output_tokens=64)
"""For servers that refuse so short an answer: thoughts alone would be longer."""
PROBE_IDS = b"[100,101,102,103]"  # which even a tiny vocabulary has
PROBE_TEXT = b'"the of and to"'
MOST_TRIES = 12
GATEWAY = (502, 503, 504)
STATED = ("error_in_stream", "error_in_answer", "out_of_memory")
WRONG = {
    **dict.fromkeys(STATED, "an error"),
    "bad_sse": "an event that cannot be read",
    "no_tokens": "no output",
    "truncated_stream": "a stream that breaks off",
    "encoded_answer": "a body that cannot be read",
}
"""What is wrong with an answer of status 200, by the failure that the load test would call it."""
PLAIN = frozenset({"stream_options", "temperature"})

Ask = Callable[[str, bytes, float], Answer]
"""Posts a body to a path below the service's root, and waits so many seconds for the answer."""


class Way(NamedTuple):
    """One way to put a request: where to, and as what. `whole`: the service's URL is all of the path."""

    api_path: str
    engine: OpenAIEngine
    whole: bool = False

    @property
    def path(self) -> str:
        """Where it is posted to."""
        return "" if self.whole else self.api_path + self.engine.path

    @property
    def words(self) -> str:
        """The path, as it is said."""
        return self.path or "the URL itself"

    @property
    def place(self) -> tuple[str, str]:
        """The path and the API, which of several APIs at one path decides."""
        return self.path, self.engine.api


class Refused(NamedTuple):
    """A try that did not succeed."""

    way: Way
    answer: Answer
    refusal: Refusal
    said: str
    """What is wrong, without the status: the server's own words."""


@dataclass(frozen=True)
class Settled:
    """How the service is asked; `refused` are the tries before, `not_taken` the fields that it did not take.

    `whole`: it answered with one JSON object, not with a stream. `input_tokens` it counted in the probe's
    prompt; None: it does not say.
    """

    way: Way
    dialect: Dialect
    fields: Fields
    whole: bool
    not_taken: tuple[str, ...] = ()
    refused: tuple[Refused, ...] = ()
    input_tokens: int | None = None


class NoWayError(Exception):
    """The service answers no request that we can put; `refused` says how it refused which."""

    def __init__(self, refused: list[Refused]) -> None:
        super().__init__("the service takes no request")
        self.refused = refused

    @property
    def telling(self) -> Refused:
        """The refusal that says most: the one of a try that came furthest."""
        order = {"tls": 0, "context": 1, "key": 2, "model": 3, "loading": 4, "api": 9}
        return min(reversed(self.refused), key=lambda one: order.get(one.refusal.about, 5))


class Probe:
    """The tries of one service, and what they have shown."""

    def __init__(self, ask: Ask, ways: list[Way], model: str, owner: str, deadline_s: float) -> None:
        self._ask, self._ways, self._model, self._owner = ask, ways, model, owner
        self._until_s = time.monotonic() + deadline_s
        self._refused: list[Refused] = []
        self._asked = PROBE
        self._left_out: frozenset[str] = frozenset()
        self._length: str | None = None
        self._sent: set[tuple[str, bytes]] = set()

    def settle(self) -> Settled:
        """Return how the service is to be asked.

        Raises:
            NoWayError: no try succeeded.
        """
        ways = list(self._ways)
        while ways:
            way = ways[0]
            settled, refusal = self._try_way(way)
            if settled is not None:
                return self._with_sampling(settled)
            if refusal is None or refusal.about in ("tls", "loading", "context"):
                break
            same_api = refusal.about in ("api", "model", "key")
            ways = [other for other in ways[1:] if not (same_api and other.place == way.place)]
        raise NoWayError(self._refused)

    def _try_way(self, way: Way) -> tuple[Settled | None, Refusal | None]:
        """Try a way with ever fewer fields; return how it is settled, or else the last refusal."""
        refusal: Refusal | None = None
        steps = list(_steps(way.engine, self._owner))
        fuller: list[tuple[Dialect, Fields]] = []
        while steps:
            dialect, fields = steps[0]
            fields = Fields(fields.left_out | self._left_out, self._length or fields.length)
            body = _body(way, self._model, dialect, fields, self._asked)
            if (way.path, body) in self._sent:
                steps.pop(0)
                continue
            if len(self._sent) == MOST_TRIES or time.monotonic() > self._until_s:
                return None, None
            self._sent.add((way.path, body))
            answer = self._ask(way.path, body, max(0.1, self._until_s - time.monotonic()))
            refused = _refused(way, answer, body)
            if refused is None:
                settled = self._settled(way, dialect, fields, answer)
                return (self._once_more(way, *fuller[0]) if fuller else None) or settled, None
            self._refused.append(refused)
            refusal = refused.refusal
            if refusal.about == "fields":
                self._leave_out(refusal.fields)
            elif refusal.about == "length" and self._asked is not LONGER:
                self._asked = LONGER
            elif refusal.about not in ("unknown", "length"):
                break
            elif answer.status in GATEWAY and len(steps) > 1:
                fuller, steps = [(dialect, fields)], steps[-1:]  # once more, with as little as possible
            else:
                steps.pop(0)
        return None, refusal

    def _once_more(self, way: Way, dialect: Dialect, fields: Fields) -> Settled | None:
        """Ask again what a gateway did not pass on: it may have been busy, whatever the fields were."""
        body = _body(way, self._model, dialect, fields, self._asked)
        answer = self._ask(way.path, body, max(0.1, self._until_s - time.monotonic()))
        return None if _refused(way, answer, body) else self._settled(way, dialect, fields, answer)

    def _leave_out(self, names: frozenset[str]) -> None:
        if "max_tokens" in names:
            self._length = "max_completion_tokens"
        self._left_out |= names - {"max_tokens"}

    def _settled(self, way: Way, dialect: Dialect, fields: Fields, answer: Answer) -> Settled:
        richest = _steps(way.engine, self._owner)
        wanted = _names(json.loads(_body(way, self._model, *next(richest))))
        kept = _names(json.loads(_body(way, self._model, dialect, fields)))
        missing = {name for name in wanted if name not in kept and name in {*OPTIONAL, "stream"}}
        # A field's options, and those of streams, go with it.
        if "stream_options" in missing:
            missing -= {*STREAM_OPTIONS}
        if "stream" in missing:
            missing -= {"stream_options"}
        not_taken = tuple(name for name in wanted if name in missing)
        counted = answer.reading(PROBE.output_tokens).input_tokens or None
        return Settled(way, dialect, fields, answer.whole, not_taken, tuple(self._refused), counted)

    def _with_sampling(self, settled: Settled) -> Settled:
        """Return the same without the fields of sampled requests that a choosy server does not take."""
        if not self._refused:
            return settled
        for _ in range(3):
            fields = settled.fields
            sampled = SAMPLED._replace(output_tokens=self._asked.output_tokens)
            body = _body(settled.way, self._model, settled.dialect, fields, sampled)
            answer = self._ask(settled.way.path, body, max(0.1, self._until_s - time.monotonic()))
            refused = _refused(settled.way, answer, body)
            if refused is None or not (names := refused.refusal.fields & {"temperature", "top_p", "top_k"}):
                break
            left_out = Fields(fields.left_out | names, fields.length)
            settled = replace(settled, fields=left_out, not_taken=(*settled.not_taken, *sorted(names)))
        return settled


def _steps(engine: OpenAIEngine, owner: str) -> Iterator[tuple[Dialect, Fields]]:
    """Yield what to try, one after the other, where refusals do not say what they refuse."""
    last: Dialect = "standard"
    for last in engine.dialects(owner):
        yield last, Fields()
    lengths = ("max_tokens", "max_completion_tokens") if engine.api == "chat" else ("max_tokens",)
    for left_out in (frozenset[str](), PLAIN):
        for length in lengths:
            if left_out or length != lengths[0]:
                yield last, Fields(left_out, length)


def _body(way: Way, model: str, dialect: Dialect, fields: Fields, asked: Asked = PROBE) -> bytes:
    prompt = PROBE_IDS if way.engine.takes_token_ids else PROBE_TEXT
    return way.engine.body(asked, [prompt], model, dialect, fields)


def _names(body: dict[str, Any]) -> list[str]:
    """Return the names of a request's fields, those of its options too."""
    return [*body, *body.get("stream_options", {})]


def _refused(way: Way, answer: Answer, body: bytes) -> Refused | None:
    """Return what is wrong with an answer; None where it is what the load test would count."""
    reading = answer.reading(PROBE.output_tokens)
    if not reading.failure:
        return None
    stated = reading.failure in STATED
    text = reading.message if answer.status == 200 and stated else answer.text
    sent = _names(json.loads(body))
    chat, token_ids = way.engine.api == "chat", way.engine.takes_token_ids
    refusal = read_refusal(answer.status, text, sent, chat=chat, token_ids=token_ids)
    if answer.status == 200:
        what = WRONG.get(reading.failure, "what is no stream of events")
        message = reading.message or answer.text or "(nothing)"
        if "recursion" in message[:60]:
            what, message = "an event that is nested too deeply", message.partition(": ")[2][:40]
        text = f"{what}: {message}"
    return Refused(way, answer, refusal, text)
