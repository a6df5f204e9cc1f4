"""The rows of a file of texts answered one after the other, a window of them in memory at a time."""

import itertools
import sys

from data.rows import DIGITS, AnswerWriter
from data.wordpiece.characters import has_visible
from tokenization import encode
from util import UserError

WINDOW = 4096  # texts among which those of like length meet in a batch
TOLD = 20  # faulty lines that are told one by one


class Tally:
    """What became of the rows so far: `rows`; `counts` of empty texts, uncertain answers and faulty lines;
    the first `faults`.
    """

    def __init__(self, progress):
        self.rows, self.faults = progress.get("rows", 0), list(progress.get("faults", ()))
        self.counts = {"empty": 0, "uncertain": 0, "faulty": 0, **progress.get("counts", {})}

    def add_fault(self, sentence):
        self.counts["faulty"] += 1
        if len(self.faults) < TOLD:
            self.faults.append(sentence)

    def progress(self, table):
        """How far the prediction is, for its output."""
        facts = {"rows": self.rows, "counts": self.counts, "faults": self.faults}
        return {**facts, "content_sha256": table.content_sha256()}

    def tell(self, path):
        """Says on standard error what was not answered, and ends the process with exit code 1 where lines
        had a fault.
        """
        notes = []
        if self.counts["empty"]:
            notes.append(f"note: {self.counts['empty']} of {self.rows} texts are empty, and have no label")
        if self.counts["uncertain"]:
            notes.append(
                f"note: {self.counts['uncertain']} of {self.rows} answers are below --min_confidence, and "
                "have no label"
            )
        notes += [f"error: {fault}" for fault in self.faults]
        if self.counts["faulty"]:
            notes.append(
                f"error: {path}: {self.counts['faulty']} of {self.rows} lines have a fault; the answers "
                "hold the others."
            )
        if notes:
            print("\n".join(notes), file=sys.stderr)
        if self.counts["faulty"]:
            raise SystemExit(1)


def answer_rows(table, labels, out, tokenizer, seq_length, probabilities, min_confidence, bar):
    """Answers the rows of a Table, a window at a time, after those that `out` holds already.
    Returns the Tally.

    Args:
        out: of modeling.predict_output; probabilities: takes a list of Features to float [n, M].
    """
    rows = iter(table)
    done = out.progress
    tally = Tally(done)
    skip_answered(rows, table, done)
    bar.update(table.line)
    try:
        while window := list(itertools.islice(rows, WINDOW)):
            begin = tally.rows == 0
            # Here, since JSON lines have no names before a line without a fault is read:
            writer = AnswerWriter("tsv" if table.form == "lines" else table.form, table.others, labels)
            tally.rows += len(window)
            lines = answer_window(
                window, writer, labels, tally, tokenizer, seq_length, probabilities, min_confidence
            )
            out.write((writer.header() if begin else b"") + b"".join(lines), tally.progress(table))
            bar.update(table.line - bar.n)
    except KeyboardInterrupt as stop:
        if not out.progress:
            raise
        raise KeyboardInterrupt(
            f"{str(stop).rstrip('.')}; what is done is kept: the same command with --resume goes on."
        ) from None
    return tally


def skip_answered(rows, table, done):
    """Passes over the rows that were answered before; UserError where they are others now."""
    if not done:
        return
    passed = sum(1 for _ in itertools.islice(rows, done["rows"]))
    if passed < done["rows"] or table.content_sha256() != done["content_sha256"]:
        raise UserError(
            f"--resume: the first {done['rows']} lines of {table.path} are not those that were answered: "
            "start again without --resume."
        )


def answer_window(window, writer, labels, tally, tokenizer, seq_length, probabilities, min_confidence):
    """Yields the lines of the answers to some Rows, in their order;
    what is not answered is added to the Tally.
    """
    features = {row.idxs: encode_row(tokenizer, row, seq_length) for row in window if not row.fault}
    full = {idxs: each for idxs, each in features.items() if each is not None}
    found = dict(zip(full, probabilities(list(full.values())) if full else ()))
    for row in window:
        if row.fault:
            tally.add_fault(row.fault)
        elif row.idxs not in found:
            tally.counts["empty"] += 1
            yield writer.answer(row, "", None)
        else:
            values = found[row.idxs]
            # As it is printed, which is what the report chooses its limits among:
            sure = min_confidence is None or round(float(values.max()), DIGITS) >= min_confidence
            tally.counts["uncertain"] += not sure
            yield writer.answer(row, labels[values.argmax()] if sure else "", values)


def encode_row(tokenizer, row, seq_length):
    """The Features of a Row; None where a text of it has no visible character."""
    if not all(map(has_visible, row.texts)):
        return None
    return encode(tokenizer, row.texts[0], row.texts[1] if len(row.texts) == 2 else None, seq_length)
