#!/bin/sh
# Rebuild the shipped calibrations from the raw data (about 20 minutes on 2 cores), then reprint the table.
#   experiments/02_simulator_accuracy/run.sh DATA_DIR
set -eu
if [ $# -ne 1 ]; then
    echo "usage: $0 DATA_DIR   (the folder that holds llm-pilot/requests.parquet; see README.md)" >&2
    exit 2
fi
data=$(cd "$1" && pwd)
cd "$(dirname "$0")/../.."
export PYTHONPATH=. OMP_NUM_THREADS=1
"${PYTHON:-python}" experiments/02_simulator_accuracy/build.py "$data"
"${PYTHON:-python}" -m llmpilot task=validate "data=$data/llm-pilot/requests.parquet" \
    result_file=experiments/02_simulator_accuracy/results.json
