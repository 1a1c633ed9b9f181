"""The errors that a user can mend. Anything else that escapes is a bug of ours and shows its traceback."""

from collections.abc import Iterable
from difflib import get_close_matches
from typing import Any


class PilotError(Exception):
    """What is wrong, what was given, and how to mend it; printed as is, without a traceback.

    Exit code 2 (wrong usage), unless a subclass says otherwise.
    """

    exit_code = 2

    def __init__(self, wrong: str, *, given: object = None, cure: str = "") -> None:
        self.wrong, self.given, self.cure = wrong, given, cure
        lines = [wrong]
        if given is not None:
            lines.append(f"  given: {given}")
        if cure:
            lines.append(f"  to mend it: {cure}")
        super().__init__("\n".join(lines))


class ConfigError(PilotError):
    """A key or value of the configuration is impossible."""


class DoesNotFitError(PilotError):
    """The model's weights do not leave room for a single request in the GPU profile's memory."""


class TraceError(PilotError):
    """A workload trace or a fitted workload model cannot be used."""


class TrackingError(PilotError):
    """MLflow could not be reached or refused; whatever was measured is on disk, and in `result`."""

    exit_code = 1

    def __init__(self, wrong: str, *, given: object = None, cure: str = "", result: Any = None) -> None:
        super().__init__(wrong, given=given, cure=cure)
        self.result = result


def did_you_mean(word: str, options: Iterable[str]) -> str:
    """Return 'did you mean X? ' when an option is close to the word, else an empty string."""
    close = get_close_matches(word, list(options), n=1)
    return f"did you mean {close[0]!r}? " if close else ""
