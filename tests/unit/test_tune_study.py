"""The study's database: what it keeps, who works on it, and what makes two studies one."""

import socket
import sqlite3
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing
from pathlib import Path
from typing import Any

import optuna
import pytest
from optuna.trial import TrialState

from llmpilot.config import Tracking
from llmpilot.errors import ConfigError, PilotError
from llmpilot.secrets import redact
from llmpilot.tasks.tune import of_the_weight
from llmpilot.tune import Bounds, Identity, Outcome, Tuner, TuningStudy, storage_url
from llmpilot.tune.plan import BEST, FEASIBLE, REPEAT, Step

BOUNDS = Bounds(1000, 100_000)
HELD = Outcome(True, None, 5.0, (), 0.0)
FAILED = Outcome(False, "out of memory", 2.0, (), 1.0)


FACTS: dict[str, Any] = {
    "model": {"name": "m"},
    "gpu": {"name": "g", "price_per_hour": 1.0},
    "load": {"users": [1], "warmup_s": 5.0},
    "sla": {"max_failure_rate": 0.01, "itl_ms": 50.0},
}


def opened(url: str, name: str = "s", settings: Tuner | None = None, **facts: dict[str, Any]) -> TuningStudy:
    settings = settings or Tuner()
    return TuningStudy(url, name, Identity(FACTS | facts, settings, BOUNDS), settings, timeout_s=1)


@pytest.fixture
def url(tmp_path: Path) -> str:
    return f"sqlite:///{tmp_path}/optuna.db"


def test_the_database_lies_beside_mlflows_and_is_never_the_same() -> None:
    assert storage_url(Tracking(uri="sqlite:///a/mlflow.db"), Tuner()) == "sqlite:///a/optuna.db"
    assert storage_url(Tracking(uri="sqlite:////a/mlflow.db"), Tuner()) == "sqlite:////a/optuna.db"
    assert storage_url(Tracking(uri="http://h:1"), Tuner()) == "sqlite:///optuna.db"
    with pytest.raises(ConfigError, match="alembic_version"):
        storage_url(Tracking(uri="sqlite:///m.db"), Tuner(storage="sqlite:///m.db"))


@pytest.mark.parametrize(
    "storage",
    [
        "sqlite:///./m.db",
        "sqlite:///sub/../m.db",
        "sqlite:///HERE/m.db",
        "sqlite:///link.db",
        "sqlite:///m.db?a=1",
    ],
)
def test_mlflows_database_by_another_name_is_the_same(
    storage: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    Path("link.db").symlink_to("m.db")
    with pytest.raises(ConfigError, match="alembic_version"):
        storage_url(Tracking(uri="sqlite:///m.db"), Tuner(storage=storage.replace("HERE", str(tmp_path))))
    with pytest.raises(ConfigError, match="alembic_version"):
        storage_url(Tracking(uri="sqlite:///optuna.db"), Tuner())


def test_trials_are_kept_and_an_infeasible_one_is_pruned_with_its_value(url: str) -> None:
    study = opened(url)
    for weight, outcome in ((1000, HELD), (100_000, FAILED)):
        begun = study.ask(Step(FEASIBLE, weight, 0), BOUNDS, 0)
        assert begun is not None
        study.tell(begun[0], outcome, None)
    rows = opened(url).rows()
    assert [(row["max_batch_weight"], row["feasible"], row["reason"]) for row in rows] == [
        (1000, True, None),
        (100_000, False, "out of memory"),
    ]
    trials = optuna.load_study(study_name="s", storage=url).trials
    assert [t.state for t in trials] == [TrialState.COMPLETE, TrialState.PRUNED]
    assert trials[1].value == 2.0


def test_tpe_proposes_nothing_that_is_known_to_fail(url: str) -> None:
    study = opened(url)
    for weight, outcome in ((1000, HELD), (20_000, HELD), (20_300, FAILED)):
        begun = study.ask(Step(FEASIBLE, weight, 0), BOUNDS, 0)
        assert begun is not None
        study.tell(begun[0], outcome, None)
    for _ in range(6):
        begun = study.ask(Step(BEST, None, 0), BOUNDS, 0)
        assert begun is not None
        assert 1000 <= begun[1] <= 20_000
        study.tell(begun[0], HELD, None)


def test_a_trial_that_another_worker_has_begun_is_left_to_it(url: str) -> None:
    one, two = opened(url), opened(url)
    assert one.ask(Step(FEASIBLE, 1000, 0), BOUNDS, 0) is not None
    assert two.ask(Step(FEASIBLE, 1000, 0), BOUNDS, 0) is None
    assert len(one.seen()) == 1


def test_a_dead_workers_trial_is_released_and_a_living_ones_is_not(url: str) -> None:
    study = opened(url)
    begun = study.ask(Step(FEASIBLE, 1000, 0), BOUNDS, 0)
    assert begun is not None
    begun[0].set_user_attr("worker", "another-machine/1")
    assert study.release_lost() == []
    begun[0].set_user_attr("worker", study._worker.replace(study._worker.split("/")[1], "999999999"))
    assert study.release_lost() == [begun[0].number]
    assert study.seen() == []
    assert study.release_lost() == []


def test_a_study_of_another_configuration_is_refused(url: str) -> None:
    opened(url)
    with pytest.raises(ConfigError, match="another configuration") as refused:
        opened(url, load={"users": [1], "warmup_s": 6.0})
    assert refused.value.given == "load.warmup_s=6.0, in the study 5.0"
    with pytest.raises(ConfigError) as refused:
        opened(url, settings=Tuner(objective="throughput_tok_s", corner_users=3), model={"name": "n", "x": 1})
    assert refused.value.given == (
        "model.name=n, in the study m; model.x=1, in the study nothing; "
        "tuner.objective=throughput_tok_s, in the study e2e_ms.p50; tuner.corner_users=3, in the study 512"
    )
    with pytest.raises(ConfigError) as refused:
        opened(url, gpu={f"k{i}": i for i in range(9)} | {"price_per_hour": 1})
    assert str(refused.value.given).endswith("; and 6 more keys")


def test_what_decides_nothing_of_the_answer_goes_on_with_the_study(url: str) -> None:
    price, ladder = {"name": "g", "price_per_hour": 2.0}, {"users": [1, 2], "warmup_s": 5.0}
    latencies = {"max_failure_rate": 0.01, "itl_ms": 10.0}
    opened(url)
    opened(url, gpu=price, load=ladder, sla=latencies)
    cost = Tuner(objective="cost_per_million_output_tokens")
    opened(url, "cost", cost)
    for part, value in {"gpu": price, "load": ladder, "sla": latencies}.items():
        with pytest.raises(ConfigError, match="another configuration"):
            opened(url, "cost", cost, **{part: value})


def test_a_study_from_before_its_keys_were_kept_keeps_them_from_now_on(url: str) -> None:
    study = optuna.create_study(storage=url, study_name="s")
    study.set_user_attr("llmpilot.config_hash", Identity(FACTS, Tuner(), BOUNDS).hash)
    with pytest.raises(ConfigError, match=r"its configuration is [0-9a-f]{12}, this one"):
        opened(url, model={"name": "n"})
    opened(url)
    with pytest.raises(ConfigError, match=r"model\.name=n, in the study m"):
        opened(url, model={"name": "n"})


def test_a_locked_database_is_an_error_that_says_so(url: str, tmp_path: Path) -> None:
    study = opened(url)
    with closing(sqlite3.connect(tmp_path / "optuna.db")) as other:
        other.execute("BEGIN EXCLUSIVE")
        with pytest.raises(PilotError, match="locked"):
            study.ask(Step(FEASIBLE, 1000, 0), BOUNDS, 0)


@pytest.mark.parametrize(
    ("bad", "words"),
    [
        ("nonsense", "tuner.storage"),
        ("oracle9://x", "tuner.storage"),
        ("sqlite:////no/such/folder/x.db", "unable to open"),
        ("postgresql://me:hunter2hunter2@127.0.0.1:9/x", "tuner.storage"),
    ],
)
def test_an_unusable_database_is_an_error_without_secrets(bad: str, words: str) -> None:
    with pytest.raises(PilotError, match=words) as raised:
        opened(bad)
    assert raised.value.exit_code == 2
    assert "hunter2" not in str(raised.value)
    assert redact(str(raised.value)) == str(raised.value), "the cure can be read when it is printed"


def test_mlflows_database_is_refused_with_a_cure(empty_database: Path, tmp_path: Path) -> None:
    copy = tmp_path / "m.db"
    copy.write_bytes(empty_database.read_bytes())
    with pytest.raises(PilotError, match="Optuna's own"):
        opened(f"sqlite:///{copy}")


def begin(study: TuningStudy, weight: int) -> Any:
    begun = study.ask(Step(FEASIBLE, weight, 0), BOUNDS, 0)
    assert begun is not None
    return begun[0]


def released(url: str) -> tuple[TuningStudy, Callable[[int], object]]:
    study = opened(url)
    return study, study.release_lost


def test_a_larger_weights_failure_waits_for_who_tests_the_lowest(url: str) -> None:
    lowest, largest = begin(opened(url), BOUNDS.lower), begin(opened(url), BOUNDS.upper)
    assert not of_the_weight(*released(url), BOUNDS, lowest.number, BOUNDS.lower), (
        "there is nobody to wait for"
    )
    with ThreadPoolExecutor() as pool:
        lowest.set_user_attr("worker", "another-machine/1")
        asked = pool.submit(of_the_weight, *released(url), BOUNDS, largest.number, BOUNDS.upper)
        with pytest.raises(TimeoutError):
            asked.result(timeout=1)
        opened(url).tell(lowest, HELD, None)
        assert asked.result(timeout=30)
    opened(url).tell(largest, FAILED, None)
    assert [row["feasible"] for row in opened(url).rows()] == [True, False]


def test_a_larger_weights_failure_waits_for_no_dead_worker(url: str) -> None:
    lowest, largest = begin(opened(url), BOUNDS.lower), begin(opened(url), BOUNDS.upper)
    lowest.set_user_attr("worker", f"{socket.gethostname()}/999999999")
    assert not of_the_weight(*released(url), BOUNDS, largest.number, BOUNDS.upper)
    opened(url).abandon(largest, "ours")
    assert opened(url).seen() == []


def test_a_given_up_trial_is_pruned_in_optuna_with_its_reason_and_value(url: str) -> None:
    study = opened(url)
    begun = study.ask(Step(BEST, 1000, 0), BOUNDS, 0)
    assert begun is not None
    study.tell(
        begun[0],
        Outcome(True, "hopeless", 9.0, (), 0.0, whole=False, pruned=True, reports=((30, 9.0),)),
        None,
    )
    (trial,) = optuna.load_study(study_name="s", storage=url).trials
    assert (trial.state, trial.intermediate_values) == (TrialState.PRUNED, {30: 9.0})
    (row,) = study.rows()
    assert (row["feasible"], row["pruned"], row["reason"], row["value"]) == (True, True, "hopeless", 9.0)
    (seen,) = study.seen()
    assert (seen.whole, seen.ladder) == (False, {30: 9.0})


def test_a_new_proposal_is_new_and_served_differently(url: str) -> None:
    study, bounds = opened(url), Bounds(1000, 5000, step=1000)
    weights = []
    for weight in (1000, 5000, None, None, None):
        begun = study.ask(Step(BEST if weight is None else REPEAT, weight, 0), bounds, 0)
        assert begun is not None
        study.tell(begun[0], HELD, None)
        weights.append(begun[1])
    assert sorted(weights) == [1000, 2000, 3000, 4000, 5000]
