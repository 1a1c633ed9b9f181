"""Latent attention's shares of the datasheet's rates, out of times of whole modules launched eagerly.

The published tables time DeepSeek-V3's attention with its projections, a kernel at a time from Python: a
tenth of a millisecond before anything is done. Rows of decoding well above that tell the shares all the same:
what grows with the context is attention, what grows with the tokens alone is projections.
"""

from pathlib import Path

import numpy as np
import pandas as pd
from numpy.typing import NDArray
from scipy.optimize import least_squares

from llmpilot.config import Gpu
from llmpilot.operators.forms import FORMS
from llmpilot.operators.rates import Rates

OPERATOR = "latent_decode"
FOLDERS = {"h100": ("h100_sxm", "0.19.0"), "h200": ("h200_sxm", "0.22.0"), "b200": ("b200_sxm", "0.22.0")}
LAUNCH_US = 8.0
"""Set by hand: what a captured launch costs beside a short context."""
MOST = 0.97
SPREAD = 0.2
_HIDDEN, _QUERY_RANK, _RANK, _ROPE, _HEAD = 7168, 1536, 512, 64, 128
_ABOVE = 2.5


def latent(folder: Path, gpus: dict[str, Gpu]) -> dict[str, dict[str, dict[str, float]]]:
    """Return the constants of decoding by GPU type and format of the cache, and those of all, `universal`."""
    own = {name: _of_gpu(folder, name, gpus[name]) for name in FOLDERS}
    shared = {}
    for fmt, constants in own["h100"].items():
        alike = {name: [of_gpu[fmt][name] for of_gpu in own.values()] for name in constants}
        shared[fmt] = {name: round(float(np.exp(np.mean(np.log(v)))), 3) for name, v in alike.items()}
    return {**own, "universal": shared}


def _of_gpu(folder: Path, name: str, gpu: Gpu) -> dict[str, dict[str, float]]:
    board, version = FOLDERS[name]
    table = pd.read_parquet(folder / board / "mla" / "vllm" / version / "mla_generation_module_perf.parquet")
    table = table[(table["model"] == "deepseek-ai/DeepSeek-V3") & (table["gemm_type"] == "fp8_block")]
    found = {}
    for given, fmt in (("bfloat16", "bf16"), ("fp8", "fp8")):
        rows = table[(table["kv_cache_dtype"] == given) & (table["mla_dtype"] == "bfloat16")]
        found[fmt] = _shares(fmt, rows[rows["latency"] > _ABOVE * rows["latency"].quantile(0.02)], gpu)
    return found


def _shares(fmt: str, rows: pd.DataFrame, gpu: Gpu) -> dict[str, float]:
    rates = Rates(gpu)
    sequences, heads = rows["batch_size"].to_numpy(float), rows["num_heads"].to_numpy(float)
    context = (rows["isl"] + rows["step"]).to_numpy(float)
    shape = (sequences, sequences * context, heads, float(_RANK), float(_ROPE))
    per_head = _QUERY_RANK * (_HEAD + _ROPE) + _HEAD * _HIDDEN + 2 * _HEAD * _RANK
    down = _HIDDEN * (_QUERY_RANK + _RANK + _ROPE)
    projections = 2.0 * sequences * (down + heads * per_head) / rates.compute("fp8_block")
    names = ["bandwidth_share", "compute_share"]

    def misses(logs: NDArray[np.float64]) -> NDArray[np.float64]:
        shares = dict(zip(names, np.exp(logs[2:]), strict=True))
        time = FORMS[OPERATOR].roofline({"launch_us": 0.0, **shares}, rates, fmt, *shape)
        predicted: NDArray[np.float64] = np.log(np.exp(logs[0]) + projections * np.exp(logs[1]) + time)
        return predicted - np.log(rows["latency"].to_numpy(float))

    first = np.log([0.1, 2.0, 0.7, 0.7])
    high = np.array([np.inf, np.inf, np.log(MOST), np.log(MOST)])
    found = least_squares(misses, first, bounds=(-np.inf, high), loss="soft_l1", f_scale=0.1)
    print(
        OPERATOR, fmt, gpu.name, len(rows), "rows, median miss", round(float(np.median(np.abs(found.fun))), 3)
    )
    shares = {name: round(float(np.exp(log)), 3) for name, log in zip(names, found.x[2:], strict=True)}
    return {"launch_us": LAUNCH_US, **shares, "spread": SPREAD}
