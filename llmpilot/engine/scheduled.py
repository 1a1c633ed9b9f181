"""What today's engines have in common: one set of settings that means the same to the real server, started as
a process, and to its simulation. Each engine's file says what its server calls them."""

import json
import re
from abc import abstractmethod
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar, Self

from pydantic import PositiveInt, field_validator, model_validator

from llmpilot import simulator
from llmpilot.config import Gpu, Model, NonNegative, Share
from llmpilot.engine.server import StartedEngine
from llmpilot.errors import ConfigError, DoesNotFitError
from llmpilot.simulator import VirtualService
from llmpilot.simulator.service_model import simulated_service
from llmpilot.simulator.service_settings import (
    NEWEST,
    EngineName,
    ServiceSettings,
    is_newer,
    service_settings,
)
from llmpilot.sizing import MemoryPlan

if TYPE_CHECKING:
    from llmpilot.operators.profile import ProfiledOperators

ACCURACY = Path(simulator.__file__).parent / "fitted" / "accuracy.json"
"""Errors of simulated services of LLMs left out of the fit; written by experiments/18_services_of_today."""
RELEASE = re.compile(r"v?\d+(\.\d+)*(\.?(rc|post)\d+)*", re.ASCII)
"""What a release is called: 0.19, v0.5.6.post2, 1.2.0rc1."""
LEAST_STEP_TOKENS, MOST_STEP_TOKENS, LEAST_REQUESTS = 256, 16_384, 16
"""Between which a tuner looks for the tokens of a step, and from how many requests on."""


class ScheduledEngine(StartedEngine):
    """An engine with chunked prefill and a pool of KV blocks, the model sharded over the GPUs of the profile.

    `version` names the release that is simulated; null: the newest that the fitted factors know, which also
    stands in for newer ones. A real server has the version that is installed. `tensor_parallel` null: the
    GPUs that other kinds of parallelism leave. `prefix_hit_share` of every prompt is taken to be cached
    already: only a simulation can be told so. Of our own workloads only conversations repeat prefixes, and
    what of them is cached, their turns decide: with `enable_prefix_caching` the engine keeps prefixes, which
    costs those a little whose prompts are all new, as ours otherwise are.
    `reserve_gb_per_gpu` is what a simulated server keeps for its runtime and activations; null: reckoned
    from the size of a step.
    """

    places: ClassVar[tuple[str, ...]] = ("simulated", "process")
    memory_is_allocated_at_start: ClassVar[bool] = True
    memory_settings: ClassVar[tuple[str, ...]]
    label: ClassVar[str]
    """The engine's name as its makers write it."""
    settings_name: ClassVar[EngineName]
    step_settings: ClassVar[tuple[str, str]]
    """What it calls the tokens of a step and the requests that run at once."""

    version: str | None = None
    tensor_parallel: PositiveInt | None = None
    pipeline_parallel: PositiveInt = 1
    data_parallel: PositiveInt = 1
    expert_parallel: PositiveInt = 1
    enable_prefix_caching: bool = False
    prefix_hit_share: Share = 0.0
    reserve_gb_per_gpu: NonNegative | None = None

    @field_validator("version", mode="before")
    @classmethod
    def _names_a_release(cls, version: Any) -> Any:
        newest = NEWEST[cls.settings_name]
        text = str(version) if type(version) in (int, float) else version
        if type(version) is float and re.fullmatch(r"\d+\.\d", text):  # 0.20 arrives as 0.2
            raise ConfigError(
                "engine.version is read as a number, which loses zeros at its end",
                given=text,
                cure=f"put it in quotes: engine.version='\"{text}\"' or engine.version='\"{text}0\"'",
            )
        if text is not None and not (isinstance(text, str) and RELEASE.fullmatch(text)):
            raise ConfigError(
                f"engine.version names no release of {cls.label}",
                given=repr(text) if isinstance(text, str) else text,
                cure=f"numbers with dots, as engine.version='\"{newest}\"', the newest that is known",
            )
        return text

    @model_validator(mode="after")
    def _hits_need_a_cache(self) -> Self:
        if self.prefix_hit_share and not self.enable_prefix_caching:
            raise ValueError(
                "engine.prefix_hit_share without a prefix cache: add engine.enable_prefix_caching=true"
            )
        return self

    @property
    def finds_prefixes(self) -> bool:
        """Whether it finds in a prefix cache what earlier requests had in common with one."""
        return self.enable_prefix_caching

    @property
    def simulated_version(self) -> str:
        """The release that is simulated."""
        if self.version is None or is_newer(self.settings_name, self.version):
            return NEWEST[self.settings_name]
        return self.version

    @abstractmethod
    def told(self) -> dict[str, Any]:
        """Return this engine's own settings under the names of `ServiceSettings`; None: its default."""

    def settings(self, gpu: Gpu) -> ServiceSettings:
        """Return the settings of a service on a GPU profile, the engine's defaults filled in.

        Raises:
            ConfigError: the kinds of parallelism do not make up the profile's GPUs.
        """
        self.require_gpus(gpu)
        return service_settings(
            self.settings_name,
            gpu,
            version=self.version,
            tensor_parallel=self.tensor_parallel,
            pipeline_parallel=self.pipeline_parallel,
            data_parallel=self.data_parallel,
            expert_parallel=self.expert_parallel,
            prefix_hit_share=self.prefix_hit_share,
            reserve_gb_per_gpu=self.reserve_gb_per_gpu,
            prefix_caching=self.enable_prefix_caching,
            **self.told(),
        )

    def step_choices(self, gpu: Gpu, users: int) -> tuple[dict[str, tuple[int, ...]], dict[str, int]]:
        """Return powers of two for the tokens of a step and the requests that run at once, and what they are.

        More requests than users are the same as all of them.
        """
        settings = self.settings(gpu)
        now = (settings.max_num_batched_tokens, settings.max_num_seqs)
        most = max(LEAST_REQUESTS, 1 << (users - 1).bit_length())
        ranges = ((LEAST_STEP_TOKENS, MOST_STEP_TOKENS), (LEAST_REQUESTS, most))
        choices = {
            key: tuple(sorted({value, *_powers_of_two(*bounds)}))
            for key, value, bounds in zip(self.step_settings, now, ranges, strict=True)
        }
        return choices, dict(zip(self.step_settings, now, strict=True))

    def tensor_gpus(self, gpu: Gpu) -> int:
        """Return the GPUs over which one replica of the attention layers is sharded."""
        return self.tensor_parallel or max(1, gpu.count // (self.pipeline_parallel * self.data_parallel))

    def require_gpus(self, gpu: Gpu) -> None:
        """Raise ConfigError unless the kinds of parallelism make up the profile's GPUs."""
        tensor, others = self.tensor_gpus(gpu), self.pipeline_parallel * self.data_parallel
        given = (
            f"engine.tensor_parallel={tensor} engine.pipeline_parallel={self.pipeline_parallel} "
            f"engine.data_parallel={self.data_parallel}"
        )
        if tensor * others != gpu.count:
            raise ConfigError(
                f"{tensor * others} GPUs are not those of the profile, {gpu.label}",
                given=given,
                cure=f"gpu.count={tensor * others}, or leave engine.tensor_parallel out",
            )
        if gpu.count % self.expert_parallel:
            raise ConfigError(
                f"experts cannot be spread evenly over {gpu.count} GPUs",
                given=f"engine.expert_parallel={self.expert_parallel}",
                cure=f"engine.expert_parallel={gpu.count}, or 1",
            )

    def with_cached_share(self, share: float | None) -> Self:
        """Return the engine with this `prefix_hit_share`, and with the cache that it takes; None: as it is.

        Raises:
            ConfigError: it has another already.
        """
        if share is None:
            return self
        if self.prefix_hit_share not in (0.0, share):
            raise ConfigError(
                "the workload and the engine say different shares of the prompts that are cached",
                given=f"workload.cached_share={share:g} engine.prefix_hit_share={self.prefix_hit_share:g}",
                cure="leave one of them out",
            )
        cache = {"enable_prefix_caching": True} if share else {}
        return self.model_copy(update={"prefix_hit_share": share, **cache})

    def require_real(self) -> None:
        """Raise ConfigError where something is set that a real server cannot be told."""
        if self.prefix_hit_share:
            raise ConfigError(
                "engine.prefix_hit_share is for simulated services: what a real one finds in its cache, the "
                "prompts decide",
                given=f"engine.prefix_hit_share={self.prefix_hit_share:g}",
                cure="leave it out, or deployment=simulated",
            )

    def memory(self, model: Model, gpu: Gpu) -> MemoryPlan:
        """Return where the profile's memory goes under this engine.

        Raises:
            DoesNotFitError: it does not serve models of this kind.
            ConfigError: not on these GPUs, as its settings spread the model.
        """
        if model.encoder_decoder:
            raise DoesNotFitError(
                f"{self.label} does not serve encoder-decoder models",
                given=model.name,
                cure="engine=tgis, the engine of 2023, which did",
            )
        return self.settings(gpu).memory(model, gpu)

    def service(self, model: Model, gpu: Gpu, max_batch_weight: int) -> VirtualService:
        """Return the service as the simulator needs it."""
        return simulated_service(model, gpu, self.settings_name, self.settings(gpu), max_batch_weight)

    def reweighted(self, service: VirtualService, max_batch_weight: int) -> VirtualService:
        """A running server keeps the KV cache that it was started with."""
        raise NotImplementedError(f"{self.label} is started anew under another max batch weight")

    def simulated_facts(self, model: Model, gpu: Gpu) -> dict[str, Any]:
        """Return the settings with all defaults filled in, and the version that is simulated."""
        facts = {"service": self.settings(gpu).model_dump() | {"version": self.simulated_version}}
        if gpu.profile is not None:
            facts["gpu_profile"] = {"content_hash": _profiled(gpu).profile.content_hash}
        return facts

    def simulated_from(self, model: Model, gpu: Gpu) -> str:
        """Return in words what is simulated, from which data, and how far off it is to be expected."""
        known = f"{self.label} {self.simulated_version}"
        if is_newer(self.settings_name, self.version):
            known += f" in place of {self.version}, which is newer than all that were measured"
        text = f"{known}, from operator times of its kernels and published measurements of today's engines"
        if gpu.profile is not None:
            text += f", with operators measured on the GPU itself, {_profiled(gpu).summary()}"
        return f"{text}; {off}" if (off := expected_errors()) else text


def _profiled(gpu: Gpu) -> "ProfiledOperators":
    from llmpilot.operators.profile import profiled_operators  # slow to import, seldom needed

    return profiled_operators(gpu)


def _powers_of_two(least: int, most: int) -> list[int]:
    return [1 << power for power in range(least.bit_length() - 1, most.bit_length())]


@cache
def expected_errors() -> str:
    """Return how far off services of LLMs left out of the fit were; empty where that is not known."""
    try:
        errors = json.loads(ACCURACY.read_text(encoding="utf-8"))
    except FileNotFoundError:
        return ""
    named = {"tpot": "TPOT", "ttft": "TTFT", "e2e": "E2E"}
    parts = [f"{name} {errors[key]['median']:.0%}" for key, name in named.items() if key in errors]
    return f"expect it to be off by {', '.join(parts)} (median, LLM left out of the fit)" if parts else ""
