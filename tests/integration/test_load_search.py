"""`load.search=true` from end to end: against ladders of every level, over sockets, and interrupted."""

import threading
import time
from collections.abc import Callable
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
import pytest
from conftest import Run
from odd_service import HEAD, service, whole
from tracked import client_here, read, runs, stopping_at

from llmpilot import loadtest
from llmpilot.tasks import characterize

CELL = ("+gpu=a100", "+model=starcoder", "tuner=none", "load.warmup_s=2")
SEARCH = ("load.search=true", "result_file=s.json")
CLOSED = ("sla.itl_ms=27", "load.duration_s=20")


def test_what_is_tracked_and_kept(run: Run) -> None:
    ran = run(*CELL, *CLOSED, *SEARCH, "load.users=[2,64]")
    assert ran.code == 0, ran.err
    found = read("s.json")
    (tracked,) = runs()
    figures = tracked.data.metrics
    assert [figures["users_max.low"], figures["users_max.high"]] == found["search"]["interval"]
    assert figures["users_max"] == found["level_max"]
    assert figures["level_broken"] == found["level_broken"]
    assert figures["search.windows"] == found["search"]["windows"]
    assert tracked.data.tags["llmpilot.level_max_is"] == found["level_max_is"]
    client = client_here()
    steps = [point.step for point in client.get_metric_history(found["run_id"], "itl_ms.p50")]
    assert len(steps) == found["search"]["windows"], "each measurement of a level is a point at its step"
    assert set(steps) == {level["level"] for level in found["levels"]}
    at_most = next(level for level in found["levels"] if level["level"] == found["level_max"])
    assert len(at_most["repeats"]) >= 2
    margins = {repeat["sla_margin"] for repeat in at_most["repeats"]}
    assert len(margins) == len(at_most["repeats"]), "repeats have other requests"
    (records,) = Path("mlruns").rglob("requests.parquet")
    kept = pq.read_table(records).group_by(["level", "repeat"]).aggregate([([], "count_all")])
    assert len(kept) == found["search"]["windows"]
    (page,) = Path("mlruns").rglob("report.html")
    sure = (
        f"with 95% confidence, by {found['search']['levels']} levels in {found['search']['windows']} windows"
    )
    assert sure in page.read_text(encoding="utf-8")
    assert sure in ran.out


def test_ends_of_the_range_are_said(run: Run) -> None:
    ran = run(*CELL, *CLOSED, *SEARCH, "load.users=[1,4]", "load.search_repeats=1")
    assert ran.code == 0, ran.err
    assert "takes at least 4 users (the largest load tried)" in ran.out
    assert "load.users=[1,32] lets it go on" in ran.err
    assert read("s.json")["search"]["interval"] == [4, None]
    ran = run(*CELL, *CLOSED, *SEARCH, "load.users=[100,200]")
    assert "it takes fewer than 100 users, the smallest load tried" in ran.out
    assert read("s.json")["users_max"] == 0
    refused = run(*CELL, *CLOSED, *SEARCH, "load.users=[8]")
    assert refused.code == 2
    assert "load.users=[8] is no range to search" in refused.err


def test_an_interrupted_search_goes_on_with_what_it_has(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    assert run(*CELL, *CLOSED, *SEARCH, "load.users=[1,64]").code == 0
    whole_one = read("s.json")
    second = max(level["level"] for level in whole_one["levels"] if len(level["repeats"]) > 1)
    monkeypatch.setattr(characterize, "run_level", stopping_at(second, KeyboardInterrupt))
    assert run(*CELL, *CLOSED, *SEARCH, "load.users=[1,64]").code == 130

    again: list[float] = []

    def run_level(endpoint: Any, traffic: Any, level: float) -> Any:
        again.append(level)
        return loadtest.run_level(endpoint, traffic, level)

    monkeypatch.setattr(characterize, "run_level", run_level)
    assert run(*CELL, *CLOSED, *SEARCH, "load.users=[1,64]").code == 0
    gone_on = read("s.json")
    assert again[0] == second
    assert len(again) < whole_one["search"]["windows"]
    assert gone_on["levels"] == whole_one["levels"]
    assert gone_on["search"] == whole_one["search"]


def only(users: int) -> Callable[[Callable[[bytes], Any]], None]:
    """A server that answers so many requests at once, and refuses more."""
    busy = threading.BoundedSemaphore(users)
    piece = b'data: {"choices": [{"index": 0, "text": " a"}]}\n\n'

    def way(send: Callable[[bytes], Any]) -> None:
        if not busy.acquire(blocking=False):
            time.sleep(0.005)
            whole(b"busy", "503 Service Unavailable")(send)
            return
        with ExitStack() as place:
            place.callback(busy.release)
            send(HEAD + b"Transfer-Encoding: chunked\r\n\r\n")
            for part in (piece, piece, piece, b"data: [DONE]\n\n"):
                send(b"%x\r\n%b\r\n" % (len(part), part))
                time.sleep(0.003)
            place.close()  # before the client can know that it may ask again
            send(b"0\r\n\r\n")

    return way


def test_a_server_that_refuses_the_fourth_takes_exactly_three(run: Run) -> None:
    with service(only(3)) as url:
        ran = run(
            *(
                "+gpu=a100",
                "+model=starcoder",
                "engine=openai",
                "deployment=external",
                f"deployment.url={url}",
            ),
            *("deployment.client.calibrate=false", "deployment.client.workers=1", "load.users=[1,8]"),
            *("load.duration_s=0.4", "load.warmup_s=0.1", "load.search_repeats=1", *SEARCH),
            *("workload=fixed", "workload.input_tokens=8", "workload.output_tokens=3"),
        )
    assert ran.code == 0, ran.err
    found = read("s.json")
    assert found["level_max_is"] == "exact"
    assert (found["users_max"], found["level_broken"]) == (3, 4)
    assert found["search"]["interval"] == [3, 3]
    assert "takes exactly 3 users" in ran.out
    assert "and 4 break it" in ran.out
