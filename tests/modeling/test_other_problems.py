"""Several labels a text, and scores: refused by name, with the reason, wherever they are brought."""

import json

import numpy as np
import pytest
from test_cli import refused

from data.tasks import Task, read_task
from modeling.snapshots.folder import ModelFolder
from modeling.snapshots.loading import other_heads
from util import UserError

REASON = "prototypes and expertise weights know one class per text"
TASK = {
    "name": "senti",
    "text": ["review"],
    "domain": "domain",
    "label": "sentiment",
    "labels": ["positive", "negative"],
    "domains": ["books", "dvd", "electronics", "kitchen"],
}
SEVERAL, SCORES = (
    f"several labels a text are not built, since {REASON}",
    f"regression is not built, since {REASON}",
)


@pytest.mark.parametrize(
    "changes, found, reason",
    [
        ({"problem_type": "multi_label_classification"}, "multi_label_classification", SEVERAL),
        ({"problem_type": "regression"}, "problem_type 'regression'", SCORES),
        ({"label": ["joy", "anger"]}, "'label' ['joy', 'anger']", SEVERAL),
        ({"labels": [["joy", "anger"], ["fear", "calm"]]}, "'labels' [['joy', 'anger']", SEVERAL),
    ],
)
def test_a_task_of_another_kind(tmp_path, changes, found, reason):
    """Its task.json is refused by what it asks for, not by a key that is unknown."""
    path = tmp_path / "task.json"
    path.write_text(json.dumps({**TASK, **changes}))
    with pytest.raises(UserError) as error:
        read_task(path)
    assert found in str(error.value) and reason in str(error.value) and str(path) in str(error.value)


@pytest.mark.parametrize(
    "label, reason",
    [
        ("positive,negative", SEVERAL),
        ("['positive']", SEVERAL),
        ("positive | negative", SEVERAL),
        ("0.75", SCORES),
        ("neutral", None),
        ("neutral, but", None),
    ],
)
def test_a_row_of_another_kind(sandbox, label, reason):
    """The label of a row that is a list, or a score; any other is unknown as ever."""
    path = sandbox / "data" / "dev.tsv"
    header, first, *rest = path.read_text().splitlines()
    text, domain, _ = first.split("\t")
    path.write_text("\n".join([header, f"{text}\t{domain}\t{label}", *rest]) + "\n")
    message = refused(sandbox, "preprocess", "dev.tsv:2", "expected one of positive, negative")
    assert (reason in message) if reason else REASON not in message


@pytest.mark.parametrize(
    "changes, reason",
    [
        ({"problem_type": "regression"}, SCORES),
        ({"problem_type": "multi_label_classification"}, SEVERAL),
        ({"id2label": {"0": "LABEL_0"}}, SCORES),
        ({"num_labels": 1}, SCORES),
        ({}, None),
    ],
)
def test_a_model_of_another_kind_is_no_teacher_and_predicts_nothing(sandbox, changes, reason):
    """Its config.json says so; a model without a head is refused without that reason."""
    path = sandbox / "bert" / "config.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), **changes}))
    predict = {"do_predict": True, "model_load_dir": "bert", "predict_file": "data/test.tsv"}
    for message in (
        refused(sandbox, "meta_teacher_eval", "bert", "not trained here", model_load_dir="bert"),
        refused(sandbox, "meta_teacher", "bert", "not trained here", flags=predict),
    ):
        assert (reason in message) if reason else REASON not in message


def test_the_head_of_another_kind_counts_as_new(tmp_path):
    """A head for another loss counts as new, even with the task's shape and labels.

    The encoder is as good as any.
    """
    labels = {"0": "positive", "1": "negative"}
    arrays = {"classifier.bias": np.zeros(2, np.float32)}
    task = Task(**{key: tuple(item) if isinstance(item, list) else item for key, item in TASK.items()})
    folder = ModelFolder(tmp_path, None, arrays, None, "", (), 0)
    for kind, expected in ((None, {}), ("multi_label_classification", {"classifier.bias": SEVERAL})):
        (tmp_path / "config.json").write_text(json.dumps({"id2label": labels, "problem_type": kind}))
        assert other_heads(folder, arrays, task) == expected
