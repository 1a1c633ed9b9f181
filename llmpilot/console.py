"""What a person sees: results on stdout, progress and problems on stderr, secrets on neither."""

import os
import sys

from rich.console import Console

from llmpilot.secrets import redact

WIDTH_WITHOUT_TERMINAL = 140


class _Console(Console):
    """A console that outlives its reader: `| head` must not end a measurement."""

    def on_broken_pipe(self) -> None:
        sys.stdout = open(os.devnull, "w")  # noqa: SIM115, PTH123 - stays open to the end of the process
        self.quiet = True


def _console(*, stderr: bool) -> Console:
    console = _Console(stderr=stderr, highlight=False, markup=False)
    if not console.is_terminal and "COLUMNS" not in os.environ:
        console.width = WIDTH_WITHOUT_TERMINAL
    return console


out = _console(stderr=False)
err = _console(stderr=True)


def say(text: str = "", style: str | None = None) -> None:
    """Print a line of the result."""
    out.print(redact(text), style=style, soft_wrap=True)


def note(text: str, style: str | None = "dim") -> None:
    """Print a remark or a problem beside the result."""
    err.print(redact(text), style=style, soft_wrap=True)


def counted(n: int, what: str) -> str:
    """Return `1 user`, `2 users`, `1,000 users`: how messages count."""
    return f"{n:,} {what}{'' if n == 1 else 's'}"
