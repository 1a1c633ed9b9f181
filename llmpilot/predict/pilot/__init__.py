"""LLM-Pilot's own predictor: physics, trees on top of it, honest uncertainty, and a decision that uses it."""
