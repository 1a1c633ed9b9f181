"""Rows of the table of measurements as services under load: model, GPUs, engine and settings of each.

What a row leaves unsaid is assumed here, by rules that are written out beside them. A row that cannot be
simulated is skipped with its reason.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from functools import cache, cached_property
from math import ceil
from typing import Any

import pandas as pd
from pydantic import ValidationError

from llmpilot import catalog
from llmpilot.architecture import Experts, KvFormat
from llmpilot.config import Gpu, Model
from llmpilot.dataset.measurements import AT_ONCE, BATCH, CLOSED, OPEN, Measurements
from llmpilot.errors import ConfigError
from llmpilot.simulator.factors import family_of
from llmpilot.simulator.service_settings import ENGINE_NAMES, ServiceSettings, service_settings
from llmpilot.simulator.step_model import StepModel

INFERENCE_X = "inferencex"
OUR_CLIENT = "llmpilot"
"""Of rows that come from the user's own runs."""
INFERENCE_X_LEAST_SHARE = 0.8
"""InferenceX draws lengths uniformly from this share of the nominal ones up to them."""
INFERENCE_X_LENGTHS = ((1024.0, 1024.0), (1024.0, 8192.0), (8192.0, 1024.0))
ROUNDS = 10
"""Requests a user, where a row does not say how many there were: InferenceX's, and common elsewhere."""
OPEN_REQUESTS = 1000
"""Of an open loop, where a row does not say."""
MOST_CHUNKS = 200_000
"""Prompts of a run, each counted by the steps that it takes at least: more would be simulated for minutes."""
MOST_TOKENS = 1_000_000
"""Of one request."""

UNSAID_VERSIONS = {("argonne-LLM-Inference-Bench", "vllm"): "0.6"}
"""Versions of rows that name none: what the other rows of their source name, by source and engine."""
A100_NVLINK_GB_S = 600
"""NVLink of the A100's SXM board, both directions (its datasheet)."""
MI250_GB = 128
"""Memory of an MI250, which has two dies; the option is one of them."""
QUEUEING_CLIENT, QUEUED_TOKENS, QUEUED = "trtllm-bench", 6e6, (1000.0, 3000.0)
"""A client that queues all requests at the start; and how many tokens these have, where a row does not say,
within least and most requests: most of the time as many run as the engine lets in."""
DATASET_TOKENS = 2048
"""Longest request of a data set: vLLM's benchmark drops longer ones of ShareGPT."""


LEAST_ROOM = 0.08
"""Share of the memory that the KV cache has at least."""


@dataclass(frozen=True)
class Level:
    """One level of load on one service.

    `users`: a closed loop of so many; `rate_per_s`: an open loop; `at_once`: so many requests together at the
    start. Lengths are means [tokens]; each request's is drawn from `least_share` of the longest up to it.
    """

    row: int
    service: StepModel
    family: str
    input_tokens: float
    output_tokens: float
    least_share: float
    users: float | None
    rate_per_s: float | None
    at_once: int | None
    n_requests: int | None
    client: str
    wide: bool = False
    """Whether lengths are those of a data set, far apart; else fixed, or as `least_share` says."""

    @property
    def begins_at_once(self) -> bool:
        """Whether a closed loop's figures have its start in them, where all users begin together.

        InferenceX's do. So do those of SGLang under fixed lengths of multiples of 128, as load tests have
        them: prompts go before decoding there, so that users who began together go on so, wave after wave.
        NVIDIA's runs of round lengths (1,000, 2,000 ...) show no waves; users of our own load tests begin one
        after the other.
        """
        if self.users is None or self.client == OUR_CLIENT:
            return False
        together = self.service.settings.engine == "sglang" and self.least_share == 1.0 and not self.wide
        return self.client == INFERENCE_X or (together and self.input_tokens % 128 == 0)

    @property
    def requests(self) -> int:
        """How many requests are simulated.

        In a steady loop enough for a steady part between the first round, whose outputs are cut so that users
        do not march in step, and the last, after which load fades.
        """
        if self.users is None:
            return self.at_once or self.n_requests or OPEN_REQUESTS
        users = max(1, round(self.users))
        return self.n_requests or ROUNDS * users if self.begins_at_once else (ROUNDS + 2) * users

    @cached_property
    def settings(self) -> ServiceSettings:
        """The service's settings under this load.

        TensorRT-LLM without chunked prompts can never start one that is longer than what decoding leaves of
        `max_num_batched_tokens`: it is set up, as InferenceX does, so that the longest fits beside all users.
        """
        settings = self.service.settings
        if settings.engine != "trtllm" or settings.chunked_prefill:
            return settings
        beside = (self.users or 0.0) / settings.data_parallel
        least = round(self.longest * self.input_tokens + min(beside, settings.max_num_seqs)) + 64
        most = max(settings.max_num_batched_tokens, least)
        return settings.model_copy(update={"max_num_batched_tokens": most})

    @cached_property
    def held_tokens(self) -> float:
        """Tokens that a request which runs holds, as its engine reckons.

        TensorRT-LLM reserves a request's whole output; the others let requests in that have begun only, which
        hold about 0.6 of their output on average.
        """
        share = 1.0 if self.service.settings.engine == "trtllm" else 0.6
        return self.input_tokens + share * self.output_tokens

    @cached_property
    def kv_capacity_tokens(self) -> int:
        """Tokens of such requests that the memory holds.

        A service that was measured did start: where its weights leave less than LEAST_ROOM by our arithmetic,
        it was told to take more of the memory.
        """
        settings, model = self.service.settings, self.service.model
        plan = settings.memory(model, self.service.gpu)
        room = max(LEAST_ROOM * plan.total_gb, plan.usable_gb - plan.weights_gb - plan.reserve_gb)
        one = model.sequence_bytes(self.held_tokens, gpus=settings.tensor_parallel)
        return max(int(1e9 * room / one * self.held_tokens), self.longest_tokens)

    @property
    def longest(self) -> float:
        """How many times their mean lengths are at most."""
        if self.wide:
            return min(max(DATASET_TOKENS / (self.input_tokens + self.output_tokens), 2.0), 8.0)
        return 2.0 / (1.0 + self.least_share)

    @property
    def longest_tokens(self) -> int:
        """Tokens that the longest request may come to."""
        return round(self.longest * (self.input_tokens + self.output_tokens)) + 2

    @cached_property
    def capacity(self) -> float:
        """How many such requests may run at once: by the KV cache, and by the engine's own limit."""
        settings = self.service.settings
        most = float(settings.max_num_seqs * settings.data_parallel)
        return max(1.0, min(self.kv_capacity_tokens / self.held_tokens, most))


@dataclass(frozen=True)
class Described:
    """The levels that a table's rows describe, and of each row [n rows] why it describes none (or None)."""

    levels: list[Level]
    skipped: list[str | None]


def described(measurements: Measurements, models: Mapping[str, Model]) -> Described:
    """Return the rows as levels of load. `models`: of LLMs that the catalogue lacks, by Hugging Face id."""
    gpus = catalog.gpus()
    services: dict[Any, StepModel | str] = {}
    levels: list[Level] = []
    skipped: list[str | None] = []
    for at, row in enumerate(_records(measurements)):
        key = tuple(_plain(row.get(name)) for name in _SERVICE_COLUMNS)
        if key not in services:
            services[key] = _service(row, models, gpus)
        service = services[key]
        found = service if isinstance(service, str) else _level(at, row, service)
        skipped.append(found if isinstance(found, str) else None)
        if isinstance(found, Level):
            levels.append(found)
    return Described(levels, skipped)


_SERVICE_COLUMNS = (
    *(
        "source",
        "model",
        "checkpoint",
        "gpu",
        "gpu_as_stated",
        "n_gpus",
        "tp",
        "pp",
        "dp",
        "ep",
        "moe_tp",
        "attention_dp",
    ),
    *(
        "engine",
        "engine_version",
        "precision",
        "precision_as_stated",
        "kv_precision",
        "gemm_quant",
        "moe_quant",
        "client",
    ),
    *("max_num_seqs", "max_num_batched_tokens", "chunked_prefill", "prefix_hit_share"),
    *("disaggregated", "spec_decode"),
)


def _service(row: Mapping[str, Any], models: Mapping[str, Model], gpus: Mapping[str, Gpu]) -> StepModel | str:
    """Return the service of a row, or why there is none to simulate."""
    engine = _plain(row.get("engine"))
    if engine is None:
        return "engine not given"
    if engine not in ENGINE_NAMES:
        return f"engine {engine} is not simulated from operators"
    if _plain(row.get("disaggregated")) is True:
        return "disaggregated prefill and decode"
    if _plain(row.get("spec_decode")) == "yes":
        return "speculative decoding"
    gpu = gpus.get(str(row["gpu"]))
    if gpu is None:
        return f"unknown GPU type {row['gpu']}"
    model = _model(row, models)
    if isinstance(model, str):
        return model
    pipeline, data = _count(row, "pp", 1), _count(row, "dp", 1)
    stated = _count(row, "tp", 0)
    n_gpus = _count(row, "n_gpus", max(1, stated) * pipeline * data)
    tensor = max(1, n_gpus // (pipeline * data))
    # Some say the GPUs of all replicas of the attention layers where we say those of one.
    if tensor * pipeline * data != n_gpus or (stated and stated not in (tensor, tensor * data)):
        return "the parallel sizes do not make up the GPUs"
    expert = min(_count(row, "ep", 1), n_gpus) if _has_experts(model) else 1
    gpu = _board(gpu, _plain(row.get("gpu_as_stated"))).model_copy(update={"count": n_gpus})
    hit = _plain(row.get("prefix_hit_share"))
    try:
        settings = service_settings(
            engine,
            gpu,
            version=_plain(row.get("engine_version"))
            or UNSAID_VERSIONS.get((str(row.get("source")), engine)),
            tensor_parallel=tensor,
            pipeline_parallel=pipeline,
            data_parallel=data,
            expert_parallel=expert,
            max_num_seqs=_count(row, "max_num_seqs", 0) or None,
            max_num_batched_tokens=_count(row, "max_num_batched_tokens", 0) or None,
            chunked_prefill=_plain(row.get("chunked_prefill")),
            prefix_hit_share=hit,
        )
    except ValidationError as error:
        return f"impossible settings: {error.errors()[0]['msg'].removeprefix('Value error, ')}"
    return StepModel(_served(model, engine, row), gpu, settings)


def _board(gpu: Gpu, stated: str | None) -> Gpu:
    """Return the GPU type as the row states it, where the option is a lesser one of that name.

    An A100 on an SXM board has NVLink, which the option's PCIe card lacks. An MI250 has the memory of two
    dies: 70B in 16 bits ran on two, which the memory of two dies does not hold, at the pace of two dies.
    """
    if gpu.name == "MI250" and stated == "MI250":
        return gpu.model_copy(update={"memory_gb": MI250_GB})
    if gpu.link.startswith("pcie") and "SXM" in (stated or "") and gpu.name.startswith("A100"):
        return gpu.model_copy(update={"link": "nvlink", "link_gb_s": A100_NVLINK_GB_S})
    return gpu


def _model(row: Mapping[str, Any], models: Mapping[str, Model]) -> Model | str:
    """Return the LLM of a row in the precision that the row says.

    gpt-oss is quantized as it is published whatever else a source calls it: its experts stay mxfp4.
    """
    hf_id = str(row["model"])
    known = models.get(hf_id) or _of_catalogue(hf_id)
    if known is None:
        return f"unknown model {hf_id}"
    precision, stated = _plain(row.get("precision")), _plain(row.get("precision_as_stated"))
    if precision is None and stated is not None:
        return f"unknown precision {stated}"
    if known.precision == "mxfp4":
        return known
    try:
        return known.at_precision(precision)
    except ConfigError as error:
        return error.wrong


@cache
def _of_catalogue(hf_id: str) -> Model | None:
    return catalog.model_of_hf_id(hf_id)


def _served(model: Model, engine: str, row: Mapping[str, Any]) -> Model:
    """Return the model in the number formats that the engine serves it in.

    What is quantized to FP8 and is no FP8 checkpoint of its own: mixtures of experts scale blocks of
    128 x 128 weights; dense models, which NVIDIA makes for TensorRT-LLM, whole tensors. The KV cache,
    unless the row says: FP8 with TensorRT-LLM wherever weights are not bf16, as its checkpoints say, and
    with InferenceX's vLLM but on H100, as its concurrencies show; bf16 with the others.
    """
    formats = model.formats
    dense = not _has_experts(model)
    if dense and engine == "trtllm" and not model.hf_id.lower().endswith("fp8"):
        whole = {key: "fp8" for key, form in formats.model_dump().items() if form == "fp8_block"}
        formats = formats.model_copy(update=whole)
    elif not dense:
        blocks = {key: "fp8_block" for key, form in formats.model_dump().items() if form == "fp8"}
        formats = formats.model_copy(update=blocks)
    kv: KvFormat | None = _plain(row.get("kv_precision"))
    if kv is None:
        inference_x = engine == "vllm" and _plain(row.get("client")) == INFERENCE_X and row["gpu"] != "h100"
        quantized = model.precision != "bf16" and (engine == "trtllm" or inference_x)
        kv = "fp8" if quantized else "bf16"
    return model.model_copy(update={"formats": formats, "kv_format": kv})


def _level(at: int, row: Mapping[str, Any], service: StepModel) -> Level | str:
    """Return a row's load, or why it cannot be simulated."""
    given, out = _plain(row.get("input_tokens")), _plain(row.get("output_tokens"))
    if given is None or out is None:
        return "lengths not given"
    client = _client(row)
    least = _plain(row.get("length_min_share"))
    if least is None:
        least = INFERENCE_X_LEAST_SHARE if client == INFERENCE_X else 1.0
    least = float(least)
    middle = (1.0 + least) / 2
    users = rate = at_once = None
    kind, concurrency = _plain(row.get("load_kind")), _plain(row.get("concurrency"))
    n_requests = _count(row, "n_requests", 0) or None
    if kind == OPEN or (kind is None and _plain(row.get("request_rate")) is not None):
        rate = _plain(row.get("request_rate"))
        if rate is None:
            return "load not given"
    elif kind in (BATCH, AT_ONCE):
        # Of a batch, the number of requests may be that of several repeats.
        batch = None if concurrency is None else int(concurrency)
        at_once = batch or n_requests if kind == BATCH else n_requests or batch
        if at_once is None and client == QUEUEING_CLIENT:
            at_once = round(min(max(QUEUED_TOKENS / (given + out), QUEUED[0]), QUEUED[1]))
        if at_once is None:
            return "load not given"
    elif kind == CLOSED or concurrency is not None:
        users = concurrency
        if users is None:
            return "load not given"
    else:
        return "load not given"
    level = Level(
        row=at,
        service=service,
        family=family_of(service.model),
        input_tokens=float(given) * middle,
        output_tokens=max(1.0, float(out) * middle),
        least_share=least,
        users=None if users is None else float(users),
        rate_per_s=None if rate is None else float(rate),
        at_once=at_once,
        n_requests=n_requests,
        client=client,
        wide=_plain(row.get("length_kind")) == "dataset",
    )
    return _too_much(level) or level


def _too_much(level: Level) -> str | None:
    """Return why a level cannot be simulated in reasonable time, or at all; None: it can."""
    tokens = level.input_tokens + level.output_tokens
    if tokens > (level.service.model.max_positions or tokens):
        return "requests longer than the LLM's positions"
    if tokens > MOST_TOKENS:
        return f"requests longer than {MOST_TOKENS:,} tokens"
    if level.requests * ceil(level.input_tokens / level.settings.max_num_batched_tokens) > MOST_CHUNKS:
        return f"more than {MOST_CHUNKS:,} prompts or parts of prompts to simulate"
    return None


def _client(row: Mapping[str, Any]) -> str:
    """Return whose load test a row is of: NVIDIA's collection has runs of InferenceX, told by lengths."""
    client = _plain(row.get("client")) or ""
    lengths = (_plain(row.get("input_tokens")), _plain(row.get("output_tokens")))
    return INFERENCE_X if client == "nvidia" and lengths in INFERENCE_X_LENGTHS else client


def _has_experts(model: Model) -> bool:
    return any(isinstance(kind.feed_forward, Experts) for kind in model.layer_kinds)


def _count(row: Mapping[str, Any], name: str, default: int) -> int:
    value = _plain(row.get(name))
    return default if value is None else int(value)


def _records(measurements: Measurements) -> list[dict[str, Any]]:
    return [
        {str(name): value for name, value in row.items()} for row in measurements.table.to_dict("records")
    ]


def _plain(value: Any) -> Any:
    """Return a cell of the table, None for every kind of missing."""
    return None if value is None or (not isinstance(value, str) and pd.isna(value)) else value
