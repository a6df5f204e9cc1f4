"""The readers that are fuzzed, each over everything in a folder: a valid result, or a UserError."""

import contextlib
from types import SimpleNamespace

import numpy as np
from fuzz_folders import TASK

from data.rows import FORMS, AnswerWriter, Table, form_and_compression, open_rows
from data.store.knowledge import Knowledge
from data.store.records import Records
from data.tasks import load_task, read_examples, split_path
from data.unlabelled import text_parser
from modeling.meta_kd.classifier import build_teacher
from modeling.snapshots.checks import check_fits_model, teacher_meta
from modeling.snapshots.folder import read_optimizer
from modeling.snapshots.loading import flow, load_weights
from modeling.snapshots.manager import best_snapshot
from modeling.training.optimization import make_optimizer, restore_optimizer
from modeling.training.stage import load_initial_model
from tokenization import describe_tokenizer, encode, tokenizer_for
from util import UserError


def read_records(folder):
    """Everything of records, and that their arrays are what the engine can take."""
    records = Records(folder, "train")
    arrays = records.arrays()
    N, T = arrays["input_ids"].shape
    assert (
        N == len(records) and T == records.seq_length and set(arrays["input_mask"].ravel().tolist()) <= {0, 1}
    )
    assert 0 <= arrays["input_ids"].min() <= arrays["input_ids"].max() < records.vocab_size
    assert arrays["label"].max() < len(records.labels) and arrays["domain"].max() < len(records.domains)
    assert records.scores is None or np.isfinite(arrays["weights"]).all()


def read_knowledge(folder):
    """Everything of knowledge, and that it is finite and of the shapes that its manifest says."""
    with contextlib.closing(Knowledge(folder)) as knowledge:
        for item in knowledge.read(knowledge.idxs):
            n = item["attention"].shape[-1]
            assert item["representation"].shape == (knowledge.manifest["width"],)
            assert (
                item["attention"].shape[0] == len(knowledge.manifest["layers"])
                and item["attention"].shape[-2] == n
            )
            assert all(np.isfinite(array).all() for array in item.values())


def read_data(folder):
    """The task, its rows, and their tokens by the vocabulary that lies beside them."""
    task, tokenizer = load_task("tiny", folder), tokenizer_for(folder)
    for example in read_examples(task, split_path(folder, "train")):
        assert example.domain < len(task.domains) and example.label < len(task.labels)
        assert (
            0 <= encode(tokenizer, example.text_a, example.text_b, 8).input_ids.max() < tokenizer.vocab_size
        )


def read_tokenizer(folder):
    """The tokenizer that tokenizer.json describes, and the ids of a pair of texts."""
    path = folder / "snapshot_last"
    tokenizer = tokenizer_for(path, path / "tokenizer.json")
    describe_tokenizer(tokenizer)
    ids = encode(tokenizer, "good [SEP] bad \u00e9 film", "a b", 16).input_ids
    assert 0 <= ids.min() <= ids.max() < tokenizer.vocab_size


def read_texts(folder):
    """Texts to be answered in each form, their answers, and texts without labels; then the first fault."""
    faults = []
    for path in sorted(folder.iterdir()):
        try:
            faults += read_unlabelled(path) if path.name == "unlabelled.tsv" else answer_texts(path)
        except UserError as error:
            faults.append(str(error))
    if faults:
        raise UserError(max(faults, key=lambda fault: len(fault.splitlines())))


def answer_texts(path):
    """Reads and answers a file of texts. Returns the faults of its rows."""
    form, _ = form_and_compression(path)
    with open_rows(path, "auto") as lines:
        table = Table(path, lines, form, ("text",), TASK.labels)
        rows = list(table)
    writer = AnswerWriter("tsv" if form == "lines" else form, table.others, TASK.labels)
    assert form in FORMS and [row.idxs for row in rows] == list(range(len(rows)))
    answers = [writer.answer(row, "up", [0.75, 0.25]) for row in rows if not row.fault]
    b"".join([writer.header(), *answers]).decode("utf-8")
    return [row.fault for row in rows if row.fault]


def read_unlabelled(path):
    """Reads a file of texts without labels. Returns no fault: it raises the first."""
    parse = text_parser(TASK, path)
    with open(path, "rb") as file:
        for line, raw in enumerate(file, 1):
            assert line == 1 or parse(line, raw)[2] <= len(TASK.domains)
    return []


def read_run(folder):
    """A snapshot as the stages read it, as a teacher and to go on from. Returns what puts it into a model."""
    best_snapshot(SimpleNamespace(folder=folder))
    path = folder / "snapshot_last"
    folder = load_initial_model(
        SimpleNamespace(do_train=True, do_eval=True, resume_from=str(path)),
        TASK,
        str(path),
        "--model_load_dir",
    )
    meta, tokenizer = teacher_meta(folder.meta, TASK, path), tokenizer_for(path)
    check_fits_model(folder, TASK, 8, tokenizer)
    moments = read_optimizer(path)
    assert all(np.isfinite(array).all() for array in (*folder.arrays.values(), *moments.values()))

    def load():
        try:
            model = build_teacher(folder.config, TASK, meta["domain_head"])
            load_weights(model, folder, allow_missing=())
            restore_optimizer(make_optimizer(model, 1e-3, 0.01), moments, meta["step"])
        finally:
            flow._oneflow_internal.eager.Sync()

    return load
