"""Programs that engines start: one that the configuration names, and a Python that finds this package."""

import os
import shutil
from pathlib import Path

import llmpilot
from llmpilot.errors import ConfigError


def named_program(key: str, given: str, cure: str) -> str:
    """Return the absolute path of the program that the configuration names at `key`.

    Raises:
        ConfigError: there is no such program; `cure` says what to name.
    """
    found = shutil.which(str(Path(given).expanduser()))
    if found is None:
        raise ConfigError(f"{key} is no program", given=given, cure=cure)
    return str(Path(found).absolute())


def path_of_this_package() -> str:
    """Return a PYTHONPATH under which any Python imports this very package, and then what it did before."""
    package = str(Path(llmpilot.__file__).resolve().parent.parent)
    return os.pathsep.join(filter(None, [package, os.environ.get("PYTHONPATH")]))
