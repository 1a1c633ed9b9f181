"""Reads the published tables of operator times into one long table for a GPU type, less what is in doubt."""

from pathlib import Path

import numpy as np
import pandas as pd

FORMATS = {
    "bfloat16": "bf16",
    "fp8": "fp8",
    "fp8_block": "fp8_block",
    "nvfp4": "nvfp4",
    "int4_wo": "int4",
}
GPUS = {
    "a100_80gb": ("a100_sxm", 40),
    "l40s": ("l40s", 96),
    "h100": ("h100_sxm", 50),
    "h200": ("h200_sxm", 50),
    "b200": ("b200_sxm", 126),
}
"""Option of the catalogue: its folder, and the size of its L2 cache [MB]."""
VERSIONS = {
    ("gemm", "l40s"): ["0.14.0"],
    ("attention", "l40s"): ["0.14.0"],
    ("comm", "l40s"): ["0.14.0"],
    ("attention", "h200"): ["0.22.0"],
    ("moe", "l40s"): ["0.22.0"],
    "a100_80gb": ["0.14.0"],
    "else": ["0.19.0"],
}
"""vLLM's version that is read; README.md says why."""
OLD_INT4 = {"h100": "0.14.0", "h200": "0.14.0"}
NCCL = {"a100_80gb": "2.27.3", "l40s": "2.27.3", "h100": "2.29.2", "h200": "2.29.2", "b200": "2.29.2"}
IN_CACHE = 0.15
"""Share of the time that reading takes at the datasheet's bandwidth, from which on a row whose data fit into
the L2 cache is left out: a benchmark finds them there, a service with many layers does not."""


def load(folder: Path, gpu: str, bandwidth_gb_s: float) -> pd.DataFrame:
    """Return all believed rows of a GPU type: op, format, arguments of the operator's method, time_us."""
    tables = [
        _gemm(folder, gpu, bandwidth_gb_s),
        _decode(folder, gpu, bandwidth_gb_s),
        _prefill(folder, gpu),
        _experts(folder, gpu, bandwidth_gb_s),
        _messages(folder, gpu),
    ]
    return pd.concat(tables, ignore_index=True)


def _read(folder: Path, gpu: str, group: str, name: str, version: str | None = None) -> pd.DataFrame:
    versions = [version] if version else VERSIONS.get((group, gpu), VERSIONS.get(gpu, VERSIONS["else"]))
    files = [folder / GPUS[gpu][0] / group / "vllm" / v / f"{name}_perf.parquet" for v in versions]
    return pd.concat([pd.read_parquet(file) for file in files], ignore_index=True)


def _long(table: pd.DataFrame, op: str) -> pd.DataFrame:
    shape = [name for name in table.columns if name not in ("latency", "cached")]
    table = table[~table["cached"]] if "cached" in table else table
    table = table.groupby(shape, as_index=False)["latency"].median()
    return table.rename(columns={"latency": "time_us"}).assign(op=op, time_us=lambda t: 1e3 * t["time_us"])


def _gemm(folder: Path, gpu: str, bandwidth: float) -> pd.DataFrame:
    table = _read(folder, gpu, "gemm", "gemm")
    table = table[(table["n"] >= 128) & (table["k"] >= 128) & (table["m"] <= 16384)]
    table = table.assign(format=table["gemm_dtype"].map(FORMATS))
    bytes_each = table["format"].map({"bf16": 2.0, "nvfp4": 0.5625}).fillna(1.0)
    reading = table["n"] * table["k"] * bytes_each / bandwidth / 1e6
    faster = (reading > 0.97 * table["latency"]).groupby([table["format"], table["n"], table["k"]])
    columns = ["format", "m", "n", "k", "latency"]
    # Weights that are read faster than memory can are in the cache, at every number of tokens.
    return _long(table[columns].assign(cached=faster.transform("any")), "gemm")


def _attention(table: pd.DataFrame) -> pd.DataFrame:
    table = table[table["head_dim"] <= 256]
    kv_heads = np.where(table["num_key_value_heads"] == 0, table["num_heads"], table["num_key_value_heads"])
    return table.assign(
        format=table["kv_cache_dtype"].map(FORMATS),
        n_heads=table["num_heads"],
        n_kv_heads=kv_heads,
        window=table.get("window_size", 0),
    )


def _decode(folder: Path, gpu: str, bandwidth: float) -> pd.DataFrame:
    table = _attention(_read(folder, gpu, "attention", "generation_attention"))
    context = table["isl"] + table["step"]
    context = np.where(table["window"] > 0, np.minimum(context, table["window"]), context)
    table, context = table[context >= 32], context[context >= 32]
    table = table.assign(sequences=table["batch_size"], context_tokens=context * table["batch_size"])
    cache_mb = table["context_tokens"] * table["n_kv_heads"] * 2 * table["head_dim"] / 1e6
    cache_mb = cache_mb * np.where(table["format"] == "fp8", 1, 2)
    fits = (cache_mb < 1.3 * GPUS[gpu][1]) & (cache_mb / bandwidth > IN_CACHE * table["latency"])
    columns = ["format", "sequences", "context_tokens", "n_heads", "n_kv_heads", "head_dim", "latency"]
    return _long(table[columns].assign(cached=fits), "decode_attention")


def _prefill(folder: Path, gpu: str) -> pd.DataFrame:
    table = _attention(_read(folder, gpu, "attention", "context_attention"))
    table = table[(table["isl"] >= 16) & ((gpu != "l40s") | (table["format"] == "bf16"))]
    chunk, window = table["isl"], table["window"]
    window = np.where(window > 0, np.minimum(window, chunk), chunk)
    pairs = window * (window + 1) / 2 + (chunk - window) * window
    table = table.assign(
        chunks=table["batch_size"], tokens=chunk * table["batch_size"], pairs=pairs * table["batch_size"]
    )
    columns = ["format", "chunks", "tokens", "pairs", "n_heads", "n_kv_heads", "head_dim", "latency"]
    return _long(table[columns], "prefill_attention")


def _experts(folder: Path, gpu: str, bandwidth: float) -> pd.DataFrame:
    table = _read(folder, gpu, "moe", "moe")
    table = table[table["moe_dtype"] != "int4_wo"]
    if gpu in OLD_INT4:
        old = _read(folder, gpu, "moe", "moe", OLD_INT4[gpu])
        table = pd.concat([table, old[old["moe_dtype"] == "int4_wo"]], ignore_index=True)
    table = table[table["moe_dtype"].isin(FORMATS) & (table["distribution"] != "balanced")]
    table = table.assign(
        format=table["moe_dtype"].map(FORMATS),
        tokens=table["num_tokens"],
        d_model=table["hidden_size"],
        width=table["inter_size"],
        per_token=table["topk"],
        n_experts=table["num_experts"],
        tensor_parallel=table["moe_tp_size"],
        expert_parallel=table["moe_ep_size"],
    )
    # Slices of odd widths take up to three times as long: engines pad them.
    table = table[table["width"] % (16 * table["tensor_parallel"]) == 0]
    one_mb = 3 * table["d_model"] * table["width"] / table["tensor_parallel"] / 1e6
    one_mb = one_mb * table["format"].map({"bf16": 2.0, "nvfp4": 0.5625, "int4": 0.52}).fillna(1.0)
    held = table["n_experts"] / table["expert_parallel"]
    read_mb = one_mb * np.minimum(held, table["tokens"] * table["per_token"] / table["expert_parallel"])
    fits = (one_mb * held < GPUS[gpu][1]) & (read_mb / bandwidth > IN_CACHE * table["latency"])
    columns = [
        *("format", "tokens", "d_model", "width", "per_token", "n_experts"),
        *("tensor_parallel", "expert_parallel", "latency"),
    ]
    return _long(table[columns].assign(cached=fits), "experts")


def _messages(folder: Path, gpu: str) -> pd.DataFrame:
    custom = _read(folder, gpu, "comm", "custom_allreduce")
    custom = custom[custom["backend"] == "vllm_graph"].assign(op_name="all_reduce")
    nccl = pd.read_parquet(folder / GPUS[gpu][0] / "comm" / "nccl" / NCCL[gpu] / "nccl_perf.parquet")
    nccl = nccl[(nccl["op_name"] != "all_reduce") & (nccl["nccl_dtype"] == "half")]
    nccl = nccl.assign(op_name=nccl["op_name"].replace({"alltoall": "all_to_all"}))
    both = pd.concat([custom, nccl], ignore_index=True)
    both = both.assign(message_bytes=2 * both["message_size"], gpus=both["num_gpus"], format="bf16")
    return pd.concat(
        [
            _long(rows[["format", "message_bytes", "gpus", "latency"]], str(op))
            for op, rows in both.groupby("op_name")
        ],
        ignore_index=True,
    )
