"""The command line from end to end, against a real tracking database."""

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from conftest import Run
from mlflow.entities import Run as MlflowRun
from tracked import client_here, interrupted_after, is_documented, read, runs, stopping_at

from llmpilot import loadtest
from llmpilot.tasks import characterize

CELL = ("+gpu=a100", "+model=starcoder")
QUICK = ("tuner=none", "load.users=[1,4,16]", "load.duration_s=10", "load.warmup_s=1")
STATISTICS = {"p50", "p90", "p95", "p99", "mean"}


def artifacts_of(run: MlflowRun) -> set[str]:
    return {file.path for file in client_here().list_artifacts(run.info.run_id)}


def steps_of(run: MlflowRun, metric: str) -> list[int]:
    history = client_here().get_metric_history(run.info.run_id, metric)
    return [point.step for point in history]


def test_the_headline_command(run: Run, workdir: Path) -> None:
    ran = run(*CELL, "result_file=r.json")
    assert ran.code == 0, ran.err
    first = ran.out.splitlines()[0]
    assert first.startswith("SIMULATED")
    for part in ("vLLM 0.", "published measurements", "expect it to be off by TPOT", "deployment=external"):
        assert part in first

    result = read("r.json")
    wanted = "model gpu count engine deployment measurement max_batch_weight workload run_id users_max levels"
    assert set(wanted.split()) | {"cost_per_hour"} <= set(result)
    assert is_documented(result)
    assert [level["users"] for level in result["levels"]] == [1, 2, 4, 8, 16, 32, 64, 128]
    for level in result["levels"]:
        for latency in ("ttft_ms", "nttft_ms", "itl_ms", "tpot_ms", "e2e_ms"):
            assert set(level[latency]) == STATISTICS
        rates = "requests_ok requests_failed throughput_tok_s requests_per_s goodput_per_s failure_rate"
        assert set(rates.split()) <= set(level)

    (tracked,) = (r for r in runs() if r.data.tags["llmpilot.task"] == "characterize")
    assert tracked.info.run_id == result["run_id"]
    assert tracked.info.status == "FINISHED"
    assert steps_of(tracked, "itl_ms.p50") == [1, 2, 4, 8, 16, 32, 64, 128]
    assert tracked.data.metrics["users_max"] == result["users_max"]
    assert tracked.data.params["gpu.name"] == "A100-40GB"
    assert tracked.data.tags["llmpilot.measurement"] == "simulated"
    assert tracked.data.tags["llmpilot.outcome"] in ("sla_met", "sla_missed")
    wanted_files = {"config.yaml", "levels.json", "requests.parquet", "plots", "report.html", "result.json"}
    assert artifacts_of(tracked) == wanted_files
    assert {path.name for path in workdir.iterdir()} == {"mlflow.db", "mlruns", "optuna.db", "r.json"}


def test_the_same_seed_gives_the_same_bytes_in_another_process(run: Run) -> None:
    assert run(*CELL, *QUICK, "result_file=a.json").code == 0
    command = [sys.executable, "-m", "llmpilot", *CELL, *QUICK, "result_file=b.json"]
    environment = os.environ | {"PYTHONHASHSEED": "77", "OMP_NUM_THREADS": "1"}
    subprocess.run(command, check=True, capture_output=True, env=environment)
    assert run(*CELL, *QUICK, "seed=43", "result_file=c.json").code == 0
    a, b, c = (read(name) for name in ("a.json", "b.json", "c.json"))
    ids = {result.pop("run_id") for result in (a, b, c)}
    assert len(ids) == 3
    assert json.dumps(a) == json.dumps(b)
    assert json.dumps(a["levels"]) != json.dumps(c["levels"])
    levels = [sorted(Path("mlruns").rglob(f"{run_id}/artifacts/levels.json"))[0] for run_id in ids]
    assert len({path.read_bytes() for path in levels}) == 2


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["+gpu=a1000", "+model=starcoder"], ["there is no gpu 'a1000'", "h100"]),
        (["+gpu=a100", "+model=nope"], ["there is no model 'nope'", "starcoder"]),
        (["gpu=a100", "+model=starcoder"], ["use +gpu=a100"]),
        (["+gpu=a100"], ["needs a model", "+gpu=a100 +model=starcoder", "llama_3_1_8b"]),
        ([*CELL, "gpu.count=3"], ["gpu.count=3", "1, 2, 4"]),
        ([*CELL, "gpu.count=0"], ["gpu.count", "0"]),
        ([*CELL, "sla.itl_ms=0"], ["sla.itl_ms", "0"]),
        ([*CELL, "sla.itl_ms=nan"], ["sla.itl_ms", "nan"]),
        ([*CELL, "sla.itl_ms=-.inf"], ["sla.itl_ms"]),
        ([*CELL, "sla.ttft_ms.p97=5"], ["sla.ttft_ms.p97 is no statistic", "p50, p90, p95, p99, mean"]),
        ([*CELL, "sla.itl_ms={}"], ["sla.itl_ms names no statistic"]),
        ([*CELL, "sla.itl.p95=3"], ["sla.itl", "did you mean 'sla.itl_ms'"]),
        ([*CELL, "sla.itl_ms.p95=60", "sla.itl_ms=40"], ["sla.itl_ms=40 sla.itl_ms.p95=60"]),
        ([*CELL, "load.user=[1]"], ["load.user is not a key", "did you mean 'load.users'"]),
        ([*CELL, "+load.foo=1"], ["load.foo is not a key"]),
        ([*CELL, "+user=[3]"], ["user is not a key of the configuration"]),
        ([*CELL, "load.duration_s=1e12"], ["load.duration_s", "1000000000000"]),
        ([*CELL, "seed=99999999999999999999999999"], ["seed"]),
        ([*CELL, "load=poisson", "load.rates_per_s=[1e6]", "load.duration_s=2e6"], ["so many requests"]),
        ([*CELL, "seed=-1"], ["seed", "-1"]),
        (["task=tune", *CELL, "seed=5000000000"], ["seed must be a whole number of 0 to", "5000000000"]),
        ([*CELL, "load.duration_s=1e-9"], ["load.duration_s", "greater than or equal to 0.001"]),
        ([*CELL, "seed=1.5"], ["seed", "1.5"]),
        ([*CELL, "max_batch_weight=10"], ["max_batch_weight=10", "heaviest request"]),
        ([*CELL, "max_batch_weight=many"], ["max_batch_weight", "many"]),
        ([*CELL, "workload=file"], ["workload.model is missing"]),
        (["+gpu=t4", "+model=flan_t5_xl"], ["vLLM does not serve encoder-decoder", "engine=tgis"]),
        ([*CELL, "engine=simulated"], ["engine=simulated is no engine any more", "engine=tgis"]),
        ([*CELL, "deployment=external", "deployment.url=http://127.0.0.1:1"], ["engine=openai"]),
        ([*CELL, "workload=file", "workload.model=gone.parquet"], ["gone.parquet"]),
        ([*CELL, "load=replay"], ["load.trace.path"]),
        ([*CELL, "load=replay", "load.trace.path=gone.csv"], ["gone.csv"]),
        ([*CELL, "tracking.uri=ftp://x"], ["ftp://x"]),
        ([*CELL, "result_file=."], ["result_file"]),
        ([*CELL, "result_file=mlflow.db"], ["result_file would overwrite tracking.uri", "mlflow.db"]),
        ([*CELL, "result_file=./optuna.db"], ["result_file would overwrite tuner.storage"]),
        (
            [*CELL, "tuner.storage='sqlite:///s.db?x=1'", "result_file=s.db"],
            ["would overwrite tuner.storage"],
        ),
        (["-m", *CELL, "result_file=mlflow.db"], ["result_file would overwrite tracking.uri"]),
        ([*CELL, "load=replay", "load.trace.path=t.csv", "result_file=t.csv"], ["overwrite load.trace.path"]),
        (
            ["task=evaluate", "dataset=s.parquet", "predictions_file=s.parquet"],
            ["predictions_file would overwrite dataset"],
        ),
        (
            ["task=evaluate", "predictions_file=p.csv", "result_file=p.csv"],
            ["result_file would overwrite predictions_file"],
        ),
        (
            ["task=evaluate", "predictions_file=p.csv", "result_file=p.recommendations.csv"],
            ["result_file would overwrite the recommendations beside predictions_file"],
        ),
        (
            ["task=recommend", "+model=starcoder", "prices=pr.csv", "manifest=pr.csv"],
            ["manifest would overwrite prices"],
        ),
        (["task=dataset", "result_file=dataset.parquet"], ["result_file would overwrite output"]),
        (
            ["task=workload", "trace.path=t.csv", "result_file=workload.png"],
            ["result_file would overwrite the figure of output"],
        ),
        ([*CELL, "tracking=null"], ["tracking cannot be null", "default"]),
        ([*CELL, "tuner=null"], ["tuner cannot be null", "none"]),
        (["-m", *CELL, "engine=null,simulated"], ["engine cannot be null", "llamacpp"]),
        (["task=evaluate", "predictor=null"], ["predictor cannot be null", "pilot"]),
        (["task=recommend", "+model=starcoder", "pod=null"], ["pod cannot be null", "pod.cpu"]),
        (["+gpu=a100", "+model=hf"], ["config.json"]),
        (["+gpu=a100", "+model=hf", "model.config=gone.json"], ["gone.json"]),
        (["+gpu=t4", "+model=llama_3_1_70b"], ["does not fit on 1 x T4", "141.2 GB weights", "gpu.count="]),
        (["task=nope"], ["there is no task 'nope'", "characterize"]),
        (["task=upload"], ["nothing to upload"]),
        ([*CELL, "foo=}{"], ["foo"]),
        (["--nope"], ["--nope"]),
        (["-m", "+gpu=a100,nope", "+model=starcoder"], ["there is no gpu 'nope'"]),
    ],
)
def test_wrong_usage_is_one_message_and_exit_code_2(
    run: Run, workdir: Path, arguments: list[str], words: list[str]
) -> None:
    ran = run(*arguments)
    assert ran.code == 2, ran.err
    for word in words:
        assert word in ran.err
    assert "Traceback" not in ran.err + ran.out
    assert {path.name for path in workdir.iterdir()} == {"mlflow.db"}, "nothing may be left half-written"
    assert runs() == []


def test_an_interrupted_run_is_kept_and_resumed(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    measured: list[float] = []

    def interrupted_at_16(endpoint: Any, traffic: Any, level: float) -> Any:
        measured.append(level)
        if level == 16 and measured.count(16) == 1:
            raise KeyboardInterrupt
        return loadtest.run_level(endpoint, traffic, level)

    monkeypatch.setattr(characterize, "run_level", interrupted_at_16)
    first = run(*CELL, *QUICK, "result_file=r.json")
    assert first.code == 130
    assert "the same command goes on" in first.err
    assert not Path("r.json").exists()
    (tracked,) = runs()
    assert tracked.info.status == "KILLED"
    assert steps_of(tracked, "ttft_ms.p50") == [1, 4]
    assert {"levels.json", "requests.parquet"} <= artifacts_of(tracked)

    second = run(*CELL, *QUICK, "result_file=r.json")
    assert second.code == 0, second.err
    assert measured == [1, 4, 16, 16], "levels that are there are not measured again"
    (tracked,) = runs()
    assert tracked.info.status == "FINISHED"
    assert steps_of(tracked, "ttft_ms.p50") == [1, 4, 16]
    assert len(read("r.json")["levels"]) == 3

    assert run(*CELL, *QUICK, "result_file=whole.json").code == 0
    assert read("whole.json")["levels"] == read("r.json")["levels"]
    assert is_documented(read("r.json"))


LONG = ("tuner=none", "load.users=[1,128]", "load.duration_s=30000")


def test_ctrl_c_in_the_middle_of_a_level(workdir: Path) -> None:
    _, err = interrupted_after("requests ok", *CELL, *LONG)
    assert "the same command goes on" in err
    (tracked,) = runs()
    assert tracked.info.status == "KILLED"


def test_ctrl_c_in_a_sweep_ends_its_runs(workdir: Path) -> None:
    interrupted_after("requests ok", "-m", *CELL, *LONG)
    assert {run.info.status for run in runs()} == {"KILLED"}


def test_an_unreachable_server_costs_no_measurement(run: Run) -> None:
    ran = run(*CELL, *QUICK, "tracking.uri=http://127.0.0.1:9", "result_file=r.json")
    assert ran.code == 1
    assert "Traceback" not in ran.err
    assert len(read("r.json")["levels"]) == 3
    assert read("r.json")["run_id"] is None
    upload = next(line for line in ran.err.splitlines() if "task=upload" in line)
    assert runs() == []

    assert run("task=upload", "tracking.uri=http://127.0.0.1:9").code == 1
    arguments = [word.strip("'") for word in upload.split()[3:]]
    assert arguments[-1] == "tracking.uri=http://127.0.0.1:9", "to where the results were meant to go"
    refused = run(*arguments[:-1])
    assert refused.code == 2
    assert "was measured for http://127.0.0.1:9" in refused.err
    uploaded = run(*arguments[:-1], "elsewhere=true", "result_file=u.json")
    assert uploaded.code == 0, uploaded.err
    (tracked,) = runs()
    assert tracked.info.status == "FINISHED"
    assert read("u.json")["uploaded"][0]["run_id"] == tracked.info.run_id
    assert steps_of(tracked, "itl_ms.p95") == [1, 4, 16]
    assert "report.html" in artifacts_of(tracked)
    (kept,) = Path("mlruns").rglob("result.json")
    assert read(kept)["run_id"] == tracked.info.run_id
    assert not Path(".llmpilot").exists()


def test_a_sweep_goes_on_skips_what_is_finished_and_says_what_failed(run: Run) -> None:
    ran = run("-m", "+gpu=a100,t4", "+model=starcoder", "gpu.count=1,3", *QUICK, "result_file=s.json")
    assert ran.code == 1
    assert "2 of 4 cells failed" in ran.err
    statuses = [cell["status"] for cell in read("s.json")["cells"]]
    assert statuses == ["done", "failed", "does not fit", "failed"]
    assert is_documented(read("s.json"))
    parent = next(r for r in runs() if r.data.tags["mlflow.runName"].startswith("sweep"))
    children = [r for r in runs() if r.data.tags.get("mlflow.parentRunId") == parent.info.run_id]
    assert parent.info.status == "FAILED"
    assert sorted(r.data.tags["llmpilot.outcome"] for r in children) == ["infeasible", "sla_met"]

    again = run("-m", "+gpu=a100,h100", "+model=starcoder", *QUICK)
    assert again.code == 0
    assert again.out.count("already measured") == 1
    before = len(runs())
    assert len([r for r in runs() if r.data.tags.get("llmpilot.outcome") == "infeasible"]) == 1
    forced = run("-m", "+gpu=a100", "+model=starcoder,llama_7b", *QUICK, "resume=false")
    assert forced.code == 0
    assert "already measured" not in forced.out
    assert len(runs()) == before + 3


def test_limits_by_statistic_as_typed_tracked_and_swept(run: Run) -> None:
    typed = ("sla.ttft_ms.p95=150", "sla.itl_ms={p50: 30, mean: 40}", "sla.nttft_ms=null")
    ran = run(*CELL, *QUICK, *typed, "result_file=r.json")
    assert ran.code == 0, ran.err
    result = read("r.json")
    limits = {"ttft_ms": {"p95": 150.0}, "itl_ms": {"p50": 30.0, "mean": 40.0}, "nttft_ms": None}
    assert {key: result["sla"][key] for key in limits} == limits
    kept = [level["itl_ms"]["p50"] <= 30 and level["ttft_ms"]["p95"] <= 150 for level in result["levels"]]
    assert 0 < sum(kept) < len(kept)
    assert result["users_max"] == result["levels"][kept.index(False) - 1]["users"]
    assert "TTFT p95 <= 150 ms, ITL p50 <= 30 ms, ITL mean <= 40 ms" in ran.out
    (tracked,) = runs()
    params = {key: value for key, value in tracked.data.params.items() if key.startswith("sla.")}
    assert params == {
        "sla.ttft_ms.p95": "150.0", "sla.itl_ms.p50": "30.0", "sla.itl_ms.mean": "40.0",
        "sla.nttft_ms": "None", "sla.tpot_ms": "None", "sla.e2e_ms": "None",
        "sla.percentile": "50", "sla.max_failure_rate": "0.01",
    }  # fmt: skip

    swept = run("-m", *CELL, *QUICK, "sla.ttft_ms.p95=1,100000", "result_file=s.json")
    assert swept.code == 0, swept.err
    cells = read("s.json")["cells"]
    assert [cell["cell"] for cell in cells] == ["sla.ttft_ms.p95=1", "sla.ttft_ms.p95=100000"]
    assert [cell["result"]["users_max"] > 0 for cell in cells] == [False, True]


def test_planted_secrets_are_found_nowhere(run: Run, workdir: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    planted = ["hf_plantedplanted", "sk-planted-key-9", "hunter2hunter2"]
    monkeypatch.setenv("HF_TOKEN", planted[0])
    monkeypatch.setenv("OPENAI_API_KEY", planted[1])
    texts = []
    texts.append(run(*CELL, *QUICK, f"model.source={planted[0]}", "result_file=r.json"))
    texts.append(run("-m", "+gpu=a100,h100", "+model=starcoder", *QUICK, f"model.source={planted[0]}"))
    texts.append(run(*CELL, *QUICK, f"+deployment.api_key={planted[2]}"))
    texts.append(run(*CELL, *QUICK, f"deployment.api_key={planted[2]}"))
    texts.append(run(*CELL, *QUICK, f"tracking.uri=http://me:{planted[2]}@127.0.0.1:9"))
    texts.append(
        run("-m", *CELL, *QUICK, f"tracking.uri=http://me:{planted[2]}@127.0.0.1:9", "result_file=s.json")
    )
    assert [ran.code for ran in texts] == [0, 0, 2, 2, 1, 1]
    seen = "".join(ran.out + ran.err for ran in texts).encode()
    for path in workdir.rglob("*"):
        seen += path.read_bytes() if path.is_file() else b""
    assert b"starcoder" in seen
    for secret in planted:
        assert secret.encode() not in seen


def test_open_loops_and_replay(run: Run) -> None:
    rows = "".join(f"{i * 0.2:.1f},{50 + i % 7},{5 + i % 3}\n" for i in range(200))
    Path("trace.csv").write_text(f"when,prompt,answer\n{rows}", encoding="utf-8")
    columns = "{timestamp: when, input_tokens: prompt, output_tokens: answer}"
    window = ("load.duration_s=15", "load.warmup_s=2")
    replay = ("load=replay", "load.trace.path=trace.csv", f"load.trace.columns={columns}")
    for load in (("load=poisson",), ("load=gamma", "load.burstiness=0.3"), (*replay, "load.speedups=[1,2]")):
        ran = run(*CELL, *load, *window, "result_file=r.json")
        assert ran.code == 0, ran.err
        result = read("r.json")
        assert result["users_max"] is None
        assert all(level["requests_ok"] > 0 for level in result["levels"])
    assert result["levels"][0]["requests_ok"] == 75  # 5 requests/s for 15 s
    assert result["level_unit"] == "x trace speed"
    assert is_documented(result)


def test_any_hugging_face_config_is_a_model(run: Run) -> None:
    config = {
        "model_type": "llama",
        "hidden_size": 2048,
        "num_hidden_layers": 16,
        "num_attention_heads": 32,
        "num_key_value_heads": 8,
        "intermediate_size": 8192,
        "vocab_size": 128256,
        "tie_word_embeddings": True,
        "torch_dtype": "bfloat16",
    }
    Path("config.json").write_text(json.dumps(config), encoding="utf-8")
    ran = run("+gpu=l4", "+model=hf", "model.config=config.json", *QUICK, "result_file=r.json")
    assert ran.code == 0, ran.err
    (tracked,) = runs()
    assert float(tracked.data.params["model.parameters_b"]) == pytest.approx(1.24, rel=0.01)


def test_an_id_of_the_hub_names_an_option_repackagings_their_precision(run: Run) -> None:
    for hf_id, name, precision in (
        ("qwen/qwen3-8b", "qwen3_8b", "bf16"),
        ("nvidia/Llama-3.1-8B-Instruct-FP8", "llama_3_1_8b_fp8", "fp8"),
    ):
        ran = run("+gpu=h100", f"+model={hf_id}", *QUICK, "result_file=r.json")
        assert ran.code == 0, ran.err
        result = read("r.json")
        assert result["model"] == name
        params = client_here().get_run(result["run_id"]).data.params
        assert params["model.hf_id"].lower() == hf_id.lower()
        assert params["model.formats.mlp"] == precision
    ran = run("-m", "+gpu=h100", "+model=meta-llama/Llama-3.1-8B,starcoder", *QUICK)
    assert ran.code == 0, ran.err
    assert "cell 2: +model=starcoder" in ran.out
    ran = run("+gpu=h100", "+model=nobody/Qwen3-33B")
    assert ran.code == 2
    assert "there is no option for nobody/Qwen3-33B" in ran.err
    assert "+model=hf model.config=path/to/config.json" in ran.err


def test_precision_is_a_choice_of_its_own(run: Run) -> None:
    cell = ("+gpu=a100", "+model=llama_3_1_8b", *QUICK)
    ran = run(*cell, "precision=fp8", "kv_precision=fp8", "result_file=r.json")
    assert ran.code == 0, ran.err
    assert "A100-40GB has no units for fp8: weights are stored so and computed in bf16" in ran.err
    result = read("r.json")
    assert result["model"] == "llama_3_1_8b_fp8_kv_fp8"
    params = client_here().get_run(result["run_id"]).data.params
    assert (params["model.formats.attention"], params["model.kv_format"]) == ("fp8", "fp8")
    for wrong, said in (
        ("precision=fp7", "did you mean 'fp8'"),
        ("kv_precision=int4", "there are bf16, fp8"),
    ):
        ran = run(*cell, wrong)
        assert ran.code == 2
        assert said in ran.err
    ran = run("+gpu=t4", "+model=llama_3_1_8b", "precision=fp8")
    assert ran.code == 2
    assert "T4 has no units for fp8" in ran.err


def test_a_replayed_trace_is_part_of_what_was_measured(run: Run) -> None:
    def write_trace(tokens: int) -> None:
        rows = "".join(f"{i * 0.5},{tokens},5\n" for i in range(60))
        Path("t.csv").write_text(f"timestamp,input_tokens,output_tokens\n{rows}", encoding="utf-8")

    sweep = ("-m", *CELL, "load=replay", "load.trace.path=t.csv", "load.duration_s=15", "load.warmup_s=2")
    write_trace(100)
    assert run(*sweep, "result_file=a.json").code == 0
    write_trace(700)
    again = run(*sweep, "result_file=b.json")
    assert "already measured" not in again.out
    (a,), (b,) = (read(name)["cells"] for name in ("a.json", "b.json"))
    assert a["result"]["workload"] == "replay of t.csv"
    assert a["result"]["levels"] != b["result"]["levels"]
    short = run(*sweep[1:], "load.duration_s=60")
    assert short.code == 2
    assert "the trace lasts 29.5 s" in short.err


def test_a_killed_run_can_be_uploaded_and_gone_on_with(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    class KilledError(BaseException):
        pass

    def killed(*_: Any) -> None:
        raise KilledError

    with monkeypatch.context() as patch:
        patch.setattr(characterize, "run_level", stopping_at(4, KilledError))
        patch.setattr(characterize, "_give_up", killed)  # as after kill -9: nobody tidies up
        with pytest.raises(KilledError):
            run(*CELL, *QUICK)
    (tracked,) = runs()
    assert tracked.info.status == "RUNNING"
    uploaded = run("task=upload")
    assert uploaded.code == 0, uploaded.err
    assert "unfinished" in uploaded.out
    (tracked,) = runs()
    assert tracked.info.status == "KILLED"
    assert run(*CELL, *QUICK).code == 0
    (tracked,) = runs()
    assert tracked.info.status == "FINISHED"
    assert steps_of(tracked, "ttft_ms.p50") == [1, 4, 16]


def test_a_workload_is_described_whatever_would_be_the_output_of_a_trace(run: Run) -> None:
    Path("t.csv").write_text("input_tokens,output_tokens\n" + "10,5\n20,7\n" * 50)
    assert run("task=workload", "trace.path=t.csv").code == 0
    described = run("task=workload", "workload=file", "workload.model=workload.parquet")
    assert described.code == 0, described.err
