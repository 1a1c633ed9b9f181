#!/bin/sh
# How good recommendations are on today's engines with the LLM left out, and what was to choose of the rule
# (about ten minutes on two quiet cores).
#   experiments/19_recommendations/run.sh
set -eu
cd "$(dirname "$0")/../.."
export PYTHONPATH=. OMP_NUM_THREADS=1
PYTHON=${PYTHON:-python}
here=experiments/19_recommendations
for prices in runpod aws; do
  "$PYTHON" -m llmpilot task=evaluate on=today prices=$prices result_file=$here/today_$prices.json
done
"$PYTHON" $here/choose.py --prices runpod --output $here/chosen.json
"$PYTHON" $here/table.py
