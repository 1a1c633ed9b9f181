"""The task `recommend` as a user types it: today's services by simulation, the paper's by its predictor."""

import json
import shlex
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import yaml
from conftest import Run
from hf_configs import TINY_LLAMA

from llmpilot import recommend as recommend_function

FEW = "catalog=[h100,l40s,l4]"
HEADLINE = ("task=recommend", "+model=llama_3_1_8b", "requests_per_s=20", "workload=azure_conv")
PROMISE = ("sla.ttft_ms=1000", "sla.itl_ms=50", "sla.percentile=95")
LIGHT = ("predictor.views=[[closed_form]]", "predictor.trees=20", "predictor.fold_trees=5")
PAPER = ("task=recommend", "engine=tgis", "sla=default", "workload=paper", "prices=paper", *LIGHT)
FIELDS = (
    "gpu count engine precision pods gpus cost_per_hour cost_per_month cost_per_million_output_tokens "
    "users_per_pod requests_per_s_per_pod capacity_per_pod capacity_per_pod_interval output_tokens_per_s "
    "p_sla latencies binding feasible reason"
)
"""The fields of a ranked service: others read them by these names, here and from the served model."""


@pytest.fixture
def recommend(run: Run, workdir: Path) -> Callable[..., dict[str, Any]]:
    """Run the task and return its result."""

    def ask(*arguments: str) -> dict[str, Any]:
        ran = run(*arguments, "result_file=r.json")
        assert ran.code == 0, ran.err
        result: dict[str, Any] = json.loads(Path("r.json").read_text())
        return result | {"printed": ran.out}

    return ask


def of_profile(result: dict[str, Any], gpu: str, count: int) -> dict[str, Any]:
    (row,) = [row for row in result["ranking"] if (row["gpu"], row["count"]) == (gpu, count)]
    return dict(row)


def test_the_headline(recommend: Callable[..., dict[str, Any]]) -> None:
    result = recommend(*HEADLINE, *PROMISE)
    best, ranking = result["recommended"], result["ranking"]
    assert best == ranking[0]
    assert all(set(FIELDS.split()) <= set(row) for row in ranking)
    assert (result["model"], result["requests_per_s"], result["users"]) == ("llama_3_1_8b", 20, None)
    assert [(one["latency"], one["statistic"], one["limit_ms"]) for one in result["limits"]] == [
        ("ttft_ms", "p95", 1000),
        ("itl_ms", "p95", 50),
    ]
    assert result["workload"]["name"] == "azure_conv"
    assert result["workload"]["input_tokens_mean"] == pytest.approx(1155, rel=0.02)
    assert best["pods"] * best["requests_per_s_per_pod"] == pytest.approx(20)
    assert best["cost_per_month"] == pytest.approx(730 * best["cost_per_hour"])
    tokens_per_hour = 20 * result["workload"]["output_tokens_mean"] * 3600
    assert best["cost_per_million_output_tokens"] == pytest.approx(
        best["cost_per_hour"] / tokens_per_hour * 1e6, rel=1e-3
    )
    for one in best["latencies"]:
        low, high = one["interval_ms"]
        assert low <= one["expected_ms"] <= high
        assert one["expected_ms"] <= one["limit_ms"]
    feasible = [row for row in ranking if row["feasible"]]
    assert ranking[: len(feasible)] == feasible
    assert all(row["reason"] for row in ranking[1:])
    assert result["rule"]["name"]
    assert result["trust"]["level"] in ("high", "medium", "low")
    assert any(character.isdigit() for character in result["trust"]["sentence"])
    argv = shlex.split(result["serve"])
    assert argv[:2] == ["vllm", "serve"]
    assert argv[argv.index("--tensor-parallel-size") + 1] == str(best["count"])
    assert "--max-num-seqs" in argv
    assert "--max-num-batched-tokens" in argv
    assert result["prices"] in result["printed"] or result["prices"].split(",")[0] in result["printed"]


def test_prices_of_ones_own(recommend: Callable[..., dict[str, Any]]) -> None:
    costs = []
    for h100 in (2.5, 2.0):
        Path("mine.csv").write_text(f"gpu,count,price_per_hour\nh100,1,{h100}\nl4,1,0.8\n")
        result = recommend(*HEADLINE, FEW, "prices=mine.csv")
        costs.append(result["recommended"]["cost_per_hour"])
        assert {row["gpu"] for row in result["ranking"]} == {"H100", "L4"}
    assert costs[1] <= costs[0]


def test_precisions_are_chosen_from_and_the_line_serves_the_one_taken(
    recommend: Callable[..., dict[str, Any]],
) -> None:
    result = recommend(*HEADLINE, "catalog=[h100]", "gpus_per_pod=1", "precision=[bf16,fp8]")
    assert {row["precision"] for row in result["ranking"]} == {"bf16", "fp8"}
    assert result["recommended"]["precision"] == "fp8"
    assert "--quantization fp8" in result["serve"]
    if command := result["next_measurement"]["command"]:
        assert "engine.serves=vllm" in command


def test_users_who_think_need_less(recommend: Callable[..., dict[str, Any]]) -> None:
    asked = ("task=recommend", "+model=llama_3_1_8b", "users=500", FEW)
    busy, reading = recommend(*asked), recommend(*asked, "think_time_s=20")
    assert busy["recommended"]["cost_per_hour"] > reading["recommended"]["cost_per_hour"]
    assert any("500 requests are in flight" in note for note in busy["notes"])
    best = reading["recommended"]
    assert best["pods"] * best["users_per_pod"] == pytest.approx(500)


def test_lengths_and_cached_prefixes(recommend: Callable[..., dict[str, Any]]) -> None:
    asked = ("task=recommend", "+model=llama_3_1_8b", "requests_per_s=20", FEW, "workload=fixed")
    asked = (*asked, "workload.input_tokens=4000", "workload.output_tokens=300")
    plain, cached = recommend(*asked), recommend(*asked, "workload.cached_share=0.8")
    assert plain["workload"]["input_tokens_mean"] == 4000
    h100 = [of_profile(one, "H100", 1)["capacity_per_pod"] for one in (plain, cached)]
    assert h100[1] > 1.3 * h100[0]


def test_a_trace_is_replayed(recommend: Callable[..., dict[str, Any]]) -> None:
    rows = [f"{0.1 * at:.2f},{200 + at % 50},{20 + at % 30}" for at in range(600)]
    Path("t.csv").write_text("\n".join(["timestamp,input_tokens,output_tokens", *rows]) + "\n")
    result = recommend("task=recommend", "+model=llama_3_1_8b", "trace.path=t.csv", FEW)
    assert result["requests_per_s"] == pytest.approx(10, rel=0.01)
    assert result["arrival"] == "trace"
    assert result["recommended"]["pods"] >= 1


def test_what_if_page_plot_and_manifest(recommend: Callable[..., dict[str, Any]]) -> None:
    files = ("page=out/answer.html", "plot=out/price.png", "manifest=out/m.yaml", "pod.cpu=2")
    result = recommend(*HEADLINE, FEW, "what_if=true", *files)
    load, *limits = result["what_if"]
    assert load["figure"] == "requests/s"
    _, _, moved = result["printed"].partition("What if: requests/s")
    assert "P(SLA)" in moved.splitlines()[1]  # where the price rises and falls, certainty does
    assert len(limits) == 2
    (asked,) = [point for point in load["points"] if point["value"] == 20]
    assert asked["cost_per_hour"] == result["recommended"]["cost_per_hour"]
    assert "<html" in Path("out/answer.html").read_text()
    assert Path("out/price.png").read_bytes().startswith(b"\x89PNG")
    documents = list(yaml.safe_load_all(Path("out/m.yaml").read_text()))
    (deployment,) = [one for one in documents if one["kind"] == "Deployment"]
    assert deployment["spec"]["replicas"] == result["recommended"]["pods"]
    (container,) = deployment["spec"]["template"]["spec"]["containers"]
    assert container["resources"]["limits"] == {"nvidia.com/gpu": str(result["recommended"]["count"])}
    assert "--max-num-seqs" in " ".join([*container.get("command", []), *container.get("args", [])])
    assert result["manifest"] == "out/m.yaml"


def test_any_hugging_face_model(recommend: Callable[..., dict[str, Any]]) -> None:
    Path("config.json").write_text(json.dumps(TINY_LLAMA))
    asked = ("task=recommend", "+model=hf", "model.config=config.json", "model.name=mine", FEW)
    asked = (*asked, "requests_per_s=5", "workload=fixed", "workload.input_tokens=200")
    asked = (*asked, "workload.output_tokens=50")
    unknown = recommend(*asked)
    assert unknown["serve"] is None
    assert "where vLLM would find this model is not known" in unknown["printed"].replace("\n", " ")
    without = recommend(*asked, "manifest=m.yaml")
    assert without["recommended"] == unknown["recommended"]
    assert without["manifest"] is None
    assert "no manifest is written: where vLLM would find this model" in without["printed"]
    assert "vllm serve acme/mine " in recommend(*asked, "model.hf_id=acme/mine")["serve"]


def test_where_nothing_will_do_the_answer_says_so(recommend: Callable[..., dict[str, Any]]) -> None:
    result = recommend(*HEADLINE, FEW, "sla.itl_ms=0.01", "manifest=m.yaml")
    assert result["recommended"] is None
    assert "nearest comes" in result["reason"]
    assert result["serve"] is None
    assert not any(row["feasible"] for row in result["ranking"])
    assert not Path("m.yaml").exists()
    large = recommend("task=recommend", "+model=deepseek_v3", "requests_per_s=1", "catalog=l4")
    assert large["recommended"] is None
    assert "fits on none" in large["reason"]
    assert "GB weights" in large["ranking"][0]["reason"]
    Path("config.json").write_text(json.dumps(TINY_LLAMA))
    short = ("+model=hf", "model.config=config.json", "requests_per_s=5", "catalog=h100")
    long = recommend("task=recommend", *short)  # of 2,048 positions
    assert "requests are longer than it can serve" in long["ranking"][0]["reason"]
    capped = recommend(*HEADLINE, FEW, "requests_per_s=5000", "max_gpus=1")
    assert capped["recommended"] is None
    assert any("max_gpus=1" in row["reason"] for row in capped["ranking"])


def test_characterize_says_the_same_of_the_same_service(
    recommend: Callable[..., dict[str, Any]], run: Run
) -> None:
    answer = recommend(*HEADLINE, *PROMISE, "catalog=[h100]", "gpus_per_pod=1")
    best = answer["recommended"]
    rate = best["requests_per_s_per_pod"]
    load = ("load=poisson", f"load.rates_per_s=[{rate:.3f}]", "load.duration_s=400", "load.warmup_s=60")
    asked = ("+gpu=h100", "+model=llama_3_1_8b", "workload=azure_conv", "engine=vllm", "tuner=none", *load)
    ran = run(*asked, "result_file=c.json")
    assert ran.code == 0, ran.err
    (level,) = json.loads(Path("c.json").read_text())["levels"]
    for one in best["latencies"]:
        simulated = level[one["latency"]][one["statistic"]]
        assert one["expected_ms"] == pytest.approx(simulated, rel=0.15)


def test_the_notebook_says_the_same(recommend: Callable[..., dict[str, Any]]) -> None:
    result = recommend(*HEADLINE, "catalog=[h100]")
    frame = recommend_function("llama_3_1_8b", 20, gpus=["h100"], runs=False)
    assert frame.iloc[0]["cost_per_hour"] == result["recommended"]["cost_per_hour"]
    assert frame.attrs["recommended"] == result["recommended"]


def test_the_papers_question(recommend: Callable[..., dict[str, Any]]) -> None:
    result = recommend(*PAPER, "+model=llama_3_1_8b", "users=500", "sla.itl_ms=40")
    best = result["recommended"]
    assert best["engine"] == "tgis"
    assert best["pods"] * best["users_per_pod"] >= 500
    assert {one["latency"] for one in best["latencies"]} == {"nttft_ms", "itl_ms"}
    assert any("123 tokens in" in note for note in result["notes"])


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("requests_per_s=null",), "the load to carry is not given"),
        (("users=5",), "the load is given more than once"),
        (("request_per_s=5",), "did you mean 'requests_per_s'?"),
        (("think_time_s=5",), "think_time_s is of users"),
        (("requests_per_s=-1",), "recommend.requests_per_s is not possible"),
        (("catalog=[a100,h1000]",), "did you mean 'h100'"),
        (("engines=[vlm]",), "did you mean 'vllm'"),
        (("engine=llamacpp",), "are not simulated from operators"),
        (("engine=tgis",), "the paper's measurements are of users"),
        (("precision=[fp9]",), "did you mean 'fp8'"),
        (("risk=1",), "recommend.risk is not possible"),
        (("max_gpus=0",), "recommend.max_gpus is not possible"),
        (("prices=absent.csv",), "prices"),
        (("sla.ttft_ms=null", "sla.itl_ms=null"), "the SLA has no limit"),
        (("sla.ttft_ms.p97=100",), "p97"),
        (("manifest=.",), "manifest cannot be written"),
        (("pod.memory=lots",), "pod.memory"),
        (("trace.path=absent.csv", "requests_per_s=null"), "absent.csv"),
    ],
)
def test_impossible_questions_are_refused(run: Run, arguments: tuple[str, ...], message: str) -> None:
    ran = run(*HEADLINE, *arguments)
    assert ran.code == 2, ran.err
    assert message in ran.err
    assert "Traceback" not in ran.err


def test_an_unreachable_store_is_told(run: Run) -> None:
    ran = run(*HEADLINE, FEW, "tracking.uri=http://127.0.0.1:9")
    assert ran.code == 1
    assert "runs=false does without your runs" in ran.err


def test_a_model_is_needed(run: Run) -> None:
    ran = run("task=recommend")
    assert ran.code == 2
    assert "python -m llmpilot task=recommend +model=" in ran.err
