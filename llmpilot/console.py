"""What a person sees: results on stdout, progress and problems on stderr, secrets on neither."""

from rich.console import Console

from llmpilot.secrets import redact

out = Console(highlight=False, soft_wrap=True)
err = Console(stderr=True, highlight=False, soft_wrap=True)


def say(text: str = "", style: str | None = None) -> None:
    """Print a line of the result."""
    out.print(redact(text), style=style, markup=False)


def note(text: str, style: str | None = "dim") -> None:
    """Print a remark or a problem beside the result."""
    err.print(redact(text), style=style, markup=False)
