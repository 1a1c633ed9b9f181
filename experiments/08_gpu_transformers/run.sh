#!/usr/bin/env bash
# A real characterization with nothing but PyTorch installed (pip install torch, beside LLM-Pilot).
#   ./run.sh                            on a GPU where nvidia-smi finds one, else on the CPU with a tiny model
#   GPU=a100 MODEL=llama_2_7b ./run.sh  on the GPU that GPU= names (conf/gpu), another model (conf/model)
#   DEVICE=cpu ./run.sh                 on the CPU whatever there is
# The runs go to mlflow.db in a scratch folder; results/ gets what result_file writes.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")"
source ../scratch.sh
cd "$scratch"

if [ "${DEVICE:-}" != cpu ] && command -v nvidia-smi > /dev/null && nvidia-smi -L | grep -q GPU; then
  gpu=${GPU:-h200} model=${MODEL:-starcoder}
  nvidia-smi --query-gpu=name,memory.total,driver_version --format=csv | tee "$here/results/${gpu}_hardware.csv"
  for weight in 8192 32768 131072; do
    CUDA_VISIBLE_DEVICES=${CUDA_VISIBLE_DEVICES:-0} "$PYTHON" -m llmpilot engine=transformers deployment=process \
      "+gpu=$gpu" "+model=$model" model.weights=dummy engine.device=cuda max_batch_weight=$weight \
      "load.users=[1,2,4,8,16,32,64,128]" load.duration_s=60 load.warmup_s=10 \
      result_file="$here/results/${gpu}_${model}_$weight.json"
  done
else
  "$PYTHON" -m llmpilot.engine.tiny_model tiny
  for weight in 2048 32768; do
    "$PYTHON" -m llmpilot engine=transformers deployment=process model.weights=dummy engine.device=cpu \
      engine.threads=1 +gpu=h200 +model=hf model.config=tiny model.name=tiny max_batch_weight=$weight \
      "load.users=[1,4,16,64]" load.duration_s=10 load.warmup_s=2 load.drain_s=120 \
      result_file="$here/results/cpu_tiny_$weight.json"
  done
fi
"$PYTHON" "$here/table.py" > "$here/results/table.md"
