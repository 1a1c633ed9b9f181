#!/bin/sh
# The figures of this experiment's README. Some 20 minutes on 2 quiet cores.
set -eu
cd "$(dirname "$0")"
python="${PYTHON:-python}"
"$python" -m llmpilot task=evaluate result_file=pilot.json
"$python" -m llmpilot task=evaluate evaluate.risk=0.1 evaluate.seeds=1 result_file=risk.json
"$python" -m llmpilot task=evaluate 'evaluate.measured=[1xH100]' result_file=pilot_h100.json
"$python" -m llmpilot task=evaluate 'evaluate.measured=[1xA100]' result_file=pilot_a100.json
"$python" ablation.py --seeds "${1:-2}"
"$python" grids.py --seeds "${1:-2}"
"$python" ship.py
