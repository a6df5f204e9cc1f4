"""Stage 1: TSV files -> OFRecord files with a prototype score for every example.

The score says how typical an example is of its class, in its own domain and in the others; the meta-teacher weights its
examples by it.
"""

import sys

if sys.flags.isolated:  # python3 -I: it has not put the folder of this script on the path
    sys.path.insert(0, __file__.rpartition("/")[0] or ".")

import config  # isort: skip  (first: it says what is not installed)

FLAGS = (config.task, config.selection, config.model, config.device, config.inference, config.prototypes)
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
from data.store.files import remove_partial_writes
from data.store.parts import PartsFolder, windows
from data.store.writing import with_scores
from data.tasks import SPLITS, load_task
from modeling.cpu.encoder import choose_encoder
from modeling.distributed.collective import barrier, main_rank_first, share_over_ranks
from modeling.distributed.launch import launch_ranks
from modeling.inference import DomainTable, infer, select_device
from modeling.meta_kd.classifier import DomainClassifier, text_embedding
from modeling.meta_kd.prototypes import directions, prototype_score, prototypes
from modeling.reports.prototype_report import scores_page
from modeling.reports.run_report import write_report
from modeling.snapshots.folder import check_fits_model, load_weights, read_model
from modeling.training.run import Run, version_and_flag_lines
from tokenization import describe_tokenizer, tokenizer_for
from util import UserError, entry, get_rank


@entry
def main():
    args = config.parse(__doc__, *FLAGS)
    launch_ranks(args)

    # ------------ data: TSV -> records
    run = Run()
    run.log("\n".join(version_and_flag_lines(args)))
    task = load_task(args.task_name, args.data_dir)
    folder = read_model(config.require_flag(args, "model_load_dir"))
    tokenizer = tokenizer_for(folder.path, args.vocab_file, args.do_lower_case, args.truncate)
    check_fits_model(folder, task, args.seq_length, tokenizer)
    run.hold(records_folder(args))
    check_report(records_folder(args))
    with main_rank_first():
        if get_rank() == 0:
            remove_partial_writes(records_folder(args))
        records = {split: open_records(args, task, tokenizer, split, scored=False) for split in SPLITS}
    run.log("\n".join([describe_tokenizer(tokenizer), *map(records_line, records.values())]))
    domain, label = records["train"].domain, records["train"].label
    rows = select(domain, label, task, args)
    facts = {"encoder_sha256": folder.sha256, "alpha": args.alpha, **examples_facts(rows)}
    plan = {
        **facts,
        "content_sha256": [records[split].content_sha256 for split in SPLITS],
        "eval_batch_size": args.eval_batch_size_per_device,
    }
    parts = PartsFolder(records_folder(args) / ".embeddings", "embeddings", plan)
    if all(records[split].scores == facts for split in SPLITS):
        if get_rank() == 0:
            parts.discard()
        run.log("these records and their scores are there already: nothing to do")
        return

    # ------------ model: the encoder as it was pre-trained
    device = select_device(args.device)
    make_encoder = choose_encoder(args.encoder, device, args.cpu_threads)
    model = DomainClassifier(folder.config, len(task.labels), len(task.domains), make_encoder=make_encoder)
    load_weights(model, folder, run.log, task=task)
    model.to(device)

    # ------------ embeddings of every text, part by part; the ranks take turns
    if get_rank() == 0:
        parts.begin()
    barrier()
    table = DomainTable(len(task.domains), tuple(range(len(task.domains))))

    def embed(number, window):
        run.check_held()
        if parts.get(number) is None:
            parts.put(
                number,
                np.stack(
                    infer(model, window, args.eval_batch_size_per_device, table, device, embeddings)
                ).tobytes(),
            )

    blocks = itertools.chain.from_iterable(
        chosen_blocks(records[split], np.arange(len(records[split]))) for split in SPLITS
    )
    total = sum(map(len, records.values()))
    count = share_over_ranks(windows(blocks, total), total, embed, "embeddings")
    if get_rank() > 0:
        return

    # ------------ prototypes of the training examples chosen; scores
    H = folder.config.hidden_size
    axes = class_directions(stored_vectors(parts, count, H), domain, label, rows, task)
    vectors = stored_vectors(parts, count, H)
    scores = {}
    for split in SPLITS:
        facts_of_each = zip(records[split].domain, records[split].label, vectors)
        scores[split] = [prototype_score(v, k, y, axes, args.alpha) for k, y, v in facts_of_each]
    write_report(
        run,
        records_folder(args) / "report.html",
        scores_page,
        task,
        domain,
        label,
        scores["train"],
        args.alpha,
        rows,
        stored_vectors(parts, count, H),
        axes,
    )
    for split, values in scores.items():
        run.check_held()
        with_scores(records[split], values, facts)
        run.log(
            f"{split}: {len(values)} scores, mean {np.mean(values):.4f}, from {min(values):.4f} to {max(values):.4f}"
        )
    parts.remove()


def check_report(folder):
    """Refuses a folder with a report.html beside which there are no records: it is not ours, and would be replaced."""
    if (folder / "report.html").exists() and not (folder / "train" / "manifest.json").exists():
        raise UserError(
            f"{folder / 'report.html'}: there are no records beside it, so stage 1 has not written it, and would replace it: "
            "move it away, or name another --ofrecord_dir."
        )


def embeddings(model, batch):
    """f(x) of each example of a batch: a list of B float32 arrays [H]."""
    hidden = model.bert(batch.input_ids, batch.input_mask, batch.segment_ids).last_hidden
    return list(text_embedding(hidden, batch.content_weights).numpy())


def class_directions(vectors, domain, label, rows, task):
    """The prototypes of the training examples at `rows`, of length 1, [K, M, H].

    Args:
        vectors: an iterable of f(x) of all of them, and more; domain, label: int [N].
    """
    chosen = np.isin(np.arange(len(domain)), rows)
    kept = ((v, k, y) for k, y, keep, v in zip(domain, label, chosen, vectors) if keep)
    return directions(prototypes(kept, len(task.domains), len(task.labels)))


def stored_vectors(parts, count, H):
    """Yields the float32 vectors [H] of `count` parts, one part in memory at a time."""
    for number in range(count):
        if (part := parts.get(number)) is None:
            raise UserError(
                f"{parts.folder}: part {number} is missing or was changed meanwhile: run preprocess.py again."
            )
        yield from np.frombuffer(part[0], np.float32).reshape(-1, H)


if __name__ == "__main__":
    main()
