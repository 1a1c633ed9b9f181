"""What must hold of recommendations on today's engines: many SLAs and loads, judged from few simulations."""

from collections.abc import Sequence
from dataclasses import replace
from math import inf
from typing import Any

import numpy as np
import pytest

from llmpilot import catalog
from llmpilot.config import Sla
from llmpilot.predict.service.knowledge import shipped_knowledge
from llmpilot.recommendation.answer import Option
from llmpilot.recommendation.ask import asked_of, engines_of, question_of
from llmpilot.recommendation.forecast import Simulated, judged
from llmpilot.recommendation.prices import profiles_at
from llmpilot.recommendation.question import Choosing, Demand, Question
from llmpilot.recommendation.today import answered, simulate
from llmpilot.workload import load_workload

KNOWN = shipped_knowledge()
PROMISE = {"ttft_ms": {"p95": 1000.0}, "itl_ms": {"p95": 50.0}}


def promise(**limits: Any) -> Sla:
    return Sla.model_validate({"nttft_ms": None, "itl_ms": None} | PROMISE | limits)


def question(
    model: str = "llama_3_1_8b",
    *,
    gpus: Sequence[str] = ("h100",),
    workload: dict[str, Any] | None = None,
    precisions: Sequence[str | None] = (None,),
    choosing: Choosing | None = None,
    **load: Any,
) -> Question:
    told = catalog.option("workload", "azure_conv") if workload is None else {"name": "own"} | workload
    demand = Demand.model_validate(load or {"requests_per_s": 20})
    prices = catalog.price_list("aws")
    return question_of(
        catalog.models((model,))[model],
        model,
        demand,
        asked_of(demand, load_workload(told), str(told["name"])),
        sla=promise(),
        engines=engines_of(["vllm"], None),
        precisions=list(precisions),
        profiles=profiles_at(prices, gpus),
        choosing=Choosing() if choosing is None else choosing,
        prices=prices.label,
    )


def fixed(input_tokens: int, output_tokens: int) -> dict[str, Any]:
    return {"model": "fixed", "input_tokens": input_tokens, "output_tokens": output_tokens}


def pods_of(options: Sequence[Option]) -> dict[tuple[str, int, str], Option]:
    return {(one.profile.name, one.profile.count, one.precision): one for one in options}


@pytest.fixture(scope="module")
def few() -> Simulated:
    return simulate(question(gpus=("h100", "l40s", "l4")), KNOWN)


@pytest.fixture(scope="module")
def generations() -> Simulated:
    return simulate(question(gpus=("a100_80gb", "h100", "h200", "b200"), precisions=("bf16", "fp8")), KNOWN)


def cost(simulated: Simulated, sla: Sla, load: float, choosing: Choosing) -> float:
    found = judged(simulated, sla, load, choosing)
    return inf if found.recommended is None else float(found.options[0].cost_per_hour or 0.0)


def test_who_asks_for_less_at_a_risk_pays_no_more(few: Simulated) -> None:
    for risk in (0.05, 0.1, 0.4):
        choosing = Choosing(risk=risk)
        costs = [cost(few, promise(), rate, choosing) for rate in (0.1, 1, 2, 5, 10, 20, 45, 100, 1000)]
        assert costs == sorted(costs)
        assert costs[0] < costs[-1] < inf
        for name, limits in (
            ("itl_ms", (2, 5, 10, 15, 25, 50, 100)),
            ("ttft_ms", (50, 100, 200, 1000, 5000)),
        ):
            costs = [cost(few, promise(**{name: {"p95": one}}), 20, choosing) for one in limits]
            assert costs == sorted(costs, reverse=True)
            assert costs[-1] < costs[0]
    costs = [cost(few, promise(), 20, Choosing(risk=risk)) for risk in (0.01, 0.05, 0.1, 0.3, 0.5)]
    assert costs == sorted(costs, reverse=True)


def test_cheaper_prices_and_more_to_choose_from_cost_no_more(few: Simulated) -> None:
    choosing = Choosing(risk=0.1)
    dear = cost(few, promise(), 20, choosing)
    for at in range(len(few.offered)):
        offered = list(few.offered)
        price = 0.7 * offered[at].profile.cost_per_hour
        profile = offered[at].profile.model_copy(update={"cost_per_hour": price})
        offered[at] = replace(offered[at], profile=profile)
        assert cost(replace(few, offered=tuple(offered)), promise(), 20, choosing) <= dear
        rest = [one for one in range(len(few.offered)) if one != at]
        without = replace(
            few,
            offered=tuple(few.offered[one] for one in rest),
            curves=tuple(few.curves[one] for one in rest),
            speeds=tuple(few.speeds[one] for one in rest),
        )
        assert cost(without, promise(), 20, choosing) >= dear


def test_a_service_says_the_same_whichever_others_are_asked(few: Simulated) -> None:
    alone = simulate(question(gpus=("h100",)), KNOWN)
    found, among = (pods_of(judged(one, promise(), 20, Choosing()).options) for one in (alone, few))
    for key, option in found.items():
        assert replace(option, reason="") == replace(among[key], reason="")


def test_newer_and_more_gpus_take_more(generations: Simulated) -> None:
    takes = {
        key: one.capacity
        for key, one in pods_of(judged(generations, promise(), 20, Choosing()).options).items()
    }
    newer, counts = ("A100-80GB", "H100", "H200", "B200"), (1, 2, 4, 8)
    rows = [[takes[gpu, count, "bf16"] for gpu in newer] for count in counts]
    rows += [[takes[gpu, count, "bf16"] for count in counts] for gpu in newer]
    for row in rows:
        assert row == sorted(row)


def test_fp8_takes_no_less_where_the_hardware_has_it(generations: Simulated) -> None:
    takes = {
        key: one.capacity
        for key, one in pods_of(judged(generations, promise(), 20, Choosing()).options).items()
    }
    for count in (1, 2, 4, 8):
        assert takes["H100", count, "fp8"] >= takes["H100", count, "bf16"]


def test_a_pod_serves_as_many_who_think_as_make_its_requests() -> None:
    asked = simulate(question(users=1000, think_time_s=60.0), KNOWN)
    requests = simulate(question(), KNOWN)
    users, rates = (one.capacity(promise()) for one in (asked, requests))
    assert np.median(users, axis=0) == pytest.approx(np.median(rates, axis=0) * 65, rel=0.15)


def test_answers_of_one_token_have_no_gaps_to_limit() -> None:
    answer = answered(question(workload=fixed(20, 1), requests_per_s=1), KNOWN, settle=False).answer
    best = answer.recommended
    assert best is not None
    assert (best.profile.label, best.pods) == ("1 x H100", 1)
    ttft, itl = best.forecasts
    assert 0 < ttft.expected_ms < 1000
    assert itl.expected_ms < 0.01
    assert itl.kept == 1.0


@pytest.mark.filterwarnings("error")
def test_requests_longer_than_the_model_takes_are_said_to_be_so() -> None:
    asked = question(workload=fixed(200_000, 10), gpus=("h200", "l4"), requests_per_s=1)
    answer = answered(asked, KNOWN).answer
    assert answer.reason == "every request is longer than the model and the service's memory take"
    assert not any(one.forecasts for one in answer.options)


def test_who_can_hold_less_than_three_requests_is_not_offered() -> None:
    options = simulate(question(workload=fixed(15_000, 10), gpus=("l4",)), KNOWN)
    held = {one.profile.label: why for one, why in options.unfit}
    assert list(held) == ["1 x L4"]
    assert "requests of 15,010 tokens at once, where 3 are needed" in held["1 x L4"]
    assert held["1 x L4"].startswith("does not fit: ")


def test_where_nothing_will_do_the_nearest_comes_first_and_no_run_helps() -> None:
    asked = question(gpus=("l4", "h100"), choosing=Choosing(max_gpus=8, risk=0.01), requests_per_s=500)
    answer = answered(asked, KNOWN).answer
    assert answer.recommended is None
    assert "nearest comes 1 x H100" in answer.reason
    assert answer.measurement.profile is None
    h100 = [one.reason for one in answer.options if one.profile.name == "H100"]
    assert h100 == ["needs more than max_gpus=8"] * 4


def test_what_no_engine_serves_is_not_called_too_large() -> None:
    answer = answered(question("flan_t5_xl", gpus=("h100",)), KNOWN).answer
    assert answer.reason == "flan_t5_xl cannot be served so: vLLM does not serve encoder-decoder models"
    assert "does not fit" not in answer.trust.sentence
