"""The MLflow file of a runs folder, ``<runs>/mlflow.db``: made whole or not at all, and at home wherever the folder lies.

MLflow makes its tables in some forty migrations, each committed by itself: two jobs that begin together, or one that is killed,
spoil the file for good. So it is made under a lock and a temporary name, then renamed. MLflow keeps absolute addresses of
artifacts; when the folder was moved or copied they are rewritten to where it lies now, in one transaction.
"""

import logging
import os
import re
import sqlite3
from collections.abc import Iterator, Sequence
from contextlib import closing, contextmanager
from pathlib import Path
from typing import Literal

from rayrec.errors import UserError
from rayrec.files import locked, make_folder, raise_disk_error, whole_file

EXPERIMENT = "rayrec"
FILE = "mlflow.db"
_ADDRESSES = (
    ("experiments", "artifact_location"),
    ("runs", "artifact_uri"),
    ("logged_models", "artifact_location"),
    ("model_versions", "source"),
    ("model_versions", "storage_location"),
)
# A file that was replaced is seen at the next call: no connection outlives it.
_POOL = {"MLFLOW_SQLALCHEMYSTORE_POOLCLASS": "NullPool"}


class StoreError(UserError):
    """A tracking store that cannot be used; the message says what to do."""


def runs_folder() -> Path:
    """Where runs, the tracking file and artifacts go: ``$RAYREC_RUNS``, else ``./runs``; absolute. Raises StoreError for a name
    that no tracking file can have."""
    folder = Path(os.environ.get("RAYREC_RUNS", "runs")).resolve()
    if found := re.search(r"[?#%]", str(folder)):
        raise StoreError(
            f"{folder}: a runs folder's path must not hold {found[0]!r}, which means more in MLflow's addresses"
        )
    return folder


def default_uri() -> str:
    """The address of the runs folder's file."""
    return f"sqlite:///{runs_folder() / FILE}"


def artifacts_uri() -> str:
    """Where the artifacts of that file's runs lie."""
    return _home(runs_folder() / FILE)


def sqlite_file(uri: str) -> Path | None:
    """The file behind ``sqlite:///...``; None for other stores."""
    path = uri.removeprefix("sqlite:///").partition("?")[0]
    return Path(path) if uri.startswith("sqlite:///") and path else None


def find_store(uri: str, run_id: str | None = None) -> str:
    """Where the store that a record names is now: the runs folder's own file when it holds the record's run, or when the named
    one is gone, since both were moved or copied together; else as named."""
    named, own = sqlite_file(uri), runs_folder() / FILE
    if named is None or named == own or named.name != FILE or not own.is_file():
        return uri
    if not named.is_file() or (run_id is not None and _holds(own, run_id)):
        return default_uri()
    return uri


def prepare(file: Path) -> None:
    """Make the file if it is not there; see that an old one is whole, and that its artifacts' addresses lie in its folder.

    Raises StoreError, and DiskError when the disk is full, read-only or closed.
    """
    if _is_ready(file):
        return
    make_folder(file.parent)
    with _disk_errors(file), locked(file.parent / ".mlflow.lock"):
        if not file.is_file() or file.stat().st_size == 0:
            with whole_file(file) as partial:
                _make(partial, _home(file))
        elif _is_spoiled(file):
            if _count(file, "runs"):
                raise StoreError(
                    f"{file}: a job was killed while it changed the tables; put back a copy of this file, or move it away and "
                    "begin a new one (bundles and reports stay where they are)"
                )
            with whole_file(file) as partial:
                _make(partial, _home(file))
        else:
            _move_in(file)


def use_fresh_connections(uri: str) -> None:
    """Before MLflow opens an SQLite store: each call opens the file anew, so that one put back from a copy is noticed."""
    if sqlite_file(uri) is not None:
        for name, value in _POOL.items():
            os.environ.setdefault(name, value)
        logging.getLogger("mlflow.store.db.utils").setLevel(logging.WARNING)  # it tells of each engine


def _is_ready(file: Path) -> bool:
    """Without a lock and without writing: a runs folder may be mounted read-only."""
    if not file.is_file() or file.stat().st_size == 0 or _is_spoiled(file):
        return False
    location = _location(file)
    return location is None or not location.endswith("/mlartifacts") or location == _home(file)


def _home(file: Path) -> str:
    return (file.parent / "mlartifacts").as_uri()


def _make(file: Path, artifacts: str) -> None:
    from mlflow.store.tracking.sqlalchemy_store import SqlAlchemyStore  # seconds of imports

    pooled = {
        name: os.environ.pop(name) for name in _POOL if name in os.environ
    }  # forty migrations over one connection
    logging.getLogger("mlflow.store.db.utils").setLevel(logging.WARNING)
    uri = f"sqlite:///{file}"
    try:
        store = SqlAlchemyStore(uri, artifacts)
        store.create_experiment(EXPERIMENT, artifact_location=artifacts)
        store.engine.dispose()
    finally:
        os.environ.update(pooled)
        SqlAlchemyStore._engine_map.pop(uri, None)


def _move_in(file: Path) -> None:
    old, new = _location(file), _home(file)
    if old is None or old == new or not old.endswith("/mlartifacts"):
        return
    with closing(sqlite3.connect(file, timeout=60)) as connection, connection:
        tables = {name for (name,) in connection.execute("select name from sqlite_master where type = 'table'")}
        for table, column in _ADDRESSES:
            if table in tables:
                connection.execute(
                    f"update {table} set {column} = ? || substr({column}, ?) where {column} = ? or {column} like ? escape '!'",
                    (new, len(old) + 1, old, re.sub(r"([!%_])", r"!\1", old) + "/%"),
                )


def _location(file: Path) -> str | None:
    rows = _read(file, "select artifact_location from experiments where name = ?", EXPERIMENT)
    return rows[0][0] if rows else None


def _is_spoiled(file: Path) -> bool:
    """Whether a migration was cut short: its temporary table is there, or the version is not."""
    names = {name for (name,) in _read(file, "select name from sqlite_master where type = 'table'")}
    return any(name.startswith("_alembic_tmp_") for name in names) or not {"alembic_version", "experiments"} <= names


def _count(file: Path, table: str) -> int:
    try:
        return int(_read(file, f"select count(*) from {table}")[0][0])
    except StoreError:
        return 0  # the table was not made yet


def _holds(file: Path, run_id: str) -> bool:
    return bool(_read(file, "select 1 from runs where run_uuid = ?", run_id))


def _read(file: Path, query: str, *values: str) -> list[tuple[str, ...]]:
    try:
        try:
            return _rows(file, "ro", query, values)
        except sqlite3.OperationalError as error:
            if error.sqlite_errorcode & 0xFF != sqlite3.SQLITE_READONLY:
                raise
            return _rows(file, "rw", query, values)  # a killed writer left a journal, which only who may write can undo
    except sqlite3.Error as error:
        raise StoreError(f"{file}: is no tracking store of MLflow ({error}); move it away to begin a new one") from None


def _rows(file: Path, mode: Literal["ro", "rw"], query: str, values: Sequence[str]) -> list[tuple[str, ...]]:
    with closing(sqlite3.connect(f"{file.as_uri()}?mode={mode}", uri=True, timeout=30)) as connection:
        return connection.execute(query, values).fetchall()


@contextmanager
def _disk_errors(file: Path) -> Iterator[None]:
    try:
        yield
    except UserError:
        raise
    except Exception as error:
        raise_disk_error(error, file)
        raise
