"""Every typed schema of the configuration, on one screen. Facts only: nothing here runs anything.

Hydra composes plain dictionaries; `parse` turns a part of them into one of these frozen objects, or
raises a ConfigError that names key, value and cure.
"""

from math import inf, nan
from typing import Annotated, Any, Literal, TypeVar, get_args

from hydra.utils import get_class
from omegaconf import DictConfig, OmegaConf
from pydantic import (
    BaseModel,
    BeforeValidator,
    Field,
    PlainValidator,
    PositiveFloat,
    PositiveInt,
    ValidationError,
    ValidationInfo,
    field_validator,
    model_validator,
)

from llmpilot.architecture import (
    BYTES,
    KV_BYTES,
    Attention,
    Experts,
    Formats,
    KvFormat,
    LayerKind,
    Mixer,
    Mlp,
    Parts,
    Precision,
    conventional_formats,
    parameters_by_group,
)
from llmpilot.errors import ConfigError, did_you_mean
from llmpilot.schema import Facts, NonNegative, Rate, Share

__all__ = ["Facts", "NonNegative", "Rate", "Share"]  # which schemas elsewhere take from here

VariableName = Annotated[str, Field(pattern=r"^([A-Za-z_][A-Za-z0-9_]*)?$")]
"""The name of an environment variable; empty for none."""


class Gpu(Facts):
    """A GPU profile: `count` GPUs of one type in one pod, the model sharded over them (tensor parallel).

    Figures are per GPU and from the vendor's datasheet; TFLOPs are dense (without sparsity) tensor rates,
    None where the hardware has no such unit; `link_gb_s` is the bandwidth between two GPUs of the pod, both
    directions together. `profile` is a file of task=profile: operators measured on this very GPU.
    """

    name: str
    vendor: Literal["nvidia", "amd"]
    architecture: str
    memory_gb: Rate
    bandwidth_gb_s: Rate
    tflops_fp16: Rate
    tflops_fp8: Rate | None = None
    tflops_fp4: Rate | None = None
    link: Literal["pcie3", "pcie4", "pcie5", "nvlink", "infinity-fabric"]
    link_gb_s: Rate
    price_per_hour: dict[PositiveInt, PositiveFloat] = Field(default_factory=dict)
    """Count: $ per hour of a pod; empty where the list of prices does not have this type."""
    counts: tuple[PositiveInt, ...] = ()
    """Counts that there are: those without a price can be simulated, not ranked by cost."""
    price_source: str = ""
    """Whose prices these are, of what kind, where and when."""
    datasheet: str
    count: PositiveInt = 1
    profile: str | None = None

    @model_validator(mode="after")
    def _count_is_there(self) -> "Gpu":
        if not self.possible_counts:
            raise ValueError(f"gpu.price_per_hour of {self.name} is empty, and so is gpu.counts: fill in one")
        if self.count not in self.possible_counts:
            there = ", ".join(str(n) for n in self.possible_counts)
            raise ValueError(
                f"gpu.count={self.count} is not sold for {self.name}: a pod has {there}. "
                f"Take one of these, or add a price: +gpu.price_per_hour.{self.count}=<$ per hour>"
            )
        return self

    @property
    def possible_counts(self) -> tuple[int, ...]:
        """How many of these GPUs a pod may have, with a price or without."""
        return tuple(sorted({*self.price_per_hour, *self.counts}))

    @property
    def priced(self) -> bool:
        """Whether a price of this profile is known."""
        return self.count in self.price_per_hour

    @property
    def label(self) -> str:
        """`2 x A100-40GB`: how tables and plots call the profile."""
        return f"{self.count} x {self.name}"

    @property
    def cost_per_hour(self) -> float:
        """Price of one pod with this profile [$ per hour].

        Raises:
            ConfigError: no price of it is known.
        """
        if not self.priced:
            raise ConfigError(
                f"no price of {self.label} is known",
                given=self.price_source or f"gpu.price_per_hour={self.price_per_hour}",
                cure=f"give one: +gpu.price_per_hour.{self.count}=<$ per hour>; or take another prices=",
            )
        return self.price_per_hour[self.count]


class Model(Facts):
    """An LLM's architecture facts, as far as they decide its speed and memory. Decoder figures unless said.

    `parameters_b` counts all weights [1e9]; `active_parameters_b` those that one token passes through;
    `encoder_parameters_b` those used for the input only. `kv_bytes_per_token` is the KV cache of one token
    over all layers, before sharding.
    """

    name: str
    hf_id: str
    aliases: tuple[str, ...] = ()
    """Hugging Face ids of other checkpoints with the same architecture: later versions, fine-tuned ones."""
    architecture: str
    parameters_b: PositiveFloat
    active_parameters_b: PositiveFloat
    encoder_parameters_b: NonNegative = 0.0
    n_layers: PositiveInt
    n_encoder_layers: Annotated[int, Field(ge=0)] = 0
    d_model: PositiveInt
    n_heads: PositiveInt
    n_kv_heads: PositiveInt
    head_dim: PositiveInt
    kv_bytes_per_token: PositiveFloat
    vocabulary_size: PositiveInt
    max_positions: PositiveInt | None = None
    n_experts: PositiveInt = 1
    experts_per_token: PositiveInt = 1
    weight_bytes_per_parameter: PositiveFloat = 2.0
    torch_dtype: str = "bfloat16"
    layers: tuple[LayerKind, ...] = ()
    """Kinds of layers; empty: all alike, as the figures above describe them (`layer_kinds`)."""
    formats: Formats = Formats()
    kv_format: KvFormat = "bf16"
    fp8_format: Literal["fp8", "fp8_block"] = "fp8"
    """How the model is quantized to fp8 where that is asked for: its makers differ in the scales."""
    quantize_to: Precision | None = None
    """What a real engine is told to quantize to when it loads the checkpoint, which is stored otherwise."""
    flash_attention: bool = True
    source: str = ""

    @model_validator(mode="after")
    def _parts_within_whole(self) -> "Model":
        if self.active_parameters_b > self.parameters_b:
            raise ValueError("active_parameters_b is larger than parameters_b")
        if self.experts_per_token > self.n_experts:
            raise ValueError("experts_per_token is larger than n_experts")
        if self.layers and sum(kind.count for kind in self.layers) != self.n_layers:
            described = sum(kind.count for kind in self.layers)
            raise ValueError(
                f"model.layers describes {described} layers, and model.n_layers={self.n_layers}: "
                "change both, or give 'model.layers=[]' for layers that are all alike"
            )
        return self

    @property
    def layer_kinds(self) -> tuple[LayerKind, ...]:
        """The layers by kind; where the facts do not say, all alike, as wide as the parameters leave room."""
        if self.layers:
            return self.layers
        mixer = Attention(n_heads=self.n_heads, n_kv_heads=self.n_kv_heads, head_dim=self.head_dim)
        embeddings = 2 * self.vocabulary_size * self.d_model
        decoder_b = self.parameters_b - self.encoder_parameters_b
        left = (1e9 * decoder_b - embeddings) / self.n_layers - mixer.parameters(self.d_model)
        width = max(1, round(left / (3 * self.d_model * self.n_experts)))
        feed_forward = (
            Mlp(width=width)
            if self.n_experts == 1
            else Experts(n_experts=self.n_experts, per_token=self.experts_per_token, width=width)
        )
        return (LayerKind(count=self.n_layers, mixers=(mixer,), feed_forward=feed_forward),)

    @property
    def encoder_decoder(self) -> bool:
        """Whether the input passes through an encoder of its own (T5 and its kin)."""
        return self.n_encoder_layers > 0

    @property
    def kv_shards(self) -> int:
        """Over how many GPUs tensor parallelism can split the KV cache without keeping a part twice.

        A latent cache (DeepSeek's MLA) serves all heads and cannot be split; without a list of layers
        it is known by being smaller than its heads would need.
        """
        growing = [mixer.kv_shards for _, mixer in self._mixers if mixer.kv_values_per_further_token]
        if growing:
            return min(growing)
        per_head = 2 * self.n_layers * self.head_dim * 2.0
        return 1 if self.kv_bytes_per_token < 0.4 * per_head * self.n_kv_heads else self.n_kv_heads

    @property
    def _mixers(self) -> list[tuple[int, Mixer]]:
        """In how many layers there is which mixer."""
        return [(kind.count, mixer) for kind in self.layers for mixer in kind.mixers]

    @property
    def state_bytes(self) -> float:
        """Bytes that a sequence keeps however long it is: the states of linear and state-space layers."""
        return sum(count * mixer.state_bytes for count, mixer in self._mixers)

    def sequence_bytes(
        self, context_tokens: float, kv_format: KvFormat | None = None, *, gpus: int = 1
    ) -> float:
        """Return the bytes that a sequence of so many tokens keeps, summed over the GPUs of the profile.

        Windows keep no more than they see, states count once. Tensor parallelism splits a cache by its heads:
        with fewer heads than `gpus` (multi-query, latent attention) each is kept more than once.
        `kv_format`: of the cache; null: the model's own.
        """
        size = KV_BYTES[kv_format or self.kv_format]
        if not self.layers:
            copies = max(1.0, gpus / self.kv_shards)
            return self.kv_bytes_per_token * size / 2 * context_tokens * copies
        return sum(
            count
            * (mixer.kv_values(context_tokens) * size + mixer.state_bytes)
            * max(1.0, gpus / mixer.kv_shards)
            for count, mixer in self._mixers
        )

    @property
    def _parts(self) -> list[Parts]:
        return [(kind.count, kind.mixers, kind.feed_forward) for kind in self.layer_kinds]

    @property
    def precision(self) -> str:
        """What most weights of the layers are stored in; fp8 however it is scaled."""
        sizes = parameters_by_group(self._parts, self.d_model)
        form: str = getattr(self.formats, max(sizes, key=lambda group: sizes[group]))
        return "fp8" if form.startswith("fp8") else form

    def at_precision(self, precision: Precision | None, kv_precision: KvFormat | None = None) -> "Model":
        """Return the model with weights and KV cache in other number formats; null: as they are.

        What is quantized follows convention (`conventional_formats`): embeddings, output head, routers and
        norms never are. The name says what is not as in the checkpoint.

        Raises:
            ConfigError: the model is an encoder-decoder, which engines serve as it is.
        """
        facts: dict[str, Any] = {}
        if precision is not None and precision != self.precision:
            if self.encoder_decoder:
                raise ConfigError(
                    f"{self.name} is an encoder-decoder: engines serve those as they are",
                    given=f"precision={precision}",
                    cure="precision=null",
                )
            formats = conventional_formats(precision, self._parts, self.fp8_format)
            sizes = parameters_by_group(self._parts, self.d_model)
            saved = sum(size * (2.0 - BYTES[getattr(formats, group)]) for group, size in sizes.items())
            facts |= {
                "name": f"{self.name}_{precision}",
                "formats": formats,
                "quantize_to": precision,
                "weight_bytes_per_parameter": round(2.0 - saved / (self.parameters_b * 1e9), 4),
            }
        if kv_precision is not None and kv_precision != self.kv_format:
            facts |= {"name": f"{facts.get('name', self.name)}_kv_{kv_precision}", "kv_format": kv_precision}
        return self.model_copy(update=facts) if facts else self

    @property
    def weight_bytes(self) -> float:
        """Bytes that the weights take in GPU memory, over all GPUs of the profile."""
        return self.parameters_b * 1e9 * self.weight_bytes_per_parameter


Statistic = Literal["p50", "p90", "p95", "p99", "mean"]
STATISTICS: tuple[Statistic, ...] = get_args(Statistic)
LATENCIES = ("ttft_ms", "nttft_ms", "itl_ms", "tpot_ms", "e2e_ms")


class Limit(Facts):
    """One limit of an SLA: a statistic of a latency is at most `limit_ms` (nTTFT: ms per input token)."""

    latency: Literal["ttft_ms", "nttft_ms", "itl_ms", "tpot_ms", "e2e_ms"]
    statistic: Statistic
    limit_ms: PositiveFloat

    @property
    def promise(self) -> str:
        """`TTFT <= 1000 ms`: the limit where the statistic is said once for several."""
        return f"{self._name} <= {self.limit_ms:g} ms"

    @property
    def label(self) -> str:
        """`TTFT p95 <= 1000 ms`: how messages and tables write it."""
        return f"{self._name} {self.statistic} <= {self.limit_ms:g} ms"

    @property
    def _name(self) -> str:
        return {"nttft_ms": "nTTFT"}.get(self.latency, self.latency.removesuffix("_ms").upper())

    @property
    def percentile(self) -> int:
        """The percentile that it is on; the mean counts as the median: both lie amid the requests."""
        return 50 if self.statistic == "mean" else int(self.statistic.removeprefix("p"))


def _limits_of_latency(given: Any, info: ValidationInfo) -> float | dict[Statistic, float] | None:
    """Return what an SLA says of one latency: a number, or a number for each statistic, in their order."""
    key = f"sla.{info.field_name}"
    if not isinstance(given, dict):
        return None if given is None else _limit_ms(given, key)
    example = f"{key}.p95=1000, or {key}=1000 for the statistic that sla.percentile names"
    if not given:
        raise ConfigError(f"{key} names no statistic", given="{}", cure=f"{example}; null for no limit")
    if unknown := [name for name in map(str, given) if name not in STATISTICS]:
        hint = did_you_mean(f"p{unknown[0]}" if unknown[0].isdigit() else unknown[0], STATISTICS)
        raise ConfigError(
            f"{key}.{unknown[0]} is no statistic of a latency",
            given=given.get(unknown[0], given),
            cure=f"{hint}there are {', '.join(STATISTICS)}",
        )
    limits = {
        name: _limit_ms(given[name], f"{key}.{name}") for name in STATISTICS if given.get(name) is not None
    }
    return limits or None


def _limit_ms(given: Any, key: str) -> float:
    try:
        limit = nan if isinstance(given, bool) else float(given)
    except (TypeError, ValueError):
        limit = nan
    if not 0 < limit < inf:
        raise ConfigError(
            f"{key} is not possible", given=given, cure="give a finite number greater than 0, in ms, or null"
        )
    return limit


Limited = Annotated[float | dict[Statistic, float] | None, PlainValidator(_limits_of_latency)]


class Sla(Facts):
    """The latency promise: limits on statistics of each level's latencies; null means no limit.

    A latency has a number, which limits the statistic that `percentile` names, or a number for each of some
    statistics: {"p50": 300, "p99": 2000}. All limits hold at once.
    """

    nttft_ms: Limited = 100.0
    itl_ms: Limited = 50.0
    ttft_ms: Limited = None
    tpot_ms: Limited = None
    e2e_ms: Limited = None
    percentile: Literal[50, 90, 95, 99, "mean"] = 50
    max_failure_rate: Share = 0.01

    @property
    def limits(self) -> tuple[Limit, ...]:
        """The limits that are set, by latency and then by statistic."""
        return tuple(limit for latency in LATENCIES for limit in self.limits_on(latency))

    def limits_on(self, latency: str) -> tuple[Limit, ...]:
        """Return the limits on one latency, none or several."""
        given = getattr(self, latency)
        if given is None:
            return ()
        by_statistic = given if isinstance(given, dict) else {self.statistic: given}
        return tuple(
            Limit.model_validate({"latency": latency, "statistic": statistic, "limit_ms": limit_ms})
            for statistic, limit_ms in by_statistic.items()
        )

    def with_limit(self, changed: Limit) -> "Sla":
        """Return the SLA with another value of the limit on that latency and statistic."""
        by_statistic = {one.statistic: one.limit_ms for one in self.limits_on(changed.latency)}
        by_statistic[changed.statistic] = changed.limit_ms
        return self.model_copy(update={changed.latency: by_statistic})

    @property
    def statistic(self) -> Statistic:
        """The statistic that a number alone limits."""
        names: dict[int | str, Statistic] = {50: "p50", 90: "p90", 95: "p95", 99: "p99", "mean": "mean"}
        return names[self.percentile]

    @property
    def strictest_percentile(self) -> int:
        """The highest percentile with a limit: it wants the most requests. Without any, `percentile`."""
        default = 50 if self.percentile == "mean" else self.percentile
        return max((limit.percentile for limit in self.limits), default=default)

    @property
    def label(self) -> str:
        """`nTTFT <= 100 ms, ITL <= 50 ms at p50`; where the statistics differ, each behind its latency."""
        limits = self.limits
        statistics = {limit.statistic for limit in limits}
        if len(statistics) == 1:
            return f"{', '.join(limit.promise for limit in limits)} at {limits[0].statistic}"
        return ", ".join(limit.label for limit in limits) or "no latency limit"


def _as_list(value: Any) -> Any:
    return value if isinstance(value, list) or value is None else [value]


T = TypeVar("T")
M = TypeVar("M", bound=BaseModel)
Ladder = Annotated[list[T], BeforeValidator(_as_list), Field(min_length=1)]


MOST_WHOLE = 2**63 - 1
MOST_SEED = 2**32 - 1 - 100_000
"""Some libraries take 32 bits, and what is repeated is repeated with the seeds that follow."""

MOST_SECONDS = 30 * 24 * 3600.0
Window = Annotated[float, Field(ge=1e-3, le=MOST_SECONDS)]
"""How long a level is measured [s]: clocks tick in microseconds, and rates are counts over the window."""
Seconds = Annotated[float, Field(gt=0, le=MOST_SECONDS)]
Users = Annotated[int, Field(gt=0, le=100_000)]


class Load(Facts):
    """How requests arrive, and how long each level of the ladder is measured.

    The ladder is a list of user counts (closed loop), of request rates [1/s] (poisson, gamma) or of
    speed-ups of the trace's own timestamps (replay). `burstiness` is the shape of gamma arrivals: 1 is
    Poisson, less is burstier. Users of a closed loop think for `think_time_s` on average (exponential) before
    each request. After the window, load goes on for at most `drain_s` until every measured
    request has ended. A level with a failure rate above `stop_above_failure_rate` is the last.
    With `search` the ladder's first and last level are a range: levels in it are chosen to find the most that
    the service takes within the SLA, until that is known to a share of `search_until`, and those at it are
    measured `search_repeats` times.
    """

    arrival: Literal["closed", "poisson", "gamma", "replay"]
    users: Ladder[Users] | None = None
    rates_per_s: Ladder[Rate] | None = None
    speedups: Ladder[Rate] | None = None
    duration_s: Window = 120.0
    warmup_s: Annotated[float, Field(ge=0, le=MOST_SECONDS)] = 10.0
    drain_s: Seconds = 300.0
    stop_above_failure_rate: Share = 0.5
    burstiness: PositiveFloat = 1.0
    think_time_s: Annotated[float, Field(ge=0, le=MOST_SECONDS)] = 0.0
    trace: dict[str, Any] | None = None
    search: bool = False
    search_repeats: Annotated[int, Field(ge=1, le=100)] = 2
    search_until: Annotated[float, Field(ge=0.001, le=1)] = 0.05

    @model_validator(mode="after")
    def _ladder_makes_sense(self) -> "Load":
        name = LADDERS[self.arrival][0]
        ladder = getattr(self, name)
        if ladder is None:
            raise ValueError(f"load.{name} is missing: the levels to measure, e.g. load.{name}=[1,2,4]")
        if sorted(set(ladder)) != ladder:
            raise ValueError(f"load.{name}={ladder} must rise, without repeats")
        if self.search and len(ladder) < 2:
            raise ValueError(
                f"load.{name}={ladder} is no range to search: load.search=true goes from its first level to "
                f"its last, load.{name}=[1,1024]"
            )
        if self.think_time_s and self.arrival != "closed":
            raise ValueError(
                f"load.think_time_s={self.think_time_s:g} is for users who wait for their answers: "
                "load=closed_loop; in an open loop requests come as they come"
            )
        return self

    @property
    def levels(self) -> list[float]:
        """The ladder, whatever it counts; of a range to search, its first level, doubled up to its last."""
        ladder = list(getattr(self, LADDERS[self.arrival][0]))
        if not self.search:
            return ladder
        doubled = [ladder[0]]
        while doubled[-1] * 2 < ladder[-1]:
            doubled.append(doubled[-1] * 2)
        return [*doubled, ladder[-1]]

    @property
    def unit(self) -> str:
        """What a level of the ladder is: users, requests/s, or x the trace's own speed."""
        return LADDERS[self.arrival][1]


LADDERS = {
    "closed": ("users", "users"),
    "poisson": ("rates_per_s", "requests/s"),
    "gamma": ("rates_per_s", "requests/s"),
    "replay": ("speedups", "x trace speed"),
}


class Tracking(Facts):
    """Which MLflow tracking server runs go to, and how long to wait for its answers."""

    uri: str
    experiment_prefix: str = "llm-pilot"
    timeout_s: PositiveFloat = 10.0

    @field_validator("uri")
    @classmethod
    def _known_scheme(cls, uri: str) -> str:
        scheme = uri.split(":", 1)[0].split("+", 1)[0] if ":" in uri else "file"
        if scheme not in TRACKING_SCHEMES:
            raise ValueError(
                f"tracking.uri={uri} is no MLflow tracking URI: take sqlite:///mlflow.db, http://HOST:PORT "
                f"or another of the schemes {', '.join(TRACKING_SCHEMES)}"
            )
        return uri


DEFAULT_TRACKING_URI = "sqlite:///mlflow.db"
TRACKING_SCHEMES = ("sqlite", "http", "https", "postgresql", "mysql", "mssql", "file", "databricks")


def plain(node: Any) -> Any:
    """Return a configuration node as plain Python values, interpolations resolved."""
    return OmegaConf.to_container(node, resolve=True) if OmegaConf.is_config(node) else node


def parse(schema: type[M], node: DictConfig | dict[str, Any], key: str) -> M:
    """Return `node`, the part of the configuration under `key`, as an object of `schema`.

    Raises:
        ConfigError: an unknown key or an impossible value; the message names it and what to do.
    """
    try:
        return schema.model_validate(plain(node))
    except ValidationError as error:
        first, *others = (_without_alternatives(problem, plain(node)) for problem in error.errors())
        alike = [problem["msg"] for problem in others if problem["loc"] == first["loc"]]
        if alike:  # one value that suits none of several types
            said = [first["msg"], *(message.removeprefix("Input should be ") for message in alike)]
            first["msg"] = " or ".join(dict.fromkeys(said))
        raise _explain(schema, first, key) from None


def whole_number(value: Any, key: str, least: int = 1, most: int = MOST_WHOLE) -> int:
    """Return `value`, what the configuration says under `key`, as a whole number from `least` to `most`.

    Raises:
        ConfigError: it is none.
    """
    if isinstance(value, bool) or not isinstance(value, int) or not least <= value <= most:
        within = f"at least {least}" if most == MOST_WHOLE else f"{least} to {most}"
        shown = "null" if value is None else value
        raise ConfigError(f"{key} must be a whole number of {within}", given=shown, cure=f"{key}={least}")
    return value


def parse_seed(value: Any) -> int:
    """Return the configuration's `seed`.

    Raises:
        ConfigError: it is no whole number from 0 to MOST_SEED.
    """
    return whole_number(value, "seed", least=0, most=MOST_SEED)


def _without_alternatives(problem: Any, given: Any) -> dict[str, Any]:
    """Return a problem without pydantic's names of a union's types, which follow the value in its place."""
    kept = []
    for part in problem["loc"]:
        if not isinstance(given, dict | list | tuple):
            break
        kept.append(part)
        try:
            given = given[part]
        except (LookupError, TypeError):  # what is missing, or a type's name: what it is about follows
            continue
    return {**problem, "loc": tuple(kept)}


def _explain(schema: type[BaseModel], problem: Any, key: str) -> ConfigError:
    where = ".".join(filter(None, [key, *(str(part) for part in problem["loc"])]))
    if problem["type"] == "extra_forbidden":
        options = list(schema.model_fields)
        hint = did_you_mean(str(problem["loc"][-1]), options)
        return ConfigError(
            f"{where} is not a key of {key}",
            given=problem["input"],
            cure=f"{hint}the keys are {', '.join(options)}",
        )
    if problem["type"] == "missing":
        return ConfigError(
            f"{where} is missing", cure=f"add it to the {key} file or on the command line: +{where}=..."
        )
    if problem["type"] == "value_error":
        return ConfigError(str(problem["ctx"]["error"]))
    if problem["type"] == "string_pattern_mismatch":
        if where.endswith("api_key_env"):  # what was given may be the key itself
            return ConfigError(
                f"{where} is no name of a variable", given="(not shown)", cure=f"{where}=MY_API_KEY"
            )
        return ConfigError(
            f"{where} is not possible",
            given=problem["input"],
            cure=f"give what matches {problem['ctx']['pattern']}",
        )
    description = schema.model_fields.get(str(problem["loc"][0])) if problem["loc"] else None
    cure = (
        f"set {where}=<value>" if description is None else f"{problem['msg'][0].lower()}{problem['msg'][1:]}"
    )
    return ConfigError(f"{where} is not possible", given=problem["input"], cure=cure)


def build(node: DictConfig, key: str) -> Any:
    """Return the behaviour that a configuration node names in `_target_`, checked like the facts.

    Raises:
        ConfigError: no such target, an unknown key or an impossible value.
    """
    values = plain(node)
    target = values.pop("_target_", None)
    if target is None:
        raise ConfigError(
            f"{key} names no _target_", given=values, cure=f"choose an option of {key}: --help lists them"
        )
    try:
        schema = get_class(target)
    except Exception as error:
        raise ConfigError(f"{key}._target_ cannot be imported: {error}", given=target) from None
    return parse(schema, values, key)
