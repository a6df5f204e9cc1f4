"""Parquet files -> values of columns, through pyarrow, which the suite does not need otherwise."""

import json
from collections.abc import Iterator

from data.tasks import clean
from util import UserError

BATCH = 4096  # rows read at once


def parquet_values(path, wanted: list[str]) -> Iterator[tuple[int, list[str]]]:
    """Yields (number from 1, the cleaned values of the columns `wanted`) for each row of a Parquet file.

    Numbers, true and false become their text, as in JSON; no value is an empty text. Where the file says that
    a column holds numbers of classes, as those of Hugging Face's datasets do, their names are the values.

    Raises:
        UserError: there is no pyarrow, or a fault of the file.
    """
    pyarrow, parquet = _import_pyarrow(path)
    try:
        with parquet.ParquetFile(path) as file:
            columns = [_column(path, file.schema_arrow, name) for name in wanted]
            names = [_class_names(file.schema_arrow.metadata, name) for name in columns]
            number = 0
            for batch in file.iter_batches(BATCH, columns=sorted(set(columns))):
                values = [batch.column(name).to_pylist() for name in columns]
                for row in zip(*values):
                    number += 1
                    yield (
                        number,
                        [
                            clean(_as_text(f"{path}:{number}", column, value, classes))
                            for column, value, classes in zip(columns, row, names)
                        ],
                    )
    except (OSError, pyarrow.ArrowException, UnicodeDecodeError) as error:
        reason = str(error).partition("\n")[0][:200]
        raise UserError(
            f"{path}: cannot be read ({reason}), expected a Parquet file: check --source."
        ) from None


def _import_pyarrow(path):
    try:
        import pyarrow
        import pyarrow.parquet
    except ImportError as error:
        raise UserError(
            f"{path}: Parquet is read through pyarrow, which does not load here ({error}): pip install "
            "pyarrow, or save the table as CSV or JSON lines."
        ) from None
    return pyarrow, pyarrow.parquet


def _column(path, schema, name):
    """The name of a column in the file: one whose cleaned name is wanted."""
    found = [other for other in schema.names if clean(other) == name]
    if len(found) != 1:
        raise UserError(
            f"{path}: found {'more than one' if found else 'no'} column '{name}' among "
            f"{', '.join(map(repr, schema.names))[:300] or 'none at all'}, expected it once: check the names "
            "of columns."
        )
    return found[0]


def _class_names(metadata, column):
    """The names of a column's classes, as Hugging Face's datasets keep them, or None."""
    try:
        features = json.loads((metadata or {})[b"huggingface"])["info"]["features"]
        names = features[column]["names"]
    except (KeyError, TypeError, ValueError):
        return None
    return names if isinstance(names, list) and all(isinstance(name, str) for name in names) else None


def _as_text(where, column, value, classes):
    if value is None:
        return ""
    if isinstance(value, bool):
        return json.dumps(value)
    if classes and isinstance(value, int):
        if not 0 <= value < len(classes):
            raise UserError(
                f"{where}: found the class {value} in '{column}', expected one of the {len(classes)} that "
                "the file names: mend or remove the row."
            )
        return classes[value]
    if isinstance(value, (str, int, float)):
        return str(value)
    raise UserError(
        f"{where}: found a {type(value).__name__} in '{column}', expected text, a number, true or false: "
        "name another column."
    )
