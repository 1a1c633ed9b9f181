"""Which column of a trace holds what: as said, or as the public traces are laid out. Reads no rows."""

from dataclasses import dataclass, replace
from pathlib import Path
from typing import Literal

from llmpilot.config import Facts
from llmpilot.errors import TraceError, did_you_mean

Unit = Literal["s", "ms", "us", "ns", "iso"]


class TraceColumns(Facts):
    """Which column of the trace holds what; null: found by its name where a known layout has it, or not said.

    Values within values have dotted names (`usage.prompt_tokens`). What a trace does not say takes its
    neutral value: one sequence, greedy unless there is a temperature above 0, temperature 1, top_k 0 and
    top_p 1 (no limit). So does an empty cell of an optional column.
    """

    input_tokens: str | None = None
    output_tokens: str | None = None
    batch_size: str | None = None
    greedy: str | None = None
    temperature: str | None = None
    top_k: str | None = None
    top_p: str | None = None
    timestamp: str | None = None
    session: str | None = None


@dataclass(frozen=True)
class Layout:
    """How a public trace names its columns. `unit`: of its timestamps, as its publishers say."""

    name: str
    input_tokens: str
    output_tokens: str
    timestamp: str | None = None
    session: str | None = None
    unit: Unit | None = None
    marks: tuple[str, ...] = ()
    """Further columns by which it is told from another one of the same names."""


OWN = Layout("", "input_tokens", "output_tokens", "timestamp", "session")
LAYOUTS = (
    OWN,
    Layout("Azure's LLM inference traces", "ContextTokens", "GeneratedTokens", "TIMESTAMP"),
    Layout("BurstGPT", "Request tokens", "Response tokens", "Timestamp", "Session ID", "s"),
    # Alibaba's takes Mooncake's names, but counts in seconds, and says which request follows which.
    Layout(
        "Qwen Bailian's traces", "input_length", "output_length", "timestamp", None, "s", ("chat_id", "turn")
    ),
    Layout("Mooncake's traces", "input_length", "output_length", "timestamp", "session_id", "ms"),
    Layout("Splitwise's traces", "prompt_size", "token_size", "arrival_timestamp", None, "s"),
    Layout("Vidur's traces", "num_prefill_tokens", "num_decode_tokens", "arrived_at", None, "s"),
    Layout("OpenAI's usage", "prompt_tokens", "completion_tokens", "created", None, None),
    Layout("OpenAI's usage", "usage.prompt_tokens", "usage.completion_tokens", "created", None, None),
)
"""Sources, all on github.com: Azure/AzurePublicDataset (2023 and 2024: dates), HPMLL/BurstGPT (seconds from
midnight of the first day), kvcache-ai/Mooncake (FAST'25: milliseconds from the first request),
alibaba-edu/qwen-bailian-usagetraces-anon, Mutinifni/splitwise-sim, microsoft/vidur."""
TEXTS = ("conversations", "messages", "conversation")
"""Columns of conversations as texts: ShareGPT's, OpenAI's chats', LMSYS's and WildChat's."""
SESSIONS = ("session_id", "conversation_id")
TIMES = ("timestamp", "Timestamp", "TIMESTAMP", "time", "arrival_time", "arrived_at", "ts", "created_at")


@dataclass(frozen=True)
class Found:
    """What is read of a trace: field -> column; or the column whose texts are to be counted."""

    columns: dict[str, str]
    layout: Layout = OWN
    by_name: tuple[str, ...] = ()
    """Columns that nobody has said: they were known by their names."""
    texts: str | None = None

    @property
    def unit(self) -> Unit | None:
        """The unit of the timestamps, where they are the layout's own and its publishers say it."""
        return self.layout.unit if self.columns.get("timestamp") == self.layout.timestamp else None


def find_columns(
    path: Path, there: list[str], given: TraceColumns, *, timed: bool, key: str = "trace"
) -> Found:
    """Return which columns are read: those given, and those known by their names.

    Timestamps are looked for only where the task is `timed`: elsewhere nothing is asked of them.

    Raises:
        TraceError: a column that is given or needed is not there.
    """
    named = {field: name for field, name in given.model_dump().items() if name is not None}
    layout = _layout(there, named)
    if layout is None:
        texts = next((name for name in TEXTS if name in there), None)
        if texts is not None and not {"input_tokens", "output_tokens"} & set(named):
            return Found(named, replace(OWN, name="conversations"), texts=texts)
        layout = OWN
    columns = dict(named)
    for field in ("input_tokens", "output_tokens"):
        columns.setdefault(field, getattr(layout, field))
    if (session := next((name for name in (layout.session, *SESSIONS) if name in there), None)) is not None:
        columns.setdefault("session", session)
    if timed and "timestamp" not in columns:
        candidates = [name for name in (layout.timestamp, *TIMES) if name in there]
        if candidates:
            columns["timestamp"] = str(candidates[0])
    _refuse_missing(path, there, columns, key)
    return Found(columns, layout, tuple(name for field, name in columns.items() if field not in named))


def _layout(there: list[str], named: dict[str, str]) -> Layout | None:
    """Return the layout whose lengths, and other marks, are there and as they are named."""
    for layout in LAYOUTS:
        lengths = {"input_tokens": layout.input_tokens, "output_tokens": layout.output_tokens}
        as_named = all(named.get(field, name) == name for field, name in lengths.items())
        if as_named and {*lengths.values(), *layout.marks} <= set(there):
            return layout
    return None


def _refuse_missing(path: Path, there: list[str], wanted: dict[str, str], key: str) -> None:
    for field, name in wanted.items():
        if there.count(name) > 1:
            wrong = f"two columns of the trace are named {name!r}"
            raise TraceError(wrong, given=path, cure="rename one of them")
        if name not in there:
            raise TraceError(
                f"the trace has no column {name!r} for {field}",
                given=f"{path} with columns {', '.join(there[:30])}{' ...' if len(there) > 30 else ''}",
                cure=f"{did_you_mean(name, there)}name it: {key}.columns.{field}=<column>",
            )
