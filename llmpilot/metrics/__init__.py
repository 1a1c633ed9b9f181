"""Records -> latencies, throughput, goodput, failures, u_max and cost. Pure functions; no I/O."""

from llmpilot.metrics.level import (
    RATES,
    Level,
    cost_per_million_output_tokens,
    last_within_sla,
    meets_sla,
    server_figures,
    summarize,
    window_problem,
)
from llmpilot.metrics.statistics import statistics
from llmpilot.metrics.streams import BURSTS, ONE_PIECE, kind_of, problem_of, unseen_limits

__all__ = [
    "BURSTS",
    "ONE_PIECE",
    "RATES",
    "Level",
    "cost_per_million_output_tokens",
    "kind_of",
    "last_within_sla",
    "meets_sla",
    "problem_of",
    "server_figures",
    "statistics",
    "summarize",
    "unseen_limits",
    "window_problem",
]
