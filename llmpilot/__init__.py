"""LLM-Pilot: measure LLM inference services, and find the GPUs that keep your latency promises cheapest."""

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from llmpilot.recommendation.api import recommend

__version__ = "0.1.0"
__all__ = ["__version__", "recommend"]


def __getattr__(name: str) -> Any:
    """Load `recommend` when it is first asked for: it needs most of the package, the command line little."""
    if name == "recommend":
        from llmpilot.recommendation.api import recommend

        return recommend
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
