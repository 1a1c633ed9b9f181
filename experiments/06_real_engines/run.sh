#!/usr/bin/env bash
# Measures real servers that LLM-Pilot starts itself, on this machine: llama.cpp, and vLLM where it is named.
#   ./run.sh                                 llama.cpp (pip install xllamacpp gguf)
#   LLMPILOT_VLLM=.../bin/vllm ./run.sh      and vLLM
# The runs go to mlflow.db in a scratch folder; results/ gets what result_file writes.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")"
source ../scratch.sh
cd "$scratch"

common=(+gpu=a100 +model=starcoder deployment=process "load.users=[1,4,16,64]" load.duration_s=10
        load.warmup_s=2 load.drain_s=120)

"$PYTHON" -m llmpilot.engine.tiny_model tiny.gguf
for weight in 2048 8192 32768; do
  "$PYTHON" -m llmpilot "${common[@]}" engine=llamacpp engine.model_path=tiny.gguf engine.threads=1 \
    max_batch_weight=$weight result_file="$here/results/llamacpp_$weight.json"
done

if [ -n "${LLMPILOT_VLLM:-}" ]; then
  "$PYTHON" -m llmpilot.engine.tiny_model tiny
  for weight in 2048 32768; do
    "$PYTHON" -m llmpilot "${common[@]}" engine=vllm engine.binary="$LLMPILOT_VLLM" engine.model_path=tiny \
      model.weights=dummy engine.tensor_parallel=1 engine.block_size=32 engine.enforce_eager=true \
      +engine.environment.VLLM_CPU_NUM_OF_RESERVED_CPU=1 \
      max_batch_weight=$weight result_file="$here/results/vllm_cpu_$weight.json"
  done
fi
"$PYTHON" "$here/table.py" > "$here/results/table.md"
