#!/bin/sh
# Measure the client's own error, and other load generators beside it where they are installed (on PATH).
#   experiments/05_client_error/run.sh [USERS] [REPEATS]
set -eu
cd "$(dirname "$0")/../.."
here=experiments/05_client_error
PYTHONPATH=.:$here exec "${PYTHON:-python}" $here/measure.py \
    --users "${1:-128,512}" --repeats "${2:-3}" --out $here/results.json
