"""Put the same load on the emulator with LLM-Pilot's client and with other tools; compare with what was sent.

    python measure.py --users 128,512 --repeats 3 --out results.json

Repeats of all tools take turns, so that a noisy minute of the machine meets all of them.
"""

import argparse
import json
import os
import shutil
import tempfile
from pathlib import Path
from statistics import median
from typing import Any

import numpy as np
import pyarrow as pa
from peers import PEERS, Ask, Peer

from llmpilot.emulator import FixedTiming, Options, example_service, in_process
from llmpilot.loadtest.client_error import client_error

TTFT_MS, ITL_MS, TOKENS = 50.0, 20.0, 64
ROUND_S = (TTFT_MS + (TOKENS - 1) * ITL_MS) / 1e3
ROUNDS = 10


def pilot(users: int) -> dict[str, Any]:
    """Return LLM-Pilot's own statement, in the columns of the table."""
    error = client_error(users, ttft_ms=TTFT_MS, itl_ms=ITL_MS, rounds=ROUNDS)
    return {
        "requests": error["requests"],
        "requests_per_s": error["requests_per_s"],
        "reported": error["reported"],
        "sent": error["sent"],
        "own_error_ms": {"ttft": error["ttft_error_ms"], "itl": error["itl_error_ms"]},
        "unnoticed_ms": error["unnoticed_ms"],
        "busy_share": error["busy_share"],
        "loop": error["loop"],
        "verdict": error["bottleneck"],
    }


def other(peer: Peer, program: str, users: int) -> dict[str, Any]:
    """Run a peer for as long, and return its figures beside the emulator's."""
    timing = FixedTiming(ttft_ms=TTFT_MS, itl_ms=ITL_MS)
    model = example_service().model_id
    with tempfile.TemporaryDirectory() as folder:
        with in_process(options=Options(fixed=timing)) as emulator:
            reported = peer(program, Ask(emulator.url, model, users, ROUNDS * ROUND_S, Path(folder)))
        return {**reported, "sent": what_was_sent(emulator.truth())}


def what_was_sent(truth: pa.Table) -> dict[str, Any]:
    """Return the emulator's own TTFT and ITL, of whole answers of the expected length."""
    ttft, itl = [], []
    for arrived_ns, outcome, tokens in zip(
        truth["arrived_ns"].to_pylist(), truth["outcome"].to_pylist(), truth["sent_ns"], strict=True
    ):
        sent_ns = tokens.values.to_numpy()
        if len(sent_ns) == TOKENS and outcome == "ok":
            ttft.append((int(sent_ns[0]) - arrived_ns) / 1e6)
            itl.append(np.diff(sent_ns) / 1e6)
    return {"ttft_ms": percentiles(np.array(ttft)), "itl_ms": percentiles(np.concatenate([[], *itl]))}


def percentiles(values: Any) -> dict[str, float | None]:
    if not len(values):
        return {"p50": None, "p99": None}
    return {"p50": float(np.percentile(values, 50)), "p99": float(np.percentile(values, 99))}


def table(results: list[dict[str, Any]]) -> str:
    """Return the medians over the repeats as a Markdown table."""
    lines = [
        "| users | client | TTFT p50 reported (sent) [ms] | TTFT p99 reported (sent) [ms] | "
        "ITL p50 (sent) [ms] | requests/s (possible) |",
        "|---|---|---|---|---|---|",
    ]
    for users, tool in dict.fromkeys((r["users"], r["tool"]) for r in results):
        runs = [r for r in results if (r["users"], r["tool"]) == (users, tool) and "problem" not in r]
        if not runs:
            continue

        def mid(side: str, latency: str, statistic: str, runs: list[dict[str, Any]] = runs) -> str:
            values = [r[side][latency][statistic] for r in runs]
            known = [v for v in values if v is not None]
            return f"{median(known):.2f}" if known else "-"

        cells = [f"{mid('reported', 'ttft_ms', p)} ({mid('sent', 'ttft_ms', p)})" for p in ("p50", "p99")]
        cells.append(f"{mid('reported', 'itl_ms', 'p50')} ({mid('sent', 'itl_ms', 'p50')})")
        rate = median(r["requests_per_s"] for r in runs)
        lines.append(f"| {users} | {tool} | {' | '.join(cells)} | {rate:.1f} ({users / ROUND_S:.1f}) |")
    return "\n".join(lines)


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--users", default="128,512")
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--out", type=Path, required=True)
    arguments = parser.parse_args()
    found = {name: program for name in PEERS if (program := shutil.which(name))}
    results: list[dict[str, Any]] = []
    for users in map(int, arguments.users.split(",")):
        for repeat in range(arguments.repeats):
            for tool in ("llm-pilot", *found):
                try:
                    figures = pilot(users) if tool == "llm-pilot" else other(PEERS[tool], found[tool], users)
                except Exception as error:
                    # A peer that fails is a result, not the end of the experiment.
                    figures = {"problem": f"{type(error).__name__}: {error}"[:500]}
                load = os.getloadavg()[0]
                row = {"users": users, "repeat": repeat, "tool": tool, "load_average": load, **figures}
                print(json.dumps(row), flush=True)
                results.append(row)
    missing = sorted(set(PEERS) - set(found))
    conditions = {
        "ttft_ms": TTFT_MS,
        "itl_ms": ITL_MS,
        "tokens": TOKENS,
        "rounds": ROUNDS,
        "cores": os.cpu_count(),
        "peers_not_installed": missing,
    }
    text = json.dumps({"conditions": conditions, "runs": results}, indent=1) + "\n"
    arguments.out.write_text(text, encoding="utf-8")
    print(table(results))


if __name__ == "__main__":
    main()
