"""Progress on a terminal while a ladder is measured; a plain line per level where there is no terminal."""

from types import TracebackType

from rich.progress import BarColumn, MofNCompleteColumn, TextColumn, TimeElapsedColumn
from rich.progress import Progress as RichProgress

from llmpilot.config import Load
from llmpilot.console import err, note
from llmpilot.metrics import Level
from llmpilot.schema import exactly


class Progress:
    """Says which level is being measured and what the last one showed."""

    def __init__(self, load: Load, done: set[float]) -> None:
        self._unit = load.unit
        self._bar = RichProgress(
            TextColumn("{task.description}"),
            BarColumn(),
            MofNCompleteColumn(),
            TimeElapsedColumn(),
            console=err,
            transient=True,
            disable=not err.is_terminal,
        )
        self._task = self._bar.add_task("", total=len(load.levels), completed=len(done))

    def __enter__(self) -> "Progress":
        self._bar.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._bar.stop()

    def begin(self, level: float) -> None:
        """A level begins."""
        self._bar.update(self._task, description=f"{exactly(level)} {self._unit}")

    def end(self, level: Level) -> None:
        """A level has ended with these figures."""
        self._bar.advance(self._task)
        ttft_ms, itl_ms = level["ttft_ms"]["p50"], level["itl_ms"]["p50"]
        latencies = "no request succeeded" if ttft_ms is None else f"TTFT p50 {ttft_ms:.0f} ms"
        latencies += "" if itl_ms is None else f", ITL p50 {itl_ms:.1f} ms"
        note(
            f"  {exactly(level['level'])} {self._unit}: {level['requests_ok']} requests ok, "
            f"{level['requests_failed']} failed; {latencies}; {level['throughput_tok_s']:.0f} tokens/s"
            f"{_server(level.get('server', {}))}"
        )


def _server(server: Level) -> str:
    """Return what the server said of itself, in a few words."""
    said = [f"{server[name]['mean']:.1f} {name}" for name in ("running", "waiting") if name in server]
    if "kv_usage" in server:
        said.append(f"KV cache {server['kv_usage']['mean']:.0%}")
    if server.get("preemptions"):
        said.append(f"{server['preemptions']} preemptions")
    return f"; server: {', '.join(said)}" if said else ""
