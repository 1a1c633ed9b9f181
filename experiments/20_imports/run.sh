#!/bin/sh
# Make the fixtures of the importers: other load generators' results against the emulator, and what was sent.
#   experiments/20_imports/run.sh [TOOLS]        (guidellm,aiperf,vllm,sglang,inference_perf; those on PATH)
set -eu
cd "$(dirname "$0")/../.."
tools="${1:-guidellm,aiperf,vllm,sglang,inference_perf}"
PYTHONPATH=.:experiments/05_client_error:${PYTHONPATH:-} exec "${PYTHON:-python}" \
    experiments/20_imports/run.py --out tests/imports --only "$tools"
