"""Stage 1: TSV files -> OFRecord files with a prototype score for every example.

The score says how typical an example is of its class, in its own domain and in the others; the meta-teacher
weights its examples by it.
"""

import sys

if sys.flags.isolated:  # python3 -I: it has not put the folder of this script on the path
    sys.path.insert(0, __file__.rpartition("/")[0] or ".")

import config  # isort: skip  (first: it says what is not installed)

FLAGS = (config.task, config.selection, config.model, config.device, config.inference, config.prototypes)
BLOCK = 1024  # examples that are scored at once
config.check_flags(__name__, __doc__, *FLAGS)  # before OneFlow is imported, which takes seconds

import functools
import itertools

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
from data.store.parts import PartsFolder, windows
from data.store.temporary import remove_partial_writes
from data.store.writing import with_scores
from data.tasks import SPLITS, load_task
from modeling.cpu.encoder import choose_encoder
from modeling.distributed.collective import barrier, main_rank_first, share_over_ranks
from modeling.distributed.launch import launch_ranks
from modeling.inference import DomainTable, infer, select_device
from modeling.meta_kd.classifier import DomainClassifier, text_embedding
from modeling.meta_kd.prototypes import directions, prototype_scores, prototypes
from modeling.reports.prototype_report import scores_page
from modeling.reports.run_report import write_report
from modeling.snapshots.checks import check_fits_model
from modeling.snapshots.folder import read_model
from modeling.snapshots.loading import load_weights
from modeling.training.run import Run, version_and_flag_lines
from tokenization import describe_tokenizer, tokenizer_for
from util import UserError, entry, get_rank


@entry
def main():
    args = config.parse(__doc__, *FLAGS)
    launch_ranks(args)

    # ------------ data: TSV -> records
    run = Run()
    run.log("\n".join(version_and_flag_lines(args.changed)))
    task = load_task(args.task_name, args.data_dir)
    folder = read_model(config.require_flag(args, "model_load_dir"))
    tokenizer = tokenizer_for(folder.path, args.vocab_file, args.do_lower_case, args.truncate)
    check_fits_model(folder, task, args.seq_length, tokenizer)
    where = config.options(RecordsOptions, args)
    run.hold(where.folder)
    check_report(where.folder)
    with main_rank_first():
        if get_rank() == 0:
            remove_partial_writes(where.folder)
        records = {split: open_records(where, task, tokenizer, split, scored=False) for split in SPLITS}
    run.log("\n".join([describe_tokenizer(tokenizer), *map(records_line, records.values())]))
    train = records["train"]
    rows = select(train.domain, train.label, task, config.options(Selection, args))
    facts = {"encoder_sha256": folder.sha256, "alpha": args.alpha, **examples_facts(rows)}
    plan = {
        **facts,
        "content_sha256": [each.content_sha256 for each in records.values()],
        "eval_batch_size": args.eval_batch_size_per_device,
    }
    parts = PartsFolder(where.folder / ".embeddings", "embeddings", plan)
    if all(each.scores == facts for each in records.values()):
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
    table = DomainTable(len(task.domains), tuple(range(len(task.domains))))

    def embed(window):
        return infer(model, window, args.eval_batch_size_per_device, table, device, embeddings)

    count = store_embeddings(run, parts, records.values(), embed)
    if get_rank() > 0:
        return

    # ------------ prototypes of the training examples chosen; scores
    read_vectors = functools.partial(stored_vectors, parts, count, folder.config.hidden_size)
    axes = class_directions(read_vectors(), train.domain, train.label, rows, task)
    scores = score_examples(records, read_vectors(), axes, args.alpha)
    page = scores_page, task, train.domain, train.label, scores["train"], args.alpha, rows
    write_report(run, where.folder / "report.html", *page, read_vectors(), axes)
    put_scores(run, records, scores, facts)
    parts.remove()


def store_embeddings(run, parts, records, embed):
    """Stores f(x) of every example of the Records, part by part, in the PartsFolder; the ranks take turns.

    Args:
        embed: takes a window of Examples to an iterable of their vectors.
    Returns:
        how many parts there are.
    """
    if get_rank() == 0:
        parts.begin()
    barrier()

    def store(number, window):
        run.check_held()
        if parts.get(number) is None:
            parts.put(number, np.stack(embed(window)).tobytes())

    blocks = itertools.chain.from_iterable(chosen_blocks(each, np.arange(len(each))) for each in records)
    total = sum(map(len, records))
    return share_over_ranks(windows(blocks, total), total, store, "embeddings")


def score_examples(records, vectors, axes, alpha):
    """{split: the prototype scores of its examples, float64 [N]}.

    Args:
        records: {split: Records}; vectors: f(x) of all of them, one split after the other.
        axes: of `class_directions`; alpha: how much the example's own domain counts.
    """
    scores, vectors = {}, iter(vectors)
    for split, each in records.items():
        scores[split] = np.empty(len(each))
        for start in range(0, len(each), BLOCK):
            block = slice(start, start + BLOCK)
            domain, label = each.domain[block], each.label[block]
            stacked = np.stack(list(itertools.islice(vectors, len(label))))
            scores[split][block] = prototype_scores(stacked, domain, label, axes, alpha)
    return scores


def put_scores(run, records, scores, facts):
    """Puts the scores, {split: [N]}, and what made them into the Records {split: Records}."""
    for split, values in scores.items():
        run.check_held()
        with_scores(records[split], values, facts)
        run.log(
            f"{split}: {len(values)} scores, mean {np.mean(values):.4f}, from {min(values):.4f} to "
            f"{max(values):.4f}"
        )


def check_report(folder):
    """Refuses a folder with a report.html beside which there are no records:
    it is not ours, and would be replaced.
    """
    if (folder / "report.html").exists() and not (folder / "train" / "manifest.json").exists():
        raise UserError(
            f"{folder / 'report.html'}: there are no records beside it, so stage 1 has not written it, and "
            "would replace it: move it away, or name another --ofrecord_dir."
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
