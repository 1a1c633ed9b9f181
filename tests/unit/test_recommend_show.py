"""What task `recommend` prints: nothing is wider than the terminal, and what a reader needs is there."""

from dataclasses import replace
from math import inf

import pytest
import sample_answers
from rich.cells import cell_len
from sample_answers import ANSWERS

from llmpilot import console
from llmpilot.recommendation import phrases
from llmpilot.recommendation.answer import Answer, Option
from llmpilot.tasks.recommend_show import show


def printed(answer: Answer, width: int, monkeypatch: pytest.MonkeyPatch) -> str:
    monkeypatch.setattr(console.out, "width", width)
    with console.out.capture() as text:
        show(answer)
    return text.get()


def in_one_line(text: str) -> str:
    return " ".join(text.split())


@pytest.mark.parametrize("width", [60, 80, 140])
@pytest.mark.parametrize("name", ANSWERS)
def test_no_line_is_wider_than_the_terminal_but_commands(
    name: str, width: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    answer = ANSWERS[name]()
    commands = {command for command in (answer.serve, answer.measurement.command) if command}
    lines = printed(answer, width, monkeypatch).splitlines()
    assert commands <= set(lines), "a command is one line, to be copied"
    assert [line for line in lines if line not in commands and cell_len(line) > width] == []


@pytest.mark.parametrize("width", [60, 80, 140])
@pytest.mark.parametrize("name", ANSWERS)
def test_every_gpu_type_is_told_of(name: str, width: int, monkeypatch: pytest.MonkeyPatch) -> None:
    answer = ANSWERS[name]()
    text = "".join(printed(answer, width, monkeypatch).split())
    assert all("".join(one.profile.name.split()) in text for one in answer.options if name != "long_names")
    assert "…" not in text, "nothing is cut off"


def test_what_to_take_is_said_with_its_prices_and_its_limits(monkeypatch: pytest.MonkeyPatch) -> None:
    text = printed(ANSWERS["winner"](), 80, monkeypatch)
    whole = in_one_line(text)
    for said in (
        "llama_3_1_8b for 20 requests/s arriving at random (Poisson)",
        "workload azure_conv, 1,155 tokens in and 211 out on average",
        "SLA: TTFT p95 <= 1000 ms, ITL p95 <= 50 ms, failures <= 1%",
        "Prices: RunPod on demand, secure cloud, 2025-10-14",
        "Take 2 pods of 1 x H100 in fp8, vLLM: $3.98/hour, $2,905/month, $0.26 per million output tokens.",
        "with a probability of 93%",
        "TTFT p95 <= 1000 ms 612 ms 428 to 887 ms 61% 95%",
        "ITL p95 is the limit that binds",
        "One pod takes 12.1 requests/s within the SLA (80% interval 9.8 to 14.7) and gets 10.",
        "1 x L40S, fp8 4 3.16 -21% 71% TTFT p95 at 91%",
        "1 x B200, fp8 1 5.98 +50% >99% ITL p95 at 22%",
        "L4 8 GPUs in fp8: costs 77% more; 1, 2, 4 GPUs: too slow",
        "Trust is medium: left out with its whole family",
        "Next measurement: a characterization of 1 x H100, fp8",
    ):
        assert said in whole
    assert "  A100-80GB  1, 2, 4 GPUs in bf16: costs at least 40% more\n" in text
    assert "T4         1 GPU in bf16: does not fit; 1 GPU in fp8: T4 has no units for fp8\n" in text


def test_the_papers_world_has_users_and_no_price_of_tokens(monkeypatch: pytest.MonkeyPatch) -> None:
    text = in_one_line(printed(ANSWERS["paper"](), 80, monkeypatch))
    assert "llama_2_7b for 500 users, who send the next request at once" in text
    assert "nTTFT p50 <= 100 ms" in text
    assert "19 pods of 1 x A100-80GB in fp16, TGIS: $26.41/hour, $4,226/month (160 hours)." in text
    assert "million" not in text
    assert "probability of at least 90%" in text
    assert "8 levels that you measured of this model on 1 x A100-80GB are taken into account" in text
    assert "No command line to serve it: TGIS is no longer developed; take engine=vllm." in text


def test_where_nothing_is_fast_enough_it_says_what_would_be(monkeypatch: pytest.MonkeyPatch) -> None:
    text = in_one_line(printed(ANSWERS["nothing_fast_enough"](), 80, monkeypatch))
    assert "500 users, who think for 20 s between requests" in text
    assert "30% of each prompt cached" in text
    assert "Nothing is recommended: no service on any GPU profile" in text
    assert "8 x H100, bf16: TTFT p95 1,240 ms (80% interval 868 to 1,798 ms), 124% of the limit" in text
    assert "looser limits, sla.ttft_ms.p95=1800 or more" in text
    assert "sla.itl_ms" not in text, "the limit on ITL is kept"
    assert "Take" not in text


def test_where_there_are_too_few_gpus_it_says_how_many_are_enough(monkeypatch: pytest.MonkeyPatch) -> None:
    text = in_one_line(printed(ANSWERS["too_few_gpus"](), 80, monkeypatch))
    # 20 requests/s, of which a pod takes 3.
    assert "more GPUs: about 7 instead of max_gpus=4, as 7 pods of 1 x H100, bf16" in text
    assert "larger risk" not in text


def test_where_nothing_is_sure_enough_the_risk_is_named() -> None:
    answer = ANSWERS["too_few_gpus"]()
    sure = replace(answer, question=answer.question | {"max_gpus": None})
    (said,) = phrases.what_would_help(sure)
    assert said == "a larger risk than 0.1: at best a nearly idle pod keeps the SLA with 95%"


def test_where_it_fits_nowhere_the_nearest_miss_has_its_arithmetic(monkeypatch: pytest.MonkeyPatch) -> None:
    text = in_one_line(printed(ANSWERS["fits_nowhere"](), 80, monkeypatch))
    # 8 x 80 GB: of the two that lack the same, no other has less.
    assert "8 x H100, bf16: does not fit: 608.0 GB usable of 640 GB - 1341.0 GB weights - 4.0 GB" in text
    assert "= -737.0 GB for the KV cache" in text
    assert text.count("GB usable") == 1
    assert "H100, A100-80GB, L4, T4, V100: does not fit" in text
    assert "precision=fp8" in text


def test_brackets_are_text_and_secrets_are_not(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SOME_API_KEY", "very secret words that are wrapped")
    answer = replace(
        ANSWERS["winner"](), notes=("[bold]x[/bold] " * 5 + "very secret words that are wrapped",)
    )
    text = printed(answer, 60, monkeypatch)
    assert "[bold]x[/bold]" in text
    assert "***" in text
    assert "secret" not in text


def test_at_most_six_alternatives_those_nearest_in_price() -> None:
    best = sample_answers.option(sample_answers.gpu("h100"), "fp8", 4, ttft=900.0, itl=20.0)
    faster = [
        sample_answers.option(sample_answers.gpu("h100"), "fp8", 4 + more, ttft=900.0 - 50 * more, itl=1.0)
        for more in range(1, 11)
    ]
    answer = replace(ANSWERS["winner"](), options=(best, *faster[::-1]), recommended=best)
    assert len(answer.alternatives) == 10
    assert [one.pods for one in phrases.alternatives(answer)] == [5, 6, 7, 8, 9, 10]
    (fold,) = phrases.folds(answer, [best, *phrases.alternatives(answer)])
    assert len(fold.options) == 4


def test_options_are_either_shown_or_folded() -> None:
    answer = ANSWERS["winner"]()
    assert answer.recommended is not None
    shown = [answer.recommended, *phrases.alternatives(answer)]
    folded = [option for fold in phrases.merged(phrases.folds(answer, shown)) for option in fold.options]
    assert sorted(map(id, [*shown, *folded])) == sorted(map(id, answer.options))


def test_engines_are_named_where_there_are_several() -> None:
    answer = ANSWERS["winner"]()
    best = answer.recommended
    assert isinstance(best, Option)
    assert phrases.service(best, answer) == "1 x H100, fp8"
    other = replace(best, engine="sglang")
    both = replace(answer, options=(*answer.options, other))
    assert phrases.service(other, both) == "1 x H100, fp8, SGLang"


@pytest.mark.parametrize(
    ("said", "text"),
    [
        (phrases.money(3.98), "$3.98"),
        (phrases.money(2905.4), "$2,905"),
        (phrases.money(0.0123), "$0.012"),
        (phrases.money(None), "-"),
        (phrases.probability(0.934), "93%"),
        (phrases.probability(1.0), ">99%"),
        (phrases.probability(0.001), "<1%"),
        (phrases.latency(4.206), "4.21 ms"),
        (phrases.latency(31.24), "31.2 ms"),
        (phrases.latency(1840.2), "1,840 ms"),
        (phrases.latency(21_400.0), "21.4 s"),
        (phrases.latency(inf), "no end"),
        (phrases.latency_interval((430.0, 870.0)), "430 to 870 ms"),
        (phrases.latency_interval((9400.0, 12_100.0)), "9,400 ms to 12.1 s"),
        (phrases.latency_interval((430.0, inf)), "from 430 ms on"),
        (phrases.latency_interval(None), "-"),
        (phrases.load(12.13), "12.1"),
        (phrases.load(1234.5), "1,234"),
        (phrases.share(0.613), "61%"),
        (phrases.share(21.4), "21 times"),
        (phrases.sentence("done."), "done."),
    ],
)
def test_figures_are_short_and_have_their_unit(said: str, text: str) -> None:
    assert said == text
