"""Stage 3: meta-teacher snapshot + OFRecord files -> the teacher's knowledge of every training example, as OFRecord files.

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

import itertools

import numpy as np

from data.selection import (
    chosen_blocks,
    examples_facts,
    open_records,
    records_folder,
    records_line,
    select,
)
from data.store.files import LOCK
from data.store.knowledge import PREFIX, Knowledge, knowledge_folder
from data.store.knowledge_format import check_space, expected_sizes
from data.store.knowledge_writer import KnowledgeWriter
from data.store.manifest import check_replaceable
from data.store.parts import windows
from data.tasks import load_task
from data.unlabelled import unlabelled_examples
from modeling.cpu.encoder import choose_encoder
from modeling.distributed.collective import barrier, main_rank_first, share_over_ranks
from modeling.distributed.launch import launch_ranks
from modeling.inference import DomainTable, infer, select_device
from modeling.meta_kd.classifier import build_teacher, class_head_kind, evenly_spaced_layers
from modeling.snapshots.folder import check_fits_model, load_weights, read_model, teacher_meta
from modeling.training.run import Run, version_and_flag_lines
from tokenization import describe_tokenizer, tokenizer_for
from util import UserError, entry, get_rank


@entry
def main():
    args = config.parse(__doc__, *FLAGS)
    launch_ranks(args)

    # ------------ data
    run = Run()
    run.log("\n".join(version_and_flag_lines(args)))
    task = load_task(args.task_name, args.data_dir)
    folder = read_model(config.require_flag(args, "model_load_dir"))
    meta = teacher_meta(folder.meta, task, folder.path)
    tokenizer = tokenizer_for(folder.path, args.vocab_file, args.do_lower_case, args.truncate)
    check_fits_model(folder, task, args.seq_length, tokenizer)
    with main_rank_first():
        records = open_records(args, task, tokenizer, "train")
    run.log("\n".join([describe_tokenizer(tokenizer), records_line(records)]))
    if meta.get("content_sha256") != records.content_sha256:
        run.log(
            "note: the teacher was trained on other texts than these, and may have seen some that stand in dev or test now"
        )
    rows = select(records.domain, records.label, task, args)
    more, more_sha256 = (
        unlabelled_examples(args, task, tokenizer, len(records)) if args.unlabelled_file else (None, None)
    )

    def blocks():
        return itertools.chain(chosen_blocks(records, rows), [more] if more else [])

    # ------------ what to write, where, and whether it is there already
    layers, facts = knowledge_facts(args, folder, meta, records, rows)
    facts, count = {**facts, "unlabelled_sha256": more_sha256}, len(rows) + (len(more) if more else 0)
    target = knowledge_folder(records_folder(args), folder.sha256, knowledge_dir(args))
    writer = KnowledgeWriter(target, facts, {"eval_batch_size": args.eval_batch_size_per_device})
    run.hold(target.parent, f".{target.name}{LOCK}")
    if is_there(target, facts):
        if get_rank() == 0:
            writer.discard()
        run.log(f"{target} holds the knowledge of this teacher already: nothing to do")
        return
    lengths = np.concatenate([block.lengths for block in blocks()])
    sizes = expected_sizes(
        lengths,
        len(layers),
        len(task.labels),
        folder.config.hidden_size,
        None if args.attention_heads == "mean" else folder.config.num_attention_heads,
        args.hidden_states,
        args.knowledge_vectors,
    )
    size, kinds = (
        sum(sizes.values()),
        ", ".join(f"{kind} {each / 1e6:.0f} MB" for kind, each in sizes.items()),
    )
    check_replaceable(target, PREFIX, "--knowledge_dir")
    run.log(f"{target} will take {size / 1e6:.0f} MB, {size / count / 1000:.0f} kB an example: {kinds}")
    check_space(target, size)

    # ------------ the teacher
    device = select_device(args.device)
    make_encoder = choose_encoder(args.encoder, device, args.cpu_threads)
    model = build_teacher(folder.config, task, meta["domain_head"], class_head_kind(folder), make_encoder)
    load_weights(model, folder, run.log, allow_missing=())
    model.to(device)

    # ------------ knowledge, part by part; the ranks take turns
    domains = DomainTable(len(task.domains), tuple(meta["seen_domains"]))
    if get_rank() == 0:
        writer.begin()
    barrier()

    def answer(model, batch):
        return teacher_knowledge(model, batch, layers, args.attention_heads, args.hidden_states)

    def write(number, window):
        run.check_held()
        if not writer.has(number):
            writer.write(
                number, infer(model, window, args.eval_batch_size_per_device, domains, device, answer)
            )

    parts = share_over_ranks(windows(blocks(), count), count, write, "knowledge")
    if get_rank() == 0:
        run.check_held()
        writer.finish(parts)
        run.log(f"{target}: the knowledge of {count} examples is written")


def teacher_knowledge(model, batch, layers, attention_heads, hidden_states):
    """What the teacher knows of each example of a batch, a list of B dicts of arrays.

    idxs; logits [M]; representation [H], the pooled [CLS] output; domain_feature [H], zeros of a teacher without it; attention [L, n, n] or
    [L, A, n, n], Q K^T / sqrt(d) of the n real tokens before the softmax; hidden [L, n, H] where asked for.
    """
    answers = model(
        batch,
        scores_of=layers,
        hidden_of=layers if hidden_states else (),
        mean_over_heads=attention_heads == "mean",
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


def knowledge_facts(args, folder, meta, records, rows):
    """The teacher layers to store, and what the manifest says of the knowledge."""
    L = folder.config.num_hidden_layers
    default = evenly_spaced_layers(min(3, L), L)
    layers = default if args.knowledge_layers is None else args.knowledge_layers
    if args.hidden_states and not layers:
        raise UserError("--knowledge_layers none: there are no layers whose --hidden_states could be stored.")
    if max(layers, default=0) > L:
        raise UserError(
            f"--knowledge_layers {','.join(map(str, layers))}: the teacher {folder.path} has {L} layers."
        )
    heads = "mean" if args.attention_heads == "mean" else folder.config.num_attention_heads
    return layers, {
        "teacher_sha256": folder.sha256,
        "content_sha256": records.content_sha256,
        **examples_facts(rows),
        "layers": list(layers),
        "teacher_layers": L,
        "width": folder.config.hidden_size,
        "attention_heads": heads,
        "precision": "float16",
        "hidden_states": args.hidden_states,
        "domain_feature": meta["domain_head"],
        "vectors": args.knowledge_vectors,
    }


def knowledge_dir(args):
    """The one folder that --knowledge_dir names here, or None."""
    if args.knowledge_dir and len(args.knowledge_dir) > 1:
        raise UserError(
            f"--knowledge_dir: found {len(args.knowledge_dir)} folders, expected one: this stage runs one teacher."
        )
    return args.knowledge_dir[0] if args.knowledge_dir else None


def is_there(target, facts):
    """True where `target` holds whole knowledge of the same facts."""
    try:
        Knowledge(target).require(**facts)
    except UserError:
        return False
    return True


if __name__ == "__main__":
    main()
