"""How a profile of a GPU compares with another of it, with published tables and with LLM-Pilot's operators.

    python build.py my_gpu.json [KERNELS] [--again AGAIN.json] [--gpu OPTION] [--output comparison.json]

KERNELS is systems/data of ai-dynamo/aiconfigurator, for the shapes that its tables and the profile share.
"""

import argparse
import json
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

sys.path.insert(0, str(Path(__file__).parents[1] / "14_operators"))
import tables

from llmpilot import catalog
from llmpilot.config import Gpu
from llmpilot.errors import ConfigError
from llmpilot.operators import operators_for
from llmpilot.operators.fit import measured
from llmpilot.operators.profile import GpuProfile, long_table, read_profile

SHAPE = {
    "gemm": ["m", "n", "k"],
    "decode_attention": ["sequences", "context_tokens", "n_heads", "n_kv_heads", "head_dim"],
    "prefill_attention": ["chunks", "tokens", "pairs", "n_heads", "n_kv_heads", "head_dim"],
    "experts": ["tokens", "d_model", "width", "per_token", "n_experts", "tensor_parallel", "expert_parallel"],
    "all_reduce": ["message_bytes", "gpus"],
}


def option_of(profile: GpuProfile) -> str:
    """Return the catalogue's option of the profiled GPU: the longest name that is part of its name."""
    gpus = catalog.gpus()
    words = profile.gpu_name.upper().replace("-", " ").split()
    fitting = [
        option
        for option, gpu in gpus.items()
        if all(word in words for word in gpu.name.upper().replace("-", " ").split())
    ]
    if not fitting:
        raise ConfigError(
            "no GPU of the catalogue has such a name", given=profile.gpu_name, cure="--gpu OPTION"
        )
    return max(fitting, key=lambda option: len(gpus[option].name))


def ratios(logs: Any) -> dict[str, float]:
    """Return the count, median and 80% range of ratios, and the median error, from their logs."""
    low, middle, high = np.exp(np.quantile(logs, [0.1, 0.5, 0.9]))
    error = np.median(np.abs(np.exp(logs) - 1))
    figures = {"ratio": middle, "p10": low, "p90": high, "median_error": error}
    return {"shapes": len(logs)} | {name: round(float(value), 3) for name, value in figures.items()}


def beside(one: pd.DataFrame, other: pd.DataFrame) -> dict[tuple[str, str], dict[str, float]]:
    """Return, for each operator and format, the ratios of the times of the shapes that both tables have."""
    found = {}
    for (op, fmt), rows in one.groupby(["op", "format"]):
        keys = SHAPE[str(op)]
        theirs = other[(other["op"] == op) & (other["format"] == fmt)]
        both = rows.merge(theirs, on=keys, suffixes=("", "_other")) if set(keys) <= set(theirs) else rows[:0]
        if len(both):
            found[str(op), str(fmt)] = ratios(np.log(both["time_us"] / both["time_us_other"]))
    return found


def against_operators(table: pd.DataFrame, gpu: Gpu) -> dict[tuple[str, str], dict[str, float]]:
    """Return the ratios of measured to LLM-Pilot's times, over all shapes of the profile."""
    known = operators_for(gpu)
    return {
        (op, fmt): ratios(part.misses(known.constants(op, fmt)))
        for (op, fmt), part in measured(table, gpu).items()
    }


def main() -> None:
    """Compare, print tables and write the figures."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("profile", type=Path)
    parser.add_argument("kernels", type=Path, nargs="?", help="published tables")
    parser.add_argument("--again", type=Path, help="a second profile of the same GPU")
    parser.add_argument("--gpu", help="the catalogue's option; by default the one of that name")
    parser.add_argument("--output", type=Path, help="a JSON file for the figures")
    given = parser.parse_args()
    profile = read_profile(given.profile)
    option = given.gpu or option_of(profile)
    gpu = catalog.gpus([option])[option]
    known = operators_for(gpu)
    table = long_table(profile, known)
    compared = {"LLM-Pilot's operators": against_operators(table, gpu)}
    if given.kernels is not None and option in tables.GPUS:
        published = tables.load(given.kernels, option, gpu.bandwidth_gb_s)
        compared["published tables, same shapes"] = beside(table, published)
    if given.again is not None:
        compared["a second profile"] = beside(long_table(read_profile(given.again), known), table)
    copied = 1e-3 * profile.copy_rate(known.rates)
    print(f"{profile.gpu_name} as {option}: {len(table)} shapes, copies at {copied:,.0f} GB/s")
    print(f"launch {profile.launch_us('eager'):.1f} us, in a graph {profile.launch_us('graph'):.1f} us\n")
    for name, kinds in compared.items():
        print(f"| profile / {name} | format | shapes | median | p10 to p90 | median error |")
        print("|---|---|---|---|---|---|")
        for (op, fmt), r in kinds.items():
            spread = f"{r['p10']:.2f} to {r['p90']:.2f}"
            print(f"| {op} | {fmt} | {r['shapes']} | {r['ratio']:.2f} | {spread} | {r['median_error']:.0%} |")
        print()
    if given.output is not None:
        figures = {
            name: {f"{op} {fmt}": kind for (op, fmt), kind in kinds.items()}
            for name, kinds in compared.items()
        }
        facts = {
            "gpu": profile.gpu_name,
            "option": option,
            "copy_gb_s": round(copied, 1),
            "compared": figures,
        }
        given.output.write_text(json.dumps(facts, indent=1) + "\n")


if __name__ == "__main__":
    try:
        main()
    except ConfigError as error:
        print(f"error: {error}", file=sys.stderr)
        sys.exit(error.exit_code)
