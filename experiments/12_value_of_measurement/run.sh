#!/bin/sh
# Which one measurement to make: by value of information, against always the same; LLMs left out.
#   experiments/12_value_of_measurement/run.sh [SEEDS]      (3 unless told)
# Also writes llmpilot/recommendation/left_out.json: errors on GPU types and counts left out.
set -eu
cd "$(dirname "$0")/../.."
export PYTHONPATH=. OMP_NUM_THREADS=1
"${PYTHON:-python}" experiments/12_value_of_measurement/build.py \
    experiments/12_value_of_measurement/results.json llmpilot/recommendation/left_out.json "${1:-3}"
