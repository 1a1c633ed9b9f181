"""What the config.json of the models in the catalogue says, as far as it decides the facts; and others.

Copied by hand from the model cards' files, keys spelled as there. `parameters.csv` is an oracle that knows
nothing of our counting: totals of the checkpoints' tensors where these are public to the digit, else what the
makers state.
"""

import csv
import json
from pathlib import Path
from typing import Any

_HERE = Path(__file__).parent
with (_HERE / "parameters.csv").open(encoding="utf-8") as _file:
    _PARAMETERS = {row["model"]: row for row in csv.DictReader(_file)}


def _configs(folder: str) -> dict[str, dict[str, Any]]:
    files = sorted((_HERE / folder).glob("*.json"))
    return {file.stem: json.loads(file.read_text(encoding="utf-8")) for file in files}


# Of the catalogue's older models: configs, and parameters and active parameters [1e9].
CONFIGS = _configs("catalogue")
PUBLISHED = {name: float(row["total_1e9"]) for name, row in _PARAMETERS.items() if name in CONFIGS}
PUBLISHED_ACTIVE = {
    name: float(row["active_1e9"])
    for name, row in _PARAMETERS.items()
    if name in CONFIGS and row["active_1e9"]
}
# Models that the catalogue does not hold: config and public total [1e9].
OTHERS = {
    name: (config, float(_PARAMETERS[name]["total_1e9"])) for name, config in _configs("others").items()
}
# Others by org--name, most of them of today: the totals are their makers', vision towers and all.
MODERN = _configs("modern")
PUBLISHED_MODERN = {
    name: (float(row["total_1e9"]), float(row["active_1e9"] or row["total_1e9"]))
    for name, row in _PARAMETERS.items()
    if name in MODERN
}
TINY_LLAMA = OTHERS["tinyllama-1.1b"][0]
