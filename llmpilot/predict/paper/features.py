"""The paper's features of an LLM, a GPU profile and a load, from our facts of them.

What our catalogue knows is derived; facts.yaml restates the rest for the paper's ten LLMs and five GPU
types. Of any other LLM or GPU type, what cannot be derived is missing, which the paper writes as -1.
"""

from collections.abc import Sequence
from functools import cache
from pathlib import Path
from typing import Any

import pandas as pd
import yaml

from llmpilot import catalog
from llmpilot.config import Facts, Gpu, Model

MISSING = -1.0
CATEGORICAL = ("model_type", "model_torch_dtype", "gpu_architecture")
T5_KIN = ("t5", "mt5", "umt5")
"""Architectures with T5's relative positions: 32 buckets up to a distance of 128, where not configured."""
PCIE_GENERATION = {"pcie3": 3, "pcie4": 4, "pcie5": 5}


class ModelFacts(Facts):
    """What the paper states of an LLM other than our catalogue does: parameters [1e9], positions."""

    n_parameters: float
    n_positions: int | None


class GpuFacts(Facts):
    """What the paper states of a GPU type beyond our catalogue: units, and peak throughput in TFLOPs."""

    n_tensor_cores: int | None = None
    n_rt_cores: int | None = None
    n_cuda_cores: int | None = None
    n_sms: int | None = None
    n_rops: int | None = None
    n_tmus: int | None = None
    tflops_cuda_mixed: float | None = None
    tflops_cuda_fp32: float | None = None
    tflops_cuda_fp64: float | None = None
    tflops_tc_bf16: float | None = None
    tflops_tc_fp16: float | None = None
    tflops_tc_fp32: float | None = None
    tflops_tc_tf32: float | None = None
    tflops_tc_fp64: float | None = None
    system_interface_gen: int | None = None
    compute_capability: float | None = None
    is_sxm: bool | None = None


class PaperFacts(Facts):
    """All of facts.yaml, by the names of our catalogue."""

    models: dict[str, ModelFacts]
    gpus: dict[str, GpuFacts]


@cache
def paper_facts() -> PaperFacts:
    """Return the restated facts."""
    text = (Path(__file__).parent / "facts.yaml").read_text(encoding="utf-8")
    return PaperFacts.model_validate(yaml.safe_load(text))


def model_features(model: Model) -> dict[str, Any]:
    """Return the features of an LLM, in the order of the paper's table; None where missing."""
    stated = paper_facts().models.get(model.name)
    relative = model.architecture in T5_KIN
    return {
        "model_is_flash_attention": model.flash_attention,
        "model_n_parameters": stated.n_parameters if stated else model.parameters_b,
        "model_is_encoder_decoder": model.encoder_decoder,
        "model_type": model.architecture,
        "model_n_positions": stated.n_positions if stated else model.max_positions,
        "model_n_heads": model.n_heads,
        "model_n_layers": model.n_layers,
        "model_relative_attention_max_distance": 128 if relative else None,
        "model_relative_attention_n_buckets": 32 if relative else None,
        "model_torch_dtype": model.torch_dtype,
        "model_vocabulary_size": model.vocabulary_size,
    }


def gpu_features(gpu: Gpu) -> dict[str, Any]:
    """Return the features of a GPU profile, in the order of the paper's table; None where missing."""
    stated = paper_facts().gpus.get(gpu.name)
    facts = stated or GpuFacts(
        tflops_tc_fp16=gpu.tflops_fp16, system_interface_gen=PCIE_GENERATION.get(gpu.link)
    )
    named = facts.model_dump()
    late = {
        f"gpu_{name}": named.pop(name) for name in ("system_interface_gen", "compute_capability", "is_sxm")
    }
    return (
        {"gpu_architecture": gpu.architecture.title()}
        | {f"gpu_{name}": value for name, value in named.items()}
        | {"gpu_memory_capacity_gb": gpu.memory_gb, "gpu_memory_bandwidth": gpu.bandwidth_gb_s}
        | late
        | {
            "gpu_is_nvlink": gpu.link == "nvlink",
            "gpu_n_gpus": gpu.count,
            "gpu_memory_capacity_gb_total": gpu.count * gpu.memory_gb,
        }
    )


def describe(cells: Sequence[tuple[Model, Gpu, int]]) -> pd.DataFrame:
    """Return a row of features for each (LLM, GPU profile, users), in the paper's order of columns.

    CATEGORICAL columns are texts, all others floats, -1 where missing.
    """
    of_model = {id(model): model_features(model) for model, _, _ in cells}
    of_gpu = {id(gpu): gpu_features(gpu) for _, gpu, _ in cells}
    rows = [{"num_users": users} | of_model[id(model)] | of_gpu[id(gpu)] for model, gpu, users in cells]
    frame = pd.DataFrame(rows)
    numbers = [name for name in frame.columns if name not in CATEGORICAL]
    return frame.assign(
        **{name: pd.to_numeric(frame[name]).astype(float).fillna(MISSING) for name in numbers}
    )


@cache
def paper_categories() -> dict[str, tuple[str, ...]]:
    """Return the categories of the paper's LLMs and GPU types, by column, sorted."""
    models = [model_features(model) for model in catalog.models(sorted(paper_facts().models)).values()]
    gpus = [gpu_features(gpu) for gpu in catalog.gpus().values() if gpu.name in paper_facts().gpus]
    return {
        name: tuple(sorted({str(one[name]) for one in (models if name.startswith("model_") else gpus)}))
        for name in CATEGORICAL
    }
