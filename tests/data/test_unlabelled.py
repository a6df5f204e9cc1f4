"""Texts without labels in stages 3 and 4: the teacher labels them, with or without their domain."""

import json

import numpy as np
import pytest
from conftest import best, call, stage_flags

from data.batches import Examples, domain_mix
from data.encoding import encode_rows
from data.store.knowledge import Knowledge
from data.tasks import Task
from data.unlabelled import text_parser, with_pseudo_labels
from util import UserError

TEXTS = (
    "the plot is great",
    "awful sound , dull film",
    "a very good knife",
    "it broke",
    "was the book fine ?",
)


def write(folder, domains=None, lines=TEXTS):
    rows = lines if domains is None else [f"{domain}\t{text}" for domain, text in zip(domains, lines)]
    (folder / "more.tsv").write_text(
        "\n".join(["review" if domains is None else "domain\treview", *rows]) + "\n", encoding="utf-8"
    )


def learn(sandbox, **more):
    """Stages 3 and 4 with the texts; returns the knowledge and the step lines of the student's run."""
    flags = stage_flags(sandbox)
    outcome = call(
        "meta_teacher_eval",
        sandbox,
        {**flags["meta_teacher_eval"], "knowledge_dir": "known", "unlabelled_file": "more.tsv"},
    )
    assert outcome.code == 0, outcome.err
    outcome = call(
        "meta_distill",
        sandbox,
        {
            **flags["meta_distill"],
            "knowledge_dir": "known",
            "unlabelled_file": "more.tsv",
            "model_save_dir": "more",
            **more,
        },
    )
    assert outcome.code == 0, outcome.err
    lines = [json.loads(line) for line in (sandbox / "more" / "metrics.jsonl").read_text().splitlines()]
    return Knowledge(sandbox / "known"), [line for line in lines if "dev" not in line]


@pytest.mark.parametrize("domains, kept", [(None, 5), (("dvd", "books", "books", "kitchen", "dvd"), 5)])
def test_the_student_learns_from_them_too(sandbox, domains, kept):
    """Each text once an epoch beside the 32 labelled ones, and the knowledge holds what the teacher says of
    it.
    """
    write(sandbox, domains, (*TEXTS[:-1], 8 * TEXTS[-1]))
    knowledge, steps = learn(sandbox)
    line = "more.tsv: 5 texts without labels, 1 of them cut at 32 tokens"
    line += ", 5 of no known domain\n" if domains is None else "\n"
    assert line in (sandbox / "more" / "log.txt").read_text()
    assert knowledge.idxs.tolist() == list(range(32 + kept))
    assert sum(line["examples"] for line in steps) == 2 * (32 + kept)
    assert (
        json.loads((best(sandbox / "more") / "meta.json").read_text())["unlabelled_sha256"]
        == knowledge.manifest["unlabelled_sha256"]
    )


def test_texts_of_no_known_domain_are_described_and_with_one_domain_belong_to_it(sandbox):
    """The log shows the first three examples, here one of each: of a domain or not; a task's only domain
    needs no column.
    """
    write(sandbox)
    learn(sandbox, train_example_num=2)
    assert "(unknown domain)" in (sandbox / "more" / "log.txt").read_text()
    for domains, expected in ((("books", "dvd"), 2), (("books",), 0)):
        task = Task("any", ("review",), "domain", "sentiment", ("positive", "negative"), domains)
        parse, rows = (
            text_parser(task, sandbox / "more.tsv"),
            (sandbox / "more.tsv").read_bytes().splitlines(),
        )
        assert {parse(line, raw)[2] for line, raw in enumerate(rows[1:], 2)} == {expected}


def test_a_student_of_one_domain_takes_those_of_its_domain(sandbox):
    """--domain leaves out texts of other domains, and those whose domain is not known."""
    write(sandbox, ("dvd", "books", "books", "kitchen", "dvd"))
    _, steps = learn(sandbox, domain="dvd")
    assert sum(line["examples"] for line in steps) == 2 * (8 + 2)
    note = "; note: 3 are left out, which are not of the domain that was asked for"
    assert note in (sandbox / "more" / "log.txt").read_text()


def test_empty_texts_are_told_at_once_as_those_of_the_splits_are(tmp_path):
    """By file, line and column, with what to do."""
    write(tmp_path, lines=("\u200b", "good", " ", "\ufe0f"))
    task = Task("any", ("review",), "domain", "sentiment", ("positive", "negative"), ("books", "dvd"))
    path = tmp_path / "more.tsv"
    rows = enumerate(path.read_bytes().splitlines(), 1)
    empty = [row for row in rows if row[0] > 1 and b"good" not in row[1]]
    with pytest.raises(UserError) as caught:
        list(encode_rows(empty, text_parser(task, path), None, 8, 4))
    assert str(caught.value) == (
        f"{path}:2: found no token in the text of 'review', expected a text: fill it or remove the line; "
        "the same in 2 more line(s): 4, 5."
    )


def stacked(count, start, **columns):
    """Examples in memory, numbered from `start`, whose tokens are their numbers."""
    idxs = np.arange(start, start + count, dtype=np.int32)
    tokens, zero = np.ones((count, 4), np.int32), np.zeros(count, np.int32)
    arrays = {
        "input_ids": tokens * idxs[:, None],
        "input_mask": tokens,
        "segment_ids": tokens * 0,
        "idxs": idxs,
    }
    return Examples.of_arrays({**arrays, "domain": zero, "label": zero, "weights": zero, **columns})


def test_labels_are_the_teachers_and_scores_the_mean(sandbox):
    """The label that the teacher finds most probable; the prototype score, which needs a label, is the mean
    of the labelled ones'.
    """
    write(sandbox)
    knowledge, _ = learn(sandbox)
    examples, more = stacked(3, 0, weights=np.array([0.1, 0.2, 0.6], np.float32)), stacked(5, 32)
    both = with_pseudo_labels(examples, more, knowledge)
    expected = [item["logits"].argmax() for item in knowledge.read(np.arange(32, 37))]
    assert both["label"].tolist() == [0, 0, 0, *expected] and both.read(np.array([7, 0]))[
        "input_ids"
    ].tolist() == [[36] * 4, [0] * 4]
    np.testing.assert_allclose(both["weights"][3:], 0.3, rtol=1e-6)


def test_a_domain_that_is_not_known_has_the_mean_embedding():
    """Row K of the table: the mean over the domains that were trained."""
    np.testing.assert_allclose(domain_mix(np.array([4, 0]), 4, (0, 2)), [[0.5, 0, 0.5, 0], [1, 0, 0, 0]])


def test_the_same_texts_in_both_stages(sandbox):
    """Stage 4 with other texts than stage 3, or with none made, is refused; so is a student without a
    teacher.
    """
    write(sandbox)
    learn(sandbox)
    flags = {**stage_flags(sandbox)["meta_distill"], "unlabelled_file": "more.tsv", "model_save_dir": "other"}
    write(sandbox, lines=TEXTS[:4])
    outcome = call("meta_distill", sandbox, {**flags, "knowledge_dir": "known"})
    assert outcome.code == 2 and "other unlabelled texts" in outcome.err
    outcome = call("meta_distill", sandbox, flags)
    assert outcome.code == 2 and "unlabelled" in outcome.err
    hard = {
        "hard_label_weight": 1,
        "soft_label_weight": 0,
        "attention_loss_weight": 0,
        "representation_loss_weight": 0,
        "transfer_loss_weight": 0,
    }
    outcome = call("meta_distill", sandbox, {**flags, **hard})
    assert outcome.code == 2 and "no teacher to label" in outcome.err


@pytest.mark.parametrize(
    "content, words",
    [
        ("review\tsentiment\na b\tpositive\n", "more.tsv:1: found 'review', 'sentiment'"),
        ("review\n", "no texts"),
        ("review\n\n", "more.tsv:2: found an empty 'review'"),
        ("review\tdomain\na\tcars\n", "more.tsv:2: found domain 'cars'"),
        ("review\na\tb\n", "more.tsv:2: found 2 column(s)"),
        (None, "cannot be read"),
    ],
)
def test_faults_are_named_by_file_and_line(sandbox, content, words):
    """One sentence, exit code 2."""
    if content is not None:
        (sandbox / "more.tsv").write_text(content, encoding="utf-8")
    flags = {
        **stage_flags(sandbox)["meta_teacher_eval"],
        "knowledge_dir": "known",
        "unlabelled_file": "more.tsv",
    }
    outcome = call("meta_teacher_eval", sandbox, flags)
    assert outcome.code == 2 and words in outcome.err
