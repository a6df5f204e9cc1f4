"""What stages 2 and 4 close alike: a snapshot evaluated on dev and test,
its results, predictions and report.
"""

import time
from typing import NamedTuple, Optional

from data.rows import DIGITS
from data.store.files import atomic_file, write_json
from data.tasks import read_examples, split_path
from modeling.inference import logits_metrics
from modeling.meta_kd.classifier import STUDENT_ONLY
from modeling.meta_kd.losses import softmax
from modeling.reports.acceptance import class_figures, compare
from modeling.reports.run_files import read_predictions
from modeling.reports.run_report import read_teacher, run_page, write_report
from modeling.snapshots.best import find_snapshot
from modeling.snapshots.loading import load_weights_in_ranks
from modeling.snapshots.manager import flags_of_run
from modeling.snapshots.rewrite import rewrite_card
from modeling.snapshots.weights import weights_size
from modeling.training.calibration import calibration_figures, calibration_sentence
from modeling.training.step_log import metrics_line
from util import UserError, get_rank, sha256


class ReportOptions(NamedTuple):
    """What the report of a run shows beside its figures.

    data_dir: where the texts of test are; changed: {flag: value} that differ from their defaults.
    teacher_model: what --teacher_model names, a list; None: there is no teacher.
    """

    data_dir: str
    changed: dict
    teacher_model: Optional[list] = None

    @property
    def teacher(self) -> Optional[str]:
        """The teacher that a student is shown beside; None: it has none, or several."""
        models = self.teacher_model or ()
        return models[0] if len(models) == 1 else None


def evaluate_snapshot(run, folder, model, heldout, options):
    """Evaluates a snapshot on dev and test; writes results.json, predictions.tsv
    and report.html into the run folder.

    Args:
        folder: the ModelFolder of the snapshot, whose weights `model` takes; looked at in rank 0 alone,
            which writes. The other ranks take part in the answers.
        heldout: the Heldout examples; options: ReportOptions.
    Returns:
        the content of results.json: snapshot, parameters, bytes of the weights, metrics on dev and test; None
        in the other ranks.
    """
    load_weights_in_ranks(model, folder, STUDENT_ONLY)
    if get_rank() > 0:
        for split in heldout.splits:
            heldout.logits(model, split)
        return None
    task = heldout.task
    results = {
        "task": task.name,
        "snapshot": folder.path.name,
        "parameters": sum(array.size for array in folder.arrays.values()),
        "bytes": (folder.path / "model.safetensors").stat().st_size,
    }
    lines, logits = [("split", "idxs", "domain", "label", "predicted", *task.labels)], {}
    for split, examples in heldout.splits.items():
        started = time.monotonic()
        logits[split] = heldout.logits(model, split)
        results[split] = logits_metrics(logits[split], examples, task)
        lines += predictions(logits[split], examples, task, split)
        speed = results[split]["examples"] / (time.monotonic() - started)
        run.timing(event=split, examples_per_second=round(speed, 2))
        run.log(f"{folder.path.name} | {split} {metrics_line(results[split])}")
    labels = {split: examples["label"] for split, examples in heldout.splits.items()}
    results["calibration"] = calibration_figures(logits, labels, folder.meta)
    write_results(run, folder, results, lines, task, options)
    return results


def write_results(run, folder, results, lines, task, options):
    """Writes predictions.tsv, the `lines`, and of them and the `results` results.json,
    the report and the card.
    """
    with atomic_file(run.folder / "predictions.tsv", "w") as file:
        file.writelines("\t".join(map(str, line)) + "\n" for line in lines)
    results.update(acceptance_figures(run, task, options.teacher))
    results["predictions_sha256"] = sha256(run.folder / "predictions.tsv")
    write_json(run.folder / "results.json", results)
    write_report(
        run,
        run.folder / "report.html",
        run_page,
        run.folder,
        folder.meta,
        flags_of_run(options.changed),
        options.teacher,
        read_test_texts(task, options.data_dir, results["test"]["examples"]),
    )
    if folder.path.resolve().parent == run.folder.resolve():
        rewrite_card(folder.path, calibration_sentence(results["calibration"]))


def acceptance_figures(run, task, teacher_model):
    """For results.json: the figures of each class on dev and test, the comparison with the teacher and its
    size, None without one.
    """
    rows = read_predictions(run.folder / "predictions.tsv")
    teacher = read_teacher(teacher_model, task.name, rows["test"])
    if teacher.fault:
        run.log(f"note: {teacher.fault}")
    return {
        "classes": {split: class_figures(each, task.labels) for split, each in rows.items()},
        "against_teacher": compare(rows["test"], teacher.rows),
        "teacher": weights_size(find_snapshot(teacher_model).resolve()) if teacher_model else None,
    }


def read_test_texts(task, data_dir, count):
    """The texts of test.tsv, a pair's with a bar between them; None where it does not have `count` of them
    or cannot be read.
    """
    try:
        examples = list(read_examples(task, split_path(data_dir, "test")))
    except UserError:
        return None
    texts = [" | ".join(text for text in (each.text_a, each.text_b) if text) for each in examples]
    return texts if len(texts) == count else None


def predictions(logits, examples, task, split):
    """Yields the line of each record for predictions.tsv: split, idxs, domain, label, predicted label,
    probability of each label.

    logits: [N, M] of the Examples.
    """
    columns = (examples[name] for name in ("idxs", "domain", "label"))
    for idxs, domain, label, row in zip(*columns, softmax(logits)):
        yield (
            split,
            idxs,
            task.domains[domain],
            task.labels[label],
            task.labels[row.argmax()],
            *(f"{value:.{DIGITS}f}" for value in row),
        )
