#!/bin/sh
# Find the largest batch weight of every published pair, on the simulator; then what a too large one loses.
#   experiments/07_batch_weight/run.sh [DATA_DIR]      (with it, beside what was published at 128 users)
set -eu
data=
if [ $# -gt 0 ]; then
    data=$(cd "$1" && pwd)
fi
cd "$(dirname "$0")/../.."
export PYTHONPATH=. OMP_NUM_THREADS=1
"${PYTHON:-python}" experiments/07_batch_weight/build.py experiments/07_batch_weight/results.json ${data:+"$data"}
