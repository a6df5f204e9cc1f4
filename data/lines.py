"""Lines of the files of text that users bring: opened, decoded and split, each fault as a sentence with file and line."""

import contextlib

from data.wordpiece.characters import has_visible
from util import UserError

MARK = b"\xef\xbb\xbf"  # UTF-8's byte-order mark


class EmptyText(UserError):
    """A line whose text has no visible character; others like it in the file are told with it."""


@contextlib.contextmanager
def open_text(path, expected):
    """The file at `path`, to be read as lines of bytes; where that cannot be, a UserError that ends with what was `expected`."""
    try:
        file = open(path, "rb")
    except OSError as error:
        raise UserError(f"{path}: cannot be read ({error.strerror}), expected {expected}.") from None
    with file:
        yield file


def line_text(path, line, raw):
    """A line of bytes as text, without the line end and, in line 1, the byte-order mark.

    Raises:
        UserError: it is not UTF-8, or holds a NUL character.
    """
    raw = raw[len(MARK) :] if line == 1 and raw.startswith(MARK) else raw
    try:
        text = raw.decode("utf-8")
    except UnicodeDecodeError as error:
        raise UserError(
            f"{path}:{line}: found byte 0x{raw[error.start]:02x} at position {error.start} of the line, "
            "expected UTF-8: convert the file."
        ) from None
    if "\0" in text:
        raise UserError(f"{path}:{line}: found a NUL character, expected text: is this a text file?")
    return text.rstrip("\n").rstrip("\r")


def split_fields(path, line, raw, columns=None):
    """The fields of a line of bytes, separated by tabs; as many as `columns` has names, or any number of them.

    Raises:
        UserError: another number of fields, or a fault of `line_text`.
    """
    fields = line_text(path, line, raw).split("\t")
    if columns is not None and len(fields) != len(columns):
        raise UserError(
            f"{path}:{line}: found {len(fields)} column(s), expected {len(columns)} ({', '.join(columns)})."
        )
    return fields


def check_texts(path, line, names, texts):
    """Raises an EmptyText for a text without a visible character. Args: names: the columns of `texts`."""
    for name, text in zip(names, texts):
        if not has_visible(text):
            found = f"no token in the text of '{name}'" if text.strip() else f"an empty '{name}'"
            raise EmptyText(f"{path}:{line}: found {found}, expected a text: fill it or remove the line.")


def lookup_index(path, line, column, name, known):
    """Where a `name` in a column stands in {name: index}, `known`; UserError where it does not."""
    if name not in known:
        raise UserError(
            f"{path}:{line}: found {column} {name[:80]!r}, expected one of {', '.join(known)[:500]}."
        )
    return known[name]
