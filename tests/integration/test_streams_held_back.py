"""A stream that shows no latencies is named and meets no SLA on them: behind proxies, from end to end."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from conftest import Run
from holding_proxy import holding
from odd_service import HEAD, service
from tracked import client_here, is_documented, read

from llmpilot import metrics, tracking
from llmpilot.config import Load, Sla
from llmpilot.deploy.endpoint import ClientSettings, HttpEndpoint
from llmpilot.emulator import FixedTiming, Options, example_service, in_process
from llmpilot.engine.openai import OpenAIEngine
from llmpilot.loadtest import Traffic, run_level
from llmpilot.workload import fit, from_lengths

TOKENS = 16
TTFT_MS, ITL_MS = 20, 10
E2E_MS = TTFT_MS + (TOKENS - 1) * ITL_MS
LENGTHS = ("workload=fixed", "workload.input_tokens=8", f"workload.output_tokens={TOKENS}")
QUICK = ("load.warmup_s=0.2", "load.duration_s=1.2", "deployment.client.calibrate=false")
EXTERNAL = ("engine=openai", "deployment=external", *LENGTHS, *QUICK, "result_file=r.json")


def level_of(url: str, sla: Sla) -> dict[str, Any]:
    load = Load(arrival="closed", users=[2], warmup_s=0, duration_s=0.5, drain_s=5)
    rows = from_lengths([8] * 20_000, [TOKENS] * 20_000)
    place = HttpEndpoint(url, example_service().model_id, OpenAIEngine(), "vllm", client=ClientSettings())
    records = run_level(place, Traffic(load, fit(lambda: [from_lengths([8], [TOKENS])]), 1, rows), 2)
    return metrics.summarize(records, sla)


def test_a_proxy_that_holds_streams_back_takes_no_users_and_is_named(run: Run) -> None:
    timing = FixedTiming(ttft_ms=TTFT_MS, itl_ms=ITL_MS)
    with in_process(example_service(), Options(fixed=timing)) as emulator, holding(emulator.url) as url:
        ran = run(*EXTERNAL, f"deployment.url={url}", "load.users=[1,2]")
    assert ran.code == 0, ran.err
    result = read("r.json")
    assert is_documented(result)
    assert (result["users_max"], result["level_max_is"], result["level_unseen"]) == (0, "unseen", 1)
    for level in result["levels"]:
        assert level["requests_ok"] > 2
        assert level["streams"] == {
            "one_piece_share": 1,
            "short_gap_share": pytest.approx(1, abs=0.02),
            "not_shown": ["ttft_ms", "nttft_ms", "itl_ms", "tpot_ms"],
        }
        assert level["goodput_per_s"] == 0
        assert level["e2e_ms"]["p50"] >= E2E_MS * 0.9, "what such a stream shows"
        assert metrics.meets_sla(level, Sla(nttft_ms=None, itl_ms=None, e2e_ms=100 * E2E_MS))
    assert "at no measured level: at 1 user the streams do not show nTTFT and ITL" in ran.out
    assert "STREAM HELD BACK at 1, 2 users: 100% of the answers" in ran.out
    assert "sla.e2e_ms=<ms> sla.nttft_ms=null sla.itl_ms=null" in ran.out
    marked = [line.count("-*") for line in ran.out.splitlines() if line.startswith("│")]
    assert len(marked) == 2
    assert min(marked) >= 2, "no table says that tokens take no time"
    assert "stream held back" in ran.err
    logged = client_here().get_run(result["run_id"]).data
    assert logged.tags[tracking.TAG_STREAM_PROBLEM] == "1, 2"
    assert logged.metrics["one_piece_share"] == 1
    assert "e2e_ms.p50" in logged.metrics
    assert "itl_ms.p50" not in logged.metrics, "it would be the best of all runs"
    (page,) = Path("mlruns").rglob(f"{result['run_id']}/artifacts/report.html")
    assert "Stream held back at 1, 2 users" in page.read_text(encoding="utf-8")


def test_tokens_that_come_several_at_a_time_have_no_itl_but_a_tpot() -> None:
    sla = Sla(nttft_ms=None, itl_ms=None, tpot_ms=1_000, ttft_ms=1_000)
    timing = FixedTiming(ttft_ms=TTFT_MS, itl_ms=ITL_MS)
    with in_process(example_service(), Options(fixed=timing)) as emulator, holding(emulator.url, 4) as url:
        level = level_of(url, sla)
    assert level["requests_ok"] > 2
    assert level["streams"]["not_shown"] == ["itl_ms"]
    assert level["streams"]["short_gap_share"] > 0.5
    assert not metrics.meets_sla(level, Sla())
    assert metrics.meets_sla(level, sla)
    assert level["tpot_ms"]["p50"] >= ITL_MS / 2


def test_a_sound_stream_is_left_alone() -> None:
    timing = FixedTiming(ttft_ms=TTFT_MS, itl_ms=ITL_MS)
    with in_process(example_service(), Options(fixed=timing)) as emulator:
        level = level_of(emulator.url, Sla(nttft_ms=1_000, itl_ms=1_000))
    assert level["stream_problem"] is None
    assert level["streams"]["one_piece_share"] == 0
    assert metrics.meets_sla(level, Sla(nttft_ms=1_000, itl_ms=1_000))


def test_an_engine_faster_than_any_that_serves_a_user_is_named() -> None:
    piece = b'data: {"choices": [{"index": 0, "text": " a", "token_ids": [5]}]}\n\n'
    body = piece * TOKENS + b"data: [DONE]\n\n"

    def at_once(send: Callable[[bytes], Any]) -> None:
        send(HEAD + f"Content-Length: {len(body)}\r\n\r\n".encode() + body)

    with service(at_once) as url:
        level = level_of(url, Sla())
    assert level["requests_ok"] > 2
    assert level["streams"]["one_piece_share"] > 0.9
    assert "came in one piece" in level["stream_problem"]
    assert not metrics.meets_sla(level, Sla())
