"""How long one operator of a given shape takes on a GPU type: GEMMs, attention, experts, communication.

Knows nothing of models, layers, engines or batches: who calls says the shapes, already sharded.
"""

from llmpilot.operators.times import Operators, operators_for

__all__ = ["Operators", "operators_for"]
