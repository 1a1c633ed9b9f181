#!/bin/sh
# Measure how exactly the emulator keeps time; prints the table and writes results.json.
set -eu
cd "$(dirname "$0")/../.."
PYTHONPATH=. exec "${PYTHON:-python}" experiments/04_emulator/bench.py "$@"
