"""What is sent: how many tokens the answers to a request have."""

import pytest

from llmpilot.recommendation.ask import asked_of
from llmpilot.recommendation.question import Demand
from llmpilot.workload import load_workload

RATE = Demand(requests_per_s=5.0)


def test_a_request_for_several_sequences_has_the_tokens_of_all() -> None:
    """IBM's requests ask for up to eight sequences each."""
    workload = load_workload({"name": "production", "model": "shipped:production"})
    many = workload.sample(50_000, 1)
    tokens = float((many.batch_size * many.output_tokens).mean())
    assert tokens > 1.05 * float(many.output_tokens.mean())
    assert asked_of(RATE, workload, "production").answer_tokens == pytest.approx(tokens, rel=0.05)


def test_a_request_for_one_has_its_own() -> None:
    workload = load_workload({"name": "azure_conv", "model": "shipped:azure_conv"})
    asked = asked_of(RATE, workload, "azure_conv")
    assert asked.answer_tokens == asked.output_tokens == workload.mean("output_tokens")
