"""Puts load on an endpoint, one level at a time, and keeps a record of every request."""

from llmpilot.deploy.endpoint import HttpEndpoint
from llmpilot.loadtest.records import Records
from llmpilot.loadtest.traffic import Traffic, open_traffic
from llmpilot.simulator import VirtualService

__all__ = ["Records", "Traffic", "open_traffic", "run_level"]


def run_level(endpoint: VirtualService | HttpEndpoint, traffic: Traffic, level: float) -> Records:
    """Return the records of one level of the ladder: warm-up, steady window, and the drain behind it."""
    # Imported when needed: a worker process of the one needs nothing of the other.
    if isinstance(endpoint, HttpEndpoint):
        from llmpilot.loadtest.client import run_http_level

        return run_http_level(endpoint, traffic, level)
    from llmpilot.loadtest.virtual import run_level as run_virtual_level

    return run_virtual_level(endpoint, traffic, level)
