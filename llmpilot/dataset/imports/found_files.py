"""Which files an import reads: those that are named, and those of folders and patterns that are results."""

import glob
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

from llmpilot.dataset.imports.formats import importer_named, importer_of, unknown
from llmpilot.dataset.imports.result_file import SUFFIXES, Importer, ImportFailedError, ResultFile

CURE = "import.paths=[FILE, FOLDER or 'results/*.json']"


@dataclass
class Found:
    """Files to import, each with its importer, and what is said of the others.

    `named` are those that the user named; the others are of folders and patterns.
    """

    files: list[tuple[ResultFile, Importer]] = field(default_factory=list)
    named: set[Path] = field(default_factory=set)
    remarks: list[str] = field(default_factory=list)


def found_files(paths: Sequence[str], format_: str | None = None) -> Found:
    """Return the result files of `paths`: files, folders with all that lies in them, or patterns.

    A file that is named must be a result; of a folder or a pattern, what is none is left out with a remark.
    A file is taken once, whatever it is called, and of files of one run that say the same, the fullest.

    Raises:
        ImportFailedError: there is nothing to import, or a file that is named cannot be.
    """
    forced = None if format_ is None else importer_named(format_)
    found = Found()
    seen: dict[str, Path] = {}
    strangers: list[str] = []
    for path, named in _candidates(paths).items():
        file = ResultFile(path)
        try:
            importer = _importer(file, forced, named=named)
        except ImportFailedError as error:
            if named:
                raise
            found.remarks.append(f"left out: {path}: {error.wrong}")
            continue
        if importer is None:
            if named:
                raise unknown(file)
            strangers.append(path.name)
        elif file.identity in seen:
            found.remarks.append(f"left out: {path} is the same file as {seen[file.identity]}")
        else:
            seen[file.identity] = path
            found.files.append((file, importer))
            if named:
                found.named.add(path)
    _leave_out_superseded(found)
    if strangers:
        found.remarks.append(f"{len(strangers)} files are no results: {_shown(strangers)}")
    if not found.files:
        raise ImportFailedError(
            "there is nothing to import",
            given="; ".join([f"import.paths={list(paths)}", *found.remarks]),
            cure=CURE,
        )
    return found


def _importer(file: ResultFile, forced: Importer | None, *, named: bool) -> Importer | None:
    """Return a file's importer, or None; a forced one reads what is named, whatever it looks like."""
    if forced is None:
        return importer_of(file)
    return forced if (named and file.text) or forced.recognises(file) else None


def _candidates(paths: Sequence[str]) -> dict[Path, bool]:
    """Return all files, and of each whether the user named it."""
    found: dict[Path, bool] = {}
    for given in paths:
        path = Path(given).expanduser()
        if path.is_file():
            found[path] = True
            continue
        if path.is_dir():
            inside = [one for one in sorted(path.rglob("*")) if not _is_hidden(one, path)]
        else:
            # Path.glob takes no absolute pattern.
            inside = [Path(one) for one in sorted(glob.glob(str(path), recursive=True))]  # noqa: PTH207
            if not inside:
                raise ImportFailedError("there is no such file or folder", given=given, cure=CURE)
        for one in inside:
            if one.is_file() and one.suffix.lower() in SUFFIXES:
                found.setdefault(one, False)
    return found


def _is_hidden(path: Path, folder: Path) -> bool:
    return any(part.startswith(".") for part in path.relative_to(folder).parts)


def _leave_out_superseded(found: Found) -> None:
    """Leave out what another file of the same run and folder says more fully."""
    kept = []
    says_more = {
        file.path.with_name(name): file.path
        for file, importer in found.files
        for name in importer.supersedes(file)
    }
    for file, importer in found.files:
        if fuller := says_more.get(file.path):
            found.remarks.append(f"left out: {file.path} is of the same run as {fuller.name} beside it")
        else:
            kept.append((file, importer))
    found.files = kept


def _shown(names: list[str], most: int = 5) -> str:
    return ", ".join(names[:most]) + (f" and {len(names) - most} more" if len(names) > most else "")
