"""The formats that can be imported, and which of them a file has."""

from collections.abc import Sequence

from llmpilot.dataset.imports import aiperf, guidellm, inference_perf, llm_d, sglang_bench, vllm_bench
from llmpilot.dataset.imports.result_file import Importer, ImportFailedError, ResultFile
from llmpilot.errors import did_you_mean

IMPORTERS: Sequence[Importer] = (
    guidellm.IMPORTER,
    aiperf.JSON,
    aiperf.LINES,
    aiperf.CSV,
    vllm_bench.IMPORTER,
    sglang_bench.IMPORTER,
    inference_perf.IMPORTER,
    llm_d.IMPORTER,
)
"""In the order in which they are asked; no two recognise one file."""
KEYS_SHOWN = 8


def importer_named(name: str) -> Importer:
    """Return the importer of a format by its name.

    Raises:
        ImportFailedError: there is none.
    """
    names = [one.name for one in IMPORTERS]
    if name not in names:
        raise ImportFailedError(
            "there is no such format to import",
            given=f"import.format={name}",
            cure=f"{did_you_mean(name, names)}the formats are {', '.join(names)}",
        )
    return next(one for one in IMPORTERS if one.name == name)


def importer_of(file: ResultFile) -> Importer | None:
    """Return the importer that recognises the file, or None.

    Raises:
        ImportFailedError: the file cannot be read, or is damaged.
    """
    return next((one for one in IMPORTERS if one.recognises(file)), None)


def unknown(file: ResultFile) -> ImportFailedError:
    """Return the error of a file whose format is not known: what was found in it, and what is known."""
    return ImportFailedError(
        "this file's format is not known",
        given=f"{file.path}, {_described(file)}",
        cure=f"the formats are:\n{known_formats()}\n  import.format=NAME forces one",
    )


def known_formats() -> str:
    """Return a line for each format: its name and which files it is."""
    return "\n".join(f"    {one.name}: {one.label}, {one.what}" for one in IMPORTERS)


def _described(file: ResultFile) -> str:
    """Return what a file holds, in a few words."""
    if not file.documents:
        return f"which begins with {file.text.splitlines()[0][:80]!r}"
    first = file.documents[0]
    more = f" and {len(file.documents) - 1} more" if len(file.documents) > 1 else ""
    if not isinstance(first, dict):
        return f"which holds a {type(first).__name__}{more}"
    keys = [str(key) for key in first]
    shown = ", ".join(keys[:KEYS_SHOWN]) + (", ..." if len(keys) > KEYS_SHOWN else "")
    return f"which holds an object with the keys {shown or 'none'}{more}"
