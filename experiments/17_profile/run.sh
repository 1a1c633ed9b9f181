#!/bin/sh
# Profile this machine's GPU twice and compare: with itself, and with published tables. Under four minutes.
#   experiments/17_profile/run.sh [KERNELS]
# KERNELS: systems/data of ai-dynamo/aiconfigurator. The profiles need nothing but PyTorch; the comparison needs
# LLM-Pilot, and can be made elsewhere from the two files in results/. On a machine with several GPUs:
# MORE=--all-reduce experiments/17_profile/run.sh
set -eu
cd "$(dirname "$0")/../.."
python=${PYTHON:-python}
results=${RESULTS:-experiments/17_profile/results}
mkdir -p "$results"
for turn in 1 2; do
  "$python" llmpilot/profile_gpu.py --device "${DEVICE:-cuda}" --seconds "${SECONDS_EACH:-100}" ${MORE:-} \
    > "$results/profile_$turn.json"
done
if "$python" -c 'import pandas, pydantic, pyarrow, scipy'; then
  PYTHONPATH="$(pwd)" "$python" experiments/17_profile/build.py "$results/profile_1.json" ${1:+"$1"} \
    --again "$results/profile_2.json" --output "$results/comparison.json"
else
  echo "LLM-Pilot is not installed here: run build.py where it is, on $results/profile_1.json and profile_2.json" >&2
fi
