"""Whose metrics a page is, where nobody told us the engine: the names of all engines that we know."""

from dataclasses import replace

from llmpilot.engine.llamacpp import LlamaCppEngine
from llmpilot.engine.prometheus import values
from llmpilot.engine.server import VLLM_METRICS, ServerMetrics
from llmpilot.engine.sglang import SglangEngine
from llmpilot.engine.tgi import TgiEngine

KNOWN = (
    VLLM_METRICS,
    replace(VLLM_METRICS, kv_use="vllm:gpu_cache_usage_perc"),  # its name until 2025
    SglangEngine.metrics,
    LlamaCppEngine.metrics,
    TgiEngine.metrics,
)


def recognise(page: str) -> ServerMetrics | None:
    """Return the set of names of which the page has the most, if it says at least what is running."""

    def known(metrics: ServerMetrics) -> int:
        named = {metrics.running, metrics.waiting, metrics.kv_use, metrics.preemptions, metrics.tokens}
        found = values(page, filter(None, named))
        return len(found) if metrics.running in found else 0

    best = max(KNOWN, key=known)
    return best if known(best) else None
