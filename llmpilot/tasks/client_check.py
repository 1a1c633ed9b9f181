"""What the load test's own client says of itself: notes on each level, its error, and a loud verdict."""

from typing import Any

from llmpilot.console import note, say
from llmpilot.deploy.endpoint import HttpEndpoint
from llmpilot.deploy.refusal import read_refusal
from llmpilot.deploy.served_text import shown
from llmpilot.loadtest import Records
from llmpilot.loadtest.client_error import bottleneck, client_error
from llmpilot.metrics import Level, shows
from llmpilot.schema import at_level, exactly

TTFT_MS, ITL_MS = 50.0, 20.0  # where the level has no latencies to go by
INEXACT = {
    "chunks": "the server gave no token counts: each chunk is taken for one token",
    "capped": "the server gave no token counts, and more chunks than tokens were asked for",
    "text": "the server gave no token counts, and answers in one piece: tokens are told by their text",
    "visible": "the server counted far more tokens than it showed: the rest is taken for hidden thoughts",
    "total": "how many tokens there were is known, and not how they are spread within an answer",
}


def notes_of(records: Records) -> dict[str, Any]:
    """Return what a level's records say of the client and of failures, for `levels.json`."""
    notes = {key: value for key, value in records.notes.items() if key != "start_ns"}
    messages = notes.get("failure_messages", {})
    return notes | {"failure_messages": {kind: shown(text) for kind, text in messages.items()}}


def warn(level: Level) -> None:
    """Say how a level's tokens were counted, if not exactly, what answers lacked, and why requests failed."""
    notes = level["client"]
    counted = notes["tokens_counted_by"]
    for method, meaning in INEXACT.items():
        if method in counted:
            all_of_them = counted[method] == sum(counted.values())
            of = "" if all_of_them else f" ({counted[method]:,} of {sum(counted.values()):,} answers)"
            note(f"    {meaning}{of}", style="yellow")
    if differs := level["fidelity"]["problem"]:
        note(f"    another workload than configured: {differs}", style="yellow")
    for kind, count in sorted(level["failures"].items(), key=lambda one: -one[1]):
        message = notes["failure_messages"].get(kind)
        note(f"    {count} x {kind}{f': {message}' if message else ''}", style="yellow")
        if cure := _cure(kind, message or ""):
            note(f"      to mend it: {cure}", style="yellow")


def _cure(kind: str, message: str) -> str:
    """Return how to mend what made requests fail that the service takes otherwise; "" where that is open."""
    status = kind.removeprefix("http_")
    if status == "429":
        return "a limit of requests decides what is measured: raise it, in the server or for this key"
    if status.isdecimal() and read_refusal(int(status), message, ()).about == "context":
        return "choose a workload whose requests fit the context, or start the server with a longer one"
    return ""


def judge(endpoint: HttpEndpoint, levels: list[Level]) -> dict[str, Any]:
    """Return the client's own error at the largest closed-loop level, and the levels not to be trusted.

    The same number of users is put on our emulator, with a timing like the service's, which knows when it
    sent every token. That takes as long as a few requests of the largest level.
    """
    error = None
    closed = [level for level in levels if level["users"]]
    if endpoint.client.calibrate and closed:
        largest = max(closed, key=lambda level: int(level["users"]))
        note(f"measuring the client itself: {at_level(largest['users'], 'users')} on the emulator")
        error = client_error(
            int(largest["users"]),
            settings=endpoint.client,
            ttft_ms=_median(largest, "ttft_ms") or TTFT_MS,
            itl_ms=_median(largest, "itl_ms") or _median(largest, "tpot_ms") or ITL_MS,
        )
    verdicts = {}
    for level in levels:
        at_calibration = error if error is not None and level["users"] == error["users"] else None
        if why := bottleneck(level["client"]["client"], at_calibration, level):
            verdicts[exactly(level["level"])] = why
    return {"error": error, "bottleneck": verdicts}


def _median(level: Level, latency: str) -> float | None:
    """Return the median of a latency, where the level's streams show it."""
    return level[latency]["p50"] if shows(level, latency, "p50") else None


def summary_of(verdict: dict[str, Any]) -> dict[str, float]:
    """Return the client's error as MLflow metrics."""
    error = verdict["error"]
    if error is None:
        return {}
    figures = {
        f"client.{name}.{statistic}": error[name][statistic]
        for name in ("ttft_error_ms", "itl_error_ms")
        for statistic in ("p50", "p99")
    }
    return {name: value for name, value in figures.items() if value is not None}


def show(result: dict[str, Any]) -> None:
    """Print the client's error; loudly, if it was the bottleneck."""
    error = result["client"]["error"]
    if error is not None:
        ttft, itl = error["ttft_error_ms"], error["itl_error_ms"]
        say(
            f"the client's own error at {at_level(error['users'], 'users')}: TTFT {ttft['p50']:.2f} ms "
            f"(p99 {ttft['p99']:.2f} ms), ITL {itl['p50']:.3f} ms"
        )
    for level, why in result["client"]["bottleneck"].items():
        load = at_level(float(level), result["level_unit"])
        say(f"THE CLIENT WAS THE BOTTLENECK at {load}: {why}", style="bold red")
