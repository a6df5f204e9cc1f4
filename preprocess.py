"""Stage 1: TSV files -> OFRecord files with a prototype score for every example.

The score says how typical an example is of its class, in its own domain and in the others; the meta-teacher weights its
examples by it.
"""

import config  # isort: skip  (first: it says what is not installed)

import itertools

import numpy as np

from data.parts import PartsFolder, windows
from data.records import with_scores
from data.selection import columns, examples_facts, open_records, records_folder, records_line, select
from data.tasks import SPLITS, load_task
from modeling.collective import barrier, by_turns, first_alone
from modeling.heads import DomainClassifier, text_embedding
from modeling.inference import DomainTable, device_of, infer
from modeling.prototypes import directions, prototype_score, prototypes
from modeling.ranks import spread
from modeling.report import leave_report
from modeling.scores_report import scores_page
from modeling.snapshot import check_fits_model, load_weights, read_model
from tokenization import tokenizer_for
from util import Run, UserError, entry, opening_lines, rank, remove_halves


@entry
def main():
    args = config.parse(__doc__, config.task, config.selection, config.model, config.device, config.inference, config.prototypes)
    spread(args)

    # ------------ data: TSV -> records
    run = Run()
    run.say("\n".join(opening_lines(args)))
    task = load_task(args.task_name, args.data_dir)
    folder = read_model(config.needed(args, "model_load_dir"))
    tokenizer = tokenizer_for(folder.path, args.vocab_file)
    check_fits_model(folder, task, args.seq_length, tokenizer)
    run.hold(records_folder(args))
    with first_alone():
        if rank() == 0:
            remove_halves(records_folder(args))
        records = {split: open_records(args, task, tokenizer, split, scored=False) for split in SPLITS}
    run.say("\n".join(map(records_line, records.values())))
    domain, label = columns(records["train"])
    rows = select(domain, label, task, args)
    facts = {"encoder_sha256": folder.sha256, "alpha": args.alpha, **examples_facts(rows)}
    plan = {**facts, "content_sha256": [records[split].content_sha256 for split in SPLITS], "eval_batch_size": args.eval_batch_size_per_device}
    parts = PartsFolder(records_folder(args) / ".embeddings", "embeddings", plan)
    if all(records[split].scores == facts for split in SPLITS):
        if rank() == 0:
            parts.discard()
        run.say("these records and their scores are there already: nothing to do")
        return

    # ------------ model: the encoder as it was pre-trained
    model, device = DomainClassifier(folder.config, len(task.labels), len(task.domains)), device_of(args.device)
    load_weights(model, folder, run.say)
    model.to(device)

    # ------------ embeddings of every text, part by part; the ranks take turns
    if rank() == 0:
        parts.begin()
    barrier()
    table = DomainTable(len(task.domains), tuple(range(len(task.domains))))

    def embed(number, window):
        if parts.get(number) is None:
            parts.put(number, np.stack(infer(model, window, args.eval_batch_size_per_device, table, device, embeddings)).tobytes())

    blocks = itertools.chain.from_iterable(records[split].blocks() for split in SPLITS)
    count = by_turns(windows(blocks), sum(map(len, records.values())), embed, "embeddings")
    if rank() > 0:
        return

    # ------------ prototypes of the training examples chosen; scores
    H = folder.config.hidden_size
    axes = class_directions(stored_vectors(parts, count, H), domain, label, rows, task)
    vectors = stored_vectors(parts, count, H)
    scores = {split: [prototype_score(v, k, y, axes, args.alpha) for k, y, v in zip(*columns(records[split]), vectors)] for split in SPLITS}
    leave_report(run, records_folder(args) / "report.html", scores_page, task, domain, label, scores["train"], args.alpha,
                 rows, stored_vectors(parts, count, H), axes)
    for split, values in scores.items():
        with_scores(records[split], values, facts)
        run.say(f"{split}: {len(values)} scores, mean {np.mean(values):.4f}, from {min(values):.4f} to {max(values):.4f}")
    parts.remove()


def embeddings(model, batch):
    """f(x) of each example of a batch: a list of B float32 arrays [H]."""
    hidden = model.bert(batch.input_ids, batch.input_mask, batch.segment_ids).hidden[-1]
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
            raise UserError(f"{parts.folder}: part {number} is missing or was changed meanwhile: run preprocess.py again.")
        yield from np.frombuffer(part[0], np.float32).reshape(-1, H)


if __name__ == "__main__":
    main()
