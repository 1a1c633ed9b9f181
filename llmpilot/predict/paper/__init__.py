"""The methods that the LLM-Pilot paper (arXiv 2410.02425) compares, as predictors: its own and the baselines.

Each is what the paper's published code (IBM/LLM-performance-prediction) does, on our table and our facts.
"""
