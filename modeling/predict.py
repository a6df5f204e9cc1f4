"""Labels for raw texts from a snapshot alone: each line of a file is answered, in their order, a window of
them in memory at a time.
"""

import contextlib
import pathlib
from typing import NamedTuple, Optional, Union

import numpy as np

from data.rows import Table, count_lines, form_and_compression, open_rows
from data.tasks import Task
from modeling.cpu.encoder import choose_encoder
from modeling.inference import DomainTable, infer, select_device
from modeling.meta_kd.classifier import DomainClassifier, class_head_kind
from modeling.meta_kd.losses import softmax
from modeling.predict_output import check_no_model_file, check_output, open_output
from modeling.predict_rows import answer_rows
from modeling.snapshots.checks import check_fits_model, check_meta, not_trained_here, teacher_meta
from modeling.snapshots.folder import read_model
from modeling.snapshots.loading import load_weights
from tokenization import TRUNCATIONS, tokenizer_for
from util import UserError, progress

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
            "predict_format",
            "output_file",
            "text_column",
            "min_confidence",
            *(["model_load_dir"] if hasattr(args, "student_model") else []),
        )
        for name in alone:
            if name in args.changed:
                raise UserError(
                    f"--{name} is for a prediction, and --do_predict is not given: give it, or leave "
                    f"--{name} out."
                )
        return False
    for name in ("do_train", "do_eval", "resume_from"):
        if getattr(args, name):
            raise UserError(
                f"--do_predict and --{name} are both given, and a prediction is a run of its own: leave one "
                "of them out."
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
    form, _ = form_and_compression(predict_file, predict_format)
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
    """--do_predict: answers each text of --predict_file with its label
    and the probability of each label of the snapshot.

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
    text = choose_columns(options.text_column, task.text)
    form, _ = form_and_compression(options.predict_file, options.predict_format)
    path = STDIN if options.predict_file == "-" else options.predict_file
    facts = {
        "model": folder.sha256,
        "labels": list(task.labels),
        "domains": list(domains.seen),
        **token_facts(tokenizer, seq_length),
        "form": form,
        "text columns": list(text),
        "eval_batch_size_per_device": options.eval_batch_size_per_device,
        "min_confidence": options.min_confidence,
    }

    with contextlib.ExitStack() as opened:
        lines = opened.enter_context(open_rows(options.predict_file, options.predict_format))
        table = Table(path, lines, form, text, task.labels)
        out = opened.enter_context(open_output(options.output_file, facts, options.resume))
        bar = opened.enter_context(progress(total=count_lines(options.predict_file), unit="line"))
        answer = (tokenizer, seq_length, probabilities, options.min_confidence)
        tally = answer_rows(table, task.labels, out, *answer, bar)
    tally.tell(path)


def token_facts(tokenizer, seq_length):
    """{name: value} of all that decides on what the model reads of a text. (The hash of the vocabulary has
    accents, Chinese characters and added tokens in it, where they are unusual for the case.)
    """
    return {
        "vocabulary": tokenizer.vocab_sha256,
        "do_lower_case": tokenizer.do_lower_case,
        "truncate": tokenizer.truncate,
        "seq_length": seq_length,
    }


def choose_columns(columns, names):
    """The columns of the texts: those of --text_column, or the `names` that the snapshot was trained on."""
    text = tuple(columns or names)
    if len(text) != len(names):
        raise UserError(
            f"--text_column {' '.join(text)}: the snapshot takes {len(names)} text(s) ({', '.join(names)}): "
            "name as many."
        )
    return text


def load_classifier(folder, task, domains, options):
    """What takes a list of Features to the probability of each label,
    float [n, M], by the model in `folder`.
    """
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


def class_probabilities(model, features, batch_size, domains, device):
    """The probabilities of the classes, float64 [n, M], of n Features.

    Their domain is not known: a model with a class head for each domain takes the mean of those that it was
    trained on.
    """

    def answer(model, batch):
        return softmax(model(batch, last_hidden=False).logits.numpy())

    names = ("input_ids", "input_mask", "segment_ids")
    block = {name: np.stack([getattr(row, name) for row in features]) for name in names}
    block.update({name: np.zeros(len(features), np.int32) for name in ("label", "idxs", "weights")})
    block["domain"] = np.full(len(features), domains.K)
    return np.stack(infer(model, block, batch_size, domains, device, answer))


def task_from_meta(folder):
    """The task of a snapshot, a ModelFolder, the tokens that its texts have at most, and its DomainTable,
    by its meta.json.

    Raises:
        UserError: a model that was not trained here, or has no class head; a damaged meta.json.
    """
    meta, path = folder.meta, folder.path
    if meta is None:
        raise UserError(
            f"--model_load_dir {path}: found {not_trained_here(path)}, expected a snapshot, whose classes "
            "are known: name one."
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
            f"{pathlib.Path(path, 'meta.json')}: found {len(meta['text'])} columns of text, expected 1 or "
            "2: take another snapshot."
        )
    task = Task(
        meta["task"], tuple(meta["text"]), "domain", "label", tuple(meta["labels"]), tuple(meta["domains"])
    )
    K = len(task.domains)
    seen = teacher_meta(meta, task, path)["seen_domains"] if meta["kind"] == "teacher" else range(K)
    return task, meta["seq_length"], DomainTable(K, tuple(seen))
