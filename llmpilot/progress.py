"""Progress on a terminal while a ladder is measured; a plain line per level where there is no terminal."""

from types import TracebackType

from rich.progress import BarColumn, MofNCompleteColumn, TextColumn, TimeElapsedColumn
from rich.progress import Progress as RichProgress

from llmpilot.config import Load
from llmpilot.console import counted, err, note
from llmpilot.metrics import Level, kind_of, shows
from llmpilot.report.words import STREAMS, figure_of, latency_figure
from llmpilot.schema import at_level
from llmpilot.search import Step

SAID = (("TTFT", "ttft_ms", 0), ("ITL", "itl_ms", 1), ("TPOT", "tpot_ms", 1), ("E2E", "e2e_ms", 0))
"""Of these, the first two that a level's streams show."""


class Progress:
    """Says which level is being measured and what the last one showed."""

    def __init__(self, load: Load, done: int, unit: str) -> None:
        self._unit = unit
        self._bar = RichProgress(
            TextColumn("{task.description}"),
            BarColumn(),
            MofNCompleteColumn(),
            TimeElapsedColumn(),
            console=err,
            transient=True,
            disable=not err.is_terminal,
        )
        self._task = self._bar.add_task("", total=None if load.search else len(load.levels), completed=done)

    def __enter__(self) -> "Progress":
        self._bar.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._bar.stop()

    def begin(self, step: Step) -> None:
        """A level begins, or one that was measured before is measured again."""
        again = f", measurement {step.repeat + 1}" if step.repeat else ""
        self._bar.update(self._task, description=at_level(step.level, self._unit) + again)

    def end(self, level: Level) -> None:
        """A level has ended with these figures."""
        self._bar.advance(self._task)
        latencies = _latencies(level)
        note(
            f"  {at_level(level['level'], self._unit)}: {counted(level['requests_ok'], 'request')} ok, "
            f"{level['requests_failed']:,} failed; {latencies}; "
            f"{figure_of(level['throughput_tok_s'], 0)} tokens/s"
            f"{_server(level.get('server', {}))}"
        )


def _latencies(level: Level) -> str:
    """Return the medians that its streams show, and how they came where they do not show all."""
    if level["ttft_ms"]["p50"] is None:
        return "no request succeeded"
    said = [
        f"{name} p50 {latency_figure(level, latency, 'p50', digits)} ms"
        for name, latency, digits in SAID
        if level[latency]["p50"] is not None and shows(level, latency, "p50")
    ][:2]
    kind = kind_of(level)
    return ", ".join(said if kind is None else [*said, STREAMS[kind].lower()])


def _server(server: Level) -> str:
    """Return what the server said of itself, in a few words."""
    said = [f"{server[name]['mean']:.1f} {name}" for name in ("running", "waiting") if name in server]
    if "kv_usage" in server:
        said.append(f"KV cache {server['kv_usage']['mean']:.0%}")
    if server.get("preemptions"):
        said.append(f"{server['preemptions']} preemptions")
    return f"; server: {', '.join(said)}" if said else ""
