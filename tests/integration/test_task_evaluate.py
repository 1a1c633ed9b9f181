"""The task `evaluate` as a user types it, its result, and its files scored again by other code."""

import json
import time
from math import ceil
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
from conftest import Ran, Run
from tracked import interrupted_when, two_workers, with_a_worker_killed

from llmpilot.dataset import Dataset, published, save
from llmpilot.predict.decision import CERTAINTY_WORTH

LIGHT = (
    "predictor.trees=8",
    "predictor.fold_trees=4",
    "predictor.draws=60",
    "evaluate.seeds=2",
    "evaluate.workers=1",
    "evaluate.grid.nttft_ms=[100]",
    "evaluate.grid.itl_ms=[40,75]",
    "evaluate.grid.users=[50,200]",
)


@pytest.fixture(scope="module")
def three_llms(tmp_path_factory: pytest.TempPathFactory) -> Path:
    data, path = published(), tmp_path_factory.mktemp("data") / "three.parquet"
    save(data.select(data.table["model"].isin(["starcoder", "llama_7b", "flan_t5_xl"])), path)
    return path


def evaluate(run: Run, data: Path, *overrides: str) -> tuple[dict[str, Any], Ran]:
    ran = run("task=evaluate", f"dataset={data}", "result_file=r.json", *LIGHT, *overrides)
    assert ran.code == 0, ran.err
    return json.loads(Path("r.json").read_text()), ran


def scored_again(
    table: pd.DataFrame, truth: pd.DataFrame, prices: dict[tuple[str, int], float], users: int, itl_ms: float
) -> float:
    """The paper's S/O of one seed's recommendations, written anew from its definition."""
    overspends, n = [], 0
    for model, rows in truth.groupby("model"):
        costs = {}
        for (gpu, count), cells in rows.groupby(["gpu", "count"]):
            most = 0
            for _, cell in cells.sort_values("users").iterrows():
                if cell.nttft_ms > 100 or cell.itl_ms > itl_ms:
                    break
                most = cell.users
            costs[gpu, count] = (most, ceil(users / most) * prices[gpu, count] if most else np.inf)
        best = min(cost for _, cost in costs.values())
        said = table[(table.model == model) & (table.users == users) & (table.itl_ms == itl_ms)].iloc[0]
        n += 1
        if pd.isna(said.gpu):
            if np.isinf(best):
                overspends.append(0.0)
        elif said.pods * costs[said.gpu, int(said["count"])][0] >= users:
            overspends.append(said.pods * prices[said.gpu, int(said["count"])] / best - 1)
    if not overspends:
        return 0.0
    success, thrift = len(overspends) / n, max(0.0, 1 - float(np.mean(overspends)))
    return 2 * success * thrift / (success + thrift)


def test_scores_are_those_of_its_own_files(run: Run, three_llms: Path) -> None:
    result, _ = evaluate(run, three_llms, "predictions_file=p.csv")
    data = published()
    said = pd.read_csv(result["recommendations_file"])
    prices = {(gpu.name, n): price for gpu in data.gpus.values() for n, price in gpu.price_per_hour.items()}
    truth = data.table[data.table["model"].isin(["starcoder", "llama_7b", "flan_t5_xl"])]
    plain = said[~said["count_failures"]]
    for key, settings in (
        ("paper", [(200, 50.0)]),
        ("grid", [(u, i) for i in (40.0, 75.0) for u in (50, 200)]),
    ):
        again = [
            scored_again(plain[plain.seed == seed], truth, prices, *setting)
            for seed in result["seeds"]
            for setting in settings
        ]
        assert result[key]["so_score"] == pytest.approx(np.mean(again))
    cells = pd.read_csv(result["predictions_file"]).merge(truth, on=["model", "gpu", "count", "users"])
    assert len(cells) == 2 * len(truth)
    errors = (cells.itl_ms_x / cells.itl_ms_y - 1).abs()
    assert result["mape"]["itl"] == pytest.approx(errors.mean())


def test_the_rule_is_stated_and_a_smaller_risk_costs_more(run: Run, three_llms: Path) -> None:
    weighed, _ = evaluate(run, three_llms, "evaluate.seeds=1")
    assert weighed["rule"]["certainty_worth"] == CERTAINTY_WORTH
    assert weighed["rule"]["risk"] is None
    paid = []
    for risk in (0.5, 0.05):
        result, _ = evaluate(
            run, three_llms, "evaluate.seeds=1", f"evaluate.risk={risk}", "predictions_file=p.csv"
        )
        assert result["rule"]["risk"] == risk
        assert result["rule"]["name"] != weighed["rule"]["name"]
        said = pd.read_csv(result["recommendations_file"])
        paid.append(said.set_index(["model", "users", "itl_ms", "count_failures"])["cost_per_hour"].dropna())
    bold, careful = paid[0].align(paid[1], join="inner")
    assert (careful >= bold - 1e-9).all()
    assert (careful > bold).any()


def test_ctrl_c_ends_the_workers_without_their_noise(workdir: Path, three_llms: Path) -> None:
    out, err = interrupted_when(
        two_workers,
        "task=evaluate",
        f"dataset={three_llms}",
        *LIGHT,
        "evaluate.seeds=500",
        "evaluate.workers=2",
        "predictions_file=p.csv",
    )
    assert out == ""
    (line,) = err.splitlines()
    assert line.startswith("interrupted after ")
    assert "of 1500 folds" in line
    assert not Path("p.csv").exists()


def test_ctrl_c_in_the_middle_of_folds_ends_the_workers(workdir: Path, three_llms: Path) -> None:
    begun: list[float] = []

    def under_way(session: int) -> bool:
        if two_workers(session):
            begun.append(time.monotonic())
        return bool(begun) and time.monotonic() - begun[0] > 8

    heavy = ("predictor.trees=100", "predictor.fold_trees=50", "evaluate.seeds=500", "evaluate.workers=2")
    _, err = interrupted_when(under_way, "task=evaluate", f"dataset={three_llms}", *LIGHT, *heavy)
    assert err.splitlines()[-1].startswith("interrupted after ")


def test_a_killed_worker_is_one_message(workdir: Path, three_llms: Path) -> None:
    endless = ("evaluate.seeds=500", "evaluate.workers=2")
    err = with_a_worker_killed("task=evaluate", f"dataset={three_llms}", *LIGHT, *endless)
    assert "evaluate.workers=1" in err


def test_simulated_rows_are_left_out_unless_asked_for(run: Run, three_llms: Path, tmp_path: Path) -> None:
    data = published()
    names = ["starcoder", "llama_7b", "flan_t5_xl", "mpt_7b"]
    table = data.table[data.table["model"].isin(names)].copy()
    table.loc[table["model"] == "mpt_7b", "measurement"] = "simulated"
    save(Dataset(table, data.models, data.gpus), tmp_path / "mixed.parquet")
    result, ran = evaluate(run, tmp_path / "mixed.parquet")
    assert len(result["per_model"]) == 3
    assert "left out: " in ran.err
    assert "simulated=true" in ran.err
    both, _ = evaluate(run, tmp_path / "mixed.parquet", "simulated=true", "predictions_file=new/dir/p.csv")
    assert len(both["per_model"]) == 4
    assert Path("new/dir/p.csv").is_file()
    assert Path("new/dir/p.recommendations.csv").is_file()


def test_measured_profiles_are_shown_and_not_scored(run: Run, three_llms: Path) -> None:
    result, _ = evaluate(run, three_llms, "evaluate.measured=[1xA100]", "predictions_file=p.csv")
    cells = pd.read_csv("p.csv")
    shown = (cells["gpu"] == "A100-40GB") & (cells["count"] == 1)
    assert (cells["predicted"] != shown).all()
    truth = published().table
    both = cells[shown].merge(truth, on=["model", "gpu", "count", "users"])
    assert both.itl_ms_x.to_numpy() == pytest.approx(both.itl_ms_y.to_numpy())
    assert result["measured"] == ["1xA100"]


@pytest.mark.parametrize(
    ("override", "words"),
    [
        ("evaluate.measured=[1xZ9]", ["1xZ9", "evaluate.measured=[1xH100]"]),
        ("evaluate.seeds=0", ["evaluate.seeds", "0"]),
        ("evaluate.grid.users=[]", ["evaluate.grid.users"]),
        ("sla.percentile=95", ["sla.percentile=95", "medians"]),
        ("sla.ttft_ms=100", ["sla.ttft_ms=100", "medians"]),
        ("users=0", ["users"]),
        ("users=true", ["users"]),
        ("seed=-1", ["seed"]),
        ("seed=abc", ["seed"]),
        ("dataset=nowhere.parquet", ["nowhere.parquet"]),
        ("predictor.trees=0", ["predictor.trees"]),
        ("predictor.views=[[guess]]", ["predictor.views"]),
        ("predictions_file=/dev/null/p.csv", ["/dev/null/p.csv"]),
    ],
)
def test_mistakes_are_one_message(run: Run, override: str, words: list[str]) -> None:
    ran = run("task=evaluate", "evaluate.workers=1", override)
    assert ran.code == 2
    for word in words:
        assert word in ran.err
    assert "Traceback" not in ran.err
