"""MultiNLI to TSV files, and tasks of odd shapes through all four stages: pairs, many domains and labels, one
domain, a missing cell.
"""

import collections
import dataclasses
import json
import shutil

import numpy as np
import pytest
from conftest import STAGES, WORDS, call, stage_flags

from data.prepare.mnli import FIELDS, TASK, Pair, connected_pairs, find_file, hold_out, read_pairs, shares
from data.prepare.task_files import write_task
from data.store.records import Records
from data.tasks import SPLITS, Task, read_examples, split_path
from util import UserError

PUBLISHED = [
    "gold_label",
    "sentence1_binary_parse",
    "sentence2_binary_parse",
    "sentence1_parse",
    "sentence2_parse",
    "sentence1",
    "sentence2",
    "promptID",
    "pairID",
    "genre",
    "label1",
    "label2",
    "label3",
    "label4",
    "label5",
]
GLUE = ["index", "promptID", "pairID", "genre", *PUBLISHED[1:7], "label1", "gold_label"]
ODD = [
    Pair('He said "no', "don't \\n go\"", "fiction", "neutral", "1"),
    Pair("a b", "c", "travel", "entailment", "2"),
    Pair("naïve 👍", "uh-huh", "telephone", "contradiction", "3"),
]


def record(pair, **changes):
    """The object of a pair in a file of JSON lines."""
    values = {
        "sentence1": pair.premise,
        "sentence2": pair.hypothesis,
        "genre": pair.genre,
        "gold_label": pair.label,
        "promptID": pair.prompt,
    }
    return {
        "annotator_labels": [pair.label],
        "sentence1_parse": "(ROOT )",
        "pairID": f"{pair.prompt}n",
        **values,
        **changes,
    }


def row(pair, header):
    """The line of a pair in a table."""
    return "\t".join(record(pair).get(name, "x") if name in FIELDS else "x" for name in header) + "\n"


def write_source(folder, parts):
    """A folder such as multinli_1.0, of {part: pairs}."""
    folder.mkdir()
    for part, pairs in parts.items():
        (folder / f"multinli_1.0_{part}.jsonl").write_text(
            "".join(json.dumps(record(pair)) + "\n" for pair in pairs)
        )
    return folder


def some_pairs(prompts, seed=0):
    """Three pairs to a prompt, one of each label, some dropped; every tenth premise is one that many prompts
    share.
    """
    stream = np.random.default_rng(seed)
    pairs = []
    for k in range(prompts):
        genre = TASK.domains[k % 5]
        premise = f"{genre} yeah" if k % 10 == 9 else " ".join((*stream.choice(WORDS[:20], 6), str(k)))
        pairs += [
            Pair(premise, f"{' '.join(stream.choice(WORDS[5:25], 3))} {m}", genre, label, str(k))
            for m, label in enumerate(TASK.labels)
            if stream.random() < 0.9
        ]
    return pairs


# ---------------------------------------------------------------------------------------- reading


def test_json_lines_are_read_as_they_stand(tmp_path):
    """Quotes, tabs, returns and line separators inside a text; blank lines, \\r, a byte-order mark and
    numbers for promptID do no harm. A text that nobody sees is empty, as the stages have it.
    """
    path = tmp_path / "multinli_1.0_train.jsonl"
    lines = [
        json.dumps(record(ODD[0])),
        "",
        json.dumps(record(ODD[1], sentence1="a\t\u2028 b\r\n", promptID=2)) + "\r",
        "  \r",
        json.dumps(record(ODD[2], gold_label="-")),
        json.dumps(record(ODD[2], sentence2=" \t")),
        json.dumps(record(ODD[2], sentence1="\u200b")),
        json.dumps(record(ODD[2]), ensure_ascii=False),
    ]
    path.write_bytes(b"\xef\xbb\xbf" + "\n".join(lines).encode())
    assert read_pairs(path) == (ODD, {"without a gold label": [5], "with an empty text": [6, 7]})


@pytest.mark.parametrize("name, header", [("multinli_1.0_train.txt", PUBLISHED), ("train.tsv", GLUE)])
def test_tables_are_read_by_the_names_of_their_columns(tmp_path, name, header):
    """The published table and GLUE's give what the JSON lines give; a return inside a text, and empty fields
    left out at the end too.
    """
    rows = [
        row(ODD[0], header),
        "\n",
        row(ODD[1]._replace(premise="a \r b"), header).replace("\n", "\r\n"),
        "\r\n",
        row(ODD[2]._replace(label="-"), header),
        row(ODD[2]._replace(premise="  "), header),
        row(ODD[2], header),
    ]
    if header is PUBLISHED:
        rows[0] = rows[0].replace("x\tx\tx\tx\tx\n", "x\n")
    (tmp_path / name).write_bytes(("\t".join(header) + "\n" + "".join(rows)).encode())
    assert read_pairs(tmp_path / name) == (ODD, {"without a gold label": [6], "with an empty text": [7]})


@pytest.mark.parametrize(
    "line, sentence",
    [
        ('{"sentence1": "a', "the line is not JSON (Unterminated string"),
        ("[1]", "found a list, expected a JSON object a line"),
        ("[" * 10000, "the line is not JSON"),
        (json.dumps({"sentence1": "a"}), "found no 'sentence2', expected text"),
        (json.dumps(record(ODD[0], sentence2=None)), "found a NoneType in 'sentence2', expected text"),
        (json.dumps(record(ODD[0], sentence1="\ud800")), "found half of a surrogate pair in 'sentence1'"),
        (
            json.dumps(record(ODD[0], genre="nineeleven")),
            "found genre 'nineeleven', expected one of fiction, government, slate, telephone, travel",
        ),
        (
            json.dumps(record(ODD[0], gold_label="Neutral")),
            "found gold_label 'Neutral', expected one of entailment, neutral, contradiction",
        ),
        (json.dumps(record(ODD[0], gold_label="x" * 10**6)), "found gold_label 'xxx"),
        ("caf\xe9", "found byte 0xe9"),
        ("\0", "found a NUL character"),
    ],
)
def test_faults_of_json_lines_are_told_with_their_line(tmp_path, line, sentence):
    """Each fault is one short sentence that names file and line."""
    path = tmp_path / "multinli_1.0_train.jsonl"
    path.write_bytes(f"{json.dumps(record(ODD[0]))}\n\n{line}\n".encode("latin-1"))
    assert f"{path}:3: {sentence}" in refused(path)


def refused(path):
    with pytest.raises(UserError) as caught:
        read_pairs(path)
    assert len(str(caught.value).splitlines()) == 1 and len(str(caught.value)) < 600
    return str(caught.value)


@pytest.mark.parametrize(
    "content, sentence",
    [
        ("", ": found the columns '', expected 'sentence1' once"),
        ("\t".join(PUBLISHED) + "\n", ": found no pair with a gold label"),
        ("\t".join([*PUBLISHED, "genre"]) + "\n", ": found the columns 'gold_label', "),
        (
            "\t".join(PUBLISHED) + "\n" + row(ODD[1]._replace(premise="a\tb"), PUBLISHED),
            ":2: found 16 column(s), expected 15",
        ),
        ("\t".join(PUBLISHED) + "\n" + row(ODD[1], PUBLISHED)[:24], ":2: found 7 column(s), expected 15"),
        ("\t".join(GLUE) + "\n" + row(ODD[1], GLUE)[:-12], ":2: found 11 column(s), expected 12"),
        (
            "\t".join(PUBLISHED) + "\n" + row(ODD[1]._replace(label="-"), PUBLISHED),
            ": found no pair with a gold label",
        ),
    ],
)
def test_faults_of_a_table_are_told(tmp_path, content, sentence):
    """A tab inside a text, a cut line, no header, nothing of use."""
    (tmp_path / "train.tsv").write_text(content)
    assert f"train.tsv{sentence}" in refused(tmp_path / "train.tsv")


def test_files_are_found_by_their_published_names(tmp_path):
    """JSON lines before the table before GLUE's; what is not there is told with the names."""
    for name in ("dev_matched.tsv", "multinli_1.0_dev_matched.txt", "multinli_1.0_dev_matched.jsonl"):
        (tmp_path / name).touch()
        assert find_file(tmp_path, "dev_matched").name == name
    for folder, sentence in (
        (tmp_path / "absent", "no such folder"),
        (tmp_path, "found none of multinli_1.0_train.jsonl, multinli_1.0_train.txt"),
    ):
        with pytest.raises(UserError, match=sentence):
            find_file(folder, "train")


# ---------------------------------------------------------------------------------------- splitting


def test_the_split_keeps_prompts_and_premises_together():
    """Every pair on one side, no prompt and no premise on both; another seed gives another dev, the same seed
    the same.
    """
    pairs = some_pairs(400)
    splits = hold_out(pairs, 150, 1)
    assert sorted(splits["train"] + splits["dev"]) == sorted(pairs)
    for key in ("premise", "prompt"):
        assert not {getattr(pair, key) for pair in splits["train"]} & {
            getattr(pair, key) for pair in splits["dev"]
        }
    assert hold_out(pairs, 150, 1) == splits and set(hold_out(pairs, 150, 2)["dev"]) != set(splits["dev"])


@pytest.mark.parametrize("wanted", [15, 150, 500])
def test_dev_has_the_share_of_each_genre_and_label(wanted):
    """No cell exceeds its share by more than one, and dev has the size asked for, as single pairs fill what
    triples leave.
    """
    pairs = some_pairs(400)
    cells, dev = (
        collections.Counter((pair.genre, pair.label) for pair in part)
        for part in (pairs, hold_out(pairs, wanted, 1)["dev"])
    )
    room = shares(cells, wanted)
    assert sum(room.values()) == wanted and all(
        abs(room[cell] - n * wanted / len(pairs)) < 1 for cell, n in cells.items()
    )
    assert all(dev[cell] <= room[cell] + 1 for cell in room) and sum(dev.values()) == wanted


def test_pairs_are_tied_through_others():
    """a-1, b-1, b-2 and c-2 are one unit, as prompt 1 has premise b as well and premise b has prompt 2 as
    well.
    """
    pairs = [
        Pair(premise, "h", "slate", "neutral", prompt)
        for premise, prompt in (("a", "1"), ("c", "2"), ("d", "3"), ("b", "1"), ("b", "2"))
    ]
    assert connected_pairs(pairs) == [[pairs[0], pairs[1], pairs[3], pairs[4]], [pairs[2]]]
    assert connected_pairs(
        [Pair("1", "h", "slate", "neutral", "2"), Pair("2", "h", "slate", "neutral", "1")]
    ) != [pairs], "names of two kinds"


def test_sizes_of_dev_that_cannot_be_are_told():
    """As many as there are, and pairs that are all tied."""
    pairs = some_pairs(10)
    with pytest.raises(
        UserError, match=f"--dev_example_num {len(pairs)}: found {len(pairs)} training pairs, expected more"
    ):
        hold_out(pairs, len(pairs), 1)
    with pytest.raises(UserError, match="--dev_example_num 2: found no way to part 1 groups"):
        hold_out([Pair("a", f"h{k}", "slate", "neutral", "1") for k in range(4)], 2, 1)


# ---------------------------------------------------------------------------------------- tasks through the
# four stages


def run_stages(folder, tiny_model, task):
    """Runs the four stages in this process over `folder`/data, one epoch, and checks the counts in their
    results; {run: results.json}.
    """
    shutil.copytree(tiny_model, folder / "bert")
    examples = {split: list(read_examples(task, split_path(folder / "data", split))) for split in SPLITS}
    said = {}
    for stage in STAGES:
        flags = stage_flags(folder, num_epochs=1, eval_every_step_num=100, batch_size_per_device=24)[stage]
        outcome = call(stage, folder, {**flags, "task_name": task.name})
        assert outcome.code == 0, outcome.err
        said[stage] = outcome.out
    for split in SPLITS:
        counts = collections.Counter(
            (task.domains[example.domain], task.labels[example.label]) for example in examples[split]
        )
        records = Records(folder / "data" / "ofrecord" / split, split)
        assert records.counts == {
            domain: {label: counts[domain, label] for label in task.labels} for domain in task.domains
        }
        assert np.abs(records.weights).max() <= 1 + 1e-6
    results = {run: json.loads((folder / run / "results.json").read_text()) for run in ("teacher", "student")}
    for result in results.values():
        for split in ("dev", "test"):
            assert result[split]["examples"] == len(examples[split])
            assert set(result[split]["domains"]) == {
                task.domains[example.domain] for example in examples[split]
            }
            assert 0 <= result[split]["accuracy"] <= 1 and 0 <= result[split]["macro_f1"] <= 1
    for run in ("teacher", "student"):
        header, *rows = (folder / run / "predictions.tsv").read_text().splitlines()
        assert header.split("\t")[5:] == list(task.labels) and len(rows) == len(examples["dev"]) + len(
            examples["test"]
        )
        losses = [
            line["loss"]
            for line in map(json.loads, (folder / run / "metrics.jsonl").read_text().splitlines())
            if "loss" in line
        ]
        assert losses and np.isfinite(losses).all()
    return said, results


def write_made_up(folder, task, cells, copies=(2, 1, 1)):
    """The splits of a task with `copies` examples, in train, dev and test, of each (domain, label) in
    `cells`.
    """
    stream = np.random.default_rng(0)

    def rows(n):
        return [
            (*(" ".join(stream.choice(WORDS, 5)) for _ in task.text), domain, label)
            for _ in range(n)
            for domain, label in cells
        ]

    write_task(task, folder / "data", {split: rows(n) for split, n in zip(SPLITS, copies)})


def numbered(K, M, text=("text",)):
    """A task of K domains and M labels."""
    return Task(
        f"odd-{K}x{M}",
        text,
        "domain",
        "label",
        tuple(f"label {m}" for m in range(M)),
        tuple(f"domain {k}" for k in range(K)),
    )


def every_cell(task):
    return [(domain, label) for domain in task.domains for label in task.labels]


def test_mnli_from_its_files_to_a_student(tmp_path, tiny_model):
    """The command, twice the same bytes, and the four stages over what it wrote: pairs, three labels, five
    genres.
    """
    source = write_source(
        tmp_path / "source",
        {"train": some_pairs(40), "dev_matched": some_pairs(10, 1) + [ODD[0]._replace(label="-")]},
    )
    flags = {"source": "source", "data_dir": "data", "dev_example_num": 30}
    outcome = call("data.prepare.mnli", tmp_path, flags)
    assert (
        outcome.code == 0
        and f"{source.name}/multinli_1.0_dev_matched.jsonl: {len(some_pairs(10, 1))} pairs" in outcome.out
    )
    assert (
        "dropped without a gold label: 1 (line " in outcome.out
        and "texts of train that stand in dev as well: 0" in outcome.out
    )
    before = {split: split_path(tmp_path / "data", split).read_bytes() for split in SPLITS}
    assert call("data.prepare.mnli", tmp_path, flags).out == outcome.out
    assert {split: split_path(tmp_path / "data", split).read_bytes() for split in SPLITS} == before
    test = [example[:2] for example in read_examples(TASK, tmp_path / "data" / "test.tsv")]
    assert test == [pair[:2] for pair in some_pairs(10, 1)]
    assert not (tmp_path / "data" / "task.json").exists()
    run_stages(tmp_path, tiny_model, TASK)


def test_a_source_that_is_not_there_is_one_sentence(tmp_path):
    """Exit code 2, and nothing written."""
    outcome = call("data.prepare.mnli", tmp_path, {"source": "absent", "data_dir": "data"})
    assert outcome.code == 2 and outcome.err.count("\n") == 1 and not (tmp_path / "data").exists()


def test_sixteen_domains_and_seven_labels(tmp_path, tiny_model):
    """More than the tasks of the paper have; dev has neither the last domain nor the last label, which is
    said and no fault.
    """
    task = numbered(16, 7)
    write_made_up(tmp_path, task, every_cell(task))
    rows = [
        (example.text_a, task.domains[example.domain], task.labels[example.label])
        for example in read_examples(task, split_path(tmp_path / "data", "dev"))
        if example.domain < 15 and example.label < 6
    ]
    write_task(task, tmp_path / "data", {"dev": rows})
    said, _ = run_stages(tmp_path, tiny_model, task)
    for stage in ("preprocess", "meta_teacher", "meta_distill"):
        assert "; note: none of domain domain 15; class label 6\n" in said[stage]


def test_one_domain(tmp_path, tiny_model):
    """The score is the similarity to the one prototype of the class; every corrupted label is the one domain,
    so the domain loss is 0.
    """
    task = numbered(1, 3, ("question", "answer"))
    write_made_up(tmp_path, task, every_cell(task), (8, 4, 4))
    run_stages(tmp_path, tiny_model, task)
    lines = [json.loads(line) for line in (tmp_path / "teacher" / "metrics.jsonl").read_text().splitlines()]
    losses = [line["domain"] for line in lines if "loss" in line]
    assert losses and np.abs(losses).max() < 1e-5


def test_a_domain_that_lacks_a_class(tmp_path, tiny_model):
    """Train lacks a cell that dev and test have: their examples of it get a score from the other domains'
    prototypes.
    """
    task = dataclasses.replace(numbered(3, 2), name="gap")
    gap = ("domain 0", "label 1")
    write_made_up(tmp_path, task, [cell for cell in every_cell(task) if cell != gap], (6, 3, 3))
    more = [("the book was very dull", *gap), ("a great film .", *gap)]
    for split in ("dev", "test"):
        rows = [
            (example.text_a, task.domains[example.domain], task.labels[example.label])
            for example in read_examples(task, split_path(tmp_path / "data", split))
        ]
        write_task(task, tmp_path / "data", {split: rows + more})
    run_stages(tmp_path, tiny_model, task)
    arrays = Records(tmp_path / "data" / "ofrecord" / "test", "test").arrays()
    of_gap = arrays["weights"][(arrays["domain"] == 0) & (arrays["label"] == 1)]
    assert len(of_gap) == 2 and np.isfinite(of_gap).all() and (of_gap != 0).all()
