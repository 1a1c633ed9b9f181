#!/bin/sh
# Replay runs of vLLM on the simulated scheduler. Needs the runs of casys-kaist/LLMServingSim; seconds.
#   experiments/15_scheduler/run.sh FOLDER
set -eu
cd "$(dirname "$0")/../.."
export PYTHONPATH=. OMP_NUM_THREADS=1
exec "${PYTHON:-python}" experiments/15_scheduler/build.py --data "$1" --result experiments/15_scheduler/results.json
