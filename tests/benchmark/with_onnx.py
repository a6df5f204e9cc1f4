"""One process of ONNX Runtime's side: a student's answers on lines of text.

    python3 -m tests.benchmark.with_onnx export SNAPSHOT TARGET
    python3 -m tests.benchmark.with_onnx predict SNAPSHOT TARGET TEXTS OUT

export: SNAPSHOT as TARGET, an .onnx file.
predict: labels of the lines of TEXTS, written to OUT; float32, batches grouped by length.
"""

import os
import pathlib
import sys

import numpy as np

from tests.benchmark import EVAL_B, T

INPUTS = ("input_ids", "attention_mask", "token_type_ids")


def main():
    what, *words = sys.argv[1:]
    {"export": export, "predict": predict}[what](*words)


def export(snapshot, target):
    """Writes the classifier of a snapshot as ONNX, the batch and the length free."""
    import torch
    from transformers import BertForSequenceClassification

    model = BertForSequenceClassification.from_pretrained(snapshot, attn_implementation="eager").eval()
    example = tuple(torch.ones(2, 8, dtype=torch.int64) for _ in INPUTS)
    torch.onnx.export(
        model,
        example,
        target,
        input_names=list(INPUTS),
        output_names=["logits"],
        dynamic_axes={name: {0: "batch", 1: "length"} for name in INPUTS} | {"logits": {0: "batch"}},
        dynamo=False,
    )


def predict(snapshot, target, texts, out):
    """Tokenises, sorts by length, answers batches of EVAL_B; writes a line of probabilities for each text."""
    import onnxruntime
    from tokenizers import Tokenizer

    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = int(os.environ["OMP_NUM_THREADS"])
    session = onnxruntime.InferenceSession(target, options, providers=["CPUExecutionProvider"])
    tokenizer = Tokenizer.from_file(str(pathlib.Path(snapshot, "tokenizer.json")))
    tokenizer.enable_truncation(T)
    found = tokenizer.encode_batch(pathlib.Path(texts).read_text(encoding="utf-8").splitlines())
    order = np.argsort([len(each.ids) for each in found], kind="stable")
    answers = [None] * len(found)
    for start in range(0, len(order), EVAL_B):
        rows = order[start : start + EVAL_B]
        for row, values in zip(rows, session.run(None, make_batch([found[row] for row in rows]))[0]):
            answers[row] = values
    with open(out, "w", encoding="utf-8") as file:
        for values in answers:
            powers = np.exp(values - values.max())
            file.write("\t".join(f"{value:.6f}" for value in powers / powers.sum()) + "\n")


def make_batch(encodings):
    """{name: int64 [B, T]}, T the longest of these texts."""
    longest = max(len(each.ids) for each in encodings)
    batch = {name: np.zeros((len(encodings), longest), np.int64) for name in INPUTS}
    for row, each in enumerate(encodings):
        n = len(each.ids)
        for name, values in zip(INPUTS, (each.ids, each.attention_mask, each.type_ids)):
            batch[name][row, :n] = values
    return batch


if __name__ == "__main__":
    main()
