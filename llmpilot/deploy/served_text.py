"""What a server has sent, made fit to be shown: on one line, short, without secrets.

A server may send whatever it likes, such as sequences that command a terminal; they lose their effect here.
"""

from llmpilot.secrets import redact

MOST_CHARACTERS = 300


def shown(text: str) -> str:
    """Return the beginning of `text` without control characters and secrets."""
    printable = "".join(c if c.isprintable() else " " for c in text[: 2 * MOST_CHARACTERS])
    return redact(" ".join(printable.split())[:MOST_CHARACTERS])
