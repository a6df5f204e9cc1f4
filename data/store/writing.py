"""A TSV's rows as records, written whole or not at all;
the same content gives the same bytes, and keeps its scores.

All is written under another name and renamed when whole, so that a writer that is killed leaves what was
there before.
"""

import functools
import hashlib
import os
import pathlib

import numpy as np

from data.encoding import encode_rows
from data.store.files import atomic_folder, write_json
from data.store.layout import encode_block
from data.store.manifest import MANIFEST, check_replaceable
from data.store.ofrecord import part_name
from data.store.records import FORMAT, STAGE_1, RecordCounter, Records, record_schema
from data.tasks import check_counts, example_parser, example_rows, split_path
from util import UserError, sha256

PART_SIZE = 4096  # records to a part

# --------------------------------------------------------------------------------------- TSV -> records


def encode_split(task, data_dir, split, tokenizer, seq_length, size=PART_SIZE):
    """Yields the records of a split in blocks of `size`, without `weights`; `was_cut`: the text was cut to
    fit into `seq_length`.

    Raises:
        UserError: a fault in the TSV, or texts without a visible character.
    """
    path = split_path(data_dir, split)
    read = example_parser(task, path)
    yield from encode_rows(example_rows(path), lambda *row: read(*row)[:4], tokenizer, seq_length, size)


def source_facts(task, tsv, split, tokenizer, seq_length):
    """What the manifest says of where records come from: the keys of SOURCE_TYPES."""
    if not pathlib.Path(tsv).is_file():
        raise UserError(
            f"{tsv}: found nothing, expected the {split} split: name the folder that holds it with "
            "--data_dir."
        )
    if len(task.text) == 2 and tokenizer.truncate != "head":
        raise UserError(
            f"--truncate {tokenizer.truncate}: the task {task.name} has pairs of texts, which share their "
            "room, and of each its beginning is kept: leave --truncate out."
        )
    return {
        "task": task.name,
        "split": split,
        "seq_length": seq_length,
        "truncate": tokenizer.truncate,
        "labels": list(task.labels),
        "domains": list(task.domains),
        "vocab_size": tokenizer.vocab_size,
        "vocab_sha256": tokenizer.vocab_sha256,
        "do_lower_case": tokenizer.do_lower_case,
        "tsv_sha256": sha256(tsv),
    }


def resave(task, data_dir, folder, split, tokenizer, seq_length, scored=True, part_size=PART_SIZE):
    """--resave_ofrecord: tokenises the TSV again; where nothing changed, the records keep their scores.

    Args:
        scored: False in stage 1, and where nobody reads the scores: what is missing, damaged or of other
            content is written anew.
    Returns:
        Records, whose manifest now tells of the TSV and the vocabulary that are there.
    Raises:
        UserError: scores are needed, and there are none (told before a text is tokenised), or not for these
            texts: the sentence names stage 1; the training split has no example of a domain or class.
    """
    path = split_path(data_dir, split)
    facts = source_facts(task, path, split, tokenizer, seq_length)
    check = functools.partial(check_counts, task, path=path) if split == "train" else None

    def write_anew():
        check_replaceable(folder, split, "--ofrecord_dir")
        blocks = encode_split(task, data_dir, split, tokenizer, seq_length, part_size)
        return write_records(folder, split, blocks, facts, check)

    old, fault = _open_or_fault(folder, split, scored)
    if scored and (fault or old.seq_length != seq_length):  # at once: stage 1 tells what is wrong in the TSV
        raise UserError(fault or _stale(old, facts))
    if fault or not scored and old.tsv_sha256 != facts["tsv_sha256"]:
        new = write_anew()  # most likely other content: it is not tokenised once more to be compared
        if old and old.scores and old.content_sha256 == new.content_sha256:
            return with_scores(new, old.weights, old.scores)
        return new
    tally = _count_records(task, data_dir, split, tokenizer, seq_length)
    if check:
        check(tally.counts)
    fresh = {**facts, **tally.facts()}
    if old.content_sha256 == fresh["content_sha256"]:
        return _with_manifest(old, fresh)
    if scored:
        raise UserError(_stale(old, facts))
    return write_anew()


def _count_records(task, data_dir, split, tokenizer, seq_length):
    """The RecordCounter of a split, tokenised and not kept."""
    tally = RecordCounter(task.labels, task.domains)
    for block in encode_split(task, data_dir, split, tokenizer, seq_length):
        tally.add(block)
    return tally


def _open_or_fault(folder, split, scored):
    """The Records of a folder, or None and the sentence that says why they cannot be used.

    (Not the error itself: kept in a variable it would keep alive, by its traceback, all that its callers
    hold, locks too.)
    """
    try:
        records = Records(folder, split)
        if scored:
            records.require_scores()
    except UserError as error:
        return None, str(error)
    return records, None


def _with_manifest(records, fresh):
    """The records with a manifest that says what is `fresh`; it is written where that is something else."""
    manifest = {**records.manifest, **fresh}
    if manifest != records.manifest:
        write_json(records.folder / MANIFEST, manifest)
        records.set_manifest(manifest)
    return records


def check_fits(records, task, seq_length, tokenizer, tsv):
    """Raises a UserError where `records` were made of another TSV, task, vocabulary
    or seq_length than those given.
    """
    facts = source_facts(task, tsv, records.split, tokenizer, seq_length)
    if any(records.manifest[key] != value for key, value in facts.items()):
        raise UserError(_stale(records, facts))


def _stale(records, facts):
    """The sentence that says in what records differ from what they should be made of."""
    for key, value in facts.items():
        if records.manifest[key] != value:
            short = (lambda each: f"{each[:12]}...") if key.endswith("sha256") else "{!r:.200}".format
            found, expected = short(records.manifest[key]), short(value)
            if key in ("vocab_size", "vocab_sha256", "do_lower_case"):
                return (
                    f"{records.folder}: found records made with {key} {found}, expected {expected}: "
                    "teacher and student need one vocabulary, in every stage, so name theirs, "
                    f"or {STAGE_1} and this one."
                )
            if key in ("seq_length", "truncate"):
                remedy = f"give every stage --{key} {records.manifest[key]}, or {STAGE_1} for this one"
            else:
                remedy = STAGE_1
            return f"{records.folder}: found records made with {key} {found}, expected {expected}: {remedy}."
    return (
        f"{records.folder}: found records of other tokens than the TSV now gives, expected the same: "
        f"{STAGE_1}."
    )


# --------------------------------------------------------------------------------------- writing


def write_records(folder, split, blocks, facts, check=None):
    """Writes the records of a split, a part for each block: whole, or not at all.

    Args:
        folder: the folder of the split; blocks: an iterable of what `encode_split` yields.
        facts: `source_facts` of them.
        check: takes the counts [K, M] of domains and labels;
            what it raises keeps the records from being written.
    Returns:
        Records, opened.
    """
    tally, parts = RecordCounter(facts["labels"], facts["domains"]), []
    schema = record_schema(facts["seq_length"])
    with atomic_folder(folder) as temporary:
        for block in blocks:
            tally.add(block)
            unscored = {**block, "weights": np.full(len(block["idxs"]), np.nan, np.float32)}
            data, _ = encode_block({key: unscored[key] for key in schema}, schema)
            parts.append(_write_part(temporary, part_name(split, len(parts)), data, len(block["idxs"])))
        if not parts:
            raise UserError(f"{folder}: found no example for the {split} split, expected at least one.")
        if check:
            check(tally.counts)
        manifest = {"format": FORMAT, **tally.facts(), **facts, "scores": None, "parts": parts}
        write_json(temporary / MANIFEST, manifest)
    return Records(folder, split)


def _write_part(folder, name, data, count):
    """Writes the bytes of a part, and returns what the manifest says of it."""
    with open(os.path.join(folder, name), "wb") as file:
        file.write(data)
    return {"file": name, "count": count, "bytes": len(data), "sha256": hashlib.sha256(data).hexdigest()}


def with_scores(records, scores, facts):
    """Writes the same records with `scores` as their weights, and returns them opened.

    The weight is the last entry of a message, 4 bytes at its end: parts are copied with other bytes there,
    nothing is encoded anew. (Done in place it would write as much, since every page of the disk holds the end
    of some record, and a kill would leave a mixture.)

    Args:
        scores: an iterable of numbers, one per record, in their order.
        facts: what made them, for the manifest.
    Raises:
        UserError: a score that is not finite. ValueError: not as many scores as records.
    """
    scores = np.fromiter(scores, np.float32)
    if len(scores) != len(records):
        raise ValueError(f"{len(scores)} scores for the {len(records)} records")
    if not np.isfinite(scores).all():
        row = int(np.isfinite(scores).argmin())
        raise UserError(
            f"{records.folder}: found the score {scores[row]} for record {row}, expected a finite number: "
            "check the model that --model_load_dir names."
        )
    parts = []
    with atomic_folder(records.folder) as temporary:
        for number, part in enumerate(records.parts):
            data, first, ends = records.part_bytes(number)
            values = scores[first : first + part["count"]].astype("<f4").view(np.uint8).reshape(-1, 4)
            np.frombuffer(data, np.uint8)[ends[:, None] + np.arange(-4, 0)] = values
            parts.append(_write_part(temporary, part["file"], data, part["count"]))
        write_json(temporary / MANIFEST, {**records.manifest, "scores": facts, "parts": parts})
    return Records(records.folder, records.split)
