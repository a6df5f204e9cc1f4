"""Model folders: reading a Hugging Face BERT folder or a snapshot of ours, and writing snapshots that
transformers opens.

A snapshot holds config.json and model.safetensors in Hugging Face's layout and names, vocab.txt,
tokenizer.json, tokenizer_config.json, meta.json (task, labels, domains, step, metrics, flags), for
snapshot_last also optimizer.safetensors, for the best ones README.md, a model card, and manifest.json with
the SHA-256 of each file, written last. No pickle is read.
"""

import hashlib
import os
import pathlib
from typing import NamedTuple, Optional

import numpy as np
import safetensors
from safetensors.numpy import save_file

from data.engine import load_oneflow
from data.store.files import atomic_file, atomic_folder, write_json
from data.store.manifest import TYPES
from data.tasks import OTHER_KINDS
from modeling.bert.config import BertConfig, check_model_type, other_problem
from modeling.bert.names import encoder_shapes
from modeling.meta_kd.classifier import evenly_spaced_layers
from modeling.meta_kd.terms import MAPS
from modeling.snapshots.best import find_snapshot
from modeling.snapshots.sources import source_format
from modeling.snapshots.tokenizer_file import save_tokenizer_files
from modeling.snapshots.weights import WEIGHTS, load_arrays, read_weights
from util import UserError, read_json, sha256

flow = load_oneflow()

FORMAT = "meta-kd-snapshot-1"
READ = (
    "config.json",
    "model.safetensors",
    "meta.json",
    "vocab.txt",
    "tokenizer_config.json",
)  # in every snapshot, and named in its manifest
CHECKED = {
    *READ,
    "tokenizer.json",
    "optimizer.safetensors",
}  # must be what the manifest says; README.md need not
META_TYPES = {
    "kind": "a text",
    "step": "a count",
    "task": "a text",
    "labels": "a list of different names",
    "domains": "a list of different names",
}
TEACHER_TYPES = {"domain_head": "true or false", "seen_domains": "a list of counts"}
LAYERS = "bert.encoder.layer."
MAP_PREFIXES = tuple(f"{name}." for name in MAPS)
HEADS = ("classifier.", "domain_classifiers.", "domain_head.", *MAP_PREFIXES, "bert.pooler.")


class ModelFolder(NamedTuple):
    """What a model folder holds: `arrays` are float32 by Hugging Face's names (`bert.encoder...`), `meta` is
    None in a plain folder.

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


# --------------------------------------------------------------------------------------- reading


def read_model(path, what="--model_load_dir"):
    """Reads and checks a model folder, or of a run its best snapshot; `what` is the flag that named it.

    Raises:
        UserError: a missing folder or file, a file that is not what the manifest says, a snapshot without a
            manifest, or one that is replaced meanwhile, weights that are not finite.
    """
    path = find_snapshot(path)
    if not path.is_dir():
        raise UserError(f"{what} {path}: there is no such folder.")
    if not (path / "meta.json").exists():
        check_is_bert(path, what)
    if source_format(path):
        raise UserError(
            f"{what} {path}: model.safetensors is missing, and what is there can be converted: run 'python3 "
            f"-m modeling.convert --source {path} --target DIR' and name DIR."
        )
    sharded = (path / f"{WEIGHTS}.index.json").is_file() and not (path / WEIGHTS).is_file()
    for name in ("config.json",) if sharded else ("config.json", WEIGHTS):
        if not (path / name).is_file():
            raise UserError(
                f"{what} {path}: {name} is missing; expected a Hugging Face BERT folder with config.json and "
                "model.safetensors, or a snapshot."
            )
    before = _manifest_bytes(path)
    meta = read_snapshot_meta(path) if (path / "meta.json").exists() else None
    config, (arrays, left_over, widened) = BertConfig.from_file(path / "config.json"), read_weights(path)
    for name, shape in encoder_shapes(config):
        if name not in arrays:
            raise UserError(
                f"{path}: the weight {name} is missing: expected the weights that its config.json describes."
            )
        if arrays[name].shape != shape:
            raise UserError(
                f"{path}: {name} has the shape {arrays[name].shape}, its config.json says {shape}: take "
                "another copy of the model."
            )
    folder = ModelFolder(
        path,
        config,
        arrays,
        meta,
        _shards_sha256(path) if sharded else sha256(path / WEIGHTS),
        left_over,
        widened,
    )
    if meta is not None and _manifest_bytes(path) != before:
        raise UserError(f"{path}: this snapshot was replaced by another one while it was read: try again.")
    return folder


def check_is_bert(path, what):
    """Raises a UserError where the folder is a sentence-transformers one around a BERT, or of another kind of
    model.
    """
    inner = next((each.parent for each in sorted(path.glob("0_*/config.json"))), None)
    if inner and not (path / "config.json").is_file():
        raise UserError(
            f"{what} {path}: this folder is of sentence-transformers, and its BERT is {inner}: name that."
        )
    if (path / "config.json").is_file():
        check_model_type(
            read_json(path / "config.json", "the architecture of a BERT model"), path / "config.json"
        )


def _shards_sha256(path):
    """SHA-256 of the hashes of the shards that the index names, in the order of their names."""
    shards = read_json(path / f"{WEIGHTS}.index.json", "the index of the weights")["weight_map"].values()
    return hashlib.sha256("".join(sha256(path / shard) for shard in sorted(set(shards))).encode()).hexdigest()


def _manifest_bytes(path):
    """The manifest of a snapshot as it stands: folders are replaced whole, so that the same one before and
    after means no other between.
    """
    try:
        return (path / "manifest.json").read_bytes()
    except OSError:
        return None


def read_snapshot_meta(path, what="--model_load_dir"):
    """The meta.json of a snapshot, or of the best one of a run, after every file was checked against
    manifest.json.
    """
    path = find_snapshot(path)
    if not (path / "meta.json").is_file():
        raise UserError(
            f"{what} {path}: meta.json is missing; expected a snapshot written by meta_teacher.py or "
            "meta_distill.py."
        )
    if not (path / "manifest.json").is_file():
        raise UserError(
            f"{path}: this snapshot has no manifest.json, so it was not written to its end: take another "
            "snapshot."
        )
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
            f"{path / 'manifest.json'}: the hashes of the snapshot's files are missing: take another "
            "snapshot."
        )
    for name, expected in files.items():
        if name == "README.md":  # no stage reads it, and users edit it
            continue
        if pathlib.Path(name).name != name or name not in there or not (path / name).is_file():
            raise UserError(
                f"{path}: the manifest of the snapshot names the file {name!r:.80}, which is missing or not "
                "in it: take another snapshot."
            )
        if sha256(path / name) != expected:
            raise UserError(
                f"{path / name}: its content is not what the snapshot's manifest says: take another snapshot."
            )
    meta = read_json(path / "meta.json", "the description of the snapshot")
    check_meta(meta, META_TYPES, path)
    return meta


def check_meta(meta, types, path):
    """Raises a UserError where a key of `meta`, of the snapshot at `path`, is not of the type that `types`
    says.
    """
    for key, kind in types.items():
        if key not in meta or not TYPES[kind](meta[key]):
            raise UserError(
                f"{pathlib.Path(path, 'meta.json')}: found {meta.get(key)!r:.60} as {key!r}, expected "
                f"{kind}: take another snapshot."
            )


def check_fits_model(folder, task, seq_length, tokenizer):
    """Raises a UserError where a model has fewer positions than `seq_length`, fewer word vectors than the
    vocabulary has tokens, or one segment where the task has pairs of texts.
    """
    positions, words = folder.config.max_position_embeddings, folder.config.vocab_size
    if seq_length > positions:
        raise UserError(
            f"--seq_length {seq_length}: the model {folder.path} has {positions} positions: lower it."
        )
    if tokenizer.vocab_size > words:
        raise UserError(
            f"{tokenizer.vocab_file}: it has {tokenizer.vocab_size} tokens, the model {folder.path} has "
            f"{words} word vectors: name the vocabulary of this model."
        )
    if len(task.text) > folder.config.type_vocab_size:
        raise UserError(
            f"{folder.path}: the model has {folder.config.type_vocab_size} segment, and the task "
            f"{task.name} has pairs of texts: name a model with type_vocab_size 2."
        )


def keep_layers(folder, wanted):
    """`folder` with `wanted` evenly spaced layers of its encoder, ending with the last: 3 of 6 -> layers 2,
    4, 6.
    """
    layers = folder.config.num_hidden_layers
    if wanted > layers:
        raise UserError(
            f"--student_layers {wanted}: {folder.path} has {layers} layers: ask for at most as many."
        )
    arrays = {name: array for name, array in folder.arrays.items() if not name.startswith(LAYERS)}
    for new, old in enumerate(evenly_spaced_layers(wanted, layers)):
        prefix = f"{LAYERS}{old - 1}."
        arrays.update(
            {
                f"{LAYERS}{new}.{name[len(prefix) :]}": array
                for name, array in folder.arrays.items()
                if name.startswith(prefix)
            }
        )
    config = BertConfig.from_dict({**folder.config.to_dict(), "num_hidden_layers": wanted})
    return folder._replace(config=config, arrays=arrays)


def load_weights(model, folder, log=None, allow_missing=HEADS, task=None):
    """Puts the arrays of `folder` into `model` and says of every weight whether it is loaded, new or left
    over.

    Args:
        model: an initialised module; weights that the folder lacks keep their values.
        log: takes the lines of the report.
        allow_missing: prefixes of the weights that the folder may lack: all heads for a model to train, none
            of one that is resumed.
        task: of a model to train: heads of another shape or another task count as new. None: they are an
            error.
    Raises:
        UserError: another shape, a weight that the folder should have and lacks, or one of the encoder too
            many.
    """
    parameters = dict(model.named_parameters())
    others = other_heads(folder, parameters, task) if task else {}
    arrays = {name: array for name, array in folder.arrays.items() if name not in others}
    left_over = sorted({*folder.arrays, *folder.left_over} - set(parameters))
    too_many = [name for name in left_over if name.startswith(LAYERS) and name in folder.arrays]
    if too_many:
        raise UserError(
            f"{folder.path}: it holds {len(too_many)} encoder weights that its config.json does not "
            f"describe, {too_many[0]} first: mend num_hidden_layers there, or take another copy of the "
            "model."
        )
    missing = [name for name in parameters if name not in arrays]
    needed = [name for name in missing if not name.startswith(allow_missing)]
    if needed:
        raise UserError(
            f"{folder.path}: {len(needed)} weights of this model are missing, {needed[0]} first: "
            "expected the weights that its config.json describes."
        )
    for name, parameter in parameters.items():
        if name in arrays:
            if arrays[name].shape != tuple(parameter.shape):
                raise UserError(
                    f"{folder.path}: {name} has the shape {arrays[name].shape}, this model needs "
                    f"{tuple(parameter.shape)}: it is a model of another architecture or task."
                )
            parameter.data.copy_(flow.tensor(np.ascontiguousarray(arrays[name])))
    if log:
        log(
            f"weights from {folder.path}: {len(parameters) - len(missing)} loaded, {len(missing)} "
            f"new{_listed(missing)}, {len(left_over)} left over{_listed(left_over)}"
        )
        for reason in sorted(set(others.values())):
            log(
                f"new though the folder has one: {', '.join(n for n in others if others[n] == reason)} "
                f"({reason})"
            )
        if folder.widened:
            log(f"{folder.widened} bfloat16 weights widened to float32")


def other_heads(folder, parameters, task):
    """{name: why} of the heads in a folder that are not for this task: of another shape, or trained for
    another task.
    """
    same, problem, found = is_same_task(folder, task), read_problem(folder.path), {}
    for name, array in folder.arrays.items():
        if name in parameters and name.startswith(HEADS[:-1]):  # the pooler is no task's
            shape = tuple(parameters[name].shape)
            if array.shape != shape:
                found[name] = f"there of the shape {array.shape}, here {shape}"
            elif problem:
                found[name] = OTHER_KINDS[problem]
            elif not same:
                found[name] = "of another task"
    return found


def read_problem(path):
    """The `other_problem` that the config.json in a folder tells of; None: one class per text, or no such
    file.
    """
    path = pathlib.Path(path, "config.json")
    return other_problem(read_json(path, "the architecture of a BERT model")) if path.is_file() else None


def not_trained_here(path):
    """Words for a sentence about the plain model in a folder, and why it could not be trained here, where
    that is so.
    """
    problem = read_problem(path)
    why = f" and whose config.json is for {problem} ({OTHER_KINDS[problem]})" if problem else ""
    return f"a model that was not trained here{why}"


def is_same_task(folder, task):
    """Whether a folder's heads are for the labels and domains of `task`; in a plain one, for its labels."""
    if folder.meta is not None:
        return (tuple(folder.meta["labels"]), tuple(folder.meta["domains"])) == (task.labels, task.domains)
    labels = read_json(folder.path / "config.json", "the architecture of a BERT model").get("id2label")
    return isinstance(labels, dict) and labels == {
        str(number): name for number, name in enumerate(task.labels)
    }


def _listed(names):
    return f" ({', '.join(name if name.isprintable() else repr(name) for name in names)})" if names else ""


def teacher_meta(meta, task, path):
    """`meta` of the snapshot at `path`, after a check that it is a teacher of this task.

    Raises:
        UserError: a plain model, a student, or a teacher of another task.
    """
    if (meta or {}).get("kind") != "teacher":
        raise UserError(
            f"{path}: it holds {'a ' + meta['kind'][:60] if meta else not_trained_here(path)}, "
            "expected a meta-teacher: name a snapshot of meta_teacher.py."
        )
    check_task(meta, task, path)
    check_meta(meta, TEACHER_TYPES, path)
    if not {*meta["seen_domains"]} <= {*range(len(task.domains))} or not meta["seen_domains"]:
        raise UserError(
            f"{path}: it was trained on the domains {meta['seen_domains']!r:.60}, of the "
            f"{len(task.domains)} that there are: take another snapshot."
        )
    return meta


def check_task(meta, task, path):
    """Raises a UserError where `meta` of the snapshot at `path` tells of other labels or domains than the
    task has.
    """
    for key in ("labels", "domains"):
        if tuple(meta[key]) != getattr(task, key):
            raise UserError(
                f"{path}: its {key} are {', '.join(meta[key])}, the task {task.name} has "
                f"{', '.join(getattr(task, key))}: name a snapshot of this task."
            )


# --------------------------------------------------------------------------------------- writing


def save_snapshot(path, model, tokenizer, meta, left_out=(), optimizer=None, card=None):
    """Writes a snapshot folder, whole or not at all.

    Args:
        path: the folder; one of that name is replaced.
        model: a DomainClassifier.
        tokenizer: the FullTokenizer that the model was trained with.
        meta: the content of meta.json; "task", "labels" and "domains" are needed, and "seq_length" of one
            that serves.
        left_out: prefixes of weights that are not written, as a student's distillation heads.
        optimizer: {name: array}, its state, for snapshot_last.
        card: the text of README.md, for a best snapshot.
    """
    arrays = {
        name: parameter.numpy()
        for name, parameter in model.named_parameters()
        if not name.startswith(tuple(left_out))
    }
    labels = dict(enumerate(meta["labels"]))
    kind = (
        "BertForSequenceClassification" if hasattr(model, "classifier") else "BertModel"
    )  # transformers knows no head per domain
    config = {
        **model.bert.config.to_dict(),
        "architectures": [kind],
        "id2label": {str(i): name for i, name in labels.items()},
        "label2id": {name: i for i, name in labels.items()},
    }
    with atomic_folder(path) as folder:
        write_json(folder / "config.json", config)
        save_arrays(arrays, folder / "model.safetensors")
        positions = model.bert.config.max_position_embeddings
        save_tokenizer_files(folder, tokenizer, meta.get("seq_length", positions))
        write_json(folder / "meta.json", meta)
        if card is not None:
            with atomic_file(folder / "README.md", "w") as file:
                file.write(card)
        if optimizer is not None:
            save_arrays(optimizer, folder / "optimizer.safetensors")
        written = {file.name for file in folder.iterdir()}
        write_json(
            folder / "manifest.json",
            {"format": FORMAT, "sha256": {name: sha256(folder / name) for name in sorted(CHECKED & written)}},
        )


def save_arrays(arrays, path):
    """A safetensors file as transformers reads it, with the permissions of any other new file (the library's
    are the owner's alone).
    """
    path.touch()
    mode = path.stat().st_mode
    try:
        save_file(arrays, path, metadata={"format": "pt"})
    except safetensors.SafetensorError as error:  # a full disk, for one
        raise UserError(f"{path}: it cannot be written ({error}).") from None
    path.chmod(mode)


def read_optimizer(path):
    """The optimizer's state of a snapshot_last, {name: array}, its hash already checked by `read_model`."""
    if (
        "optimizer.safetensors"
        not in read_json(pathlib.Path(path, "manifest.json"), "the manifest of the snapshot")["sha256"]
    ):
        raise UserError(
            f"--resume_from {path}: optimizer.safetensors is missing; name the snapshot_last of a run."
        )
    arrays = load_arrays(pathlib.Path(path, "optimizer.safetensors"))
    for name, array in arrays.items():
        if (
            array.dtype != np.float32
            or not np.isfinite(array).all()
            or name.startswith("exp_avg_sq.")
            and (array < 0).any()
        ):
            raise UserError(
                f"{pathlib.Path(path, 'optimizer.safetensors')}: {name!r:.80} holds values that no "
                "optimizer has: resume from another snapshot_last, or start a new run."
            )
    return arrays
