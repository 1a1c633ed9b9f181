#!/bin/sh
# Look at the shipped measurements; with the collected rows and the reasons for doubt, build them first.
#   experiments/16_measurements/run.sh [COLLECTED.parquet DOUBTS.csv]
set -eu
here=$(cd "$(dirname "$0")" && pwd)
export PYTHONPATH="$here/../.." OMP_NUM_THREADS=1
if [ $# -eq 2 ]; then
  "${PYTHON:-python}" "$here/build.py" "$1" "$2" "$here/../../llmpilot/dataset/services/measurements.parquet"
fi
"${PYTHON:-python}" "$here/look.py" "$here/results.json"
