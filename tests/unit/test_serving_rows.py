"""What the rows of a request ask, in whatever form they come, and what is refused in which words."""

import json
from io import StringIO
from typing import Any

import pandas as pd
import pytest
from serving_samples import FACTS, QUESTION, small_bundle

from llmpilot import catalog
from llmpilot.errors import ConfigError
from llmpilot.serving.rows import COLUMNS, Asked, Known, names_of


@pytest.fixture(scope="module")
def known() -> Known:
    bundle = small_bundle()
    return Known(names_of(list(catalog.models().values())), bundle.gpus, bundle.prices)


def read(known: Known, *rows: dict[str, Any]) -> list[Asked]:
    return known.read(pd.DataFrame(list(rows)), "auto")


def test_json_csv_whole_numbers_and_texts_ask_the_same(known: Known) -> None:
    row = {"model": "llama_3_1_8b", "users": 100, "think_time_s": 20, "ttft_ms_p95": 800, "gpus": "h100,l4"}
    empty = {"risk": None, "workload": None, "precision": float("nan"), "engine": ""}
    csv = pd.read_csv(StringIO(pd.DataFrame([row | empty]).to_csv()))
    forms = [
        pd.DataFrame([row]),
        pd.DataFrame([row], dtype=object),
        pd.DataFrame([row | empty]),
        pd.DataFrame([{key: str(value) for key, value in row.items()}]),
        csv,
        pd.DataFrame([row | {"gpus": ["h100", "l4"]}]),
    ]
    first, *others = [known.read(form, "auto")[0] for form in forms]
    assert all(other == first for other in others)
    assert first.demand.users == 100
    assert first.gpus == ("h100", "l4")
    assert [limit.label for limit in first.sla.limits] == ["TTFT p95 <= 800 ms"]


def test_limits_name_their_statistic_or_take_that_of_percentile(known: Known) -> None:
    def labels(**limits: Any) -> list[str]:
        load = {"model": "llama_3_1_8b", "requests_per_s": 1}
        return [limit.label for limit in read(known, load | limits)[0].sla.limits]

    assert labels() == ["TTFT p95 <= 1000 ms", "ITL p95 <= 50 ms"]
    assert labels(percentile=50) == ["TTFT p50 <= 1000 ms", "ITL p50 <= 50 ms"]
    assert labels(itl_ms=30) == ["ITL p95 <= 30 ms"]
    assert labels(itl_ms=30, percentile="p99") == ["ITL p99 <= 30 ms"]
    assert labels(e2e_ms_mean=9000, ttft_ms_p95=1000, itl_ms_p50=30) == [
        "TTFT p95 <= 1000 ms",
        "ITL p50 <= 30 ms",
        "E2E mean <= 9000 ms",
    ]
    assert labels(ttft_ms=1000, ttft_ms_p50=300) == ["TTFT p50 <= 300 ms", "TTFT p95 <= 1000 ms"]


def test_what_is_sent_is_a_workload_by_name_or_tokens(known: Known) -> None:
    assert read(known, QUESTION)[0].sent.name == "azure_conv"
    assert read(known, QUESTION | {"workload": "azure_code"})[0].sent.name == "azure_code"
    tokens = {"input_tokens": 2000, "output_tokens": 300.4}
    (own,) = read(known, QUESTION | tokens | {"cached_share": 0.5, "input_stdev_tokens": 10})
    assert (own.sent.name, own.sent.cached_share) == ("lengths_2000_300", 0.5)
    assert own.sent.node == {
        "name": "lengths_2000_300",
        "model": "lengths",
        "input_tokens": 2000,
        "output_tokens": 300,
        "input_stdev_tokens": 10.0,
        "cached_share": 0.5,
    }
    assert read(known, QUESTION | tokens | {"workload": "fixed"})[0].sent.name == "fixed_2000_300"


def test_a_model_is_a_name_an_id_facts_or_a_config(known: Known) -> None:
    config = {
        "model_type": "llama",
        "hidden_size": 4096,
        "intermediate_size": 14336,
        "num_hidden_layers": 32,
        "num_attention_heads": 32,
        "num_key_value_heads": 8,
        "vocab_size": 128256,
        "torch_dtype": "bfloat16",
    }
    load = {"requests_per_s": 20}
    name, hub, columns, text, derived, changed = (
        asked.model
        for row in (
            {"model": "llama_3_1_8b"},
            {"model": "meta-llama/Llama-3.1-8B-Instruct"},
            FACTS,
            {"model_facts": json.dumps(FACTS)},
            {"model_facts": json.dumps(config)},
            {"model": "llama_3_1_8b", "weight_bytes_per_parameter": 20.0},
        )
        for asked in read(known, row | load)
    )
    assert name == hub
    assert columns == text
    assert derived.parameters_b == pytest.approx(columns.parameters_b, rel=0.01)
    assert changed.weight_bytes == pytest.approx(10 * name.weight_bytes)


def test_prices_are_a_list_by_name_or_json(known: Known) -> None:
    def priced(prices: Any) -> dict[tuple[str, int], float]:
        return dict(read(known, QUESTION | {"prices": prices})[0].prices.prices)

    assert priced("runpod") == dict(catalog.price_list("runpod").prices)
    assert priced('{"h100": {"1": 2.5, "8": 19}}') == {("h100", 1): 2.5, ("h100", 8): 19.0}
    each = priced({"H100": 2.5})
    assert each[("h100", 4)] == 10.0
    assert set(each) == {("h100", count) for count in known.gpus["h100"].possible_counts}


@pytest.mark.parametrize(
    ("row", "said"),
    [
        ({"requests_per_s": 5}, "column model is missing"),
        (QUESTION | {"model": "llama_3_1_8"}, "did you mean 'llama_3_1_8b'"),
        (QUESTION | {"model": 7}, "column model is no text"),
        ({"model": "llama_3_1_8b"}, "the load is not given"),
        (QUESTION | {"users": 5}, "the load is given twice"),
        (QUESTION | {"think_time_s": 5}, "column think_time_s is of users"),
        (QUESTION | {"requests_per_s": 0}, "column requests_per_s is not possible"),
        (QUESTION | {"requests_per_s": "many"}, "column requests_per_s is not possible"),
        (QUESTION | {"requests_per_s": float("inf")}, "column requests_per_s is not possible"),
        ({"model": "llama_3_1_8b", "users": 2.5}, "a whole number"),
        ({"model": "llama_3_1_8b", "users": 10**400}, "column users is not possible"),
        (QUESTION | {"ttft_ms": "fast"}, "column ttft_ms is not possible"),
        (QUESTION | {"ttft_ms": True}, "column ttft_ms is not possible"),
        (QUESTION | {"ttft_ms_p95": 800}, "columns ttft_ms and ttft_ms_p95 are limits on the same"),
        (QUESTION | {"percentile": 80}, "column percentile is not possible"),
        (QUESTION | {"risk": 1.0}, "column risk is not possible"),
        (QUESTION | {"max_gpus": 0}, "column max_gpus is not possible"),
        (QUESTION | {"workload": "azure_chat"}, "column workload: there is no workload 'azure_chat'"),
        (QUESTION | {"workload": "paper", "input_tokens": 5}, "columns workload and input_tokens"),
        (QUESTION | {"input_tokens": 5}, "column output_tokens is missing"),
        (QUESTION | {"workload": "fixed"}, "column input_tokens is missing"),
        (QUESTION | {"cached_share": 2}, "column cached_share is not possible"),
        (QUESTION | {"gpus": "h100,h1000"}, "column gpus: there is no GPU type 'h1000'"),
        (QUESTION | {"gpus": []}, "column gpus names none"),
        (QUESTION | {"engine": "vlm"}, "did you mean 'vllm'"),
        (QUESTION | {"precision": "fp7"}, "column precision: there is no 'fp7'"),
        (QUESTION | {"prices": "amazon"}, "column prices: there is no price list 'amazon'"),
        (QUESTION | {"prices": "/etc/passwd"}, "there is no price list"),
        (QUESTION | {"prices": '{"h100": "dear"}'}, "column prices: h100 has no price"),
        (QUESTION | {"prices": '{"h1000": 2}'}, "column prices: there is no GPU type 'h1000'"),
        (QUESTION | {"task": "reccomend"}, "column task"),
        (QUESTION | {"model_facts": "{"}, "column model_facts is no JSON"),
        (QUESTION | {"model_facts": "[" * 100_000}, "column model_facts is no JSON"),
        (QUESTION | {"model_facts": "[]"}, "column model_facts is no JSON object"),
        ({"model_facts": json.dumps(FACTS | {"depth": 3}), "users": 5}, "model_facts.depth is not a key"),
        ({"parameters_b": 7, "users": 5}, "column n_layers is missing"),
        (FACTS | {"n_heads": "many", "users": 5}, "column n_heads is not possible"),
        (FACTS | {"active_parameters_b": 9, "users": 5}, "active_parameters_b is larger"),
        (QUESTION | {"gpu": "h100", "count": 3}, "there is no pod with 3 x H100"),
        (QUESTION | {"gpu": "h100", "precision": "bf16,fp8"}, "column precision names more than one"),
        (QUESTION | {"task": "predict"}, "column gpu is missing"),
    ],
)
def test_what_cannot_be_answered_names_row_and_column(known: Known, row: dict[str, Any], said: str) -> None:
    with pytest.raises(ConfigError) as refused:
        known.read(pd.DataFrame([QUESTION, row], dtype=object), "auto")
    assert str(refused.value).startswith("row 1: ")
    assert said in str(refused.value)
    assert refused.value.cure or "larger" in said


@pytest.mark.parametrize(
    ("column", "meant"), [("ttft", "ttft_ms"), ("request_per_s", "requests_per_s"), ("max_gpu", "max_gpus")]
)
def test_a_misspelt_column_is_named_and_the_right_one_too(known: Known, column: str, meant: str) -> None:
    with pytest.raises(ConfigError) as refused:
        read(known, QUESTION | {column: 5})
    assert f"there is no column {column!r}" in str(refused.value)
    assert f"did you mean {meant!r}" in str(refused.value)
    assert all(name in str(refused.value) for name in COLUMNS)


def test_a_request_without_rows_is_refused(known: Known) -> None:
    with pytest.raises(ConfigError, match="no rows"):
        known.read(pd.DataFrame(), "auto")
