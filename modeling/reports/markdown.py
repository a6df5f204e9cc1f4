"""Markdown: tables, and text that is shown as it is."""

import re


def escape(value) -> str:
    """A value as Markdown that shows it as it is."""
    return re.sub(r"([\\`*\[\]<>|&~#]|\b_|_\b)", r"\\\1", str(value))


def markdown_table(header, rows) -> str:
    """A table of Markdown, whose cells are Markdown already; it ends with a line feed."""
    lines = (header, ["---"] * len(header), *rows)
    return "".join("| " + " | ".join(map(str, line)) + " |\n" for line in lines)
