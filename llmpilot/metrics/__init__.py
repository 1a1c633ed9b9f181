"""Records -> latencies, throughput, goodput, failures, u_max and cost. Pure functions; no I/O."""

from llmpilot.metrics.level import (
    RATES,
    Level,
    breaks_sla,
    cost_per_million_output_tokens,
    last_within_sla,
    meets_sla,
    server_figures,
    summarize,
    window_problem,
)
from llmpilot.metrics.statistics import statistics
from llmpilot.metrics.streams import BURSTS, ONE_PIECE, and_, kind_of, named, problem_of, shows, unseen_limits

__all__ = [
    "BURSTS",
    "ONE_PIECE",
    "RATES",
    "Level",
    "and_",
    "breaks_sla",
    "cost_per_million_output_tokens",
    "kind_of",
    "last_within_sla",
    "meets_sla",
    "named",
    "problem_of",
    "server_figures",
    "shows",
    "statistics",
    "summarize",
    "unseen_limits",
    "window_problem",
]
