#!/bin/sh
# How often the interval of a search holds the truth, and what it costs.
set -eu
cd "$(dirname "$0")/../.."
PYTHONPATH=. exec "${PYTHON:-python}" experiments/21_search/coverage.py "$@"
