"""How MLflow's tracking store is reached: its URI made absolute, its database made, within seconds or not.

Knows nothing of runs.
"""

import logging
import os
import shutil
import sqlite3
from contextlib import closing, suppress
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from llmpilot.config import Tracking


def connect(tracking: Tracking) -> Any:
    """Return MLflow's client of the store, a new SQLite database made first; raises whatever MLflow does."""
    os.environ.setdefault("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "2")
    os.environ.setdefault("MLFLOW_HTTP_REQUEST_TIMEOUT", str(int(max(1, tracking.timeout_s))))
    os.environ.setdefault("MLFLOW_ENABLE_ARTIFACTS_PROGRESS_BAR", "false")
    for name in ("mlflow.store.db.utils", "alembic", "mlflow.tracking.fluent"):
        logging.getLogger(name).setLevel(logging.WARNING)
    path = sqlite_file(tracking.uri)
    if path is not None and not path.exists() and os.access(path.parent, os.W_OK):
        _make(path)
    check_reachable(tracking)
    from mlflow import MlflowClient

    return MlflowClient(absolute_uri(tracking.uri))


def check_reachable(tracking: Tracking) -> None:
    """Fail within seconds where MLflow's own retries would take minutes."""
    uri = absolute_uri(tracking.uri)
    path = sqlite_file(uri)
    if uri.startswith(("http://", "https://")):
        import httpx

        httpx.get(f"{uri.rstrip('/')}/health", timeout=tracking.timeout_s)
    elif path is not None:
        with closing(sqlite3.connect(path, timeout=tracking.timeout_s)) as database:
            database.execute("PRAGMA schema_version").fetchone()
    elif not uri.startswith(("sqlite", "file", "databricks")):
        from sqlalchemy import create_engine

        with create_engine(uri).connect():
            pass


def absolute_uri(uri: str) -> str:
    """Return a SQLite URI with an absolute path: MLflow keeps connections by URI, whatever the directory."""
    scheme, separator, path = uri.partition(":///")
    if sqlite_file(uri) is None or path.startswith("/"):
        return uri
    return f"{scheme}{separator}{Path.cwd() / path}"


def sqlite_file(uri: str) -> Path | None:
    """Return the file of a SQLite database, absolute, its links resolved; None of any other database."""
    scheme, _, path = uri.partition(":///")
    path = path.partition("?")[0]
    if not scheme.startswith("sqlite") or not path or path.startswith((":memory:", "file:")):
        return None
    return Path(os.path.realpath(path))


def _make(path: Path) -> None:
    """Make a SQLite database with MLflow's tables, whole or not at all.

    MLflow itself writes them in place, step by step: of two processes that begin at once one fails, and when
    one is killed in the middle, nobody can use what it leaves.
    """
    from mlflow import MlflowClient

    with TemporaryDirectory(prefix="llmpilot-") as folder:
        made = Path(folder) / path.name
        MlflowClient(f"sqlite:///{made}").search_experiments()
        beside = path.with_name(f".{path.name}.{os.getpid()}")
        try:
            # Where another process was quicker, its database stays. A folder that has no links leaves the
            # making to MLflow.
            with suppress(OSError):
                shutil.copyfile(made, beside)
                os.link(beside, path)
        finally:
            beside.unlink(missing_ok=True)
