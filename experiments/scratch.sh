# Sourced by a run.sh in its own folder: makes results/ and, for what is only tracked in passing, a scratch folder.
PYTHON=${PYTHON:-python}
here=$PWD
scratch=$(mktemp -d)
trap 'rm -rf "$scratch"' EXIT
mkdir -p results
