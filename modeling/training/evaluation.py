"""What stages 2 and 4 close alike: a snapshot evaluated on dev and test, its results, predictions and report."""

import time

from data.store.files import atomic_file, write_json
from data.tasks import read_examples, split_path
from modeling.inference import class_logits, logits_metrics
from modeling.meta_kd.classifier import STUDENT_ONLY
from modeling.meta_kd.losses import softmax
from modeling.reports.acceptance import class_figures, compare
from modeling.reports.run_report import read_predictions, run_page, teacher_predictions, write_report
from modeling.snapshots.folder import load_weights
from modeling.snapshots.manager import changed_flags
from modeling.snapshots.rewrite import rewrite_card
from modeling.training.calibration import calibration_figures, calibration_sentence
from modeling.training.loop import metrics_line
from util import UserError, get_rank, sha256


def evaluate_snapshot(run, folder, model, task, splits, args, domains, device):
    """Evaluates a snapshot on dev and test; writes results.json, predictions.tsv and report.html into the run folder.

    Args:
        folder: the ModelFolder of the snapshot, whose weights `model` takes.
        splits: {"dev": stacked records, "test": stacked records}.
    Returns:
        the content of results.json: snapshot, parameters, bytes of the weights, metrics on dev and test.
    """
    load_weights(model, folder, allow_missing=("domain_head.", *STUDENT_ONLY))
    lines = [("split", "idxs", "domain", "label", "predicted", *task.labels)]
    results = {
        "task": task.name,
        "snapshot": folder.path.name,
        "parameters": sum(array.size for array in folder.arrays.values()),
        "bytes": (folder.path / "model.safetensors").stat().st_size,
    }
    all_logits, labels = {}, {split: arrays["label"].reshape(-1) for split, arrays in splits.items()}
    for split, arrays in splits.items():
        started = time.monotonic()
        all_logits[split] = logits = class_logits(
            model, arrays, task, args.eval_batch_size_per_device, domains, device
        )
        results[split] = logits_metrics(logits, arrays, task)
        lines += predictions(logits, arrays, task, split)
        run.timing(
            event=split,
            examples_per_second=round(results[split]["examples"] / (time.monotonic() - started), 2),
        )
        run.log(f"{folder.path.name} | {split} {metrics_line(results[split])}")
    results["calibration"] = calibration_figures(all_logits, labels, folder.meta)
    if get_rank() == 0:
        with atomic_file(run.folder / "predictions.tsv", "w") as file:
            file.writelines("\t".join(map(str, line)) + "\n" for line in lines)
        results.update(acceptance_figures(run.folder, task, sole_teacher(args)))
        results["predictions_sha256"] = sha256(run.folder / "predictions.tsv")
        write_json(run.folder / "results.json", results)
        write_report(
            run,
            run.folder / "report.html",
            run_page,
            run.folder,
            folder.meta,
            changed_flags(args),
            sole_teacher(args),
            read_test_texts(task, args.data_dir, len(labels["test"])),
        )
        if folder.path.resolve().parent == run.folder.resolve():
            rewrite_card(folder.path, calibration_sentence(results["calibration"]))
    return results


def sole_teacher(args):
    """The teacher that a student is shown beside, as --teacher_model names it; None: it has none, or several."""
    models = getattr(args, "teacher_model", None) or ()
    return models[0] if len(models) == 1 else None


def acceptance_figures(folder, task, teacher_model):
    """For results.json: the figures of each class on dev and test, and the comparison with the teacher, None without one."""
    rows = {split: read_predictions(folder / "predictions.tsv", split) for split in ("dev", "test")}
    taught = teacher_predictions(teacher_model, task.name)
    return {
        "classes": {split: class_figures(each, task.labels) for split, each in rows.items()},
        "against_teacher": compare(rows["test"], taught),
    }


def read_test_texts(task, data_dir, count):
    """The texts of test.tsv, a pair's with a bar between them; None where it does not have `count` of them or cannot be read."""
    try:
        examples = list(read_examples(task, split_path(data_dir, "test")))
    except UserError:
        return None
    texts = [" | ".join(text for text in (each.text_a, each.text_b) if text) for each in examples]
    return texts if len(texts) == count else None


def predictions(logits, arrays, task, split):
    """Yields the line of each record for predictions.tsv: split, idxs, domain, label, predicted label, probability of each label.

    logits: [N, M] of the records stacked in `arrays`.
    """
    columns = (arrays[name].reshape(-1) for name in ("idxs", "domain", "label"))
    for idxs, domain, label, row in zip(*columns, softmax(logits)):
        yield (
            split,
            idxs,
            task.domains[domain],
            task.labels[label],
            task.labels[row.argmax()],
            *(f"{value:.6f}" for value in row),
        )
