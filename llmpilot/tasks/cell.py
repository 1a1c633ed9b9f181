"""A cell of the experiment grid: one (model, GPU profile, engine) with all that decides its result."""

import hashlib
import json
from collections.abc import Callable, Mapping
from contextlib import AbstractContextManager
from dataclasses import dataclass
from functools import partial
from typing import Any, cast

from omegaconf import DictConfig

import llmpilot
from llmpilot import catalog
from llmpilot.config import Gpu, Load, Model, Sla, build, parse, parse_seed, whole_number
from llmpilot.console import note
from llmpilot.deploy.place import Endpoint, Place
from llmpilot.engine.inference import InferenceEngine, SimulatedAs
from llmpilot.errors import ConfigError
from llmpilot.loadtest import Traffic, open_traffic
from llmpilot.precision import require_units
from llmpilot.secrets import redact_tree
from llmpilot.simulator import VirtualService
from llmpilot.sizing import MemoryPlan, require_fit
from llmpilot.tasks.conversing import note_short_warm_up, require_conversations
from llmpilot.workload import load_conversations, load_workload


@dataclass(frozen=True)
class Cell:
    """Everything that decides what a characterization measures, checked and typed.

    Of a service that is already there, `model` and `gpu` may be None: neither its LLM nor its price is known.
    `tuned_by` are the settings that find the max batch weight, where a tuner does: the cell is then known by
    them, as it must be before the weight is found.
    """

    model: Model | None
    gpu: Gpu | None
    engine: InferenceEngine
    deployment: Place
    max_batch_weight: int | None
    load: Load
    sla: Sla
    seed: int
    workload_name: str
    workload_hash: str
    traffic: Traffic
    tuned_by: Mapping[str, Any] | None = None

    @property
    def name(self) -> str:
        """`starcoder on 1 x A100-40GB`: the run's name; of a service of which less is known, what is."""
        return service_name(self.model.name if self.model else self.deployment.service_name, self.gpu)

    @property
    def facts_known(self) -> tuple[Model, Gpu]:
        """The LLM and the GPU profile; every service but an external one has both."""
        assert self.model is not None
        assert self.gpu is not None
        return self.model, self.gpu

    @property
    def cost_per_hour(self) -> float | None:
        """Price of one pod [$ per hour]; None where it is not known what it runs on."""
        return self.gpu.cost_per_hour if self.gpu is not None and self.gpu.priced else None

    @property
    def price_source(self) -> str | None:
        """Whose price that is, of what kind and when; None where there is none."""
        return self.gpu.price_source if self.gpu is not None and self.gpu.priced else None

    def start(self) -> AbstractContextManager[Endpoint]:
        """Start the service where it is to run; it ends with the context."""
        return self.deployment.start(
            self.engine,
            self.model,
            self.gpu,
            self.max_batch_weight,
            heaviest_request_tokens=self.traffic.heaviest_request_tokens,
        )

    @property
    def _shared(self) -> dict[str, float | bool]:
        """What requests have in common, where that is anything."""
        if self.traffic.conversations is not None:
            return {"conversations": True}
        workload = self.traffic.workload
        share = None if workload is None else workload.cached_share
        return {} if share is None else {"cached_share": share}

    @property
    def live_weight(self) -> bool:
        """Whether a running service can be given another max batch weight (`reweighted`)."""
        return self.engine.live_weight

    def reweighted(self, endpoint: Endpoint, max_batch_weight: int) -> Endpoint:
        """Return a running service of an engine with `live_weight` under another max batch weight."""
        return cast(SimulatedAs, self.engine).reweighted(cast(VirtualService, endpoint), max_batch_weight)

    def facts(self) -> dict[str, Any]:
        """Return all of it as nested plain values, as they are."""
        return {
            **({"model": self.model.model_dump()} if self.model else {}),
            **({"gpu": self.gpu.model_dump()} if self.gpu else {}),
            "engine": {"name": self.engine.name, **self.engine.model_dump()},
            "deployment": {"name": self.deployment.name, **self.deployment.model_dump()},
            "max_batch_weight": self.max_batch_weight,
            "load": self.load.model_dump(),
            "sla": self.sla.model_dump(),
            "workload": {"name": self.workload_name, "content_hash": self.workload_hash, **self._shared},
            "seed": self.seed,
            "version": llmpilot.__version__,
            **self.deployment.facts(self.engine, self.model, self.gpu),
        }

    def config_hash(self) -> str:
        """Return a hash that two cells share exactly when they would measure the same."""
        known_by = {} if self.tuned_by is None else {"max_batch_weight": dict(self.tuned_by)}
        canonical = json.dumps(self.facts() | known_by, sort_keys=True)
        return hashlib.sha256(canonical.encode()).hexdigest()

    def params(self) -> dict[str, str]:
        """Return the facts as MLflow params: flat, one scalar each, secrets hidden."""
        return {key: str(value) for key, value in _flatten(redact_tree(self.facts()))}


def service_name(model: str | None, gpu: Gpu | None) -> str:
    """Return `starcoder on 1 x A100-40GB`, or as much of it as is known."""
    return " on ".join([model or "a service", *([gpu.label] if gpu else [])])


def compose(cfg: DictConfig) -> Cell:
    """Return the cell that a composed configuration describes.

    Raises:
        ConfigError: something in it is impossible.
        DoesNotFitError: the model, or one request of the workload, does not fit on the GPU profile.
    """
    model = catalog.served_model(cfg) if "model" in cfg else None
    gpu = catalog.composed_gpu(cfg) if "gpu" in cfg else None
    if model is not None and gpu is not None and (remark := require_units(model, gpu)):
        note(remark, style="yellow")
    engine, deployment = build(cfg.engine, "engine"), build(cfg.deployment, "deployment")
    load, sla = parse(Load, cfg.load, "load"), parse(Sla, cfg.sla, "sla")
    seed = parse_seed(cfg.seed)
    conversations = load_conversations(cfg.workload, seed)
    workload = None if conversations is not None else load_workload(cfg.workload)
    traffic = open_traffic(load, workload, seed, conversations)

    if deployment.name not in engine.places:
        raise ConfigError(
            f"engine={engine.name} does not run in deployment={deployment.name}",
            cure=f"engine={engine.name} deployment={' or '.join(engine.places)}"
            + ("" if deployment.starts_services else ", or engine=openai for a service that is running"),
        )
    if traffic.conversations is not None:
        share = None if workload is None else workload.cached_share
        require_conversations(traffic.conversations, engine, deployment, model=model, cached_share=share)
        note_short_warm_up(traffic.conversations, load.warmup_s)
    elif workload is not None:
        engine = _with_what_is_cached(engine, deployment, workload.cached_share)
    return Cell(
        model=model,
        gpu=gpu,
        engine=engine,
        deployment=deployment,
        max_batch_weight=_batch_weight(cfg, engine, deployment, traffic.heaviest_request_tokens),
        load=load,
        sla=sla,
        seed=seed,
        workload_name=traffic.name or cfg.workload.name,
        workload_hash=traffic.content_hash,
        traffic=traffic,
    )


def _with_what_is_cached(engine: InferenceEngine, deployment: Place, share: float | None) -> InferenceEngine:
    """Return the engine that knows how much of every prompt is cached, as the workload says."""
    if deployment.measurement == "simulated":
        return engine.with_cached_share(share)
    if share:
        raise ConfigError(
            "workload.cached_share is for simulated services: a real one decides what it keeps in its cache, "
            "and the prompts that it is sent here are all new",
            given=f"workload.cached_share={share:g} deployment={deployment.name}",
            cure="leave it out, or deployment=simulated",
        )
    return engine


def _batch_weight(cfg: DictConfig, engine: InferenceEngine, deployment: Place, heaviest: int) -> int | None:
    """Return the cap that the service gets: the given or the default one; None for a service not ours."""
    if not deployment.starts_services:
        if cfg.max_batch_weight is not None:
            raise ConfigError(
                "max_batch_weight cannot be set on a service that is already running",
                given=f"max_batch_weight={cfg.max_batch_weight}",
                cure="leave it out, and give the server its own limit when you start it",
            )
        return None
    model, gpu = catalog.served_model(cfg), catalog.composed_gpu(cfg)
    memory = deployment.memory(engine, model, gpu)
    if memory is not None and memory.kv_capacity_tokens < heaviest:
        require_fit(model, gpu, memory, heaviest, cure=_room_for(deployment, engine, model, gpu, heaviest))
    if cfg.max_batch_weight is not None:
        return _given_weight(cfg, heaviest)
    default = engine.default_max_batch_weight(model, gpu)
    if default is None and memory is not None:
        default = memory.kv_capacity_tokens
    return None if default is None else max(default, heaviest)


def _given_weight(cfg: DictConfig, heaviest: int) -> int:
    weight = whole_number(cfg.max_batch_weight, "max_batch_weight")
    if weight < heaviest:
        raise ConfigError(
            f"max_batch_weight={weight} is below the workload's heaviest request: it could never be served",
            cure=f"set max_batch_weight to {heaviest} or more, or leave it out for the engine's default",
        )
    return weight


def _room_for(deployment: Place, engine: InferenceEngine, model: Model, gpu: Gpu, heaviest: int) -> str:
    """Return how to mend that memory is too small: by the engine's share of it, or a larger profile."""
    usual = engine.with_usual_memory()
    now, then = deployment.memory(engine, model, gpu), deployment.memory(usual, model, gpu)
    if now is None or then is None or then.usable_gb - then.reserve_gb <= now.usable_gb - now.reserve_gb:
        return _where_it_fits(partial(deployment.memory, engine), model, heaviest)
    set_to = {key: getattr(engine, key) for key in engine.memory_settings}
    told = " ".join(
        f"engine.{key}={value:g}" for key, value in set_to.items() if value != getattr(usual, key)
    )
    if then.kv_capacity_tokens >= heaviest:
        return f"leave {told} out: with the engine's own default it fits"
    return f"leave {told} out, and {_where_it_fits(partial(deployment.memory, usual), model, heaviest)}"


def _where_it_fits(memory: Callable[[Model, Gpu], MemoryPlan | None], model: Model, heaviest: int) -> str:
    profiles = (
        (option, gpu.model_copy(update={"count": count}))
        for option, gpu in catalog.gpus().items()
        for count in gpu.price_per_hour
    )
    fitting = [
        (gpu.cost_per_hour, option, gpu.count)
        for option, gpu in profiles
        if (plan := memory(model, gpu)) is not None and plan.kv_capacity_tokens >= heaviest
    ]
    if not fitting:
        return "no GPU profile of the catalogue holds it; quantize it: model.weight_bytes_per_parameter=1"
    fitting.sort()
    lines = [f"+gpu={option} gpu.count={count}  (${cost:.2f}/h)" for cost, option, count in fitting[:3]]
    return "take a profile that holds it, the cheapest: " + ", ".join(lines)


def _flatten(value: Any, prefix: str = "") -> list[tuple[str, Any]]:
    if isinstance(value, dict):
        return [item for key, inner in value.items() for item in _flatten(inner, f"{prefix}{key}.")]
    return [(prefix.removesuffix("."), value)]
