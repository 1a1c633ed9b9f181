#!/bin/sh
# Train, register and serve the recommender, and time its answers. About ten minutes on 2 cores.
#   experiments/13_serving/run.sh
set -eu
cd "$(dirname "$0")/../.."
root=$(pwd)
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
export PYTHONPATH="$root" OMP_NUM_THREADS=1 MLFLOW_TRACKING_URI=sqlite:///mlflow.db
cd "$work"
"${PYTHON:-python}" -m llmpilot task=train
"${PYTHON:-python}" "$root/experiments/13_serving/bench.py" models:/llm-pilot-recommender@champion \
  "$root/experiments/13_serving/results.json"
