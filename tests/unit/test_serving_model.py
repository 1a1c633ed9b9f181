"""The recommender behind MLflow's own scoring server: JSON and CSV, in their several forms, and refusals."""

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pandas as pd
import pytest
from serving_samples import FEW, ask, small_bundle

from llmpilot.serving.model import ARTIFACT
from llmpilot.serving.recommender import Recommender
from llmpilot.serving.registry import SCRIPT
from llmpilot.serving.signature import LISTS, input_example, signature

ROWS = [
    FEW,
    FEW | {"requests_per_s": None, "users": 40, "think_time_s": 5, "risk": 0.2, "gpus": "h100"},
    {"model": "llama_3_1_8b", "requests_per_s": 8, "gpu": "h100", "count": 1},
]


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Any:
    import mlflow

    folder: Path = tmp_path_factory.mktemp("served")
    small_bundle().save(folder / "bundle")
    mlflow.pyfunc.save_model(
        str(folder / "model"),
        python_model=str(SCRIPT),
        artifacts={ARTIFACT: str(folder / "bundle")},
        signature=signature(),
        input_example=input_example("llama_3_1_8b"),
        pip_requirements=["mlflow"],
    )
    return mlflow.pyfunc.load_model(str(folder / "model"))


@pytest.fixture(scope="module")
def client(model: Any) -> Iterator[Any]:
    from fastapi.testclient import TestClient
    from mlflow.pyfunc.scoring_server import init

    with TestClient(init(model)) as found:
        yield found


def sent(client: Any, body: dict[str, Any]) -> Any:
    return client.post("/invocations", json=body)


def csv_sent(client: Any, text: str) -> Any:
    return client.post("/invocations", content=text, headers={"content-type": "text/csv"})


def test_json_and_csv_give_the_same_answers(client: Any) -> None:
    frame = pd.DataFrame(ROWS)
    split = json.loads(frame.to_json(orient="split"))
    forms = [
        sent(client, {"dataframe_records": ROWS}),
        sent(client, {"dataframe_split": split}),
        sent(client, {"inputs": dict(zip(split["columns"], zip(*split["data"], strict=True), strict=True))}),
        csv_sent(client, frame.to_csv(index=False)),
        csv_sent(client, frame.to_csv()),
    ]
    assert [one.status_code for one in forms] == [200] * len(forms), [one.text for one in forms]
    first, *others = [one.json()["predictions"] for one in forms]
    assert all(other == first for other in others)
    expected = ask(Recommender(small_bundle()), *ROWS)
    for row, told in zip(first, expected, strict=True):
        assert {name: value for name, value in row.items() if name in told} == json.loads(json.dumps(told))
        assert all(value is None for name, value in row.items() if name not in told)


def test_lists_are_json_and_not_json_in_a_text(client: Any) -> None:
    recommended, _, predicted = sent(client, {"dataframe_records": ROWS}).json()["predictions"]
    for name in LISTS:
        assert isinstance(recommended[name], list)
    first = recommended["ranking"][0]
    assert (first["gpu"], first["pods"]) == (recommended["gpu"], recommended["pods"])
    assert first["latencies"][0]["limit_ms"] == 1000
    assert predicted["ranking"] is None
    assert predicted["latencies"][0]["expected_ms"] > 0


def test_frames_of_whole_numbers_and_single_rows_are_taken(model: Any) -> None:
    whole = pd.DataFrame([{"model": "llama_3_1_8b", "requests_per_s": 8, "gpu": "h100", "count": 1}])
    assert whole["requests_per_s"].dtype == "int64"
    (as_whole,) = model.predict(whole)["itl_ms"]
    (as_float,) = model.predict(whole.astype({"requests_per_s": float, "count": float}))["itl_ms"]
    (as_row,) = model.predict({"model": "llama_3_1_8b", "requests_per_s": 8, "gpu": "h100"})["itl_ms"]
    assert as_whole == as_float == as_row
    (by_param,) = model.predict(whole.drop(columns="count"), params={"task": "predict"})["itl_ms"]
    assert by_param == as_whole


def test_empty_cells_are_not_given(client: Any) -> None:
    nothing = dict.fromkeys(("users", "risk", "max_gpus", "workload", "engine", "precision", "gpu"))
    with_nothing = csv_sent(client, pd.DataFrame([FEW | nothing]).to_csv(index=False))
    assert with_nothing.status_code == 200, with_nothing.text
    plain = sent(client, {"dataframe_records": [FEW]})
    assert with_nothing.json() == plain.json()


@pytest.mark.parametrize(
    ("row", "more", "said"),
    [
        ({**FEW, "requests_per_s": -1}, {}, "row 0: column requests_per_s"),
        ({**FEW, "requests_per_s": "many"}, {}, "row 0: column requests_per_s"),
        ({"model": "llama_3_1_8b"}, {}, "row 0: columns requests_per_s and users"),
        ({**FEW, "model": "no_such"}, {}, "row 0: column model"),
        ({**FEW, "model": [1]}, {}, "row 0: column model"),
        ({**FEW, "ttft_p95": 3}, {}, "there is no column 'ttft_p95'"),
        ({**FEW, "riks": 0.1}, {}, "did you mean 'risk'"),
        (FEW, {"params": {"task": "predict"}}, "row 0: column gpu is missing"),
    ],
)
def test_refusals_are_400_and_name_row_and_column(
    client: Any, row: dict[str, Any], more: dict[str, Any], said: str
) -> None:
    refused = sent(client, {"dataframe_records": [row], **more})
    assert refused.status_code == 400, refused.text
    assert said in refused.json()["message"]
    assert "to mend it" in refused.json()["message"]
    assert "Traceback" not in refused.text


def test_csv_is_refused_in_the_same_words(client: Any) -> None:
    refused = csv_sent(client, "model,requests_per_s,ttft\nllama_3_1_8b,20,1000\n")
    assert refused.status_code == 400
    assert "there is no column 'ttft'" in refused.json()["message"]
    assert "did you mean 'ttft_ms'" in refused.json()["message"]
