"""Every field of a characterization's result, from which `result.schema.json` is made for others to read.

`python -m llmpilot.report.result_fields` writes that file anew. A field may be added within a version; one
that goes or changes its meaning makes a new version. Results are not checked while they are written: a
measurement is worth more than its form.
"""

import json
from pathlib import Path
from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, Field

RESULT = "llm-pilot/result/1"
SWEEP = "llm-pilot/sweep/1"
FILE = Path(__file__).with_name("result.schema.json")


class Part(BaseModel):
    """Base of all parts: docstrings of attributes are their descriptions."""

    model_config = ConfigDict(use_attribute_docstrings=True)


class Statistics(Part):
    """Percentiles (linear interpolation) and mean; null without a value."""

    p50: float | None
    p90: float | None
    p95: float | None
    p99: float | None
    mean: float | None


class Excluded(Part):
    """Requests that no figure counts."""

    warmup: int
    """Sent before the steady window."""
    drain: int
    """Sent behind it, to keep the load up until every measured request had ended."""


class Streams(Part):
    """How answers came, and which latencies that does not show."""

    one_piece_share: float | None
    """Of the answers with several tokens, those that came in one piece; null without any."""
    short_gap_share: float | None
    """Of the gaps between tokens, those below 0.1 ms; null without any."""
    not_shown: list[Literal["ttft_ms", "nttft_ms", "itl_ms", "tpot_ms"]]
    """Latencies that say nothing of the service; of itl_ms alone, its mean still does."""


class Fidelity(Part):
    """Lengths of the answers beside those that the workload asked for [tokens, mean]; null without any."""

    output_tokens_asked: float | None
    output_tokens_received: float | None
    """Including those that the server counted and never showed."""
    ended_early_share: float | None
    longer_share: float | None
    input_tokens_asked: float | None
    input_tokens_counted: float | None
    """By the server; null where it does not say."""
    problem: str | None
    """In what way another workload was measured than the one configured; null where it was that one."""


class HiddenTokens(Part):
    """Output tokens in the steady window that the server counted and never showed."""

    total: int
    share: float
    """Of all output tokens."""


class Turn(Part):
    """One turn of all conversations."""

    turn: int
    """Counted from 1."""
    and_later: bool
    """Whether later turns are part of it."""
    requests: int
    ttft_ms: Statistics
    input_tokens_mean: float | None
    cached_share: float | None
    """Of the prompts' tokens, those that the server says it had in its cache; null where it does not say."""


class Gauge(Part):
    """A figure of the server's own, in the steady window."""

    mean: float
    max: float


class Server(Part):
    """What the server, and the GPUs of this machine, said of themselves."""

    samples: int
    missed: int
    answer_ms: Gauge | None = None
    """How long the server took to say it."""
    running: Gauge | None = None
    waiting: Gauge | None = None
    kv_usage: Gauge | None = None
    gpu_power_w: Gauge | None = None
    gpu_memory_gb: Gauge | None = None
    preemptions: int | None = None


class Workers(Part):
    """The processes of the load test."""

    workers: int
    loop: str
    """The event loop."""
    busy_share: float
    lag_ms_p50: float
    lag_ms_p99: float


class Histories(Part):
    """What it took the client to read answers and to write the turns of conversations behind them."""

    slice_ms_mean: float
    """Of the slices in which it does so, while other answers come in."""
    slice_ms_longest: float
    busy_ms_per_turn: float
    made_up_answers: int
    """Answers of whose tokens the server told no ids, so that others stood for them in the turns behind."""


class Client(Part):
    """What the load test's client says of a level, from its start to its end."""

    tokens_counted_by: dict[str, int]
    """By what the tokens of how many answers were counted: token_ids, usage, timings, chunks ..."""
    chunks: int
    """Pieces of streams that carried tokens."""
    chunks_merged_share: float
    """Those with more than one token."""
    answers: int
    pieces_per_answer: float
    in_one_piece: int
    in_one_piece_share: float
    ended_early: int
    longer_than_asked: int
    hidden_tokens: int
    thinking_share: float
    """Of the output tokens shown, those of thoughts."""
    reconnects: int
    failure_messages: dict[str, str]
    """One message of each kind of failure."""
    histories: Histories | None = None
    """Of conversations alone."""
    client: Workers


class Repeat(Part):
    """One of the measurements that a search has made of a level, each with other requests."""

    repeat: int
    """Counted from 0."""
    duration_s: float
    sla_margin: float
    requests_ok: int
    requests_failed: int
    throughput_tok_s: float
    window_problem: str | None


class Level(Part):
    """One level of load, in its steady window. Latencies in ms, of successful requests sent in it."""

    level: float
    users: int | None
    """The level in a closed loop; null in an open one."""
    requests_ok: int
    requests_failed: int
    ttft_ms: Statistics
    """From sending a request to its first output token, of thoughts or of the answer."""
    nttft_ms: Statistics
    """That by input token."""
    itl_ms: Statistics
    """All gaps between two output tokens."""
    tpot_ms: Statistics
    """A request's mean gap."""
    e2e_ms: Statistics
    """From sending a request to its last output token."""
    ttfa_ms: Statistics | None = None
    """From sending to the first token of the answer itself, where models thought aloud before it."""
    thought_aloud: int | None = None
    """Requests behind `ttfa_ms`."""
    requests_per_s: float
    goodput_per_s: float
    """Requests that keep the limits of the SLA each by itself; 0 where streams do not show a limited one."""
    throughput_tok_s: float
    """Output tokens."""
    input_tok_s: float
    total_tok_s: float
    concurrency_mean: float
    failure_rate: float
    failures: dict[str, int]
    """By kind."""
    excluded: Excluded
    window_problem: str | None
    """Why the window was too short to judge the level by, and the cure; null where it was not."""
    window_wanted_s: int | None
    """How long would do; null where it was long enough."""
    streams: Streams
    stream_problem: str | None
    """Which latencies the streams do not show, why, and the cure; null where they show all."""
    fidelity: Fidelity
    hidden_tokens: HiddenTokens | None = None
    cached_share: float | None = None
    """Of the prompts' tokens, those that the server says it had in its cache."""
    turns: list[Turn] | None = None
    server: Server | None = None
    client: Client | None = None
    """Of real services only."""
    repeat: int | None = None
    """Of a search only: which of the level's measurements these figures are of, counted from 0."""
    duration_s: float | None = None
    """Of a search only: how long it was measured for."""
    sla_margin: float | None = None
    """Of a search only: ln(limit / figure) of the limit that is nearest, from -ln 8 to ln 8."""
    repeats: list[Repeat] | None = None
    """Of a search only: all measurements of the level."""


class Sla(Part):
    """The limits [ms]: a number is of the statistic that `percentile` names; null is no limit."""

    nttft_ms: float | dict[str, float] | None
    itl_ms: float | dict[str, float] | None
    ttft_ms: float | dict[str, float] | None
    tpot_ms: float | dict[str, float] | None
    e2e_ms: float | dict[str, float] | None
    percentile: Literal[50, 90, 95, 99, "mean"]
    max_failure_rate: float


class Percentiles(Part):
    """Of a difference or a time [ms]."""

    p50: float | None
    p99: float | None


class Latencies(Part):
    """By one side's own clock."""

    ttft_ms: Percentiles
    itl_ms: Percentiles


class ClientError(Workers):
    """How far the client's latencies are from what an emulator really sent, at as many users."""

    users: int
    requests: int
    requests_failed: int
    requests_per_s: float
    requests_per_s_possible: float
    ttft_error_ms: Percentiles
    itl_error_ms: Percentiles
    unnoticed_ms: Percentiles
    """How long requests lay in the emulator's socket."""
    reported: Latencies
    sent: Latencies
    bottleneck: str
    """Why not to trust the client at this load; empty where there is no reason."""


class Verdict(Part):
    """What the client's own error comes to."""

    error: ClientError | None
    """Null where it was not measured."""
    bottleneck: dict[str, str]
    """Why the client decided what was measured, by level."""


class Search(Part):
    """How sure the answer of `load.search=true` is, and what it took."""

    estimate: float | None
    """Where the margin is 0 by isotonic regression, in `level_unit`; null where it is so nowhere."""
    interval: tuple[float, float | None]
    """Between which loads the most within the SLA lies; null: no upper end is known."""
    confidence: float
    """With which probability, where there is `noise`; without, the interval is from kept to broken."""
    noise: float | None
    """Standard deviation of the margin from window to window; null without repeats."""
    levels: int
    windows: int


class Result(Part):
    """What one characterization came to."""

    model_config = ConfigDict(title=RESULT)

    version: Literal["llm-pilot/result/1"] = Field(alias="schema")
    model: str
    gpu: str | None
    """The GPU type; null where it is not known what the service runs on."""
    count: int | None
    """How many of them a pod has."""
    engine: str
    deployment: str
    measurement: Literal["measured", "simulated"]
    max_batch_weight: int | None
    """Cap on the tokens of the running batch; null: the engine's own."""
    max_batch_weight_from: str | None = None
    study: str | None = None
    tuning_run_id: str | None = None
    workload: str
    run_id: str | None
    """Of MLflow; null where it could not be reached."""
    users_max: int | None
    """The most users tried within the SLA, going up, 0 for none; null in an open loop."""
    level_max: float
    """The same of any load, in `level_unit`."""
    level_max_is: Literal["exact", "between", "at_least", "below", "unseen"]
    """Whether it is the most that the service takes; between: less than `level_broken` is; at_least: nothing
    tried breaks the SLA; below: everything tried does; unseen: `level_unseen` cannot be judged."""
    level_broken: float | None
    """The first level that breaks the SLA."""
    level_unseen: float | None
    """The first level whose streams do not show what the SLA limits, if none broke it before."""
    search: Search | None = None
    """Of `load.search=true` only, and where streams show what the SLA limits."""
    level_unit: str
    cost_per_hour: float | None
    """$ of a pod."""
    cost_per_million_output_tokens: float | None
    """$ at `level_max`, busy all the time."""
    price_source: str | None
    sla: Sla
    levels: list[Level]
    client: Verdict | None = None
    """Of real services only."""


class Cell(Part):
    """One cell of a sweep."""

    cell: str
    """The overrides that tell it from others."""
    status: Literal["done", "does not fit", "not tracked", "failed", "interrupted"]
    reason: str | None = None
    result: Result | dict[str, Any] | None = None
    """Of a characterization as above; other tasks have their own."""


class Sweep(Part):
    """What `result_file` holds of a sweep (`-m`)."""

    model_config = ConfigDict(title=SWEEP)

    version: Literal["llm-pilot/sweep/1"] = Field(alias="schema")
    parent_run_id: str | None
    cells: list[Cell]


def json_schema() -> dict[str, Any]:
    """Return the JSON Schema of a characterization's result, with that of a sweep among its `$defs`."""
    schema = Sweep.model_json_schema()
    parts = schema.pop("$defs")
    result = parts.pop("Result")
    sweep = json.loads(json.dumps(schema))
    text = json.dumps({"parts": parts, "sweep": sweep}).replace('"#/$defs/Result"', '"#"')
    moved = json.loads(text)
    return {
        "$schema": "https://json-schema.org/draft/2020-12/schema",
        **result,
        "$defs": moved["parts"] | {"Sweep": moved["sweep"]},
    }


def text() -> str:
    """Return what `result.schema.json` holds."""
    return json.dumps(json_schema(), indent=2) + "\n"


if __name__ == "__main__":
    FILE.write_text(text(), encoding="utf-8")
