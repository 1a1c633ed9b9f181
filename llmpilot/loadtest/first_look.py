"""Whether an answer that has just ended looks like a success: a glance, for to read it takes long."""

import re

from llmpilot.openai_client.flight import Flight
from llmpilot.openai_client.framing import tail_of

_ERROR = re.compile(rb'"error"\s*:\s*["{]')
_FINISH = re.compile(rb'"finish_reason"\s*:\s*["{]\s*"?\w')
_USAGE, _CHOICE = re.compile(rb'"usage"\s*:\s*\{\s*"'), re.compile(rb'"choices"\s*:\s*\[\s*\{')
_CODED = re.compile(rb"\r\ncontent-encoding:\s*(?:x-)?(?:gzip|deflate)", re.IGNORECASE)
_LAST_BYTES = 2048


def looks_good(flight: Flight) -> bool:
    """Whether an answer looks like a success, without reading it: users of a failing server slow down."""
    if flight.status != b"200":
        return False
    pieces = flight.pieces
    end = tail_of(pieces, _LAST_BYTES)
    if _ERROR.search(end) is not None:
        return False
    if _FINISH.search(end) is not None or (b"[DONE]" in end and b'"choices"' in end):
        return True
    # A usage that comes by itself is an end; an answer that is not streamed has it beside its choices.
    _, *events = end.split(b"data:")
    if any(_USAGE.search(one) and not _CHOICE.search(one) for one in events or [end.replace(b"[{", b"")]):
        return True
    # It ends as few do: compressed, or with nothing that says so, but with as many events as tokens.
    if (len(pieces) > 1 or b"[DONE]" in end) and sum(
        piece.count(b'"choices"') for piece in pieces
    ) >= flight.output_tokens:
        return True
    return _CODED.search(b"".join(pieces[: flight.head_pieces + 1])) is not None
