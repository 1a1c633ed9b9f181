"""Results of other load generators in `tests/imports`, and how tests read them."""

import json
from pathlib import Path
from typing import Any

import pandas as pd

from llmpilot.dataset.imports import Imported, Told, found_files, imported

FIXTURES = Path(__file__).parent.parent / "imports"
SERVED = {"model": "bigcode/starcoder", "gpu": "h100"}


def read(*names: str, **told: Any) -> Imported:
    return imported(found_files([str(FIXTURES / name) for name in names]), Told({**SERVED, **told}))


def written(folder: Path, content: Any, name: str = "result.json") -> str:
    path = folder / name
    path.write_text(content if isinstance(content, str) else json.dumps(content))
    return str(path)


def row_of(folder: Path, content: Any, name: str = "result.json", **told: Any) -> dict[str, Any]:
    """Return the only row of a result, without what it lacks."""
    found = imported(found_files([written(folder, content, name)]), Told({**SERVED, **told}))
    (row,) = found.measurements.table.to_dict("records")
    return {str(key): value for key, value in row.items() if pd.notna(value)}
