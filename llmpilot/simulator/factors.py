"""The few fitted numbers that turn operators into an engine's step times: their names, priors and use.

A factor multiplies some parts of a step (`step_model.PARTS`) wherever it applies. Before any measurement all
are known by their priors only: log-normal around a median. `predict.service` fits them.
"""

import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from functools import cache
from math import exp, log
from pathlib import Path
from typing import Any

import numpy as np

from llmpilot.architecture import Experts
from llmpilot.config import Model
from llmpilot.simulator.service_settings import generation, is_of_2024, version_numbers
from llmpilot.simulator.step_model import PARTS, Numbers, StepModel

GEMMS = ("attention_gemm", "mlp_gemm", "head_gemm")
ATTENTION = ("decode_attention", "prefill_attention", "recurrent")
PREFILL = "prefill"
"""Stands among the parts for whatever a prompt's tokens add to a step, all parts together."""


@dataclass(frozen=True)
class Factor:
    """One fitted number: `median` and `spread` (of its logarithm) are its prior; `why` says its use."""

    name: str
    parts: tuple[str, ...]
    applies: Callable[[StepModel], bool]
    median: float
    spread: float
    why: str
    of_2024: bool = False
    """Whether it acts on engines of 2024 alone: fitted after the others, which such rows do not move."""


def _always(service: StepModel) -> bool:
    return True


def _on(*engines: str) -> Callable[[StepModel], bool]:
    return lambda service: service.settings.engine in engines


def _blackwell(service: StepModel) -> bool:
    return service.gpu.architecture == "blackwell"


def has_experts(service: StepModel) -> bool:
    """Whether some of the model's layers are mixtures of experts."""
    return any(isinstance(kind.feed_forward, Experts) for kind in service.model.layer_kinds)


def _block_experts(service: StepModel) -> bool:
    return has_experts(service) and service.model.formats.experts == "fp8_block"


def _first_vllm(service: StepModel) -> bool:
    settings = service.settings
    return settings.engine == "vllm" and is_of_2024(settings.engine, settings.version)


def _trtllm_2024(service: StepModel) -> bool:
    settings = service.settings
    return settings.engine == "trtllm" and is_of_2024(settings.engine, settings.version)


def _of_2024(service: StepModel) -> bool:
    return is_of_2024(service.settings.engine, service.settings.version)


def _amd(service: StepModel) -> bool:
    return service.gpu.vendor == "amd"


def _eager(service: StepModel) -> bool:
    """Whether an engine of that time did without CUDA graphs: on AMD's GPUs, and vLLM before 0.3."""
    numbers = version_numbers(service.settings.version) or (9999,)
    before = numbers < (0, 3) or 2000 <= numbers[0] <= 2023
    return _of_2024(service) and (_amd(service) or before)


LAUNCHES = ("layer", "expert_layer")
COMMON_FACTORS: tuple[Factor, ...] = (
    Factor("gemm", GEMMS, _always, 1.0, 0.07, "engines choose kernels for their shapes, tables the default"),
    Factor("gemm.blackwell", GEMMS, _blackwell, 1.0, 0.1, "kernels for it got better since"),
    Factor("attention.blackwell", ATTENTION, _blackwell, 1.0, 0.15, "the same of attention"),
    Factor("recurrent", ("recurrent",), _always, 1.0, 0.3, "states are known by their bytes alone"),
    Factor("experts.vllm", ("experts",), _on("vllm"), 1.0, 0.1, "each engine has its own expert kernels"),
    Factor("experts.sglang", ("experts",), _on("sglang"), 1.0, 0.1, "the same of SGLang"),
    Factor("experts.trtllm", ("experts",), _on("trtllm"), 1.0, 0.1, "the same of TensorRT-LLM"),
    Factor("experts.fp8_block", ("experts",), _block_experts, 1.0, 0.2, "tables have the untuned kernels"),
    Factor(
        "experts.fp8_block.trtllm",
        ("experts",),
        lambda service: _block_experts(service) and service.settings.engine == "trtllm",
        1.0,
        0.2,
        "TensorRT-LLM has kernels of its own for block scales",
    ),
    Factor("expert_layer", ("expert_layer",), _always, 1.0, 0.4, "launches of routing, sorting, combining"),
    Factor("all_reduce.vllm", ("all_reduce",), _on("vllm"), 1.0, 0.3, "vLLM does not fuse them with norms"),
    Factor("sequence", ("sequence",), _always, 1.0, 0.7, "sampling, detokenizing and sending on the host"),
    Factor(PREFILL, (PREFILL,), _always, 1.0, 0.2, "how well prompts overlap with decoding in one step"),
)
"""Those that act on the engines of today too."""
OLD_FACTORS: tuple[Factor, ...] = (
    Factor("gemm.2024", GEMMS, _of_2024, 1.0, 0.1, "16-bit kernels, two years younger than the tables"),
    Factor("attention.2024", ATTENTION, _of_2024, 1.0, 0.2, "attention kernels of that time"),
    Factor("experts.2024", ("experts",), _of_2024, 1.0, 0.3, "expert kernels of that time"),
    Factor(
        "experts.trtllm_2024", ("experts",), _trtllm_2024, 1.0, 0.3, "TensorRT-LLM had plugins of its own"
    ),
    Factor("all_reduce.2024", ("all_reduce",), _of_2024, 1.0, 0.5, "not fused with norms, some by NCCL"),
    Factor(
        "step.vllm_v0",
        ("step",),
        _first_vllm,
        5.0,
        0.7,
        "vLLM's first engine schedules, prepares inputs and reads tokens back while the GPU waits",
    ),
    Factor(
        "step.vllm_v0.workers",
        ("step",),
        lambda service: _first_vllm(service) and service.settings.tensor_parallel > 1,
        1.5,
        0.4,
        "its driver sends each step's inputs to the other workers",
    ),
    Factor(
        "sequence.vllm_v0", ("sequence",), _first_vllm, 3.0, 0.7, "it keeps its sequences as Python objects"
    ),
    Factor("step.trtllm_2024", ("step",), _trtllm_2024, 2.0, 0.7, "its runtime does not overlap steps"),
    Factor(
        "gemm.amd_2024",
        GEMMS,
        lambda service: _of_2024(service) and _amd(service),
        1.0,
        0.3,
        "no tables: AMD's matrices follow from datasheet rates alone",
    ),
    Factor(
        "launches.eager",
        LAUNCHES,
        _eager,
        20.0,
        0.7,
        "without CUDA graphs every kernel is launched by itself, which takes longer than many kernels",
    ),
)
"""Those of engines of 2024."""
FACTORS = (*COMMON_FACTORS, *(replace(factor, of_2024=True) for factor in OLD_FACTORS))
NAMES = tuple(factor.name for factor in FACTORS)
Factors = Mapping[str, float]


SHIPPED = Path(__file__).parent / "fitted" / "services.json"
"""Fitted on published rows of vLLM, SGLang and TensorRT-LLM; experiments/18_services_of_today says which."""


@cache
def shipped_factors() -> Factors:
    """Return the factors that come with the package."""
    content: dict[str, Any] = json.loads(SHIPPED.read_text(encoding="utf-8"))
    return {str(name): float(value) for name, value in content["factors"].items()}


def service_key(service: StepModel) -> str:
    """Return what services share that differ in load, scheduler settings and version only, 2024 apart."""
    settings, model = service.settings, service.model
    shape = f"{settings.tensor_parallel}x{settings.data_parallel}x{settings.expert_parallel}"
    if settings.pipeline_parallel > 1:
        shape += f"x{settings.pipeline_parallel}"
    form = model.formats
    formats = "/".join((form.attention, form.mlp, form.experts, form.head))
    return f"{family_of(model)} | {generation(settings)} | {service.gpu.name} {shape} | {formats}"


def family_of(model: Model) -> str:
    """Return what LLMs of one architecture and size share, whatever they were trained or quantized to."""
    return f"{model.architecture} {model.n_layers} x {model.d_model}, {model.vocabulary_size}"


def priors() -> dict[str, float]:
    """Return every factor's prior median."""
    return {factor.name: factor.median for factor in FACTORS}


def design(service: StepModel) -> Numbers:
    """Return which factors multiply what of a service [factors, parts + 1], as 1 or 0; last, prefill."""
    found = np.zeros((len(FACTORS), len(PARTS) + 1))
    columns = {name: at for at, name in enumerate((*PARTS, PREFILL))}
    for row, factor in enumerate(FACTORS):
        if factor.applies(service):
            found[row, [columns[part] for part in factor.parts]] = 1.0
    return found


def multipliers(service: StepModel, values: Factors) -> Numbers:
    """Return what each part of a step, and last a prompt's share in it, is multiplied with [parts + 1]."""
    logs = np.array([log(values.get(factor.name, factor.median)) for factor in FACTORS])
    return np.asarray(np.exp(logs @ design(service)))


def rounded(values: Factors) -> dict[str, float]:
    """Return the factors to five digits, the same on every machine."""
    return {name: float(f"{exp(log(value)):.5g}") for name, value in values.items()}
