"""The fitted pilot that ships: on all published measurements, so that a first question trains nothing.

It is taken only where what it was made of agrees: the data set, the settings, the seed, and the code
and tables that a fit rests on. experiments/10_predictor/ship.py writes it.
"""

import hashlib
import json
import tempfile
import zipfile
from pathlib import Path
from typing import Any

from llmpilot.dataset import Dataset
from llmpilot.files import to_json
from llmpilot.predict.pilot.fitted import FORMAT, FittedPilot, load_pilot
from llmpilot.simulator import physics
from llmpilot.simulator.calibration import SHIPPED

FITTED = Path(__file__).parent / "fitted" / "published.zip"
MADE_OF_FILE = "made_of.json"
DATE = (2024, 1, 1, 0, 0, 0)
"""Of files in the archive, so that the same predictor gives the same bytes."""


def made_of(settings: dict[str, Any], data: Dataset, seed: int) -> dict[str, Any]:
    """Return what a fitted pilot follows from; `settings` are the predictor's own."""
    return {
        "format": FORMAT,
        "data": data.content_hash,
        "settings": settings,
        "seed": seed,
        "code": _code_hash(),
    }


def shipped_pilot(settings: dict[str, Any], data: Dataset, seed: int) -> FittedPilot | None:
    """Return the shipped pilot; None where it was made of something else."""
    if not FITTED.is_file():
        return None
    with zipfile.ZipFile(FITTED) as archive:
        if json.loads(archive.read(MADE_OF_FILE)) != json.loads(to_json(made_of(settings, data, seed))):
            return None
        with tempfile.TemporaryDirectory(prefix="llmpilot-") as folder:
            archive.extractall(folder)
            return load_pilot(Path(folder))


def ship(fitted: FittedPilot, origin: dict[str, Any], file: Path = FITTED) -> None:
    """Write a fitted pilot with what it was `made_of`."""
    file.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(prefix="llmpilot-") as folder, zipfile.ZipFile(file, "w") as archive:
        fitted.save(Path(folder))
        contents = {path.name: path.read_bytes() for path in sorted(Path(folder).iterdir())}
        contents[MADE_OF_FILE] = to_json(origin).encode()
        for name, content in contents.items():
            entry = zipfile.ZipInfo(name, DATE)
            archive.writestr(entry, content, compress_type=zipfile.ZIP_LZMA)


def _code_hash() -> str:
    """Return a hash of the code and tables that a fit rests on."""
    folder, simulator = Path(__file__).parent, Path(physics.__file__).parent
    files = [file for file in folder.iterdir() if file.suffix in (".py", ".json")]
    files += [simulator / "physics.py", SHIPPED]
    digest = hashlib.sha256()
    for file in sorted(files, key=lambda one: (one.parent.name, one.name)):
        digest.update(f"{file.name}\n".encode())
        digest.update(file.read_bytes())
    return digest.hexdigest()
