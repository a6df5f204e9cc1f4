"""The snapshots of a training run: snapshot_last, from which it is resumed, and the best on dev."""

import json
import re
import shlex
import sys
from typing import NamedTuple

from data.store.files import remove_folder
from data.store.manifest import is_count
from modeling.cpu.encoder import SHARD_TOKENS
from modeling.distributed.collective import barrier
from modeling.snapshots.best import best_snapshot_path, is_snapshot_name, name_best
from modeling.snapshots.folder import read_model
from modeling.snapshots.saving import save_snapshot
from util import UserError, get_rank, get_world_size

# Of these flags the content counts, not the path:
COMPARED_BY_CONTENT = {
    "data_dir",
    "ofrecord_dir",
    "vocab_file",
    "do_lower_case",
    "model_load_dir",
    "student_model",
    "teacher_model",
    "knowledge_dir",
    "unlabelled_file",
}
# These may differ when a run is resumed:
CHANGEABLE = {
    "eval_batch_size_per_device",
    "save_every_step_num",
    "save_total_limit",
    "log_every_step_num",
    "device",
    "calibrate",
    "card_base_model",
    "card_license",
    "card_language",
    "encoder",
}
# These are of one call, not of the run:
PER_CALL = {
    "resume",
    "resume_from",
    "model_save_dir",
    "resave_ofrecord",
    "cpu_threads",
    "cpu_processes",
    "gpu_num_per_node",
    "num_nodes",
    "node_rank",
    "master_addr",
    "master_port",
    "network_timeout",
    "config",
    "log_dir",
    "do_predict",
    "predict_file",
    "predict_format",
    "text_column",
    "min_confidence",
    "output_file",
    "changed",
    "defaults",
}
# Keys of the meta.json of a snapshot_last:
PROGRESS_TYPES = {"flags": "an object", "best": "an object or null", "runners_up": "a list"}
# What a run must find again, in words for a sentence:
FACTS = {
    "content_sha256": "other training texts",
    "dev_sha256": "other dev texts",
    "teacher_sha256": "another teacher",
    "knowledge": "knowledge of other layers, heads or precision",
    "scores": "other prototype scores",
    "unlabelled_sha256": "other unlabelled texts",
    "base": "another base model in its card",
    "ranks": "another number of ranks",
    "shard_tokens": "batches in shards of another size",
}
# Facts that the snapshots of earlier versions do not have:
ABSENT_IN_OLD = {
    "truncate",
    "dev_sha256",
    "knowledge",
    "base",
    "shard_tokens",
}
END = ", since the learning rate has to fall to 0 at its end"


class SnapshotOptions(NamedTuple):
    """What decides on the snapshots of a run.

    flags: {name: value} of all flags; those that are part of the run are kept in meta.json.
    defaults: {name: value}, of flags that the run to be resumed may be older than.
    save_total_limit: how many best snapshots are kept; select_by: the figure on dev that says which.
    devices: how many there are in all.
    """

    flags: dict
    defaults: dict
    save_total_limit: int
    select_by: str
    devices: int


class Snapshots:
    """The snapshots of a run: `snapshot_last`, and `snapshot_best_<kind>_model_<task>_dev_<accuracy>`, one
    or --save_total_limit of them, the best named in best.json.

    Args:
        run, kind: a Run with a folder; "mft" or "student".
        model, tokenizer: what is saved.
        meta: facts for meta.json: task, labels, domains, and the like.
        options: SnapshotOptions; a resumed run must have the same flags.
        left_out: prefixes of the weights that the best snapshot does without.
        card: takes the content of a best snapshot's meta.json to the text of its README.md;
            None: it has none.
    """

    def __init__(self, run, kind, model, tokenizer, meta, options, left_out=(), card=None):
        self.run, self.kind, self.model, self.tokenizer = run, kind, model, tokenizer
        self.left_out, self.card = left_out, card
        sharing = {"ranks": get_world_size(), "devices": options.devices, "shard_tokens": SHARD_TOKENS}
        self.meta, self.step = {**meta, **sharing, "flags": flags_of_run(options.flags)}, 0
        self.limit, self.select_by = options.save_total_limit, options.select_by
        self.defaults = options.defaults
        self.kept = []  # the best first

    @property
    def best(self):
        """Name, step, accuracy and --select_by's figure of the best snapshot so far, or None."""
        return self.kept[0] if self.kept else None

    def resume(self, folder):
        """Goes on where the snapshot_last in `folder`, a ModelFolder, stood, and says which CHANGEABLE flags
        differ. A flag that is younger than the run had its default there.

        Raises:
            UserError: a flag, the data or the number of ranks would make it another run; the sentence has
                the old and the new value.
        """
        meta, path = folder.meta, folder.path
        ours = json.loads(json.dumps(self.meta))  # as meta.json gives it back: lists for tuples
        new = ours["flags"]
        old = {**{name: self.defaults[name] for name in new if name in self.defaults}, **meta["flags"]}
        differ = [name for name in sorted({*old, *new}) if old.get(name) != new.get(name)]
        for name in differ:
            if name not in CHANGEABLE:
                raise UserError(
                    f"--resume_from {path}: that run had --{name} {old.get(name)}, this one has "
                    f"{new.get(name)}, and would end "
                    f"elsewhere{END if name in ('num_epochs', 'max_steps') else ''}: give the same flags, "
                    "or start a new run."
                )
        for key, value in ours.items():
            differs = not is_same_fact(key, meta.get(key), value)
            if differs and key != "flags" and (key in meta or key not in ABSENT_IN_OLD):
                was, now = (json.dumps(each, ensure_ascii=False)[:120] for each in (meta.get(key), value))
                raise UserError(
                    f"{path}: that run had {FACTS.get(key, 'another')} ({key} {was}, now {now}): bring back "
                    "what it had, or start a new run."
                )
        if differ:
            self.run.log(
                "resumed with other flags: "
                + ", ".join(f"--{name} {new.get(name)} instead of {old.get(name)}" for name in differ)
            )
        self.step, self.kept = meta["step"], list_best_snapshots(meta)
        self.run.forget_after(self.step)

    def resume_command(self):
        """The command line that goes on with this run."""
        words, kept = iter(sys.argv), []
        for word in words:
            if word in ("--model_save_dir", "--resume_from"):
                next(words, None)
            elif word != "--resume" and not word.startswith(("--model_save_dir=", "--resume_from=")):
                kept.append(word)
        return shlex.join(["python3", *kept, "--resume_from", str(self.run.folder / "snapshot_last")])

    def save_best(self, step, metrics):
        """Saves the model where its figure on dev, by --select_by, is among the best so far.

        Of several with the same accuracy, and so the same name, the best is kept, the first of those that
        are equal.
        """
        accuracy, figure = metrics["accuracy"], self.select_by
        prefix = f"snapshot_best_{self.kind}_model_{self.meta['task']}_dev_"
        name = f"{prefix}{accuracy!r}"
        found = {"snapshot": name, "step": step, "accuracy": accuracy, figure: metrics[figure]}
        others = [each for each in self.kept if each["snapshot"] != name]
        namesakes = [each for each in self.kept if each["snapshot"] == name]
        ranked = sorted([*others, found], key=lambda each: -each[figure])[: self.limit]
        if found not in ranked or any(each[figure] >= found[figure] for each in namesakes):
            return
        self.kept = ranked
        if get_rank() == 0:
            meta = {**self.meta, "step": step, "dev": metrics}
            save_snapshot(
                self.run.folder / name,
                self.model,
                self.tokenizer,
                meta,
                self.left_out,
                card=self.card and self.card(meta),
            )
            name_best(self.run.folder, self.best)
            ours = re.compile(rf"{re.escape(prefix)}[0-9.e-]+")  # a copy with another name stays
            kept = {each["snapshot"] for each in self.kept}
            for other in list(self.run.folder.iterdir()):
                if ours.fullmatch(other.name) and other.name not in kept and not other.is_symlink():
                    remove_folder(other)
        barrier()

    def save_last(self, step, optimizer):
        """Saves model, optimizer and progress, all that a resumed run needs."""
        if get_rank() == 0:
            progress = {"step": step, "best": self.best, "runners_up": self.kept[1:]}
            save_snapshot(
                self.run.folder / "snapshot_last",
                self.model,
                self.tokenizer,
                {**self.meta, **progress},
                optimizer=optimizer.moments(),
            )
        barrier()

    def name_last(self, step):
        """Without an evaluation on dev the last snapshot counts as the best."""
        if get_rank() == 0:
            name_best(self.run.folder, {"snapshot": "snapshot_last", "step": step})
        barrier()


def is_same_fact(key, was, now):
    """Whether a fact of meta.json is what it was. Snapshots of earlier versions do not tell the precision of
    the knowledge: there it is not compared.
    """
    if key == "knowledge" and isinstance(was, dict) and "vectors" not in was:
        now = {name: value for name, value in now.items() if name != "vectors"}
    return was == now


def list_best_snapshots(meta):
    """The best snapshots that the meta.json of a snapshot_last tells of, the best first."""
    return [meta["best"], *meta.get("runners_up", [])] if meta["best"] is not None else []


def flags_of_run(flags: dict) -> dict:
    """Those of the flags {name: value} that are part of the run, by name; paths are not."""
    return {
        name: value for name, value in sorted(flags.items()) if name not in COMPARED_BY_CONTENT | PER_CALL
    }


def best_snapshot(run):
    """The ModelFolder of the best snapshot of a run, which rank 0 has written; None in the other ranks, whose
    machines may have a disk of their own.
    """
    return read_model(best_snapshot_path(run.folder)) if get_rank() == 0 else None


def is_best_entry(value, select_by):
    """Whether a value of meta.json tells of a best snapshot, by the figure `select_by`."""
    return (
        isinstance(value, dict)
        and value.keys() == {"snapshot", "step", "accuracy", select_by}
        and is_snapshot_name(value["snapshot"])
        and is_count(value["step"])
        and all(
            type(value[name]) in (int, float) and 0 <= value[name] <= 1 for name in ("accuracy", select_by)
        )
    )
