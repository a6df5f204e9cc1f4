"""A page of HTML on its own: no script, nothing from the net, light or dark as the reader's system is."""

import html

STYLE = """
:root { color-scheme: light dark; --line: #8886; --weak: #6b6b6b; }
@media (prefers-color-scheme: dark) { :root { --weak: #a5a5a5; } }
body { font: 16px/1.5 system-ui, sans-serif; max-width: 68rem; margin: 0 auto; padding: 1rem; }
body { overflow-wrap: anywhere; }
h1 { font-size: 1.6rem; line-height: 1.25; margin-bottom: 0; }
h2 { font-size: 1.15rem; margin: 2rem 0 .5rem; }
p { margin: .4rem 0; max-width: 48rem; }
.note, figcaption { color: var(--weak); }
.wide { overflow-x: auto; }
.wide + .charts { margin-top: 1rem; }
table { border-collapse: collapse; overflow-wrap: normal; }
th, td { padding: .2rem .7rem; border-bottom: 1px solid var(--line); text-align: right; }
td { font-variant-numeric: tabular-nums; white-space: nowrap; }
td.text { white-space: normal; min-width: 12rem; }
th:first-child, td:first-child, .words th, .words td { text-align: left; }
@media (max-width: 36rem) {
  th, td { padding: .2rem .4rem; font-size: .9rem; }
  td:first-child { white-space: normal; }
}
.charts { display: grid; grid-template-columns: repeat(auto-fill, minmax(min(100%, 19rem), 1fr)); gap: 1rem; }
figure { margin: 0; }
svg { width: 100%; height: auto; max-width: 46rem; }
svg text { font-family: system-ui, sans-serif !important; }
""".strip()


def page(title, summary, sections):
    """The page as a text. sections: (heading, pieces of HTML) each; one without a piece is left out."""
    body = "".join(
        f"<section>\n<h2>{escaped(heading)}</h2>\n" + "\n".join(pieces) + "\n</section>\n"
        for heading, pieces in sections
        if pieces
    )
    return (
        f'<!DOCTYPE html>\n<html lang="en">\n<head>\n<meta charset="utf-8">\n'
        f'<meta name="viewport" content="width=device-width, initial-scale=1">\n'
        f"<title>{escaped(title)}</title>\n<style>\n{STYLE}\n</style>\n</head>\n<body>\n"
        f"<h1>{escaped(title)}</h1>\n<p>{escaped(summary)}</p>\n{body}</body>\n</html>\n"
    )


def escaped(value):
    """A value as text that no browser takes for markup."""
    return html.escape(str(value))


def note(sentence):
    return f'<p class="note">{escaped(sentence)}</p>'


def table(header, rows, words=False):
    """A table whose cells are texts or what `percent` and `shaded` return. words: it is of texts."""
    cells = "\n".join("<tr>" + "".join(_cell(value) for value in row) + "</tr>" for row in rows)
    head = "".join(f'<th scope="col">{escaped(name)}</th>' for name in header)
    return (
        f'<div class="wide"><table{" class=words" if words else ""}>\n<thead><tr>{head}</tr></thead>\n'
        f"<tbody>\n{cells}\n</tbody>\n</table></div>"
    )


class Cell(str):
    """A table cell that is HTML already."""


def _cell(value):
    return value if isinstance(value, Cell) else f"<td>{escaped(value)}</td>"


def percent(value):
    """A share as a cell in percent, the exact number beside it for whoever reads by machine;
    an empty cell for None.
    """
    return Cell(
        "<td></td>" if value is None else f'<td><data value="{float(value)!r}">{100 * value:.2f}</data></td>'
    )


def long_text(value):
    """A text as a cell that goes over many lines."""
    return Cell(f'<td class="text">{escaped(value)}</td>')


def shaded(count, whole):
    """A count as a cell, the darker the larger its share of `whole`."""
    return Cell(f'<td style="background: rgba(33, 102, 172, {0.6 * count / max(whole, 1):.3f})">{count}</td>')
