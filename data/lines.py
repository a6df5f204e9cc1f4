"""Lines of the files of text that users bring: opened, decoded and split,
each fault as a sentence with file and line.
"""

import contextlib

from data.wordpiece.characters import has_visible
from util import LFS_POINTER, UserError

MARK = b"\xef\xbb\xbf"  # UTF-8's byte-order mark
KINDS = (  # first bytes of files that are no text in UTF-8, what they tell, what to do
    (b"\xff\xfe\0\0", "UTF-32", "convert it (iconv -f UTF-32 -t UTF-8)"),
    (b"\xff\xfe", "UTF-16", "convert it (iconv -f UTF-16 -t UTF-8), or save it as 'CSV UTF-8' in Excel"),
    (b"\xfe\xff", "UTF-16", "convert it (iconv -f UTF-16 -t UTF-8)"),
    (b"\x1f\x8b", "packed by gzip", "unpack it (gunzip)"),
    (b"PK\x03\x04", "a zip archive, as .xlsx is too", "unpack it, or save the table as 'CSV UTF-8'"),
    (b"\xd0\xcf\x11\xe0", "an old Office file, as .xls is", "save the table as 'CSV UTF-8'"),
    (b"PAR1", "a Parquet file", "name it .parquet for data.prepare.import_tsv, or save the table as CSV"),
    (
        LFS_POINTER,
        "a Git LFS pointer, not the file itself",
        "run 'git lfs pull' in its folder, or download it",
    ),
)
WINDOWS = "convert the file (iconv -f WINDOWS-1252 -t UTF-8, where it comes from Windows)"


class EmptyText(UserError):
    """A line whose text has no visible character; others like it in the file are told with it."""


@contextlib.contextmanager
def open_text(path, expected):
    """The file at `path`, to be read as lines of bytes; where that cannot be,
    a UserError that ends with what was `expected`.
    """
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
    kind = _kind(raw) if line == 1 else None
    raw = raw[len(MARK) :] if line == 1 and raw.startswith(MARK) else raw
    try:
        text = raw.decode("utf-8")
    except UnicodeDecodeError as error:
        raise UserError(
            f"{path}:{line}: found byte 0x{raw[error.start]:02x} at position {error.start} of the line, "
            f"expected UTF-8: {kind or WINDOWS}."
        ) from None
    if "\0" in text:
        raise UserError(
            f"{path}:{line}: found a NUL character, expected text: {kind or 'is this a text file, in UTF-8?'}"
        )
    if kind:
        raise UserError(f"{path}: {kind}.")
    return text.rstrip("\n").rstrip("\r")


def _kind(raw):
    """What a file is whose first line is none of UTF-8, as its first bytes tell, and what to do;
    None: nothing tells.
    """
    for start, kind, advice in KINDS:
        if raw.startswith(start):
            return f"this is {kind}: {advice}"
    return None


def split_fields(path, line, raw, columns=None):
    """The fields of a line of bytes, separated by tabs;
    as many as `columns` has names, or any number of them.

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
