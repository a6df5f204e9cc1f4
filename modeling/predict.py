"""Labels for raw texts from a snapshot alone: each line of a file is answered, in their order, a window of them in memory at a time."""

import contextlib
import itertools
import pathlib
import sys
from typing import NamedTuple, Optional, Union

import numpy as np

from data.rows import AnswerWriter, Table, count_lines, detect_form, open_rows
from data.tasks import Task
from data.wordpiece.characters import has_visible
from modeling.cpu.encoder import choose_encoder
from modeling.inference import DomainTable, infer, select_device
from modeling.meta_kd.classifier import DomainClassifier, class_head_kind
from modeling.meta_kd.losses import softmax
from modeling.predict_output import check_no_model_file, check_output, open_output
from modeling.snapshots.folder import (
    check_fits_model,
    check_meta,
    load_weights,
    not_trained_here,
    read_model,
    teacher_meta,
)
from tokenization import TRUNCATIONS, encode, tokenizer_for
from util import UserError, progress

WINDOW = 4096  # texts among which those of like length meet in a batch
TOLD = 20  # faulty lines that are told one by one
META_TYPES = {"text": "a list of different names", "seq_length": "a count"}  # of a snapshot that predicts
CLASS_HEADS = ("classifier.", "domain_classifiers.")
STDIN = "standard input"


def wants_prediction(args):
    """Whether the flags ask for a prediction.

    Raises:
        UserError: they ask for training or an evaluation beside it, or have what only a prediction takes.
    """
    if not args.do_predict:
        alone = (
            "predict_file",
            "output_file",
            "text_column",
            "min_confidence",
            *(["model_load_dir"] if hasattr(args, "student_model") else []),
        )
        for name in alone:
            if getattr(args, name) is not None:
                raise UserError(
                    f"--{name} is for a prediction, and --do_predict is not given: give it, or leave --{name} out."
                )
        return False
    for name in ("do_train", "do_eval", "resume_from"):
        if getattr(args, name):
            raise UserError(
                f"--do_predict and --{name} are both given, and a prediction is a run of its own: leave one of them out."
            )
    for name in ("model_load_dir", "predict_file"):
        if getattr(args, name) is None:
            raise UserError(f"--{name} is needed with --do_predict; --help says what it names.")
    if args.resume and args.output_file is None:
        raise UserError(
            "--resume goes on with an --output_file, and none is given: name it, or leave --resume out."
        )
    if args.output_file is not None:
        check_output(args.output_file, args.predict_file, answer_form(args.predict_file, args.predict_format))
    return True


def answer_form(predict_file, predict_format):
    """The form of the answers: that of the texts, TSV for plain lines."""
    form, _ = detect_form(predict_file, predict_format)
    return "tsv" if form == "lines" else form


class PredictionOptions(NamedTuple):
    """The flags of a prediction."""

    model_load_dir: str
    predict_file: str
    output_file: Optional[str] = None
    predict_format: Optional[str] = None
    text_column: Optional[list] = None
    min_confidence: Optional[float] = None
    resume: bool = False
    vocab_file: Optional[str] = None
    do_lower_case: Optional[bool] = None
    device: str = "auto"
    encoder: str = "auto"
    cpu_threads: Union[str, int] = "auto"
    eval_batch_size_per_device: int = 48


def predict(options):
    """--do_predict: answers each text of --predict_file with its label and the probability of each label of
    the snapshot.

    A text without a token gets no label; a line with a fault is left out of the answers and told at the end,
    with exit code 1.

    Raises:
        UserError: a fault in the snapshot, or in the file of texts as a whole.
    """
    folder = read_model(options.model_load_dir)
    if options.output_file is not None:
        check_no_model_file(options.output_file, folder.path, options.vocab_file)
    task, seq_length, domains = task_from_meta(folder)
    truncate = folder.meta.get("truncate", "head")  # older snapshots do not say it
    tokenizer = tokenizer_for(folder.path, options.vocab_file, options.do_lower_case, truncate)
    check_fits_model(folder, task, seq_length, tokenizer)
    probabilities = load_classifier(folder, task, domains, options)
    text = tuple(options.text_column or task.text)
    if len(text) != len(task.text):
        raise UserError(
            f"--text_column {' '.join(text)}: the snapshot takes {len(task.text)} text(s) "
            f"({', '.join(task.text)}): name as many."
        )
    form, _ = detect_form(options.predict_file, options.predict_format)
    path = STDIN if options.predict_file == "-" else options.predict_file
    facts = {
        "model": folder.sha256,
        "form": form,
        "text columns": list(text),
        "eval_batch_size_per_device": options.eval_batch_size_per_device,
        "min_confidence": options.min_confidence,
    }

    with contextlib.ExitStack() as opened:
        lines = opened.enter_context(open_rows(options.predict_file, options.predict_format))
        table = Table(path, lines, form, text)
        out = opened.enter_context(open_output(options.output_file, facts, options.resume))
        bar = opened.enter_context(progress(total=count_lines(options.predict_file), unit="line"))
        answer = (tokenizer, seq_length, probabilities, options.min_confidence)
        tally = answer_rows(table, task.labels, out, *answer, bar)
    tally.tell(path)


def load_classifier(folder, task, domains, options):
    """What takes a list of Features to the probability of each label, float [n, M], by the model in `folder`."""
    device = select_device(options.device)
    model = DomainClassifier(
        folder.config,
        len(task.labels),
        domains.K,
        class_heads=class_head_kind(folder),
        make_encoder=choose_encoder(options.encoder, device, options.cpu_threads),
    )
    load_weights(model, folder, allow_missing=())
    model.to(device)
    return lambda features: class_probabilities(
        model, features, options.eval_batch_size_per_device, domains, device
    )


class Tally:
    """What became of the rows so far: `rows`; `counts` of empty texts, uncertain answers and faulty lines; the first `faults`."""

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
        """Says on standard error what was not answered, and ends the process with exit code 1 where lines had a fault."""
        notes = []
        if self.counts["empty"]:
            notes.append(f"note: {self.counts['empty']} of {self.rows} texts are empty, and have no label")
        if self.counts["uncertain"]:
            notes.append(
                f"note: {self.counts['uncertain']} of {self.rows} answers are below --min_confidence, and have no label"
            )
        notes += [f"error: {fault}" for fault in self.faults]
        if self.counts["faulty"]:
            notes.append(
                f"error: {path}: {self.counts['faulty']} of {self.rows} lines have a fault; the answers hold the others."
            )
        if notes:
            print("\n".join(notes), file=sys.stderr)
        if self.counts["faulty"]:
            raise SystemExit(1)


def answer_rows(table, labels, out, tokenizer, seq_length, probabilities, min_confidence, bar):
    """Answers the rows of a Table, a window at a time, after those that `out` holds already. Returns the Tally.

    Args:
        out: of modeling.predict_output; probabilities: takes a list of Features to float [n, M].
    """
    writer = AnswerWriter("tsv" if table.form == "lines" else table.form, table.others, labels)
    rows = iter(table)
    done = out.progress
    tally = Tally(done)
    skip_answered(rows, table, done)
    bar.update(table.line)
    try:
        while window := list(itertools.islice(rows, WINDOW)):
            begin = tally.rows == 0
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
            f"--resume: the first {done['rows']} lines of {table.path} are not those that were answered: start again without --resume."
        )


def answer_window(window, writer, labels, tally, tokenizer, seq_length, probabilities, min_confidence):
    """Yields the lines of the answers to some Rows, in their order; what is not answered is added to the Tally."""
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
            sure = min_confidence is None or values.max() >= min_confidence
            tally.counts["uncertain"] += not sure
            yield writer.answer(row, labels[values.argmax()] if sure else "", values)


def encode_row(tokenizer, row, seq_length):
    """The Features of a Row; None where a text of it has no visible character."""
    if not all(map(has_visible, row.texts)):
        return None
    return encode(tokenizer, row.texts[0], row.texts[1] if len(row.texts) == 2 else None, seq_length)


def class_probabilities(model, features, batch_size, domains, device):
    """The probabilities of the classes, float64 [n, M], of n Features.

    Their domain is not known: a model with a class head for each domain takes the mean of those that it was trained on.
    """

    def answer(model, batch):
        return softmax(model(batch, last_hidden=False).logits.numpy())

    names = ("input_ids", "input_mask", "segment_ids")
    block = {name: np.stack([getattr(row, name) for row in features]) for name in names}
    block.update({name: np.zeros(len(features), np.int32) for name in ("label", "idxs", "weights")})
    block["domain"] = np.full(len(features), domains.K)
    return np.stack(infer(model, block, batch_size, domains, device, answer))


def task_from_meta(folder):
    """The task of a snapshot, a ModelFolder, the tokens that its texts have at most, and its DomainTable, by its meta.json.

    Raises:
        UserError: a model that was not trained here, or has no class head; a damaged meta.json.
    """
    meta, path = folder.meta, folder.path
    if meta is None:
        raise UserError(
            f"--model_load_dir {path}: found {not_trained_here(path)}, expected a snapshot, whose classes are "
            "known: name one."
        )
    if not any(name.startswith(CLASS_HEADS) for name in folder.arrays):
        raise UserError(f"--model_load_dir {path}: its weights have no class head: take another snapshot.")
    check_meta(meta, META_TYPES, path)
    if meta.get("truncate", "head") not in TRUNCATIONS:
        raise UserError(
            f"{pathlib.Path(path, 'meta.json')}: found {meta['truncate']!r:.60} as 'truncate', "
            f"expected one of {', '.join(TRUNCATIONS)}: take another snapshot."
        )
    if len(meta["text"]) > 2:
        raise UserError(
            f"{pathlib.Path(path, 'meta.json')}: found {len(meta['text'])} columns of text, expected 1 or 2: take another snapshot."
        )
    task = Task(
        meta["task"], tuple(meta["text"]), "domain", "label", tuple(meta["labels"]), tuple(meta["domains"])
    )
    K = len(task.domains)
    seen = teacher_meta(meta, task, path)["seen_domains"] if meta["kind"] == "teacher" else range(K)
    return task, meta["seq_length"], DomainTable(K, tuple(seen))
