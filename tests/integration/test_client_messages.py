"""What a level says of its failures: without secrets, and without a traceback."""

import json
from pathlib import Path

import pytest
from odd_service import service, whole

from llmpilot import secrets
from llmpilot.config import Load
from llmpilot.deploy.endpoint import ClientSettings, HttpEndpoint
from llmpilot.engine.openai import OpenAIEngine
from llmpilot.errors import PilotError
from llmpilot.loadtest import Records, Traffic, client, run_level
from llmpilot.workload import Requests, fit, from_lengths

KEY, ACCOUNT = "ab/cd-ef/4711", "my-own-account"


@pytest.fixture(autouse=True)
def in_the_working_directory(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(secrets, "_met", set())


def level(url: str, **place: str) -> Records:
    load = Load(arrival="closed", users=[1], warmup_s=0, duration_s=0.1, drain_s=1)
    traffic = Traffic(load, fit(lambda: [from_lengths([8], [2])]), 1)
    settings, headers = ClientSettings(backoff_s=0.05), {"api-key": KEY}
    return run_level(
        HttpEndpoint(url, "m", OpenAIEngine(), "vllm", client=settings, headers=headers, **place), traffic, 1
    )


@pytest.mark.parametrize("before", [0, 492])  # the message is cut behind 500 characters
def test_records_hold_no_secret_however_the_server_writes_it(before: int) -> None:
    secrets.remember([ACCOUNT])
    refusal = "." * before + KEY.replace("/", "\\/") + f" of who={ACCOUNT}"
    with service(whole(refusal.encode(), "403 No")) as url:
        records = level(url, query=f"who={ACCOUNT}")
    assert set(records.failure.tolist()) == {"http_403"}
    kept = json.loads(records.to_table().schema.metadata[b"llmpilot"])["notes"]["failure_messages"]
    assert kept == {"http_403": f"{'.' * before}*** of who=***"[:500]}


def test_a_service_whose_name_is_known_no_more_is_said_without_a_traceback() -> None:
    with pytest.raises(PilotError, match="cannot be found any more") as refused:
        level(f"http://{'a' * 64}.example")
    assert "not a name of a host" in str(refused.value)


def test_counts_of_several_prompts_are_told_from_those_of_one() -> None:
    lengths = from_lengths([10, 10, 10, 10], [1, 1, 1, 1])
    requests = Requests(**{**vars(lengths), "batch_size": lengths.batch_size * 4})
    counted, cached = client._of_one_prompt(
        requests, lengths.input_tokens * [4, 1, 5, 0] + [0, 1, 0, -1], lengths.input_tokens * [2, 0, 0, 0]
    )
    assert counted.tolist() == [10, 11, 12, -1]
    assert cached.tolist() == [5, 0, 0, 0]
