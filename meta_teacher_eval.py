"""Stage 3: meta-teacher snapshot + OFRecord files -> the teacher's knowledge
of every training example, as OFRecord files.

The teacher runs once, in eval mode; no epoch of stage 4 runs it again.
"""

import sys

if sys.flags.isolated:  # python3 -I: it has not put the folder of this script on the path
    sys.path.insert(0, __file__.rpartition("/")[0] or ".")

import config  # isort: skip  (first: it says what is not installed)

FLAGS = (
    config.task,
    config.selection,
    config.model,
    config.device,
    config.inference,
    config.knowledge,
    config.extraction,
)
config.check_flags(__name__, __doc__, *FLAGS)  # before OneFlow is imported, which takes seconds

import functools
import itertools
from typing import NamedTuple, Optional

import numpy as np

from data.selection import (
    RecordsOptions,
    Selection,
    chosen_blocks,
    examples_facts,
    open_records,
    records_line,
    select,
)
from data.store.files import LOCK
from data.store.knowledge import PREFIX, Knowledge, knowledge_folder
from data.store.knowledge_format import check_space, expected_sizes
from data.store.knowledge_writer import KnowledgeWriter
from data.store.manifest import check_replaceable
from data.store.parts import windows
from data.store.records import Records
from data.tasks import load_task
from data.unlabelled import Unlabelled, unlabelled_examples
from modeling.cpu.encoder import choose_encoder
from modeling.distributed.collective import barrier, main_rank_first, share_over_ranks
from modeling.distributed.launch import launch_ranks
from modeling.inference import DomainTable, infer, select_device
from modeling.meta_kd.classifier import build_teacher, class_head_kind, evenly_spaced_layers
from modeling.snapshots.checks import check_fits_model, teacher_meta
from modeling.snapshots.folder import read_model
from modeling.snapshots.loading import load_weights
from modeling.training.run import Run, version_and_flag_lines
from tokenization import describe_tokenizer, tokenizer_for
from util import UserError, entry, get_rank


@entry
def main():
    args = config.parse(__doc__, *FLAGS)
    launch_ranks(args)

    # ------------ data
    run = Run()
    run.log("\n".join(version_and_flag_lines(args.changed)))
    task = load_task(args.task_name, args.data_dir)
    folder = read_model(config.require_flag(args, "model_load_dir"))
    meta = teacher_meta(folder.meta, task, folder.path)
    tokenizer = tokenizer_for(folder.path, args.vocab_file, args.do_lower_case, args.truncate)
    check_fits_model(folder, task, args.seq_length, tokenizer)
    where = config.options(RecordsOptions, args)
    with main_rank_first():
        records = open_records(where, task, tokenizer, "train")
    run.log("\n".join([describe_tokenizer(tokenizer), records_line(records)]))
    note_other_texts(run, meta, records)
    texts = choose_inputs(run, args, task, tokenizer, records)

    # ------------ what to write, where, and whether it is there already
    kept = config.options(KnowledgeOptions, args)
    layers = chosen_layers(kept, folder)
    facts = describe_knowledge(kept, layers, folder, meta, records, texts)
    target = knowledge_folder(where.folder, folder.sha256, one_folder(args.knowledge_dir))
    writer = KnowledgeWriter(target, facts, {"eval_batch_size": args.eval_batch_size_per_device})
    run.hold(target.parent, f".{target.name}{LOCK}")
    if is_there(target, facts):
        if get_rank() == 0:
            writer.discard()
        run.log(f"{target} holds the knowledge of this teacher already: nothing to do")
        return
    check_replaceable(target, PREFIX, "--knowledge_dir")
    check_room(run, target, texts, layers, kept, folder.config, len(task.labels))

    # ------------ the teacher
    device = select_device(args.device)
    make_encoder = choose_encoder(args.encoder, device, args.cpu_threads)
    model = build_teacher(folder.config, task, meta["domain_head"], class_head_kind(folder), make_encoder)
    load_weights(model, folder, run.log, allow_missing=())
    model.to(device)

    # ------------ knowledge, part by part; the ranks take turns
    domains = DomainTable(len(task.domains), tuple(meta["seen_domains"]))
    answer = functools.partial(
        teacher_knowledge, layers=layers, heads=kept.attention_heads, hidden_states=kept.hidden_states
    )

    def know(window):
        return infer(model, window, args.eval_batch_size_per_device, domains, device, answer)

    write_knowledge(run, writer, texts, know)
    run.log(f"{target}: the knowledge of {texts.count()} examples is written")


def write_knowledge(run, writer, texts, know):
    """Writes what `know` says of each window of the TeacherInputs `texts` with a KnowledgeWriter; the ranks
    take turns.
    """
    if get_rank() == 0:
        writer.begin()
    barrier()

    def write(number, window):
        run.check_held()
        if not writer.has(number):
            writer.write(number, know(window))

    parts = share_over_ranks(windows(texts.blocks(), texts.count()), texts.count(), write, "knowledge")
    if get_rank() == 0:
        run.check_held()
        writer.finish(parts)


class KnowledgeOptions(NamedTuple):
    """The flags of what is stored of the teacher's answers; knowledge_layers None: the default ones."""

    knowledge_layers: Optional[list]
    attention_heads: str
    hidden_states: bool
    knowledge_vectors: str


class TeacherInputs(NamedTuple):
    """What the teacher answers: training records, and unlabelled texts after them.

    rows: of the records that are chosen, rising; more: Unlabelled or None.
    """

    records: Records
    rows: np.ndarray
    more: Optional[Unlabelled]

    def count(self) -> int:
        return len(self.rows) + (len(self.more.examples) if self.more else 0)

    def blocks(self):
        """Yields Examples, those of one part of the records after the other."""
        more = [self.more.examples] if self.more else []
        return itertools.chain(chosen_blocks(self.records, self.rows), more)


def choose_inputs(run, args, task, tokenizer, records):
    """The TeacherInputs that the flags choose: training records, and the texts of --unlabelled_file, of which
    the log says how many there are.
    """
    selection, more = config.options(Selection, args), None
    if args.unlabelled_file:
        more = unlabelled_examples(
            args.unlabelled_file, args.seq_length, selection, task, tokenizer, len(records)
        )
        run.log(more.line)
    return TeacherInputs(records, select(records.domain, records.label, task, selection), more)


def note_other_texts(run, meta, records):
    """Says in the log where the teacher was trained on other texts than the records hold."""
    if meta.get("content_sha256") != records.content_sha256:
        run.log(
            "note: the teacher was trained on other texts than these, and may have seen some that stand in "
            "dev or test now"
        )


def check_room(run, target, texts, layers, kept, bert, labels):
    """Says in the log how much disk the knowledge will take, by kind. UserError where there is less.

    Args:
        kept: KnowledgeOptions; bert: the teacher's BertConfig; labels: how many classes there are.
    """
    heads = None if kept.attention_heads == "mean" else bert.num_attention_heads
    lengths = np.concatenate([block.lengths for block in texts.blocks()])
    sizes = expected_sizes(
        lengths,
        len(layers),
        labels,
        bert.hidden_size,
        heads,
        kept.hidden_states,
        kept.knowledge_vectors,
    )
    size = sum(sizes.values())
    kinds = ", ".join(f"{kind} {each / 1e6:.0f} MB" for kind, each in sizes.items())
    each = size / texts.count() / 1000
    run.log(f"{target} will take {size / 1e6:.0f} MB, {each:.0f} kB an example: {kinds}")
    check_space(target, size)


def teacher_knowledge(model, batch, layers, heads, hidden_states):
    """What the teacher knows of each example of a batch, a list of B dicts of arrays.

    idxs; logits [M]; representation [H], the pooled [CLS] output; domain_feature [H], zeros of a teacher
    without it; attention [L, n, n] or [L, A, n, n], Q K^T / sqrt(d) of the n real tokens before the
    softmax; hidden [L, n, H] where asked for.
    """
    answers = model(
        batch,
        scores_of=layers,
        hidden_of=layers if hidden_states else (),
        mean_over_heads=heads == "mean",
    )
    logits, pooled = answers.logits.numpy(), answers.encoder.pooled.numpy()
    feature = (
        model.domain_feature(answers.encoder, batch).numpy() if model.domain_head else np.zeros_like(pooled)
    )
    scores = [answers.encoder.scores[layer].numpy() for layer in layers]
    hidden = [answers.encoder.hidden[layer].numpy() for layer in layers] if hidden_states else []
    items = []
    for i, n in enumerate(batch.host.input_mask.sum(axis=1)):
        items.append(
            {
                "idxs": int(batch.host.idxs[i]),
                "logits": logits[i],
                "representation": pooled[i],
                "domain_feature": feature[i],
                "attention": np.stack([layer[i, ..., :n, :n] for layer in scores]) if layers else None,
                "hidden": np.stack([layer[i, :n] for layer in hidden]) if hidden_states else None,
            }
        )
    return items


def chosen_layers(kept, folder):
    """The teacher layers to store, counted from 1. UserError where the teacher has none of them."""
    L = folder.config.num_hidden_layers
    default = evenly_spaced_layers(min(3, L), L)
    layers = default if kept.knowledge_layers is None else kept.knowledge_layers
    if kept.hidden_states and not layers:
        raise UserError("--knowledge_layers none: there are no layers whose --hidden_states could be stored.")
    if max(layers, default=0) > L:
        raise UserError(
            f"--knowledge_layers {','.join(map(str, layers))}: the teacher {folder.path} has {L} layers."
        )
    return layers


def describe_knowledge(kept, layers, folder, meta, records, texts):
    """What the manifest says of the knowledge of a teacher, a ModelFolder with that `meta`."""
    return {
        "teacher_sha256": folder.sha256,
        "content_sha256": records.content_sha256,
        **examples_facts(texts.rows),
        "layers": list(layers),
        "teacher_layers": folder.config.num_hidden_layers,
        "width": folder.config.hidden_size,
        "attention_heads": "mean" if kept.attention_heads == "mean" else folder.config.num_attention_heads,
        "precision": "float16",
        "hidden_states": kept.hidden_states,
        "domain_feature": meta["domain_head"],
        "vectors": kept.knowledge_vectors,
        "unlabelled_sha256": texts.more.sha256 if texts.more else None,
    }


def one_folder(folders):
    """The one folder that --knowledge_dir names here, or None."""
    if folders and len(folders) > 1:
        raise UserError(
            f"--knowledge_dir: found {len(folders)} folders, expected one: this stage runs one teacher."
        )
    return folders[0] if folders else None


def is_there(target, facts):
    """True where `target` holds whole knowledge of the same facts."""
    try:
        Knowledge(target).require(**facts)
    except UserError:
        return False
    return True


if __name__ == "__main__":
    main()
