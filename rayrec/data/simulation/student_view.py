"""What the early-stage ranker (the student) sees of a simulated log: all features but the late signals."""

import os
from pathlib import Path

from rayrec.data.log import Log
from rayrec.data.log.schema import LogSchema, SchemaError, write_schema
from rayrec.data.simulation.log_rows import LATE_SIGNAL


def teacher_only_features(schema: LogSchema) -> tuple[str, ...]:
    """Names of the features that only the late stage (the teacher) sees."""
    return tuple(feature.name for feature in schema.features if feature.name.startswith(LATE_SIGNAL))


def student_schema(schema: LogSchema) -> LogSchema:
    """The schema without the teacher-only features. Raises SchemaError when it has none of them."""
    hidden = teacher_only_features(schema)
    if not hidden:
        raise SchemaError(
            f"schema {schema.name!r} has no feature named {LATE_SIGNAL}...: nothing to hide from a student"
        )
    return schema.with_features(tuple(feature for feature in schema.features if feature.name not in hidden))


def open_student_view(log: Log) -> Log:
    """The same rows with fewer features: columns that a schema does not name are not read."""
    return Log(log.path, student_schema(log.schema))


def write_student_view(log: Log, folder: Path) -> None:
    """A log folder of its own for configs that name logs by path: schema.json, and relative links to the splits of ``log``."""
    folder.mkdir(parents=True)
    write_schema(student_schema(log.schema), folder / "schema.json")
    for split in log.splits:
        (folder / split).symlink_to(os.path.relpath(log.path / split, folder))
