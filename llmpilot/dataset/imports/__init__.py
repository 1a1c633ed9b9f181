"""Results of other load generators as rows of the table of measurements; README.md has each mapping.

Knows nothing of prediction. A module for each tool says what its fields mean; `task=import` asks here.
"""

from llmpilot.dataset.imports.formats import IMPORTERS, known_formats
from llmpilot.dataset.imports.found_files import Found, found_files
from llmpilot.dataset.imports.result_file import Importer, ImportFailedError, ResultFile
from llmpilot.dataset.imports.rows import CURES, Imported, Told, imported

__all__ = [
    "CURES",
    "IMPORTERS",
    "Found",
    "ImportFailedError",
    "Imported",
    "Importer",
    "ResultFile",
    "Told",
    "found_files",
    "imported",
    "known_formats",
]
