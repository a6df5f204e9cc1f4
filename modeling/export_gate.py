"""What an exported file is measured to do, and whether it answers as the snapshot did and may be kept."""

import time
from typing import NamedTuple

import numpy as np

from tokenization import head_and_tail

MAX_CHANGED = {"float32": 0.005, "int8": 0.02}  # share of the labels
ROUNDING = 1e-9  # texts that a limit, a share times their number, may miss a whole number by
BATCH, SINGLES = 32, 200  # texts to a batch, and texts that are timed one by one


class LabelledTexts(NamedTuple):
    """The test texts: `rows`, of one or two texts each, their gold labels,
    and the labels that the snapshot gave.
    """

    rows: list
    gold: list
    answers: list


class Figures(NamedTuple):
    """What a file was measured to do: its size, the label of each text, and its speeds in milliseconds and
    texts a second.
    """

    megabytes: float
    labels: list
    p50: float
    p95: float
    texts_per_second: float


def measure_file(libraries, path, tokenizer, meta, texts):
    """The Figures of an ONNX file."""
    session = libraries["onnxruntime"].InferenceSession(str(path), providers=["CPUExecutionProvider"])
    wanted = {each.name for each in session.get_inputs()}

    def answer(rows):
        inputs = tokenize_batch(tokenizer, rows, meta, "np")
        return session.run(
            None, {name: array.astype(np.int64) for name, array in inputs.items() if name in wanted}
        )[0]

    return measure(answer, path.stat().st_size, texts, meta)


def measure_snapshot(libraries, snapshot, tokenizer, meta, texts):
    """The Figures of the snapshot itself, in PyTorch."""
    torch = libraries["torch"]
    loader = libraries["transformers"].AutoModelForSequenceClassification
    model = loader.from_pretrained(snapshot, local_files_only=True).eval()

    def answer(rows):
        with torch.no_grad():
            return model(**tokenize_batch(tokenizer, rows, meta, "pt")).logits.numpy()

    return measure(answer, (snapshot / "model.safetensors").stat().st_size, texts, meta)


def tokenize_batch(tokenizer, rows, meta, kind):
    """The texts of `rows` as arrays of `kind`, cut as in training and padded to the longest."""
    if meta.get("truncate", "head") == "head_tail":
        return encode_ends(tokenizer, [text for (text,) in rows], meta["seq_length"], kind)
    options = {"truncation": True, "max_length": meta["seq_length"], "padding": True, "return_tensors": kind}
    return tokenizer(*(list(column) for column in zip(*rows)), **options)


def encode_ends(tokenizer, texts, seq_length, kind):
    """The same for texts of which beginning and end are kept, which transformers' own cut does not do."""
    whole = tokenizer(texts, add_special_tokens=False, truncation=False, verbose=False)["input_ids"]
    cut = [tokenizer.build_inputs_with_special_tokens(head_and_tail(ids, seq_length - 2)) for ids in whole]
    features = {"input_ids": cut, "token_type_ids": [[0] * len(ids) for ids in cut]}
    return tokenizer.pad(features, padding=True, return_tensors=kind)


def measure(answer, size, texts, meta):
    """The Figures of what takes rows of texts to logits, `answer`; its file has `size` bytes."""
    order = np.argsort([-sum(map(len, row)) for row in texts.rows], kind="stable")
    labels, started = [None] * len(order), time.perf_counter()
    for start in range(0, len(order), BATCH):
        places = order[start : start + BATCH]
        for place, row in zip(places, answer([texts.rows[i] for i in places])):
            labels[place] = meta["labels"][int(row.argmax())]
    speed = len(order) / (time.perf_counter() - started)
    seconds = []
    for row in texts.rows[:SINGLES]:
        started = time.perf_counter()
        answer([row])
        seconds.append(time.perf_counter() - started)
    p50, p95 = (1000 * float(np.quantile(seconds, q)) for q in (0.5, 0.95))
    return Figures(size / 1e6, labels, p50, p95, speed)


def accuracy(labels, texts):
    return _right(labels, texts) / len(labels)


def changed_share(labels, texts):
    """The share of the labels that are not those that the snapshot gave."""
    return _changed(labels, texts) / len(labels)


def _right(labels, texts):
    return sum(label == gold for label, gold in zip(labels, texts.gold))


def _changed(labels, texts):
    return sum(label != answer for label, answer in zip(labels, texts.answers))


def gate(figures, texts, precision, max_changed, max_loss):
    """What a file does worse than it may, as a list of sentences; it may be kept where there is none.

    Args:
        precision: "float32" or "int8".
        max_changed: share of the labels that may change; None: MAX_CHANGED of the precision.
        max_loss: accuracy that may be lost.
    """
    limit = MAX_CHANGED[precision] if max_changed is None else max_changed
    N = len(texts.gold)
    # Counts are compared, since a difference of two shares may lie above the limit that it is equal to:
    changed = _changed(figures.labels, texts)
    lost = _right(texts.answers, texts) - _right(figures.labels, texts)
    faults = []
    if changed > limit * N + ROUNDING:
        faults.append(f"{100 * changed / N:.2f}% of the labels change, at most {100 * limit:.2f}% may")
    if lost > max_loss * N + ROUNDING:
        faults.append(
            f"{100 * lost / N:.2f} points of accuracy are lost, at most {100 * max_loss:.2f} may be"
        )
    return faults
