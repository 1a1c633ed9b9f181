"""The command line against a server over HTTP: our emulator in its own process, which knows the truth."""

from pathlib import Path

import numpy as np
import pytest
from conftest import Run
from picky_service import Answer, Asked, picky, refused
from tracked import client_here, is_documented, read

from llmpilot import tracking
from llmpilot.emulator import FixedTiming, Options, example_service, in_process

SERVICE = ("+gpu=a100", "+model=starcoder", "engine=openai", "deployment=external")
QUICK = ("load.users=[1,8]", "load.duration_s=4", "load.warmup_s=1")


def test_a_served_model_is_measured_and_the_client_states_its_error(run: Run) -> None:
    timing = FixedTiming(ttft_ms=30, itl_ms=5)
    with in_process(example_service(), Options(fixed=timing)) as emulator:
        ran = run(*SERVICE, *QUICK, f"deployment.url={emulator.url}", "result_file=r.json")
    sent_ns = emulator.truth()["sent_ns"]
    gaps_ms = np.concatenate([np.diff(tokens.values.to_numpy()) for tokens in sent_ns]) / 1e6
    assert ran.code == 0, ran.err
    assert ran.out.startswith("MEASURED")
    assert "SIMULATED all the same" in ran.out
    result = read("r.json")
    assert (result["engine"], result["deployment"]) == ("openai", "external")
    assert result["measurement"] == "simulated", "our emulator is no measurement of an engine"
    assert result["max_batch_weight"] is None
    for level in result["levels"]:
        assert level["requests_ok"] > 0
        assert level["requests_failed"] == 0
        assert gaps_ms.min() <= level["itl_ms"]["p50"] <= gaps_ms.max()
        assert level["client"]["tokens_counted_by"].keys() == {"token_ids"}
    assert result["client"]["error"]["users"] == 8
    assert is_documented(result)
    client = client_here()
    metrics = client.get_run(result["run_id"]).data.metrics
    assert {"client.ttft_error_ms.p50", "client.itl_error_ms.p50", "client.busy_share"} <= set(metrics)


def test_the_server_is_looked_at_and_short_windows_are_said(run: Run) -> None:
    timing = FixedTiming(ttft_ms=60, itl_ms=5)
    with in_process(example_service(), Options(fixed=timing)) as emulator:
        url = f"deployment.url={emulator.url}"
        quiet = ("deployment.client.calibrate=false", "load.warmup_s=0.5", "load.duration_s=1.5")
        ran = run(*SERVICE, url, *quiet, "load.users=[1,32]", "result_file=r.json")
    assert ran.code == 0, ran.err
    result = read("r.json")
    assert is_documented(result)
    short, enough = result["levels"]
    assert short["window_problem"]
    assert enough["window_problem"] is None
    assert "WINDOW TOO SHORT at 1 user: " in ran.out
    assert "WINDOW TOO SHORT at 32" not in ran.out
    assert short["server"]["running"]["max"] <= 1
    assert 1 < enough["server"]["running"]["mean"] <= 32
    assert "running" in ran.err
    client = client_here()
    logged = client.get_run(result["run_id"])
    assert logged.data.tags[tracking.TAG_WINDOW_TOO_SHORT] == "1"
    assert "vllm:num_requests_running" in logged.data.tags[tracking.TAG_SERVER_METRICS]
    assert tracking.TAG_GPU_METRICS not in logged.data.tags
    steps = {entry.step for entry in client.get_metric_history(result["run_id"], "server.running.mean")}
    assert steps == {1, 32}
    wanted = {"server.waiting.mean", "server.kv_usage.mean", "server.kv_usage.max", "server.preemptions"}
    assert wanted <= set(logged.data.metrics)
    csv = client.download_artifacts(result["run_id"], tracking.SERVER_SAMPLES_FILE)
    lines = Path(csv).read_text(encoding="utf-8").splitlines()
    assert {line.split(",")[0] for line in lines} == {"level", "1", "32"}


def test_a_level_that_mostly_fails_ends_the_ladder(run: Run) -> None:
    # With this seed the first request, by which the client gets to know the server, meets no fault.
    options = Options.model_validate(
        {"fixed": {"ttft_ms": 5, "itl_ms": 1}, "faults": {"error_500_share": 0.9, "seed": 2}}
    )
    with in_process(example_service(), options) as emulator:
        url = f"deployment.url={emulator.url}"
        ran = run(*SERVICE, *QUICK, url, "deployment.client.calibrate=false", "result_file=r.json")
    assert ran.code == 0, ran.err
    result = read("r.json")
    assert len(result["levels"]) == 1
    assert set(result["levels"][0]["failures"]) == {"http_500"}
    assert result["users_max"] == 0
    assert "the ladder ends here" in ran.err


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (("deployment.url=http://127.0.0.1:9",), ["cannot be reached", "deployment.url"]),
        (("deployment.url=nonsense",), ["deployment.url=nonsense"]),
        ((), ["deployment.url"]),
        (("deployment.url=http://127.0.0.1:9", "max_batch_weight=5000"), ["already running"]),
        (("deployment=simulated",), ["does not run in deployment=simulated"]),
    ],
)
def test_a_server_that_cannot_be_used_is_one_message(
    run: Run, arguments: tuple[str, ...], words: list[str]
) -> None:
    ran = run(*SERVICE, *arguments)
    assert ran.code == 2
    assert "Traceback" not in ran.err
    for word in words:
        assert word in ran.err


@pytest.mark.parametrize(
    ("status", "message", "cure"),
    [
        (
            400,
            "This model's maximum context length is 8 tokens. However, you requested 40.",
            "choose a workload",
        ),
        (
            429,
            "Rate limit reached: 2 requests / min",
            "a limit of requests decides what is measured: raise it",
        ),
    ],
)
def test_a_load_that_is_refused_says_so_and_how_to_mend_it(
    run: Run, status: int, message: str, cure: str
) -> None:
    def answers(asked: Asked) -> Answer:
        return refused(message, status) if len(asked.body.get("prompt", [])) > 8 else None

    quiet = (
        "deployment.client.calibrate=false",
        "load.warmup_s=0",
        "load.duration_s=0.4",
        "load.users=[1,2]",
    )
    with picky(answers) as server:
        ran = run(
            *("deployment=external", "engine=openai", f"deployment.url={server.url}", *quiet),
            *("workload=fixed", "workload.input_tokens=32", "workload.output_tokens=8"),
        )
    assert ran.code == 0, ran.err
    assert f"x http_{status}: " in ran.err
    assert f"to mend it: {cure}" in ran.err
    assert "at no measured level: 100% of the requests failed at 1 user." in ran.out
    assert "WINDOW TOO SHORT" not in ran.out
