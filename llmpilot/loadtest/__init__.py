"""Puts load on an endpoint, one level at a time, and keeps a record of every request."""

from llmpilot.loadtest.records import Records
from llmpilot.loadtest.traffic import Traffic, open_traffic
from llmpilot.loadtest.virtual import run_level

__all__ = ["Records", "Traffic", "open_traffic", "run_level"]
