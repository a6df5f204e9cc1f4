"""Stage 1: TSV files -> OFRecord files with a prototype score for every example.

The score says how typical an example is of its class, in its own domain and in the others; the meta-teacher weights its
examples by it.
"""

import config  # isort: skip  (first: it says what is not installed)

import tempfile

import numpy as np

from data.records import with_scores
from data.selection import columns, examples_facts, open_records, records_folder, records_line, select
from data.tasks import SPLITS, load_task
from modeling.heads import DomainClassifier, text_embedding
from modeling.inference import DomainTable, device_of, infer
from modeling.prototypes import directions, prototype_score, prototypes
from modeling.snapshot import check_fits_model, load_weights, read_model
from tokenization import tokenizer_for
from util import Run, entry, opening_lines, progress


@entry
def main():
    args = config.parse(__doc__, config.task, config.selection, config.model, config.device, config.inference, config.prototypes)

    # ------------ data: TSV -> records
    run = Run()
    run.say("\n".join(opening_lines(args)))
    task = load_task(args.task_name, args.data_dir)
    folder = read_model(config.needed(args, "model_load_dir"))
    tokenizer = tokenizer_for(folder.path, args.vocab_file)
    check_fits_model(folder, task, args.seq_length, tokenizer)
    run.hold(records_folder(args))
    records = {split: open_records(args, task, tokenizer, split, scored=False) for split in SPLITS}
    run.say("\n".join(map(records_line, records.values())))
    domain, label = columns(records["train"])
    rows = select(domain, label, task, args)
    facts = {"encoder_sha256": folder.sha256, "alpha": args.alpha, **examples_facts(rows)}
    if all(records[split].scores == facts for split in SPLITS):
        run.say("these records and their scores are there already: nothing to do")
        return

    # ------------ model: the encoder as it was pre-trained
    model, device = DomainClassifier(folder.config, len(task.labels), len(task.domains)), device_of(args.device)
    load_weights(model, folder, run.say)
    model.to(device)

    # ------------ embeddings of every text, kept on disk; prototypes of the training examples chosen; scores
    with tempfile.TemporaryFile() as file:
        table = DomainTable(len(task.domains), tuple(range(len(task.domains))))
        total = sum(len(records[split]) for split in SPLITS)
        with progress(total=total, unit="example", desc="embeddings") as bar:
            for split in SPLITS:
                for vector in infer(model, records[split].blocks(), args.eval_batch_size_per_device, table, device, embeddings):
                    file.write(vector.tobytes())
                    bar.update()
        H = folder.config.hidden_size
        chosen = np.isin(np.arange(len(domain)), rows)
        pairs = zip(stored_vectors(file, 0, len(domain), H), domain, label, chosen)
        axes = directions(prototypes(((v, k, y) for v, k, y, keep in pairs if keep), len(task.domains), len(task.labels)))
        first = 0
        for split in SPLITS:
            domain, label = columns(records[split])
            vectors = stored_vectors(file, first, len(domain), H)
            scores = [prototype_score(v, k, y, axes, args.alpha) for v, k, y in zip(vectors, domain, label)]
            with_scores(records[split], scores, facts)
            run.say(f"{split}: {len(scores)} scores, mean {np.mean(scores):.4f}, from {min(scores):.4f} to {max(scores):.4f}")
            first += len(domain)


def embeddings(model, batch):
    """f(x) of each example of a batch: a list of B float32 arrays [H]."""
    hidden = model.bert(batch.input_ids, batch.input_mask, batch.segment_ids).hidden[-1]
    return list(text_embedding(hidden, batch.content_weights).numpy())


def stored_vectors(file, first, count, H):
    """Yields `count` float32 vectors [H] from number `first` on."""
    file.seek(first * H * 4)
    for _ in range(count):
        yield np.frombuffer(file.read(H * 4), np.float32)


if __name__ == "__main__":
    main()
