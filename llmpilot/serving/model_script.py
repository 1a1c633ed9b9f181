"""Logged as the model's code: what MLflow runs to get it back, in place of a pickle."""

from mlflow.models import set_model

from llmpilot.serving.model import RecommenderModel

set_model(RecommenderModel())
