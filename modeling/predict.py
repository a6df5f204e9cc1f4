"""Labels for raw texts from a snapshot alone: lines in, lines out, in their order, a window of them in memory at a time."""

import contextlib
import itertools
import os
import pathlib
import sys

import numpy as np

from data.lines import check_texts, open_text, split_fields
from data.store.records import encode_line
from data.tasks import Task
from modeling.cpu.encoder import choose_encoder
from modeling.inference import DomainTable, infer, select_device
from modeling.meta_kd.classifier import DomainClassifier, class_head_kind
from modeling.meta_kd.losses import softmax
from modeling.snapshots.folder import check_fits_model, check_meta, load_weights, read_model, teacher_meta
from tokenization import tokenizer_for
from util import UserError, atomic_file, progress

WINDOW = 4096  # texts among which those of like length meet in a batch
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
            *(["model_load_dir"] if hasattr(args, "student_model") else []),
        )
        for name in alone:
            if getattr(args, name) is not None:
                raise UserError(
                    f"--{name} is for a prediction, and --do_predict is not given: give it, or leave --{name} out."
                )
        return False
    for name in ("do_train", "do_eval", "resume", "resume_from"):
        if getattr(args, name):
            raise UserError(
                f"--do_predict and --{name} are both given, and a prediction is a run of its own: leave one of them out."
            )
    for name in ("model_load_dir", "predict_file"):
        if getattr(args, name) is None:
            raise UserError(f"--{name} is needed with --do_predict; --help says what it names.")
    if args.output_file is not None:
        check_output(pathlib.Path(args.output_file), args.predict_file)
    return True


def check_output(path, texts):
    """Refuses an output file that is a folder, is in none, or is the file of the texts."""
    if path.is_dir():
        raise UserError(f"--output_file {path}: this is a folder, expected the name of a file.")
    if not path.parent.is_dir():
        raise UserError(f"--output_file {path}: there is no folder {path.parent}: make it, or name another.")
    if path.exists() and texts != "-" and os.path.realpath(path) == os.path.realpath(texts):
        raise UserError(
            f"--output_file {path}: this is the file of the texts, which would be overwritten: name another."
        )


def predict(args):
    """--do_predict: writes a TSV with the label of each text of --predict_file, and the probability of each label of the snapshot.

    Raises:
        UserError: a fault in the snapshot or, with file and line, in the texts.
    """
    folder = read_model(args.model_load_dir)
    task, seq_length, domains = task_from_meta(folder)
    tokenizer = tokenizer_for(folder.path, args.vocab_file, args.do_lower_case)
    check_fits_model(folder, task, seq_length, tokenizer)
    device = select_device(args.device)
    make_encoder = choose_encoder(args.encoder, device, args.cpu_threads)
    class_heads = class_head_kind(folder)
    model = DomainClassifier(
        folder.config, len(task.labels), domains.K, class_heads=class_heads, make_encoder=make_encoder
    )
    load_weights(model, folder, allow_missing=())
    model.to(device)
    with (
        open_lines(args.predict_file) as lines,
        open_output(args.output_file) as out,
        progress(unit="text") as bar,
    ):
        texts = encode_lines(
            task, STDIN if args.predict_file == "-" else args.predict_file, lines, tokenizer, seq_length
        )
        for number, window in enumerate(
            probabilities(model, texts, args.eval_batch_size_per_device, domains, device)
        ):
            if number == 0:  # not before: texts with a fault at their start leave no line
                out.write("\t".join(("label", *task.labels)) + "\n")
            out.writelines(
                "\t".join((task.labels[row.argmax()], *(f"{value:.6f}" for value in row))) + "\n"
                for row in window
            )
            out.flush()
            bar.update(len(window))


def task_from_meta(folder):
    """The task of a snapshot, a ModelFolder, the tokens that its texts have at most, and its DomainTable, by its meta.json.

    Raises:
        UserError: a model that was not trained here, or has no class head; a damaged meta.json.
    """
    meta, path = folder.meta, folder.path
    if meta is None:
        raise UserError(
            f"--model_load_dir {path}: this model was not trained here, and its classes are not known: name a snapshot."
        )
    if not any(name.startswith(CLASS_HEADS) for name in folder.arrays):
        raise UserError(f"--model_load_dir {path}: its weights have no class head: take another snapshot.")
    check_meta(meta, META_TYPES, path)
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


@contextlib.contextmanager
def open_lines(path):
    """The file at `path`, or standard input for "-", as lines of bytes."""
    if path == "-":
        yield sys.stdin.buffer
        return
    with open_text(path, "a text on each line: check --predict_file") as file:
        yield file


def open_output(path):
    """Where the lines go: the file at `path`, which gets its name when it is whole, or standard output."""
    return atomic_file(path, "w") if path else contextlib.nullcontext(sys.stdout)


def encode_lines(task, path, lines, tokenizer, seq_length):
    """Yields the Features of each line, an iterable of bytes from the file `path`, as they are asked for.

    Raises:
        UserError: a fault, with file and line; there is no line.
    """
    line = 0
    for line, raw in enumerate(lines, 1):
        texts = split_fields(path, line, raw, task.text)
        check_texts(path, line, task.text, texts)
        yield encode_line(
            tokenizer, texts[0], texts[1] if len(texts) == 2 else None, seq_length, f"{path}:{line}"
        )
    if not line:
        raise UserError(f"{path}: found no text, expected one on each line.")


def probabilities(model, texts, batch_size, domains, device, window=WINDOW):
    """Yields the probabilities of the classes, float64 [n, M], of each `window` of Features; no more of `texts` is read than is asked for.

    Their domain is not known: a model with a class head for each domain takes the mean of those that it was trained on.
    """

    def answer(model, batch):
        return softmax(model(batch, last_hidden=False).logits.numpy())

    texts = iter(texts)
    while rows := list(itertools.islice(texts, window)):
        block = {
            name: np.stack([getattr(row, name) for row in rows])
            for name in ("input_ids", "input_mask", "segment_ids")
        }
        block.update(
            {name: np.zeros(len(rows), np.int32) for name in ("label", "idxs", "weights")},
            domain=np.full(len(rows), domains.K),
        )
        yield np.stack(infer(model, block, batch_size, domains, device, answer))
