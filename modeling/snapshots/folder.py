"""Model folders read and checked: a Hugging Face BERT folder or a snapshot of ours.

A snapshot holds config.json and model.safetensors in Hugging Face's layout and names, so that transformers
opens it; vocab.txt, tokenizer.json and tokenizer_config.json; meta.json (task, labels, domains, step,
metrics, flags). snapshot_last also holds optimizer.safetensors, and the best ones README.md, a model card.
manifest.json, written last, has the SHA-256 of each file but the card, which users edit. No pickle is read.
"""

import hashlib
import os
import pathlib
from typing import NamedTuple, Optional

import numpy as np

from modeling.bert.config import BertConfig, check_model_type
from modeling.bert.names import encoder_shapes
from modeling.snapshots.best import find_snapshot
from modeling.snapshots.checks import META_TYPES, check_meta
from modeling.snapshots.sources import source_format
from modeling.snapshots.weights import WEIGHTS, load_arrays, read_weights
from util import UserError, read_json, sha256

FORMAT = "meta-kd-snapshot-1"
# In every snapshot, and named in its manifest:
READ = ("config.json", "model.safetensors", "meta.json", "vocab.txt", "tokenizer_config.json")
# Must be what the manifest says; README.md need not:
CHECKED = {*READ, "tokenizer.json", "optimizer.safetensors"}


class ModelFolder(NamedTuple):
    """What a model folder holds.

    arrays: float32, by Hugging Face's names (`bert.encoder...`).
    meta: None in a plain folder.
    sha256: of model.safetensors; where it is in shards, of their hashes in the order of their names.
    left_over, widened: see Weights.
    """

    path: pathlib.Path
    config: BertConfig
    arrays: dict
    meta: Optional[dict]
    sha256: str
    left_over: tuple = ()
    widened: int = 0


def read_model(path, what="--model_load_dir"):
    """Reads and checks a model folder, or of a run its best snapshot; `what` is the flag that named it.

    Raises:
        UserError: a missing folder or file, a file that is not what the manifest says, a snapshot without a
            manifest, or one that is replaced meanwhile, weights that are not finite.
    """
    path = find_snapshot(path)
    sharded = (path / f"{WEIGHTS}.index.json").is_file() and not (path / WEIGHTS).is_file()
    _check_files(path, what, ("config.json",) if sharded else ("config.json", WEIGHTS))
    before = _manifest_bytes(path)
    meta, digest = read_snapshot_facts(path) if (path / "meta.json").exists() else (None, None)
    config = BertConfig.from_file(path / "config.json")
    arrays, left_over, widened = read_weights(path)
    _check_shapes(path, config, arrays)
    if digest is None:
        digest = _shards_sha256(path) if sharded else sha256(path / WEIGHTS)
    if meta is not None and _manifest_bytes(path) != before:
        raise UserError(f"{path}: this snapshot was replaced by another one while it was read: try again.")
    return ModelFolder(path, config, arrays, meta, digest, left_over, widened)


def _check_files(path, what, needed):
    """Raises a UserError where the folder, or a file `needed` in it, is missing or of another kind."""
    if not path.is_dir():
        raise UserError(
            f"{what} {path}: there is no such folder; models are not fetched by name: download one and name "
            "its folder."
        )
    if (path / "flags.json").is_file() and not (path / "config.json").exists():
        raise UserError(
            f"{what} {path}: this run has no best snapshot yet: let its training go on, with --do_eval."
        )
    if not (path / "meta.json").exists():
        check_is_bert(path, what)
    if source_format(path):
        raise UserError(
            f"{what} {path}: model.safetensors is missing, and what is there can be converted: "
            f"run 'python3 -m modeling.convert --source {path} --target DIR' and name DIR."
        )
    for name in needed:
        if not (path / name).is_file():
            raise UserError(
                f"{what} {path}: {name} is missing; expected a Hugging Face BERT folder with config.json and "
                "model.safetensors, or a snapshot."
            )


def _check_shapes(path, config, arrays):
    """Raises a UserError where a weight of the encoder is missing, or not of the shape in config.json."""
    for name, shape in encoder_shapes(config):
        if name not in arrays:
            raise UserError(
                f"{path}: the weight {name} is missing: expected the weights that its config.json describes."
            )
        if arrays[name].shape != shape:
            raise UserError(
                f"{path}: {name} has the shape {arrays[name].shape}, its config.json says {shape}: "
                "take another copy of the model."
            )


def check_is_bert(path, what):
    """Raises a UserError where the folder is of sentence-transformers, or of another kind of model."""
    inner = next((each.parent for each in sorted(path.glob("0_*/config.json"))), None)
    if inner and not (path / "config.json").is_file():
        raise UserError(
            f"{what} {path}: this folder is of sentence-transformers, and its BERT is {inner}: name that."
        )
    config = path / "config.json"
    if config.is_file():
        check_model_type(read_json(config, "the architecture of a BERT model"), config)


def _shards_sha256(path):
    """SHA-256 of the hashes of the shards that the index names, in the order of their names."""
    shards = read_json(path / f"{WEIGHTS}.index.json", "the index of the weights")["weight_map"].values()
    return hashlib.sha256("".join(sha256(path / shard) for shard in sorted(set(shards))).encode()).hexdigest()


def _manifest_bytes(path):
    """The manifest of a snapshot as it stands.

    Folders are replaced whole: the same manifest before and after a reading means that no other was between.
    """
    try:
        return (path / "manifest.json").read_bytes()
    except OSError:
        return None


def read_snapshot_facts(path, what="--model_load_dir"):
    """(meta.json, SHA-256 of the weights) of a snapshot, or of a run's best one, its files checked against
    manifest.json; `what` is the flag that named it.
    """
    path = find_snapshot(path)
    if not (path / "meta.json").is_file():
        raise UserError(
            f"{what} {path}: meta.json is missing; "
            "expected a snapshot written by meta_teacher.py or meta_distill.py."
        )
    if not (path / "manifest.json").is_file():
        raise UserError(
            f"{path}: this snapshot has no manifest.json, so it was not written to its end: "
            "take another snapshot."
        )
    hashes = _check_hashes(path)
    meta = read_json(path / "meta.json", "the description of the snapshot")
    check_meta(meta, META_TYPES, path)
    return meta, hashes[WEIGHTS]


def _check_hashes(path):
    """{name: SHA-256} of the files of a snapshot. UserError where one is not what its manifest says."""
    manifest = read_json(path / "manifest.json", "the manifest of the snapshot")
    if manifest.get("format") != FORMAT:
        raise UserError(
            f"{path / 'manifest.json'}: found format {manifest.get('format')!r:.60}, expected {FORMAT!r}: "
            "it was written by another version of this suite."
        )
    files, there = manifest.get("sha256"), os.listdir(path)
    needed = {*READ, *({"tokenizer.json"} & {*there})}  # older ones have none
    if not isinstance(files, dict) or not needed <= set(files):
        raise UserError(
            f"{path / 'manifest.json'}: the hashes of the snapshot's files are missing: "
            "take another snapshot."
        )
    for name, expected in files.items():
        if name == "README.md":  # no stage reads it, and users edit it
            continue
        if pathlib.Path(name).name != name or name not in there or not (path / name).is_file():
            raise UserError(
                f"{path}: the manifest of the snapshot names the file {name!r:.80}, which is missing "
                "or not in it: take another snapshot."
            )
        if sha256(path / name) != expected:
            raise UserError(
                f"{path / name}: its content is not what the snapshot's manifest says: take another snapshot."
            )
    return files


def read_optimizer(path):
    """The optimizer's state of a snapshot_last, {name: array}, its hash already checked by `read_model`."""
    manifest = read_json(pathlib.Path(path, "manifest.json"), "the manifest of the snapshot")
    file = pathlib.Path(path, "optimizer.safetensors")
    if file.name not in manifest["sha256"]:
        raise UserError(
            f"--resume_from {path}: optimizer.safetensors is missing; name the snapshot_last of a run."
        )
    arrays = load_arrays(file)
    for name, array in arrays.items():
        negative = name.startswith("exp_avg_sq.") and (array < 0).any()
        if array.dtype != np.float32 or not np.isfinite(array).all() or negative:
            raise UserError(
                f"{file}: {name!r:.80} holds values that no optimizer has: "
                "resume from another snapshot_last, or start a new run."
            )
    return arrays
