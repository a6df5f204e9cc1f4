"""One process of the benchmark: makes what is measured on, in a folder.

    python3 -m tests.benchmark.sandbox FOLDER SETTINGS

SETTINGS is JSON: groups, model, size, reviews, examples, workloads, growth, as in bench.py. FOLDER gets:

    model                          where none is given
    <count>/{train,dev,test}.tsv   for `examples` and for each of `growth`
    reviews.npz                    the first of them stacked, and an epoch's batches over each of `workloads`
    teacher-narrow, teacher-wide   6 x 384 and 12 x 768, where the model is of that size
    teacher-small                  3 layers
    facts.json
"""

import json
import pathlib
import sys

from util import UserError, entry  # isort: skip  (first: it names the BLAS kernel before numpy is loaded)

import numpy as np
from safetensors.numpy import save_file

from data.batches import epoch_batches, lengths
from data.prepare.amazon import TASK, read_reviews, split_reviews
from data.prepare.task_files import write_task
from data.store.writing import encode_split
from data.tasks import read_examples, read_task, split_path
from modeling.bert.config import BertConfig
from modeling.bert.model import init_weights
from modeling.meta_kd.classifier import DomainClassifier, build_teacher
from modeling.snapshots.folder import read_model
from modeling.snapshots.loading import keep_layers, load_weights
from modeling.snapshots.saving import save_snapshot
from tests.benchmark import SEED, B, T, without_first
from tokenization import tokenizer_for

CELLS = [(domain, label) for label in TASK.labels for domain in TASK.domains]


@entry
def main():
    folder, settings = pathlib.Path(sys.argv[1]), json.loads(sys.argv[2])
    model = read_model(settings["model"] or random_model(folder / "model", *settings["size"]))
    tokenizer, groups = tokenizer_for(model.path), set(settings["groups"])
    if groups == {"scale"}:  # it makes its texts itself
        return write_teacher(folder / "teacher-small", model.config, tokenizer, model)
    rows, facts = iterate_rows(settings["reviews"], tokenizer.vocab), {}
    if groups & {"inference", "teacher", "distillation"}:
        write_splits(folder, rows, settings["examples"])
        facts = write_arrays(folder, settings["examples"], settings["workloads"], tokenizer)
    if groups & {"records", "growth", "prediction"}:
        for count in settings["growth"]:
            write_splits(folder, rows, count)
    if "distillation" in groups:
        write_teacher(folder / "teacher-narrow", model.config, tokenizer, model)
        write_teacher(folder / "teacher-wide", BertConfig(vocab_size=model.config.vocab_size), tokenizer)
    if groups & {"growth", "prediction"}:
        small = keep_layers(model, min(3, model.config.num_hidden_layers))
        write_teacher(folder / "teacher-small", small.config, tokenizer, small)
    facts["model"] = (
        f"{model.config.num_hidden_layers} layers x {model.config.hidden_size}, "
        f"{model.config.num_attention_heads} heads"
    )
    (folder / "facts.json").write_text(json.dumps(facts), encoding="utf-8")


# --------------------------------------------------------------------------------------- models


def random_model(path, layers, width):
    """A plain model folder: random weights, a head to 32 of its width, a vocabulary of made-up words."""
    path.mkdir()
    config = BertConfig(
        hidden_size=width,
        num_hidden_layers=layers,
        num_attention_heads=width // 32,
        intermediate_size=4 * width,
    )
    model = DomainClassifier(config, 2, 4)
    init_weights(model, SEED, config.initializer_range)
    arrays = {
        name: parameter.numpy() for name, parameter in model.named_parameters() if name.startswith("bert.")
    }
    save_file(arrays, path / "model.safetensors", metadata={"format": "pt"})
    special = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]"]
    words = [*special, *(f"w{i}" for i in range(config.vocab_size - len(special)))]
    (path / "vocab.txt").write_text("\n".join(words) + "\n", encoding="utf-8")
    (path / "config.json").write_text(json.dumps(config.to_dict()), encoding="utf-8")
    return path


def write_teacher(path, config, tokenizer, weights=None):
    """A meta-teacher's snapshot that was not trained.

    `weights` is a ModelFolder of its encoder; None: the encoder is random.
    """
    model = build_teacher(config, TASK, domain_head=True)
    init_weights(model, SEED, config.initializer_range)
    if weights:
        load_weights(model, weights)
    save_snapshot(
        path,
        model,
        tokenizer,
        {
            "kind": "teacher",
            "step": 0,
            "task": TASK.name,
            "text": TASK.text,
            "seq_length": T,
            "labels": TASK.labels,
            "domains": TASK.domains,
            "seen_domains": list(range(len(TASK.domains))),
            "domain_head": True,
        },
    )


# --------------------------------------------------------------------------------------- reviews


def iterate_rows(source, vocab):
    """Shuffled rows (text, domain, label).

    They are the Amazon reviews in `source`, or the texts of a data folder with task.json and four domains,
    such as the demo's. Where `source` is None they are made up of words of the vocabulary.
    """
    if source and pathlib.Path(source, "task.json").exists():
        task = read_task(pathlib.Path(source, "task.json"))
        examples = read_examples(task, split_path(source, "train"))
        return [(each.text_a, TASK.domains[each.domain], TASK.labels[each.label]) for each in examples]
    if source:
        splits = split_reviews(read_reviews(source))
        return splits["train"] + splits["dev"] + splits["test"]
    stream, words = np.random.default_rng(SEED), np.array([word for word in vocab if word.isalnum()])
    counts = np.clip(stream.lognormal(np.log(90), 0.9, 8000), 5, 1000).astype(
        int
    )  # as many words as the Amazon reviews have
    return [(" ".join(stream.choice(words, count)), *CELLS[i % len(CELLS)]) for i, count in enumerate(counts)]


def write_splits(folder, rows, count):
    """A data folder <count>: the first `count` rows as train, two per domain and class as dev and test."""
    if count > len(rows):
        raise UserError(
            f"{count} reviews are asked for, and there are {len(rows)}: lower --examples or --growth."
        )
    few = [[row for row in rows if row[1:] == cell][:2] for cell in CELLS]
    heldout = sum(few, [])
    write_task(TASK, folder / str(count), {"train": rows[:count], "dev": heldout, "test": heldout})


def write_arrays(folder, count, workloads, tokenizer):
    """reviews.npz: the records of data folder <count> stacked, and batches.

    For each n of `workloads` there are the batches of epoch 0 over its first n, int [steps, B], with -1 where
    a batch has fewer.

    Returns:
        facts: how long the texts are, and for each workload its steps and what `without_first` says of them.
    """
    blocks = list(encode_split(TASK, folder / str(count), "train", tokenizer, T))
    arrays = {name: np.concatenate([block[name] for block in blocks]) for name in blocks[0]}
    cut = arrays.pop("was_cut").mean()
    arrays["weights"] = np.ones(count, np.float32)
    n, facts = (
        lengths(arrays),
        {
            "tokens": float(lengths(arrays).mean()),
            "cut": float(cut),
        },
    )
    for workload in workloads:
        batches = epoch_batches(n[:workload], B, SEED, 0)
        arrays[f"batches_{workload}"] = np.array(
            [np.pad(rows, (0, B - len(rows)), constant_values=-1) for rows in batches]
        )
        facts[str(workload)] = {
            "steps": len(batches),
            "without_first": float(without_first([len(rows) * n[rows].max() for rows in batches])),
        }
    np.savez(folder / "reviews.npz", **arrays)
    return facts


if __name__ == "__main__":
    main()
