#!/bin/sh
# Fit the times of single operators to the published tables, judge them on what was left out, and reprint the
# tables of README.md (two minutes on one core).
#   experiments/14_operators/run.sh KERNELS
set -eu
if [ $# -ne 1 ]; then
    echo "usage: $0 KERNELS   (the folder of operator times, one folder a GPU type; see README.md)" >&2
    exit 2
fi
kernels=$(cd "$1" && pwd)
cd "$(dirname "$0")/../.."
export PYTHONPATH=. OMP_NUM_THREADS=1
"${PYTHON:-python}" experiments/14_operators/build.py "$kernels"
"${PYTHON:-python}" experiments/14_operators/table.py
