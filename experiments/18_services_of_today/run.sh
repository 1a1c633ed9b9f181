#!/bin/sh
# Fit the service model to the shipped rows, and judge it with each LLM, GPU type, ... left out (half an hour on
# two cores).
#   experiments/18_services_of_today/run.sh
set -eu
cd "$(dirname "$0")/../.."
export PYTHONPATH=. OMP_NUM_THREADS=1
"${PYTHON:-python}" experiments/18_services_of_today/build.py
"${PYTHON:-python}" experiments/18_services_of_today/table.py
