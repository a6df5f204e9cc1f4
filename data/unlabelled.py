"""Texts without labels, which the teacher labels softly: a TSV with the task's text columns and, where it is known, the domain."""

import hashlib

import numpy as np

from data.records import CONTENT, encode_line
from data.selection import of_domains
from data.tasks import line_text
from util import UserError


def read_texts(task, path):
    """Yields (texts, domain or None, line) of each row of the TSV at `path`; its header names the text columns and, perhaps, the domain's.

    Raises:
        UserError: a fault, with file and line.
    """
    try:
        file = open(path, "rb")
    except OSError as error:
        raise UserError(f"--unlabelled_file {path}: it cannot be read ({error.strerror}).") from None
    with file:
        header = line_text(path, 1, file.readline()).split("\t")
        if sorted(header) not in (sorted(task.text), sorted((*task.text, task.domain))):
            raise UserError(f"{path}:1: found {', '.join(map(repr, header))[:200]}, expected a header with {', '.join(task.text)} and, if it is "
                            f"known, {task.domain}, separated by tabs.")
        for line, raw in enumerate(file, 2):
            fields = line_text(path, line, raw).split("\t")
            if len(fields) != len(header):
                raise UserError(f"{path}:{line}: found {len(fields)} column(s), expected {len(header)} ({', '.join(header)}).")
            row = dict(zip(header, fields))
            if row.get(task.domain, task.domains[0]) not in task.domains:
                raise UserError(f"{path}:{line}: found {task.domain} {row[task.domain][:80]!r}, expected one of {', '.join(task.domains)[:500]}.")
            yield [row[name] for name in task.text], row.get(task.domain), line


def unlabelled_arrays(args, task, tokenizer, start):
    """The texts of --unlabelled_file as records that are numbered from `start`, {name: [N, ...]}, and a SHA-256 of them all.

    Those of a domain that the flags leave out are left out; one whose domain is not known has domain K. Labels and scores are 0: see
    `taught`. N may be 0.
    Raises:
        UserError: a fault in the file, or a file without texts.
    """
    rows = {name: [] for name in (*CONTENT, "weights")}
    for number, (texts, domain, line) in enumerate(read_texts(task, args.unlabelled_file)):
        features = encode_line(tokenizer, texts[0], texts[1] if len(texts) == 2 else None, args.seq_length, f"{args.unlabelled_file}:{line}")
        k = len(task.domains) if domain is None else task.domains.index(domain)
        row = {**{name: getattr(features, name) for name in ("input_ids", "input_mask", "segment_ids")},
               "domain": k, "label": 0, "idxs": start + number, "weights": 0.0}
        for name, values in rows.items():
            values.append(row[name])
    if not rows["idxs"]:
        raise UserError(f"{args.unlabelled_file}: found a header and no texts, expected one or more.")
    shape = (-1, args.seq_length)
    arrays = {name: np.array(values, np.float32 if name == "weights" else np.int32) for name, values in rows.items()}
    arrays.update((name, arrays[name].reshape(shape)) for name in ("input_ids", "input_mask", "segment_ids"))
    sha256 = hashlib.sha256(b"".join(arrays[name].tobytes() for name in ("input_ids", "input_mask", "segment_ids", "domain"))).hexdigest()
    keep = of_domains(arrays["domain"], task, args)
    return {name: array[keep] for name, array in arrays.items()}, sha256


def taught(examples, unlabelled, knowledge):
    """Labelled training examples and unlabelled ones side by side, {name: [N + N', ...]}.

    An unlabelled one has the label that the teacher finds most probable, and the mean score of the labelled.
    """
    logits = [item["logits"] for item in knowledge.read(unlabelled["idxs"])]
    labels = np.array([each.argmax() for each in logits], np.int32)
    extra = {**unlabelled, "label": labels, "weights": np.full(len(labels), examples["weights"].mean(), np.float32)}
    return {name: np.concatenate([array, extra[name].reshape(-1, *array.shape[1:])]) for name, array in examples.items()}
