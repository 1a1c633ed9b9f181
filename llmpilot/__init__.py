"""LLM-Pilot: measure LLM inference services, and find the GPUs that keep your latency promises cheapest."""

__version__ = "0.1.0"
