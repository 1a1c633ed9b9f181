#!/bin/sh
# Find the largest batch weight of every published pair, on the simulator; what a too large one loses; what giving
# hopeless trials up saves. Then, with xllamacpp and gguf installed, the same search on a real server.
#   experiments/07_batch_weight/run.sh [DATA_DIR]      (with it, beside what was published at 128 users)
set -eu
data=
if [ $# -gt 0 ]; then
    data=$(cd "$1" && pwd)
fi
cd "$(dirname "$0")/../.."
root=$PWD
here=$root/experiments/07_batch_weight
python=${PYTHON:-python}
export PYTHONPATH="$root" OMP_NUM_THREADS=1
"$python" "$here/build.py" "$here/results.json" ${data:+"$data"}
"$python" "$here/pruning.py" "$here/pruning.json"
if "$python" -c 'import gguf, xllamacpp' 2> /dev/null; then
    scratch=$(mktemp -d)
    trap 'rm -rf "$scratch"' EXIT
    cd "$scratch"
    "$python" "$here/real.py" "$here/real.json"
fi
