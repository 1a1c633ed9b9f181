"""Predict the performance of an LLM that nobody has measured, and judge predictors by what they lead to."""
