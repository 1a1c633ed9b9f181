"""One trial: the corner cases, its outcome, and which services are started for it."""

from collections.abc import Callable
from contextlib import AbstractContextManager, contextmanager
from dataclasses import replace

import pytest

from llmpilot import catalog, console
from llmpilot.config import Gpu, Load, Sla
from llmpilot.deploy.external import ServiceError
from llmpilot.engine.tgis import TgisEngine
from llmpilot.errors import DoesNotFitError
from llmpilot.loadtest import open_traffic
from llmpilot.simulator import VirtualService
from llmpilot.sizing import plan_memory
from llmpilot.tasks.tune_show import in_words, show
from llmpilot.tune import Bounds, Outcome, Services, Tuner, measure
from llmpilot.tune.corners import corner_cases
from llmpilot.tune.plan import BEST, FEASIBLE, REPEAT, Seen, Step, boundary, next_step
from llmpilot.workload import load_workload

MODEL, GPU = catalog.models(["flan_t5_xl"])["flan_t5_xl"], catalog.gpus(["t4"])["t4"]
LOAD = Load(arrival="closed", users=[1, 4, 16], duration_s=10, warmup_s=1)
TRAFFIC = open_traffic(LOAD, load_workload({"name": "paper", "model": "shipped:paper"}), 42)
ONCE = {"sla": Sla(), "cost_per_hour": 1.0, "seed": 42}
COST = "cost_per_million_output_tokens"


def starter(
    model: str = "flan_t5_xl", gpu: Gpu = GPU, refuses_above: int | None = None
) -> Callable[..., object]:
    @contextmanager
    def start(weight: int):  # type: ignore[no-untyped-def]
        if refuses_above is not None and weight > refuses_above:
            raise DoesNotFitError("no room")
        yield TgisEngine().service(catalog.models([model])[model], gpu, weight)

    return start


def outcome(
    weight: int,
    start: Callable[..., AbstractContextManager[VirtualService]],
    question: str = FEASIBLE,
    limit: float | None = None,
    **tuner: object,
) -> Outcome:
    settings = Tuner.model_validate({"users": 8} | tuner)
    more = ONCE | {"question": question, "limit": lambda _: limit}
    return measure(Services(start), TRAFFIC, settings, weight, **more)  # type: ignore[arg-type]


def test_the_full_batch_fills_the_weight_to_the_token() -> None:
    for weight in (946, 950, 12_345, 45_776, 1_500_001):
        *_, full = corner_cases(TRAFFIC, weight, 100)
        filled = int(full.traffic.requests().take(full.users).weights.sum())
        assert weight - full.users < filled <= weight


def test_feasible_is_what_the_memory_holds() -> None:
    capacity = TgisEngine().memory(MODEL, GPU).kv_capacity_tokens
    held = outcome(capacity, starter())
    assert held.feasible
    assert held.value == held.figures["e2e_ms_p50"]
    assert not held.whole
    assert [seconds for seconds, _ in held.reports] == [round(LOAD.duration_s / 4)]
    lost = outcome(int(capacity * 1.02), starter())
    assert not lost.feasible
    assert "full batch" in str(lost.reason)
    assert "out_of_memory" in str(lost.reason)


@pytest.mark.parametrize("name", ["starcoder", "llama_7b", "flan_t5_xl", "mpt_7b"])
def test_the_true_boundary_is_found_within_2_percent_in_12_deployments(name: str) -> None:
    model, gpu = catalog.models([name])[name], catalog.gpus(["a100"])["a100"]
    capacity = TgisEngine().memory(model, gpu).kv_capacity_tokens
    most = plan_memory(model, gpu, memory_utilization=1.0, reserve_gb_per_gpu=0.0).kv_capacity_tokens
    tuner, bounds = Tuner(question="feasible", users=4), Bounds(TRAFFIC.heaviest_request_tokens, most)
    seen: list[Seen] = []
    while isinstance(step := next_step(seen, tuner, bounds, 42), Step):
        assert step.weight is not None
        found = outcome(step.weight, starter(name, gpu), users=4)
        seen.append(Seen(len(seen), FEASIBLE, step.weight, 42, found.feasible, found.reason))
    held, _ = boundary(seen)
    assert 0.98 * capacity <= (held or 0) <= capacity
    assert len(seen) <= 12


def test_a_refusal_at_start_is_an_outcome() -> None:
    refused = outcome(5000, starter(refuses_above=4000))
    assert (refused.feasible, refused.reason, refused.value) == (False, "no room", None)


def test_what_fails_under_every_weight_is_no_outcome() -> None:
    @contextmanager
    def start(weight: int):  # type: ignore[no-untyped-def]
        raise ServiceError("no library") if weight > 4000 else DoesNotFitError("no room")
        yield

    for tells in (True, False):
        more = ONCE | {"question": FEASIBLE, "of_the_weight": lambda tells=tells: tells}
        services, settings = Services(start), Tuner(users=8)
        if tells:
            refused = measure(services, TRAFFIC, settings, 5000, **more)  # type: ignore[arg-type]
            assert (refused.feasible, refused.reason) == (False, "no library")
        else:
            with pytest.raises(ServiceError, match="no library"):
                measure(services, TRAFFIC, settings, 5000, **more)  # type: ignore[arg-type]
        full = measure(services, TRAFFIC, settings, 4000, **more)  # type: ignore[arg-type]
        assert (full.feasible, full.reason) == (False, "no room")


def test_the_cost_is_that_at_the_last_level_within_the_sla() -> None:
    found = outcome(20_000, starter(), BEST, objective=COST)
    assert found.feasible
    assert found.value is not None
    top = f" at {found.levels[-1]['level']:g} users, the largest load tried, which keeps the SLA"
    kept = found.levels[-1]["level"] == found.reports[-1][0]
    assert in_words(found, Tuner(objective=COST)).endswith(top) == kept
    broken = replace(found, reports=found.reports[:1])
    assert in_words(broken, Tuner(objective=COST)).endswith(" at 1 user")
    once = ONCE | {"sla": Sla(itl_ms=0.001), "question": BEST}
    cost = Tuner(objective=COST)
    impossible = measure(Services(starter()), TRAFFIC, cost, 20_000, **once)  # type: ignore[arg-type]
    assert (impossible.feasible, impossible.value, impossible.reason) == (
        True,
        None,
        "no level keeps the SLA",
    )
    assert len(impossible.levels) == 1, "the ladder ends where the answer is known"


def test_the_first_part_answers_feasible_and_a_repeat_is_whole() -> None:
    part, whole = outcome(5000, starter()), outcome(5000, starter(), REPEAT)
    assert (part.whole, whole.whole) == (False, True)
    assert part.levels[0]["requests_ok"] < whole.levels[0]["requests_ok"]
    assert whole.seconds < part.seconds + LOAD.duration_s, "a repeat has no corner cases"
    assert outcome(5000, starter(), FEASIBLE, first_part=1).whole


def test_a_hopeless_trial_is_given_up_after_a_part_of_the_ladder() -> None:
    whole = outcome(2000, starter(), BEST, objective=COST, users=1)
    assert len(whole.levels) == len(LOAD.levels)
    users, first = whole.reports[0]
    assert users == LOAD.levels[0]
    given_up = outcome(2000, starter(), BEST, limit=first / 2, objective=COST)
    assert (given_up.feasible, given_up.pruned, given_up.whole) == (True, True, False)
    assert "hopeless after 1 user" in str(given_up.reason)
    assert len(given_up.levels) == 1
    assert given_up.seconds < whole.seconds
    hopeful = outcome(2000, starter(), BEST, limit=first * 2, objective=COST)
    assert (hopeful.pruned, hopeful.whole, hopeful.value) == (False, True, whole.value)


class Started:
    """Counts what is started and ended."""

    def __init__(self) -> None:
        self.weights: list[int] = []
        self.ended = 0

    @contextmanager
    def __call__(self, weight: int):  # type: ignore[no-untyped-def]
        self.weights.append(weight)
        try:
            yield TgisEngine().service(MODEL, GPU, weight)
        finally:
            self.ended += 1


def test_a_service_is_started_anew_only_for_another_weight() -> None:
    start = Started()
    services = Services(start)
    for weight in (1000, 2000, 2000):
        with services.under(weight) as service:
            assert service.rule.max_batch_weight == weight  # type: ignore[union-attr]
    assert (start.weights, start.ended, services.deployments) == ([1000, 2000], 1, 2)
    with pytest.raises(ZeroDivisionError), services.under(2000):
        raise ZeroDivisionError
    assert start.ended == 2
    services.discard()
    assert start.ended == 2


def test_a_live_weight_needs_one_deployment_until_something_fails() -> None:
    start = Started()
    services = Services(start, TgisEngine().reweighted)  # type: ignore[arg-type]
    capacity = TgisEngine().memory(MODEL, GPU).kv_capacity_tokens
    settings = Tuner(users=8)
    found = [
        measure(services, TRAFFIC, settings, weight, **ONCE, question=FEASIBLE)  # type: ignore[arg-type]
        for weight in (2000, 3000, capacity * 2, 4000, 5000)
    ]
    assert [one.feasible for one in found] == [True, True, False, True, True]
    assert [one.deployments for one in found] == [1, 0, 0, 1, 0]
    assert start.weights == [2000, 4000]
    alone = outcome(5000, starter())
    assert (found[-1].value, found[-1].levels) == (alone.value, alone.levels), "as if started with it"


def test_the_table_of_trials_is_not_cut_on_a_narrow_terminal(
    monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(console.out, "_width", 80)
    row = outcome(5000, starter()).figures | {"number": 3, "max_batch_weight": 2_392_576, "feasible": True}
    trials = [row | {"question": FEASIBLE, "pruned": False}, row | {"question": REPEAT, "pruned": True}]
    show({"trials": trials, "best_max_batch_weight": None, "stopped_because": "none"}, brief=False)
    shown = capfd.readouterr().out
    assert "2,392,576" in shown
    assert "…" not in shown
    assert max(map(len, shown.splitlines())) <= 80
