"""What a recommendation starts from: which profiles hold a model, prices, the SLA, the model, the data."""

import json
from pathlib import Path
from typing import Any

import pytest
from hf_configs import TINY_LLAMA

from llmpilot import catalog
from llmpilot.config import Sla, Tracking
from llmpilot.dataset import published, save
from llmpilot.errors import ConfigError
from llmpilot.recommendation.fitting import split_by_fit, why_unfit
from llmpilot.recommendation.need import need_of
from llmpilot.recommendation.sources import data_of, model_of
from llmpilot.sizing import plan_memory

HEAVIEST = 946  # tokens, of the paper's workload
MODELS = catalog.models()
GPUS = catalog.gpus()

# --- what fits -------------------------------------------------------------------------------------------


def test_every_pair_that_was_measured_fits() -> None:
    data = published()
    pairs = data.table[["model", "gpu", "count"]].drop_duplicates()
    assert len(pairs) == 66
    for row in pairs.itertuples():
        gpu = data.gpus[row.gpu].model_copy(update={"count": row.count})
        assert why_unfit(data.models[row.model], gpu, HEAVIEST) is None, (row.model, gpu.label)


def test_what_does_not_fit_is_told_with_its_arithmetic() -> None:
    paper = catalog.price_list("paper")
    fit, unfit = split_by_fit(MODELS["llama_3_1_70b"], catalog.gpu_profiles(["t4", "h100"], paper), HEAVIEST)
    assert [gpu.label for gpu in fit] == ["2 x H100", "4 x H100", "8 x H100"]
    assert [gpu.label for gpu, _ in unfit] == ["1 x T4", "2 x T4", "4 x T4", "1 x H100"]
    for _, reason in unfit:
        assert reason.startswith("does not fit: ")
        assert "GB weights" in reason


def test_heads_must_split_evenly() -> None:
    eight = GPUS["h100"].model_copy(update={"count": 8})
    assert MODELS["qwen2_5_7b"].n_heads == 28
    assert (
        why_unfit(MODELS["qwen2_5_7b"], eight, HEAVIEST)
        == "28 attention heads cannot be split evenly over 8 GPUs"
    )


def test_room_for_less_than_one_request_is_no_room() -> None:
    model, gpu = MODELS["llama_3_1_8b"], GPUS["a10"]
    capacity = plan_memory(model, gpu).kv_capacity_tokens
    assert why_unfit(model, gpu, capacity) is None
    assert f"the heaviest request holds {capacity + 1:,}" in str(why_unfit(model, gpu, capacity + 1))


# --- the SLA ---------------------------------------------------------------------------------------------


def test_an_sla_that_predictions_cover() -> None:
    need = need_of(500, Sla(itl_ms=40))
    assert (need.users, need.nttft_ms, need.itl_ms, need.count_failures) == (500, 100, 40, True)
    need = need_of(1, Sla(nttft_ms=None, max_failure_rate=1.0))
    assert (need.nttft_ms, need.itl_ms, need.count_failures) == (float("inf"), 50, False)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"percentile": 95}, "sla.percentile=95"),
        ({"ttft_ms": 500}, "sla.ttft_ms=500"),
        ({"tpot_ms": 20}, "sla.tpot_ms=20"),
        ({"e2e_ms": 9000}, "sla.e2e_ms=9000"),
        ({"nttft_ms": None, "itl_ms": None}, "no limit"),
        ({"max_failure_rate": 0.05}, "sla.max_failure_rate=0.05"),
    ],
)
def test_an_sla_that_they_do_not_cover_is_refused(changes: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        need_of(10, Sla(**changes))


# --- the model, the data, the line to type -----------------------------------------------------------------

CONFIG = TINY_LLAMA | {"_name_or_path": "acme/small-llama"}


def test_a_model_comes_by_name_file_content_or_facts(tmp_path: Path) -> None:
    (tmp_path / "small-llama").mkdir()
    file = tmp_path / "small-llama" / "config.json"
    file.write_text(json.dumps(CONFIG))
    expected = model_of(file)
    assert (expected.name, expected.hf_id, expected.n_kv_heads) == ("small-llama", "acme/small-llama", 4)
    assert model_of(str(file.parent)) == expected
    assert model_of(CONFIG) == expected
    names = ("x" * 300, "a\0b", "../../etc/passwd", "")
    assert [model_of(CONFIG | {"_name_or_path": name}).name for name in names] == [
        "x" * 100,
        "a-b",
        "passwd",
        "model",
    ]
    assert model_of(expected) is expected
    assert model_of("starcoder") == MODELS["starcoder"]
    with pytest.raises(ConfigError, match="did you mean 'llama_3_1_8b'"):
        model_of("llama_3_1_8")


def test_a_store_that_is_not_there_is_not_made(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    data = data_of("published", Tracking(uri="sqlite:///mlflow.db"))
    assert data.content_hash == published().content_hash
    assert list(tmp_path.iterdir()) == []
    part = published().without("starcoder")
    save(part, tmp_path / "d.parquet")
    assert data_of("d.parquet", None).content_hash == part.content_hash


def test_a_store_with_options_behind_its_path_is_found(workdir: Path) -> None:
    found = data_of("published", Tracking(uri=f"sqlite:///{workdir}/mlflow.db?timeout=5"))
    assert found.content_hash == published().content_hash


def test_a_store_that_was_named_has_to_be_there(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    with pytest.raises(ConfigError, match=r"(?s)no tracking store .*typo\.db.*runs=false") as caught:
        data_of("published", Tracking(uri=f"sqlite:///{tmp_path}/typo.db"))
    assert f"tracking.uri=sqlite:///{tmp_path}/typo.db" in str(caught.value)
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "sqlite:///mlflow.db")
    with pytest.raises(ConfigError, match=r"no tracking store .*mlflow\.db"):
        data_of("published", Tracking(uri="sqlite:///mlflow.db"))
    assert list(tmp_path.iterdir()) == []
