"""The task `evaluate on=today` as a user types it, its result, and its files scored again by other code."""

import json
from math import ceil
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
from conftest import Run

from llmpilot import catalog
from llmpilot.dataset.shipped import shipped_measurements

LLMS = ["meta-llama/Llama-3.1-70B", "openai/gpt-oss-120b"]
LIGHT = ("today.settings.tpot_ms=[15,25]", "today.settings.ttft_ms=[1000]", "today.settings.margins=[1.1]")


@pytest.fixture(scope="module")
def few_rows(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two LLMs on vLLM under one pair of lengths, on two GPU types."""
    shipped = shipped_measurements()
    table = shipped.table[shipped.closed_loop_today() & ~shipped.in_doubt()]
    chosen = table["model"].isin(LLMS)
    chosen &= (table["engine"] == "vllm") & table["gpu"].isin(["h200", "b200"])
    chosen &= (
        (table["input_tokens"] == 1024) & (table["output_tokens"] == 1024) & table["n_gpus"].isin([2, 4])
    )
    path = tmp_path_factory.mktemp("rows") / "few.parquet"
    table[chosen].to_parquet(path, index=False)
    return path


def test_scores_are_those_of_its_own_file_and_of_the_measured_rows(run: Run, few_rows: Path) -> None:
    given = (f"today.measurements={few_rows}", "evaluate.workers=1", "prices=runpod", *LIGHT)
    ran = run("task=evaluate", "on=today", "result_file=r.json", "predictions_file=p.csv", *given)
    assert ran.code == 0, ran.err
    result, said = json.loads(Path("r.json").read_text()), pd.read_csv("p.csv")
    assert result["rule"]["risk"] is None
    assert result["rule"]["certainty_worth"] > 0
    assert [one["model"] for one in result["per_model"]] == LLMS
    assert [one["risk"] for one in result["risks"]] == [None, 0.5, 0.35, 0.2, 0.1]
    plain = said[said["rule"].isna() & said["risk"].isna()]
    alone = plain["ttft_ms"].isna()
    for key, some in (
        ("tpot", plain[alone]),
        ("tpot_ttft", plain[~alone]),
        ("one_measured", said[(said["rule"] == "one_measured") & said["ttft_ms"].notna()]),
    ):
        assert result[key]["settings"] == len(some) == 2 * 2 * 3
        check_score(result[key], some)
    promised = plain[~alone & plain["option"].notna()]
    assert result["risks"][0]["promised"] == pytest.approx(promised["probability"].mean(), abs=1e-4)
    assert result["risks"][0]["came_to"] == pytest.approx(promised["kept"].mean(), abs=1e-4)
    assert result["risks"][0]["came_at"] == pytest.approx(
        promised["overspend"][promised["kept"]].mean(), abs=1e-4
    )
    check_optimum(plain, pd.read_parquet(few_rows))
    rule, whose, *tables = ran.out.splitlines()
    assert whose.startswith("prices: RunPod")
    assert rule.startswith("rule: least price")
    assert max(map(len, tables)) <= 80


def check_score(found: dict[str, Any], some: pd.DataFrame) -> None:
    """Recommendations are scored again."""
    can = np.isfinite(some["least_cost_per_hour"])
    overspend = (some["cost_per_hour"] / some["least_cost_per_hour"] - 1).where(can, 0.0)[some["kept"]].mean()
    kept = some["kept"].mean()
    assert found["kept"] == pytest.approx(kept, abs=1e-4)
    assert found["overspend"] == pytest.approx(overspend, abs=1e-4)
    thrift = 1 - overspend
    assert found["so_score"] == pytest.approx(2 * kept * thrift / (kept + thrift), abs=1e-4)


def check_optimum(plain: pd.DataFrame, rows: pd.DataFrame) -> None:
    """The least possible cost anew: each service interpolated densely between its levels."""
    sold = catalog.gpus(prices=catalog.price_list("runpod")).items()
    prices = {name: gpu.price_per_hour for name, gpu in sold}
    keys = ["model", "engine_version", "gpu", "n_gpus", "tp", "pp", "dp", "ep", "moe_tp", "precision"]
    out = 0.9 * 1024  # InferenceX draws from 80% to 100%
    figures = ["tpot_ms_unspec", "ttft_ms_unspec"]
    services = []
    for key, curve in rows.groupby(keys, dropna=False):
        levels = np.exp(np.log(curve.set_index("concurrency")[figures]).groupby(level=0).mean())
        e2e_ms = levels["ttft_ms_unspec"] + levels["tpot_ms_unspec"] * (out - 1)
        load = 1e3 * levels.index * out / e2e_ms
        users = np.log(levels.index.to_numpy(float))
        dense = np.linspace(users[0], users[-1], 20_001)
        at = [np.exp(np.interp(dense, users, np.log(values))) for _, values in levels.items()]
        services.append(
            (key[0], prices[key[2]][int(key[3])], *at, np.exp(np.interp(dense, users, np.log(load))))
        )
    assert np.isinf(plain["least_cost_per_hour"]).sum() < len(plain)
    for _, one in plain.iterrows():
        least = np.inf
        for model, price, tpot, ttft, load in services:
            within = (tpot <= one["tpot_ms"]) & ~(ttft > one["ttft_ms"])
            if model == one["model"] and within.any():
                least = min(least, ceil(one["load"] / load[within].max() * (1 - 1e-4)) * price)
        assert one["least_cost_per_hour"] == pytest.approx(least)


@pytest.mark.parametrize(
    ("override", "words"),
    [
        ("on=tomorrow", ["on", "tomorrow"]),
        ("today.measurements=nowhere.parquet", ["nowhere.parquet"]),
        ("evaluate.risk=1.5", ["evaluate.risk", "1.5"]),
        ("today.settings.tpot_ms=[]", ["today.settings.tpot_ms"]),
        ("evaluate.workers=0", ["evaluate.workers"]),
        ("predictions_file=/dev/null/p.csv", ["/dev/null/p.csv"]),
    ],
)
def test_mistakes_are_one_message(run: Run, override: str, words: list[str]) -> None:
    ran = run("task=evaluate", *([] if override.startswith("on=") else ["on=today"]), override)
    assert ran.code != 0
    assert "Traceback" not in ran.err
    for word in words:
        assert word in ran.err
