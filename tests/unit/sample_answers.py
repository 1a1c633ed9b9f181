"""Answers made by hand, as `task=recommend` gives them: every kind that has to be shown."""

from dataclasses import replace
from functools import cache
from typing import Any

from llmpilot import catalog
from llmpilot.config import Gpu, Limit
from llmpilot.recommendation.answer import Answer, Forecast, NextMeasurement, Option, Trust
from llmpilot.recommendation.question import Choosing
from llmpilot.recommendation.what_if import Point, PriceCurve

TTFT = Limit(latency="ttft_ms", statistic="p95", limit_ms=1000)
ITL = Limit(latency="itl_ms", statistic="p95", limit_ms=50)
PRICES = {"h100": 1.99, "h200": 3.59, "b200": 5.98, "a100_80gb": 1.39, "l40s": 0.79, "l4": 0.44, "a10": 0.6}
RULE = {"name": "least price / probability ^ certainty_worth", "risk": None, "certainty_worth": 2.0}


@cache
def gpu(name: str, count: int = 1) -> Gpu:
    prices = {n: n * PRICES.get(name, 0.4) for n in (1, 2, 4, 8)}
    facts = {"price_per_hour": prices, "count": count, "price_source": "made up"}
    return catalog.gpus([name])[name].model_copy(update=facts)


def question(**more: Any) -> dict[str, Any]:
    limits = more.pop("limits", (TTFT, ITL))
    facts: dict[str, Any] = {
        "model": "llama_3_1_8b",
        "requests_per_s": 20.0,
        "users": None,
        "think_time_s": None,
        "arrival": "poisson",
        "workload": {
            "name": "azure_conv",
            "input_tokens_mean": 1154.7,
            "output_tokens_mean": 211.1,
            "cached_share": 0.0,
        },
        "sla": {"max_failure_rate": 0.01},
        "limits": [limit.model_dump() for limit in limits],
        "risk": None,
        "max_gpus": None,
        "prices": "RunPod on demand, secure cloud, 2025-10-14",
    }
    return facts | more


def option(profile: Gpu, precision: str, pods: int, **more: Any) -> Option:
    """Return a feasible option; `ttft` and `itl` are its expected latencies [ms]."""
    ttft, itl = more.pop("ttft", 600.0), more.pop("itl", 30.0)
    load = more.pop("load", 20.0)
    return Option(
        engine=more.pop("engine", "vllm"),
        precision=precision,
        profile=profile,
        feasible=True,
        p_sla=more.pop("p_sla", 0.93),
        unit="requests/s",
        pods=pods,
        load_per_pod=load / pods,
        capacity=load / pods * 1.21,
        capacity_interval=(load / pods * 0.98, load / pods * 1.47),
        tokens_per_s=load * 211,
        forecasts=(
            Forecast(TTFT, ttft, (0.7 * ttft, 1.45 * ttft), 0.95),
            Forecast(ITL, itl, (0.83 * itl, 1.21 * itl), 0.97),
        ),
        score=1.0,
        **more,
    )


def slow(profile: Gpu, precision: str, ttft: float, **more: Any) -> Option:
    """Return an option whose nearly idle pod breaks the limit on TTFT, or does not take enough."""
    return replace(
        option(profile, precision, 1, ttft=ttft, itl=0.02 * ttft),
        feasible=False,
        pods=None,
        load_per_pod=None,
        capacity=more.get("capacity", 0.0),
        capacity_interval=(0.0, more.get("capacity", 0.0)),
        tokens_per_s=None,
        p_sla=0.0,
        score=float("inf"),
    )


def unfit(profile: Gpu, precision: str, weights_gb: float, **more: Any) -> Option:
    usable = 0.95 * profile.count * profile.memory_gb
    reserve = 0.5 * profile.count
    why = (
        f"does not fit: {usable:.1f} GB usable of {profile.count * profile.memory_gb:.0f} GB "
        f"- {weights_gb:.1f} GB weights - {reserve:.1f} GB runtime reserve "
        f"= {usable - weights_gb - reserve:.1f} GB for the KV cache"
    )
    return Option(
        more.get("engine", "vllm"),
        precision,
        profile,
        feasible=False,
        p_sla=0.0,
        unit=more.get("unit", "requests/s"),
        reason=more.get("reason", why),
    )


def explained(
    options: list[Option], best: Option | None, choosing: Choosing | None = None
) -> tuple[Option, ...]:
    return tuple(
        one if one is best or one.reason else one.because(best, choosing or Choosing()) for one in options
    )


def winner() -> Answer:
    """Fp8 on H100 wins; cheaper and dearer alternatives, slow ones and such that do not fit."""
    best = option(gpu("h100"), "fp8", 2, ttft=612.0, itl=31.2)
    options = [
        best,
        option(gpu("l40s"), "fp8", 4, ttft=910.0, itl=44.0, p_sla=0.71),
        option(gpu("a100_80gb"), "bf16", 4, ttft=700.0, itl=39.0, p_sla=0.9),
        option(gpu("h100"), "bf16", 3, ttft=540.0, itl=33.0, p_sla=0.95),
        option(gpu("h200"), "fp8", 2, ttft=402.0, itl=22.0, p_sla=0.991),
        option(gpu("h100", 2), "fp8", 2, ttft=280.0, itl=21.0, p_sla=0.97),
        option(gpu("a100_80gb", 2), "bf16", 3, ttft=800.0, itl=39.0, p_sla=0.9),
        option(gpu("a100_80gb", 4), "bf16", 2, ttft=820.0, itl=39.0, p_sla=0.9),
        option(gpu("h200"), "bf16", 2, ttft=520.0, itl=29.0, p_sla=0.95),
        option(gpu("b200"), "fp8", 1, ttft=150.0, itl=11.0, p_sla=0.9975),
        option(gpu("b200"), "bf16", 2, ttft=190.0, itl=16.0, p_sla=0.9975),
        option(gpu("b200", 8), "bf16", 1, ttft=170.0, itl=13.0, p_sla=0.9975),
        option(gpu("l4", 8), "fp8", 2, ttft=870.0, itl=40.0, p_sla=0.6),
        slow(gpu("l4"), "fp8", 2840.0),
        slow(gpu("l4", 2), "fp8", 1840.0),
        slow(gpu("l4", 4), "bf16", 1400.0),
        slow(gpu("a10"), "bf16", 3900.0),
        slow(gpu("a10", 2), "bf16", 2200.0),
        unfit(gpu("t4"), "bf16", 16.1),
        unfit(
            gpu("t4"), "fp8", 8.0, reason="T4 has no units for fp8, and engines cannot do without them there"
        ),
        unfit(gpu("v100"), "bf16", 16.1),
    ]
    return Answer(
        question=question(),
        options=explained(options, best),
        recommended=best,
        reason="",
        trust=Trust(
            "medium",
            "left out with its whole family, LLMs of this kind were predicted with a median error of 14% "
            "(TTFT) and 9% (ITL), 85% of them within the interval",
            (
                "H100 was measured with 21 other LLMs, in fp8 with 6 of them",
                "prompts this long lie within what was measured",
            ),
        ),
        measurement=NextMeasurement(
            "a characterization of 1 x H100, fp8 costs about $0.80 and is expected to save $0.31 an hour, "
            "for 730 hours; 38% of what it may show changes the choice",
            gpu("h100"),
            0.31,
            0.8,
            "python -m llmpilot +gpu=h100 gpu.count=1 +model=llama_3_1_8b engine=openai "
            "engine.serves=vllm deployment=external deployment.url=http://HOST:8000",
        ),
        rule=RULE,
        hours_per_month=730.0,
        serve="vllm serve meta-llama/Llama-3.1-8B-Instruct --served-model-name llama_3_1_8b --port 8000 "
        "--tensor-parallel-size 1 --quantization fp8 --max-model-len 131072 --max-num-seqs 256 "
        "--max-num-batched-tokens 8192",
        notes=("requests are taken to be spread over pods at random",),
    )


def nothing_fast_enough() -> Answer:
    options = [
        slow(gpu("h100", 8), "bf16", 1240.0),
        slow(gpu("h100", 4), "bf16", 1790.0),
        slow(gpu("a100_80gb", 8), "bf16", 3010.0),
        slow(gpu("l4", 8), "bf16", 21_400.0),
        unfit(gpu("h100"), "bf16", 141.1),
        unfit(gpu("l4"), "bf16", 141.1),
    ]
    asked = question(
        model="llama_3_1_70b",
        requests_per_s=None,
        users=500,
        think_time_s=20.0,
        arrival="closed",
        workload={
            "name": "fixed",
            "input_tokens_mean": 32_000.0,
            "output_tokens_mean": 300.0,
            "cached_share": 0.3,
        },
    )
    made = explained(options, None)
    return Answer(
        question=asked,
        options=made,
        recommended=None,
        reason="no service on any GPU profile carries this load within the SLA; nearest comes "
        f"8 x H100, bf16: {made[0].reason}",
        trust=Trust("high", "the nearest service misses its limit by 24%, twice the median error of 12%"),
        measurement=NextMeasurement(
            "nothing that one more run could show is expected to pay for it: the choice is settled"
        ),
        rule=RULE,
        hours_per_month=730.0,
    )


def too_few_gpus() -> Answer:
    choosing = Choosing(max_gpus=4, risk=0.1)
    options = [slow(gpu("h100"), "bf16", 400.0, capacity=3.0), slow(gpu("l4"), "bf16", 900.0, capacity=0.4)]
    made = explained(options, None, choosing)
    return replace(
        nothing_fast_enough(),
        question=question(max_gpus=4, risk=0.1),
        options=made,
        reason="no service on any GPU profile carries this load within the SLA; nearest comes "
        f"1 x H100, bf16: {made[0].reason}",
    )


def fits_nowhere() -> Answer:
    options = [
        unfit(gpu(name, count), "bf16", 1341.0)
        for name in ("h100", "a100_80gb", "l4", "t4", "v100")
        for count in (1, 8)
    ]
    options.append(
        unfit(gpu("b200", 8), "bf16", 1341.0, reason="61 attention heads cannot be split evenly over 8 GPUs")
    )
    return replace(
        nothing_fast_enough(),
        question=question(model="deepseek_v3"),
        options=tuple(options),
        reason="deepseek_v3 fits on none of the 11 services that may be chosen",
        trust=Trust("high", "that it does not fit is arithmetic, not a prediction"),
    )


def paper() -> Answer:
    """The paper's world: users of TGIS, medians of nTTFT and ITL, no tokens, a ladder."""
    nttft = Limit(latency="nttft_ms", statistic="p50", limit_ms=100)
    itl = Limit(latency="itl_ms", statistic="p50", limit_ms=50)

    def one(profile: Gpu, pods: int, itl_ms: float, **more: Any) -> Option:
        return Option(
            engine="tgis",
            precision="fp16",
            profile=profile,
            feasible=True,
            p_sla=more.get("p_sla", 0.91),
            unit="users",
            pods=pods,
            load_per_pod=float(-(-500 // pods)),
            capacity=32.0,
            capacity_interval=(16.0, 64.0),
            forecasts=(
                Forecast(nttft, 4.21, None if "no_interval" in more else (2.6, 7.9), 1.0),
                Forecast(itl, itl_ms, None if "no_interval" in more else (0.7 * itl_ms, 1.1 * itl_ms), 0.91),
            ),
            score=1.0,
        )

    best = one(gpu("a100_80gb"), 19, 43.7)
    options = [
        best,
        one(gpu("h100"), 17, 31.0, p_sla=0.94),
        one(gpu("a10", 4), 28, 41.0, no_interval=True),
        unfit(gpu("t4"), "fp16", 13.5, engine="tgis", unit="users"),
    ]
    return Answer(
        question=question(
            model="llama_2_7b",
            requests_per_s=None,
            users=500,
            think_time_s=0.0,
            arrival="closed",
            workload={
                "name": "paper",
                "input_tokens_mean": 123.0,
                "output_tokens_mean": 19.0,
                "cached_share": 0.0,
            },
            limits=(nttft, itl),
            risk=0.1,
            prices="AWS on demand, the paper's list of 2023",
        ),
        options=explained(options, best),
        recommended=best,
        reason="",
        trust=Trust(
            "low", "no H100 is in the data: median errors of 61% (nTTFT) and 33% (ITL)", ("a reason",)
        ),
        measurement=NextMeasurement("nothing is left to measure"),
        rule={"name": "cheapest within the risk", "risk": 0.1, "certainty_worth": None},
        hours_per_month=160.0,
        why_not_served="no command line to serve it: TGIS is no longer developed; take engine=vllm",
        measured={"rows": 8, "profiles": ["1 x A100-80GB"]},
        notes=(
            "users are taken to send their next request at once: 500 requests are in flight all the time; "
            "people who read and type have a think_time_s",
        ),
    )


def long_names() -> Answer:
    """Names that know no bounds, several engines, and characters that HTML and rich would take for theirs."""
    name = (
        "an-organization-with-a-long-name/a-model-whose-name-goes-on-and-on-Instruct-2507-GPTQ-Int4-g128-sym"
    )
    made = winner()
    assert made.recommended is not None
    best = replace(
        made.recommended,
        engine="trtllm",
        profile=made.recommended.profile.model_copy(update={"name": "RTX-PRO-6000-Blackwell-Server-Edition"}),
    )
    return replace(
        made,
        question=question(
            model=name,
            requests_per_s=1234.5,
            workload={
                "name": "/traces/2025/<script>alert('x')</script>&a_very_long_file_name_without_a_break.csv",
                "input_tokens_mean": 123_456.0,
                "output_tokens_mean": 12_345.0,
                "cached_share": 0.91,
            },
            max_gpus=128,
            risk=0.05,
        ),
        options=(best, *made.options[1:]),
        recommended=best,
        notes=("[bold]not markup[/bold] <b>neither</b>",),
    )


ANSWERS = {
    made.__name__: made
    for made in (winner, nothing_fast_enough, too_few_gpus, fits_nowhere, paper, long_names)
}


def price_curves() -> tuple[PriceCurve, ...]:
    """What `what_if=true` gives: over the load, and over one limit where the tightest cannot be kept."""
    loads = (2.0, 4.0, 7.0, 10.0, 14.0, 20.0, 28.0, 40.0, 60.0, 100.0, 200.0)
    by_load = []
    for load in loads:
        small = load < 8
        profile, precision = (gpu("l40s"), "fp8") if small else (gpu("h100"), "fp8")
        if load > 90:
            profile, precision = gpu("b200"), "fp8"
        pods = max(1, round(load / (4 if small else 10 if load < 90 else 34) + 0.49))
        by_load.append(Point(load, option(profile, precision, pods, load=load)))
    limits = (
        400.0,
        500.0,
        600.0,
        700.0,
        800.0,
        900.0,
        1000.0,
        1100.0,
        1250.0,
        1500.0,
        2000.0,
        3000.0,
        4000.0,
    )
    by_limit = []
    for limit in limits:
        if limit < 500:
            by_limit.append(Point(limit, None))
        elif limit < 800:
            by_limit.append(Point(limit, option(gpu("b200"), "fp8", 1)))
        elif limit < 1500:
            by_limit.append(Point(limit, option(gpu("h100"), "fp8", 2)))
        else:
            by_limit.append(Point(limit, option(gpu("l40s"), "fp8", 4 if limit < 2500 else 3)))
    return (
        PriceCurve("requests/s", 20.0, tuple(by_load)),
        PriceCurve("TTFT p95 [ms]", 1000.0, tuple(by_limit)),
    )
