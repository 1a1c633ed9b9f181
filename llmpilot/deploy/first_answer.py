"""Whether a service's first answer, of two tokens, is what this API streams. Knows nothing of connections."""

import json

from llmpilot.deploy.served_text import shown
from llmpilot.engine.openai import Asked
from llmpilot.openai_client.counting import StreamError, Tokens

PROBE = Asked(4, 2, 1, True, 1.0, 0, 1.0)
PROBE_IDS = b"[100,101,102,103]"  # which even a tiny vocabulary has
MOST_LINES = 64  # that the data of one event may go on over


def fault_in_stream(text: str) -> str:
    """Return what is wrong with the body of a successful answer, or ""; an answer may be of no tokens."""
    events = [line.removeprefix("data:").strip() for line in text.splitlines() if line.startswith("data:")]
    stated = [line for line in text.splitlines() if line.startswith("error:")]  # llama.cpp before 2025
    if stated or not events:
        kind = "an error in its stream" if stated else "what is no stream of events"
        return f"{kind}: {shown(stated[0] if stated else text) or '(nothing)'}"
    tokens, pending, lines, known = Tokens(PROBE.sequences), "", 0, False
    for event in events:
        if event == "[DONE]" or lines > MOST_LINES:
            known |= not lines
            break
        try:
            payload = json.loads(pending + event)
        except RecursionError:
            return f"an event that is nested too deeply: {shown(pending + event)[:40]}"
        except ValueError:
            pending, lines = pending + event + "\n", lines + 1
            continue
        pending, lines = "", 0
        try:
            known |= tokens.feed(payload)
        except StreamError as error:
            return f"an error in its stream: {shown(str(error))}"
    if pending:
        return f"an event that is no JSON: {shown(pending)}"
    return "" if known else f"an event that is none of this API: {shown(text)}"
