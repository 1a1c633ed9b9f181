"""The database of a study: opened by several workers at once; what is to be said where it cannot be used."""

import time
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from llmpilot.errors import PilotError
from llmpilot.secrets import redact

OPEN_ATTEMPTS = 5  # two workers may create the tables of one database at once


def opened(url: str, timeout_s: float) -> Any:
    """Return Optuna's storage at this URL, its tables created if need be; raises whatever databases raise."""
    from optuna.storages import RDBStorage
    from sqlalchemy.exc import IntegrityError, OperationalError, ProgrammingError

    wait = "timeout" if url.startswith("sqlite") or "+pg8000:" in url else "connect_timeout"
    options = {"connect_args": {wait: max(1, round(timeout_s))}, "pool_pre_ping": True}
    for attempt in range(OPEN_ATTEMPTS):
        try:
            return RDBStorage(url, engine_kwargs=options)
        except (IntegrityError, OperationalError, ProgrammingError, RuntimeError) as error:
            # A schema that another worker has begun to write looks half-made, or of another version.
            meanwhile = isinstance(error, IntegrityError | RuntimeError) or "already exists" in str(error)
            if attempt == OPEN_ATTEMPTS - 1 or not meanwhile:
                raise
            time.sleep(0.1 * (attempt + 1))
    raise AssertionError("unreachable")


@contextmanager
def explained(url: str) -> Iterator[None]:
    """Turn what databases raise into an error that says what to do."""
    from optuna.exceptions import StorageInternalError
    from sqlalchemy.exc import SQLAlchemyError

    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # Optuna's experimental features
            yield
    except (StorageInternalError, SQLAlchemyError, ImportError, RuntimeError) as error:
        if isinstance(error, RuntimeError) and "schema" not in str(error):
            raise
        raise unusable(url, error) from None


def unusable(url: str, error: Exception) -> PilotError:
    """Return the error that says what to do about one that a database has raised."""
    cause = error.__cause__ if type(error).__name__ == "StorageInternalError" and error.__cause__ else error
    text = str(cause).strip().splitlines()[0]
    if "locked" in text:
        cure = "another program holds the database: end it, or wait; a server database takes many workers"
    elif isinstance(error, ImportError):
        cure = "install the database's driver, e.g. pip install 'psycopg[binary]' or pymysql"
    elif "schema" in text:
        cure = "it holds another program's tables (MLflow's?): name a database of Optuna's own"
    else:
        cure = "check tuner.storage, e.g. sqlite:///optuna.db or postgresql://HOST/DATABASE"
    return PilotError(
        redact(f"the study's database cannot be used: {text}"),
        given=redact(f"tuner.storage={url}"),
        cure=cure,
    )
