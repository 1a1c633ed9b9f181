"""The recommender as a registered MLflow model: what it is kept as, how it answers, when it becomes champion.

A request is rows of questions; what is ranked, and how, is `llmpilot.recommendation`'s business.
"""
