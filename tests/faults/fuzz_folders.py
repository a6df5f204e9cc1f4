"""Valid folders of everything that the suite reads, small, for fuzzers to begin with."""

import dataclasses
import gzip

import numpy as np

from data.store.files import write_json
from data.store.knowledge_writer import KnowledgeWriter
from data.store.writing import resave, with_scores
from data.tasks import Task, split_path
from modeling.bert.config import BertConfig
from modeling.bert.model import init_weights
from modeling.meta_kd.classifier import build_teacher
from modeling.snapshots.saving import save_snapshot
from tokenization import FullTokenizer

TASK = Task("tiny", ("text",), "domain", "label", ("up", "down"), ("books", "films"))
ROWS = [
    ("good book", 0, 0),
    ("a very very bad film .", 1, 1),
    ("phone \u00e9t\u00e9", 1, 0),
    ("a good film unknownword", 0, 1),
    ("bad .", 1, 1),
]
TOKENS = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", *"good bad book film a very . phone ##s".split()]


def make_data(folder):
    """A vocabulary, a described task and its training split."""
    folder.mkdir()
    (folder / "vocab.txt").write_text("\n".join(TOKENS) + "\n", encoding="utf-8")
    write_json(folder / "task.json", dataclasses.asdict(TASK))
    lines = [
        "\t".join(TASK.columns),
        *("\t".join((text, TASK.domains[k], TASK.labels[m])) for text, k, m in ROWS),
    ]
    split_path(folder, "train").write_text("\n".join(lines) + "\n", encoding="utf-8")
    write_json(
        folder / "tokenizer_config.json",
        {"do_lower_case": True, "strip_accents": None, "tokenizer_class": "BertTokenizer"},
    )


def make_records(folder, data):
    """Scored records of the data, in parts of two."""
    tokenizer = FullTokenizer(data / "vocab.txt")
    records = resave(TASK, data, folder, "train", tokenizer, 8, scored=False, part_size=2)
    with_scores(records, np.linspace(0, 1, len(ROWS)), {"by": "x"})


def make_knowledge(folder):
    """Knowledge of five examples in two parts, each head and hidden states with it."""
    stream, width = np.random.default_rng(0), 4
    facts = {
        "teacher_sha256": "a" * 64,
        "content_sha256": "b" * 64,
        "layers": [1, 2],
        "width": width,
        "attention_heads": 2,
        "hidden_states": True,
        "domain_feature": True,
    }
    writer, (L, A, M) = KnowledgeWriter(folder, facts), (2, 2, 2)
    writer.begin()
    for number, rows in enumerate(([0, 1, 3], [4, 9])):
        writer.write(
            number,
            [
                {
                    "idxs": i,
                    "logits": stream.normal(size=M),
                    "representation": stream.normal(size=width),
                    "domain_feature": stream.normal(size=width),
                    "attention": stream.normal(size=(L, A, i + 3, i + 3)),
                    "hidden": stream.normal(size=(L, i + 3, width)),
                }
                for i in rows
            ],
        )
    writer.finish(2)


def make_run(folder, data):
    """A run folder with best.json and a snapshot_last of a teacher one layer deep."""
    config = BertConfig.from_dict(
        {
            "vocab_size": len(TOKENS),
            "hidden_size": 4,
            "num_hidden_layers": 1,
            "num_attention_heads": 2,
            "intermediate_size": 8,
            "max_position_embeddings": 8,
            "type_vocab_size": 2,
        }
    )
    model = build_teacher(config, TASK, domain_head=True)
    init_weights(model, 0, 0.2)
    moments = {
        f"{slot}.{name}": np.ones(parameter.shape, np.float32)
        for name, parameter in model.named_parameters()
        for slot in ("exp_avg", "exp_avg_sq")
    }
    meta = {
        "kind": "teacher",
        "task": "tiny",
        "labels": TASK.labels,
        "domains": TASK.domains,
        "step": 3,
        "domain_head": True,
        "seen_domains": [0, 1],
        "flags": {"seed": 1},
        "best": {"snapshot": "snapshot_last", "step": 3, "accuracy": 0.5},
    }
    save_snapshot(folder / "snapshot_last", model, FullTokenizer(data / "vocab.txt"), meta, optimizer=moments)
    write_json(folder / "best.json", {"snapshot": "snapshot_last", "step": 3})


TEXTS = {  # a file of texts in each form that predict reads
    "texts.txt": "good book\nbad film\n",
    "texts.tsv": "text\tid\ngood\t1\nbad\t2\n",
    "texts.csv": 'id,text\n1,"a, b"\n2,"x""y"\n',
    "texts.jsonl": '{"text": "good", "id": 1}\n{"id": [2], "text": "b"}\n',
    "unlabelled.tsv": "domain\ttext\nbooks\tgood\nfilms\tbad .\n",
}


def make_texts(folder):
    """A file of texts in each form; the lines once more packed by gzip."""
    folder.mkdir()
    for name, text in TEXTS.items():
        (folder / name).write_text(text, encoding="utf-8")
    (folder / "texts.txt.gz").write_bytes(gzip.compress(TEXTS["texts.txt"].encode(), mtime=0))
