#!/usr/bin/env bash
# Evaluates every method of the LLM-Pilot paper by leaving one LLM out, five seeds each (SEEDS=1: one), on the shipped table.
#   ./run.sh                            all methods
#   ./run.sh rf static                  these
#   LLMPILOT_PUBLISHED_DATA=FOLDER ./run.sh    and scores the predictions that the paper published, where
#                                       FOLDER/published/ has them
# The neural ones need PyTorch: pip install 'llm-pilot[neural]'. results/ gets what result_file writes.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")"
source ../scratch.sh
methods=("$@")
[ ${#methods[@]} -gt 0 ] || methods=(static llm_pilot rf paris selecta perfnet perfnet_v2 morphling)

if [ -n "${LLMPILOT_PUBLISHED_DATA:-}" ]; then
  "$PYTHON" published.py "$LLMPILOT_PUBLISHED_DATA/published" > published.json
fi
cd "$scratch"
for method in "${methods[@]}"; do
  "$PYTHON" -m llmpilot task=evaluate predictor="$method" evaluate.seeds="${SEEDS:-5}" \
    result_file="$here/results/$method.json"
done
"$PYTHON" "$here/table.py" > "$here/results/table.md"
