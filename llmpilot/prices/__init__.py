"""Whose prices, of when and of what kind: lists that ship with LLM-Pilot, and a user's own files.

A list is never mixed with another. Which profile a price makes of a GPU type is `catalog`'s business.
"""

from llmpilot.prices.find import find, shipped
from llmpilot.prices.price_list import Kind, KnownType, PriceList

__all__ = ["Kind", "KnownType", "PriceList", "find", "shipped"]
