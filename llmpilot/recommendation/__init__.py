"""Which GPUs, and how many: predictions, prices and an SLA become a ranking that says how far to trust it.

Knows nothing of the command line. `from llmpilot import recommend` is `api.recommend`.
"""
