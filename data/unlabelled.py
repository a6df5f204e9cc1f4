"""Texts without labels, which the teacher labels softly: a TSV with the task's text columns and, where it is known, the domain."""

import hashlib

import numpy as np

from data.lines import lookup_index, open_text, split_fields
from data.selection import domain_mask
from data.store.records import CONTENT, encode_line
from util import UserError


def read_texts(task, path):
    """Yields (texts, domain, line) of each row of the TSV at `path`; its header names the text columns and, perhaps, the domain's.

    The domain is its index in the task, or K, the number of domains, where it is not known; with one domain it is always known.

    Raises:
        UserError: a fault, with file and line.
    """
    domains = {name: k for k, name in enumerate(task.domains)}
    unknown = len(domains) if len(domains) > 1 else 0
    with open_text(path, "texts: check --unlabelled_file") as file:
        header = split_fields(path, 1, file.readline())
        if sorted(header) not in (sorted(task.text), sorted((*task.text, task.domain))):
            raise UserError(
                f"{path}:1: found {', '.join(map(repr, header))[:200]}, expected a header with {', '.join(task.text)} and, if it is "
                f"known, {task.domain}, separated by tabs."
            )
        for line, raw in enumerate(file, 2):
            row = dict(zip(header, split_fields(path, line, raw, header)))
            domain = (
                lookup_index(path, line, task.domain, row[task.domain], domains)
                if task.domain in row
                else unknown
            )
            yield [row[name] for name in task.text], domain, line


def unlabelled_arrays(args, task, tokenizer, start):
    """The texts of --unlabelled_file as records that are numbered from `start`, {name: [N, ...]}, and a SHA-256 of them all.

    Those of a domain that the flags leave out are left out; one whose domain is not known has domain K. Labels and scores are 0: see
    `with_pseudo_labels`. N may be 0.
    Raises:
        UserError: a fault in the file, or a file without texts.
    """
    rows = {name: [] for name in (*CONTENT, "weights")}
    for number, (texts, domain, line) in enumerate(read_texts(task, args.unlabelled_file)):
        features = encode_line(
            tokenizer,
            texts[0],
            texts[1] if len(texts) == 2 else None,
            args.seq_length,
            f"{args.unlabelled_file}:{line}",
        )
        row = {
            **{name: getattr(features, name) for name in ("input_ids", "input_mask", "segment_ids")},
            "domain": domain,
            "label": 0,
            "idxs": start + number,
            "weights": 0.0,
        }
        for name, values in rows.items():
            values.append(row[name])
    if not rows["idxs"]:
        raise UserError(f"{args.unlabelled_file}: found a header and no texts, expected one or more.")
    shape = (-1, args.seq_length)
    arrays = {
        name: np.array(values, np.float32 if name == "weights" else np.int32) for name, values in rows.items()
    }
    arrays.update((name, arrays[name].reshape(shape)) for name in ("input_ids", "input_mask", "segment_ids"))
    sha256 = hashlib.sha256(
        b"".join(arrays[name].tobytes() for name in ("input_ids", "input_mask", "segment_ids", "domain"))
    ).hexdigest()
    keep = domain_mask(arrays["domain"], task, args)
    return {name: array[keep] for name, array in arrays.items()}, sha256


def with_pseudo_labels(examples, unlabelled, knowledge):
    """Labelled training examples and unlabelled ones side by side, {name: [N + N', ...]}.

    An unlabelled one has the label that the teacher finds most probable, and the mean score of the labelled.
    """
    logits = [item["logits"] for item in knowledge.read(unlabelled["idxs"])]
    labels = np.array([each.argmax() for each in logits], np.int32)
    extra = {
        **unlabelled,
        "label": labels,
        "weights": np.full(len(labels), examples["weights"].mean(), np.float32),
    }
    return {
        name: np.concatenate([array, extra[name].reshape(-1, *array.shape[1:])])
        for name, array in examples.items()
    }
