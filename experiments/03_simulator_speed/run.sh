#!/bin/sh
# Time the simulator; needs no data. About a minute on 2 cores.
#   experiments/03_simulator_speed/run.sh
set -eu
cd "$(dirname "$0")/../.."
export PYTHONPATH=. OMP_NUM_THREADS=1
"${PYTHON:-python}" experiments/03_simulator_speed/bench.py experiments/03_simulator_speed/results.json
exec "${PYTHON:-python}" experiments/03_simulator_speed/engines.py experiments/03_simulator_speed/engines.json
