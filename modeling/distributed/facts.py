"""What has to be the same on all machines of a run: flags, code, packages and the content of files."""

import hashlib
import importlib.metadata
import pathlib
import platform

from data.selection import records_folder
from modeling.snapshots.best import find_snapshot
from modeling.snapshots.weights import WEIGHTS
from util import sha256

ROOT = pathlib.Path(__file__).resolve().parents[2]
MACHINE_PATHS = {"data_dir", "ofrecord_dir", "vocab_file", "model_load_dir", "student_model", "teacher_model"}
MACHINE_PATHS |= {"knowledge_dir", "unlabelled_file", "model_save_dir", "resume_from", "config", "log_dir"}
# A machine may have these for itself, and of paths the content counts; the last two are not flags.
OWN = {"node_rank", "master_addr", "network_timeout", "cpu_threads", "resave_ofrecord", "resume"}
OWN |= {"changed", "defaults"}
# Of a model's folder: what says what it is, how texts are split for it, and its weights, whole or in shards.
MODEL = ("config.json", "meta.json", "vocab.txt", "tokenizer.json", "tokenizer_config.json")
MODEL += ("added_tokens.json", "special_tokens_map.json", WEIGHTS, f"{WEIGHTS}.index.json")
MODEL_FLAGS = ("model_load_dir", "student_model", "teacher_model")  # a run folder is its best snapshot
CONTENT = {  # of the folder that a flag names, the files that count
    "data_dir": ("task.json", "train.tsv", "dev.tsv", "test.tsv"),
    **{flag: MODEL for flag in MODEL_FLAGS},
    "resume_from": ("manifest.json", "meta.json"),
    "knowledge_dir": ("manifest.json",),
}


def machine_facts(flags: dict, local_ranks: int) -> dict:
    """{what: value as text} of this machine, for a comparison.

    Args:
        flags: {name: value} of a script.
        local_ranks: how many ranks this machine takes part with.
    """
    alike = {f"--{name}": str(value) for name, value in flags.items() if name not in OWN | MACHINE_PATHS}
    versions = {name: importlib.metadata.version(name) for name in ("oneflow", "numpy")}
    return {
        **alike,
        **versions,
        "Python": platform.python_version(),
        "ranks on a machine": str(local_ranks),
        "the code of this suite": _code_hash(),
        **_file_facts(flags),
    }


def _code_hash():
    digest = hashlib.sha256()
    for folder in ("", "data", "modeling", "scripts"):
        pattern = "*.py" if folder in ("", "scripts") else "**/*.py"
        for path in sorted(ROOT.joinpath(folder).glob(pattern)):
            digest.update(str(path.relative_to(ROOT)).encode() + path.read_bytes())
    return f"SHA-256 {digest.hexdigest()[:12]}..."


def _file_facts(flags):
    """A hash of each file that the flags lead to; "nothing" for one that is not there."""
    facts = {}
    for flag, names in CONTENT.items():
        value = flags.get(flag)
        folders = value if isinstance(value, list) else [value] if value else []
        folders = [find_snapshot(folder) if flag in MODEL_FLAGS else folder for folder in folders]
        for name in names if folders else ():
            hashes = [_hash(pathlib.Path(folder, name)) for folder in folders]
            facts[f"{name} of --{flag}"] = ", ".join(hashes)
        if folders and flag in MODEL_FLAGS:
            facts[f"the shards of --{flag}"] = ", ".join(map(_shards_hash, folders))
    for flag in ("vocab_file", "unlabelled_file"):
        if flags.get(flag):
            facts[f"the file of --{flag}"] = _hash(pathlib.Path(flags[flag]))
    if flags.get("data_dir"):
        records = records_folder(flags["data_dir"], flags["ofrecord_dir"])
        for path in sorted(records.glob("[!.]*/manifest.json")):
            facts[f"{path.parent.name}/manifest.json of the records"] = _hash(path)
    return facts


def _hash(path):
    return f"SHA-256 {sha256(path)[:12]}..." if path.is_file() else "nothing"


def _shards_hash(folder):
    """A hash over the shards of a model's weights; "nothing" where they are in one file."""
    shards = () if (folder / WEIGHTS).is_file() else sorted(folder.glob("*.safetensors"))
    digest = hashlib.sha256("".join(f"{path.name} {sha256(path)}\n" for path in shards).encode())
    return f"SHA-256 {digest.hexdigest()[:12]}..." if shards else "nothing"
