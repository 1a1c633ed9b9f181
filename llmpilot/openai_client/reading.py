"""What an answer said, read after the fact: status, chunked body, server-sent events, tokens and their times.

Pure functions of the bytes, where the pieces ended that they arrived in, and when each piece arrived. How
the stream was cut into pieces decides times only, never what was said.
"""

import re
from collections.abc import Sequence
from dataclasses import dataclass, field

from llmpilot.openai_client.arrivals import CODINGS, Arrivals, UndecodableError, decoded
from llmpilot.openai_client.counting import (
    ANSWER,
    THOUGHT,
    StreamError,
    Tokens,
    error_kind,
    message_of,
    number,
)
from llmpilot.openai_client.events import ERROR, MAX_LINES, OTHER, ends_at, events, json_of, with_plain_lines
from llmpilot.openai_client.framing import body_of, encoding_of, split_head
from llmpilot.openai_client.settling import settle

LONGEST_MESSAGE = 1 << 14
"""Of a server's words, in characters: long, for secrets must be hidden in it before it is cut to be shown."""
ID_LENGTH = 200
_END_OF_THOUGHTS = re.compile(rb"(?:<|\\u003c)/think(?:ing)?(?:>|\\u003e)", re.IGNORECASE)
_STREAM_BEGINS = (b"data:", b"event:", b"id:", b"retry:", b"error:", b":")


@dataclass
class Reading:
    """One request's answer: how it failed ("" for a success) and when the first sequence's tokens came [ns].

    `last_ns` is when the last token of any sequence came;
    `chunks` counts the pieces of the stream that carried tokens of the first sequence, `merged` those of
    them that carried more than one. `first_answer_ns` is when the first token of the answer itself came,
    behind what the model thought aloud; -1 where it did not think. `hidden_tokens` are tokens of the first
    sequence that the server counted and never showed: thoughts that it keeps to itself. `cached_tokens` are
    those of the prompt that it says it had in its cache; None where it does not say. `thinking_tokens` are
    those of `token_ns` that were thoughts. An answer may end early or be longer than asked: it is one all
    the same, of its own length. `method` is what its tokens were counted by (see `settling`), or
    `not_streamed`: it came whole, in one piece.
    """

    failure: str = ""
    message: str = ""
    token_ns: list[int] = field(default_factory=list)
    last_ns: int = -1
    chunks: int = 0
    merged: int = 0
    method: str = ""
    input_tokens: int | None = None
    ended_early: bool = False
    response_id: str = ""
    first_answer_ns: int = -1
    hidden_tokens: int = 0
    cached_tokens: int | None = None
    longer_than_asked: bool = False
    thinking_tokens: int = 0


def read_answer(
    raw: bytes,
    ends: Sequence[int],
    times_ns: Sequence[int],
    *,
    output_tokens: int,
    sequences: int,
    broken: str = "",
    sent_ns: int = 0,
) -> Reading:
    """Return what an answer said.

    `ends[i]` is the length of the stream up to and with piece i, which arrived at `times_ns[i]`; the request
    was sent at `sent_ns` (0: not known). `broken` is how the connection failed, if it did; a fault that the
    server itself states goes before it. The message of a failure may hold secrets that the server repeats.
    """
    answer = Reading(failure=broken)
    status, headers, start = split_head(raw)
    if not status:
        answer.failure = broken or "bad_http"
        return answer
    body, segments, whole, sound = body_of(raw, headers, start)
    cut = bool(broken) or not whole
    arrivals = Arrivals(segments, ends, times_ns)
    if coding := encoding_of(headers):
        try:
            if coding not in CODINGS:
                raise UndecodableError("only gzip and deflate can be read")
            body, arrivals, ended = decoded(body, coding, segments, ends, times_ns)
            cut = cut or not ended
        except UndecodableError as error:
            if status == 200:
                answer.failure = "encoded_answer"
                answer.message = _text(b"the body comes as " + coding) + f": {error}"
                return answer
    if status != 200:
        answer.message = _text(body)
        answer.failure = error_kind(answer.message, f"http_{status}")
        return answer
    content_type = headers.get(b"content-type", b"text/event-stream")
    tokens = Tokens(sequences)
    begins = body[:64].lstrip()
    if begins.startswith((b"{", b"[")) and (stated := _read_whole(body, tokens, output_tokens)) is not None:
        stated_kind, answer.message = stated
    elif b"event-stream" in content_type or b"json" in content_type or begins.startswith(_STREAM_BEGINS):
        stated_kind, answer.message = _read_events(with_plain_lines(body), tokens, cut)
    else:
        answer.message = _text(content_type + b": " + body)
        answer.failure = error_kind(answer.message, "wrong_content_type")
        return answer
    if sequences == 1 and not tokens.whole:
        _mark_thoughts(tokens, body)
    _settle(answer, tokens, arrivals, output_tokens, sent_ns)
    answer.response_id = _clean(tokens.response_id, ID_LENGTH)
    answer.failure = stated_kind or answer.failure or ("" if whole and sound else "bad_http")
    if not answer.failure:
        _check_end(answer, tokens, output_tokens, body)
    return answer


def _read_whole(body: bytes, tokens: Tokens, asked: int) -> tuple[str, str] | None:
    """Read an answer that is one object, not streamed; return the fault that it states and its words.

    None: it is no such thing. The answer is there when its last byte is. Without a usage its tokens are known
    only where it says that it went on for as many as were asked for.
    """
    try:
        payload = json_of(body.strip())
        usage = payload.pop("usage", None) if type(payload) is dict else None
        known = tokens.feed(payload, len(body) - 1)
        if not usage and tokens.finish == "length":
            usage = {"completion_tokens": asked * tokens.sequences}
        tokens.feed({"choices": [], "usage": usage})
    except StreamError as error:
        message = _clean(str(error), LONGEST_MESSAGE)
        return error_kind(message, "error_in_answer"), message
    except RecursionError as error:
        return "bad_json", _text(str(error).encode() + b": " + body)
    except ValueError:
        return None
    tokens.whole = True
    return ("", "") if known else ("wrong_content_type", _text(body))


def _read_events(body: bytes, tokens: Tokens, cut: bool) -> tuple[str, str]:
    """Read all events of a stream; return the fault that it states, or "", and its words."""
    feed, parsed = tokens.feed, json_of
    lines = 0
    pending = b""
    for data, last, sort in events(body, cut):
        if sort == ERROR:
            message = _error_text(data)
            return error_kind(message, "error_in_stream"), message
        if data == b"[DONE]":
            tokens.done = True
            break
        try:
            feed(parsed(pending + data if pending else data), last)
        except StreamError as error:
            message = _clean(str(error), LONGEST_MESSAGE)
            return error_kind(message, "error_in_stream"), message
        except ValueError:
            if sort == OTHER:
                continue
            # Data may go on over several lines, to an empty one; what is no JSON then is garbage.
            pending += data + b"\n"
            lines += 1
            if lines == MAX_LINES or ends_at(body, last):
                break
            continue
        except RecursionError as error:
            return "bad_sse", _text(str(error).encode() + b": " + data)
        if pending:
            pending, lines = b"", 0
    if pending and not cut:
        return "bad_sse", _text(pending)
    return "", ""


def _error_text(data: bytes) -> str:
    """Return what an event that is an error says."""
    try:
        payload = json_of(data)
    except (ValueError, RecursionError):
        return _text(data)
    if type(payload) is dict:
        return _clean(message_of(payload.get("error") or payload), LONGEST_MESSAGE)
    return _text(data)


def _mark_thoughts(tokens: Tokens, body: bytes) -> None:
    """Tell thoughts from the answer where a server does not: by the tag that ends them."""
    found = _END_OF_THOUGHTS.search(body) if b"/think" in body else None
    if found is None:
        return
    rows, before = tokens.rows, -1
    for i, row in enumerate(rows):
        if before >= found.start():
            break
        before = row[0]
        if row[3] == ANSWER:
            rows[i] = (*row[:3], THOUGHT, *row[4:])


def _settle(answer: Reading, tokens: Tokens, arrivals: Arrivals, output_tokens: int, sent_ns: int) -> None:
    """Decide how many tokens came when."""
    rows = tokens.rows
    at = arrivals.at
    times_ns = [at(row[0]) for row in rows]
    counted = settle(tokens, times_ns, output_tokens, sent_ns)
    answer.method = "not_streamed" if tokens.whole and tokens.final and counted.method else counted.method
    answer.hidden_tokens = counted.hidden
    length = counted.most if not counted.beside else counted.most - counted.hidden
    answer.ended_early = counted.fewest < output_tokens
    answer.longer_than_asked = length > output_tokens
    timed, token_ns = counted.timed, answer.token_ns
    thought_ns = -1
    for (_, sequence, _, kind, *_), count, time_ns in zip(rows, counted.counts, times_ns, strict=True):
        if not count:
            continue
        answer.last_ns = time_ns
        if sequence != timed:
            continue
        answer.chunks += 1
        if count == 1:
            token_ns.append(time_ns)
        else:
            answer.merged += 1
            token_ns.extend([time_ns] * count)
        if kind & THOUGHT:
            thought_ns = time_ns
            answer.thinking_tokens += 0 if kind & ANSWER else count
        if kind & ANSWER and thought_ns >= 0 and answer.first_answer_ns < 0:
            answer.first_answer_ns = time_ns
    _read_prompt(answer, tokens)


def _read_prompt(answer: Reading, tokens: Tokens) -> None:
    """Read what the server says of the prompt: its tokens, and how many of them it had in its cache."""
    cached = number(tokens.cached)
    for usage in (tokens.final, tokens.usage, tokens.opening):
        if usage is None:
            continue
        stated = usage.get("prompt_tokens")
        prompt = number(usage.get("input_tokens") if stated is None else stated)
        if answer.input_tokens is None and prompt >= 0:
            answer.input_tokens = prompt
        for name in ("prompt_tokens_details", "input_tokens_details"):
            if cached < 0 and type(details := usage.get(name)) is dict:
                cached = number(details.get("cached_tokens"))
        if cached < 0:
            cached = number(usage.get("prompt_cache_hit_tokens"))  # DeepSeek
    answer.cached_tokens = cached if cached >= 0 else None


def _check_end(answer: Reading, tokens: Tokens, output_tokens: int, body: bytes) -> None:
    """See whether an answer that nothing speaks against has output, and ends as answers end."""
    if not answer.token_ns:
        answer.failure = "no_tokens"
        hidden = f"{answer.hidden_tokens} hidden tokens and " if answer.hidden_tokens else ""
        answer.message = f"{hidden}no output in: " + (_text(body) or "(nothing)")
    elif answer.ended_early and not (tokens.whole or tokens.done or tokens.finish or _usage_ends(tokens)):
        answer.failure = "truncated_stream"
        got = len(answer.token_ns)
        answer.message = (
            f"the stream ended after {got} of {output_tokens} tokens without finish_reason, usage or [DONE]"
        )


def _usage_ends(tokens: Tokens) -> bool:
    """Whether the total came at the end, and only there."""
    if tokens.final is not None:
        return True
    stated = {row[5] for row in tokens.rows if row[5] > 0}
    return len(stated) == 1 and tokens.rows[-1][5] > 0 and tokens.rows[0][5] <= 0


def _text(data: bytes) -> str:
    return data[:LONGEST_MESSAGE].decode("utf-8", "replace")


def _clean(text: str, length: int) -> str:
    """Return text that can be written down: JSON may hold halves of characters, and a name of any length."""
    return text[:length].encode("utf-8", "replace").decode()
