#!/bin/sh
# Rebuild the shipped workload models and this experiment's results from the raw data.
#   experiments/01_workload_models/run.sh DATA_DIR
set -eu
if [ $# -ne 1 ]; then
    echo "usage: $0 DATA_DIR   (the folder that holds llm-pilot/ and workload/; see README.md)" >&2
    exit 2
fi
data=$(cd "$1" && pwd)
cd "$(dirname "$0")/../.."
PYTHONPATH=. exec "${PYTHON:-python}" experiments/01_workload_models/build.py "$data"
