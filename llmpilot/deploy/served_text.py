"""What a server has sent, made fit to be shown: on one line, short, without secrets.

A server may send whatever it likes, such as sequences that command a terminal; they lose their effect here.
"""

from llmpilot.openai_client.pages import readable
from llmpilot.secrets import redact_foreign

MOST_CHARACTERS = 300
MOST_READ = 20_000
"""So much is looked at; a secret that its end cuts off is hidden too."""


def shown(text: str) -> str:
    """Return the beginning of `text`, of a page that of its words, without control characters and secrets.

    Secrets go first: cut in two, one would no longer be known for what it is.
    """
    hidden = redact_foreign(readable(text[:MOST_READ]))
    printable = "".join(c if c.isprintable() else " " for c in hidden)
    return redact_foreign(" ".join(printable.split()))[:MOST_CHARACTERS]
