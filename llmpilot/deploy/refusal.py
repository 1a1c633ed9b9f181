"""What a server's refusal of a request is about, as far as its words tell. Pure functions of what it said."""

import json
import re
from collections.abc import Collection
from dataclasses import dataclass
from typing import Any, Literal

from llmpilot.openai_client.pages import is_page

About = Literal["fields", "prompt", "length", "api", "model", "context", "key", "loading", "tls", "unknown"]
NO_SUCH_PATH = (404, 405, 501)

MOST_READ = 20_000
MOST_NAMED = 6
"""Fields that a message speaks of; one with more of them repeats the request."""
OPTIONAL = (
    *("ignore_eos", "min_tokens", "return_token_ids", "timings_per_token", "stream_options"),
    *("include_usage", "continuous_usage_stats", "temperature", "top_p", "top_k"),
)
"""Fields that a request can do without."""

_WORD = re.compile(r"[A-Za-z_][A-Za-z_0-9]*")
_CHAT_ONLY = re.compile(
    r"/chat/completions|\bchat[ -]model|completions? operation does not work|unexpected endpoint or method"
    r"|(?:not|n't|no longer) (?:\w+ ){0,2}(?:support|implement|allow|available|enabled)\w*\W(?:.{0,40}\W)?"
    r"(?:text[ -])?completions?\b"
    r"|\bcompletions?\b.{0,40}(?:not|n't|no longer) (?:\w+ )?(?:support|implement|available|enabled|exist)",
    re.IGNORECASE | re.DOTALL,
)
_NO_CHAT = re.compile(
    r"\bchat\b.{0,60}(?:not|n't|no longer) (?:\w+ )?(?:support|implement|available|enabled|allowed|exist)"
    r"|(?:not|n't) (?:\w+ )?(?:support|implement|allow)\w*\W(?:.{0,40}\W)?chat\b|chat[ _]template"
    r"|unexpected endpoint or method",
    re.IGNORECASE | re.DOTALL,
)
_NO_MODEL = re.compile(
    r"model_not_found|DeploymentNotFound"
    r"|\b(?:model|deployment)\b\W+(?:[\w./:@-]+\W+){0,5}?(?:not (?:exist|found|available|valid|loaded|served)"
    r"|n't exist|unknown\b)"
    r"|(?:unknown|invalid|no such|not a valid|could not find|not find)(?: the)? (?:model|deployment)\b",
    re.IGNORECASE,
)
_CONTEXT = re.compile(
    r"context[ _-](?:length|window|size)|maximum (?:context|sequence|input|prompt)|max_model_len"
    r"|(?:prompt|input|request|sequence) is too long|too many (?:input )?tokens",
    re.IGNORECASE,
)
_PROMPT = re.compile(
    r"\bprompts?\b|\btoken[ _]ids?\b|\btokens? arrays?\b|cannot unmarshal array"
    r"|(?:expected|must be|should be) (?:a |an )?(?:valid )?str",
    re.IGNORECASE,
)
_LONGER = re.compile(
    r"higher max_\w*tokens|output limit was reached"
    r"|\bmax_\w*tokens\b.{0,80}(?:at least|minimum|greater than|>=?|too (?:small|low))",
    re.IGNORECASE | re.DOTALL,
)
_NO_STREAM = re.compile(
    r"\bstream(?:ing)?\b.{0,40}(?:not|n't|unsupported)|(?:not|n't) (?:\w+ )?support\w*\W.{0,20}\bstream",
    re.IGNORECASE,
)
_LOADING = re.compile(r"\b(?:still )?loading\b|\bwarming up\b|not ready", re.IGNORECASE)
_WANTS_TLS = re.compile(r"plain HTTP request.{0,40}HTTPS|HTTP request to an HTTPS", re.IGNORECASE)


@dataclass(frozen=True)
class Refusal:
    """What a refusal is about; of `fields`, which."""

    about: About
    fields: frozenset[str] = frozenset()


def read_refusal(
    status: int, text: str, sent: Collection[str], *, chat: bool = False, token_ids: bool = False
) -> Refusal:
    """Return what an answer's text refuses. `sent` names the request's fields, those of its options too.

    An answer of status 200 whose stream states an error is read alike; its text is then that error.
    """
    text = text[:MOST_READ]
    message, places = _said(text)
    if _WANTS_TLS.search(text):
        return Refusal("tls")
    if is_page(text) and status in (200, *NO_SUCH_PATH):
        return Refusal("api")
    if _LONGER.search(message):
        return Refusal("length")
    no_api = _NO_CHAT if chat else _CHAT_ONLY
    if no_api.search(message):
        return Refusal("api")
    if fields := _fields(message, places, sent):
        return Refusal("fields", fields)
    if status in (400, 413, 422, 500) and _CONTEXT.search(message):
        return Refusal("context")
    if token_ids and ("prompt" in places or _PROMPT.search(message)):
        return Refusal("prompt")
    if status in (400, 403, 404, 422) and _NO_MODEL.search(message):
        return Refusal("model")
    if status in (401, 403):
        return Refusal("key")
    if status in NO_SUCH_PATH:
        return Refusal("api")
    if status >= 500 and _LOADING.search(message):
        return Refusal("loading")
    return Refusal("unknown")


def _fields(message: str, places: frozenset[str], sent: Collection[str]) -> frozenset[str]:
    """Return which of the fields that were sent, and can be left out, are refused."""
    optional = set(sent) & {*OPTIONAL}
    stated = places & {*sent, "stream"}
    words = set(_WORD.findall(message))
    named = words & {*sent}
    if len(named) > MOST_NAMED or {"model", "stream"} < named:  # the whole request, come back
        named = set()
    found = (stated or named) & optional
    if "stream_options" in found and found & {"include_usage", "continuous_usage_stats"}:
        found -= {"stream_options"}
    # The value of max_tokens may be at fault, not its name: then another name is of no use.
    renamed = "max_completion_tokens" in words or not _CONTEXT.search(message)
    if not found and "max_tokens" in (stated | named) & {*sent} and renamed:
        found = {"max_tokens"}
    if not found and "stream" in sent and ("stream" in stated or _NO_STREAM.search(message)):
        found = {"stream"}
    return frozenset(found)


def _said(text: str) -> tuple[str, frozenset[str]]:
    """Return the message of an error, and the names of fields that its structure points at."""
    try:
        error = json.loads(text)
    except (ValueError, RecursionError):
        return text, frozenset()
    places: set[str] = set()
    if isinstance(error, dict):
        inner = error.get("error")
        error = inner if isinstance(inner, dict) and inner else error
        places |= {str(error.get("param") or "").split(".")[-1], str(error.get("param") or "").split(".")[0]}
        details = error.get("detail") or error.get("details")
        if isinstance(details, list):
            return _of_details(details, places)
        parts = [error.get(key) for key in ("message", "code", "type", "error", "detail", "msg", "object")]
        message = " ".join(str(part) for part in parts if part is not None)
        return message or text, frozenset(places - {""})
    return str(error), frozenset()


def _of_details(details: list[Any], places: set[str]) -> tuple[str, frozenset[str]]:
    """Return what a validation's list of errors says: the message and the place of each."""
    messages = []
    for detail in details:
        if isinstance(detail, dict):
            loc = detail.get("loc")
            if isinstance(loc, list | tuple):
                places |= {str(part) for part in loc}
            messages.append(str(detail.get("msg") or detail.get("message") or ""))
        else:
            messages.append(str(detail))
    return "; ".join(messages), frozenset(places - {""})
