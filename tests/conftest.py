"""Puts the repository root on the path, and makes the tiny models, data and runs that the tests share."""

import contextlib
import importlib
import io
import json
import os
import pathlib
import shutil
import signal
import subprocess
import sys
from typing import NamedTuple

ROOT = pathlib.Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))

# Before numpy, as in the scripts: it names the BLAS kernel, on which the last bits depend.
import util  # noqa: F401

import numpy as np  # isort: skip
import pytest  # isort: skip

WORDS = (
    "the a it is was not very good great fine bad awful dull book plot film scene sound phone screen pan "
    "knife works broke love hate . , !"
).split()
TINY = {
    "vocab_size": 40,
    "hidden_size": 16,
    "num_hidden_layers": 4,
    "num_attention_heads": 4,
    "intermediate_size": 32,
    "max_position_embeddings": 32,
}


def pytest_collection_modifyitems(items):
    """What is marked slow runs where METAKD_SLOW is set."""
    if not os.environ.get("METAKD_SLOW"):
        for item in items:
            if item.get_closest_marker("slow"):
                item.add_marker(pytest.mark.skip(reason="slow: set METAKD_SLOW=1"))


@pytest.fixture(autouse=True)
def handlers():
    """What a script that runs in this process does to signals ends with the test."""
    before = {number: signal.getsignal(number) for number in (signal.SIGTERM, signal.SIGINT, signal.SIGHUP)}
    yield
    for number, handler in before.items():
        signal.signal(number, handler)


@pytest.fixture(scope="session")
def tiny_model(tmp_path_factory):
    """A folder with a random BERT of 4 layers, 16 wide, 4 heads, and a vocabulary of 40 tokens."""
    from safetensors.numpy import save_file

    from modeling.bert.config import BertConfig
    from modeling.bert.model import init_weights
    from modeling.meta_kd.classifier import DomainClassifier

    folder = tmp_path_factory.mktemp("tiny") / "bert"
    folder.mkdir()
    tokens = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", *WORDS]
    tokens += [f"##{chr(97 + i)}" for i in range(TINY["vocab_size"] - len(tokens))]
    (folder / "vocab.txt").write_text("\n".join(tokens) + "\n", encoding="utf-8")
    config = BertConfig.from_dict({**BertConfig().to_dict(), **TINY})
    (folder / "config.json").write_text(json.dumps(config.to_dict()), encoding="utf-8")
    model = DomainClassifier(config, 2, 4)
    init_weights(model, 0, 0.2)
    arrays = {
        name: parameter.numpy() for name, parameter in model.named_parameters() if name.startswith("bert.")
    }
    save_file(arrays, folder / "model.safetensors", metadata={"format": "pt"})
    return folder


@pytest.fixture(scope="session")
def tiny_data(tmp_path_factory):
    """A data folder of the task senti: 60 reviews whose label a good or a bad word decides.

    32, 12 and 16 of them in the splits.
    """
    folder = tmp_path_factory.mktemp("data") / "SENTI"
    folder.mkdir()
    stream = np.random.default_rng(0)
    for split, count in (("train", 32), ("dev", 12), ("test", 16)):
        lines = ["review\tdomain\tsentiment"]
        for i in range(count):
            label = ("positive", "negative")[i % 2]
            mood = stream.choice(
                ("good", "great", "fine", "love") if i % 2 == 0 else ("bad", "awful", "dull", "hate")
            )
            words = [
                *stream.choice(WORDS[:8], stream.integers(2, 12)),
                mood,
                *stream.choice(WORDS[13:24], stream.integers(1, 5)),
            ]
            lines.append(
                "\t".join((" ".join(words), ("books", "dvd", "electronics", "kitchen")[i // 2 % 4], label))
            )
        (folder / f"{split}.tsv").write_text("\n".join(lines) + "\n", encoding="utf-8")
    return folder


# --------------------------------------------------------------------------------------- running the scripts

STAGES = ("preprocess", "meta_teacher", "meta_teacher_eval", "meta_distill")
DATA = {"task_name": "senti", "data_dir": "data", "seq_length": 32, "seed": 1, "cpu_processes": 1}
TRAINING = {
    "num_epochs": 2,
    "batch_size_per_device": 7,
    "eval_every_step_num": 2,
    "save_every_step_num": 3,
    "learning_rate": 3e-3,
    "do_train": True,
    "do_eval": True,
}  # 32 examples: 5 steps an epoch, the last of 4 examples


class Outcome(NamedTuple):
    """How a script ended."""

    code: int
    out: str
    err: str


def words(flags):
    """The words of a command line: {flag: value}.

    True stands for a flag without a value, None and False for its absence, a list for several values.
    """
    return [
        word
        for name, value in flags.items()
        if value is not None and value is not False
        for word in (
            f"--{name}",
            *map(str, () if value is True else value if isinstance(value, list) else [value]),
        )
    ]


def call(script, folder, flags):
    """Runs a script in this process with `folder` as the current one, and returns its Outcome.

    Exceptions pass.
    """
    out, err, argv, here, code = io.StringIO(), io.StringIO(), sys.argv, os.getcwd(), 0
    sys.argv = [f"{script}.py", *words(flags)]
    os.chdir(folder)
    try:
        with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
            importlib.import_module(script).main()
    except SystemExit as end:
        code = end.code or 0
    finally:
        sys.argv = argv
        os.chdir(here)
    return Outcome(code, out.getvalue(), err.getvalue())


def call_process(script, folder, flags, patch=""):
    """The same in a process of its own; `patch` is Python code that runs before the script's."""
    start = [str(ROOT / f"{script}.py")]
    if patch:
        path = f"import sys; sys.path.insert(0, {str(ROOT)!r}); sys.argv[0] = '{script}.py'"
        start = ["-c", f"{path}\n{patch}\nimport {script}; {script}.main()"]
    done = subprocess.run([sys.executable, *start, *words(flags)], cwd=folder, capture_output=True, text=True)
    return Outcome(done.returncode, done.stdout, done.stderr)


def best(run):
    """The folder of the best snapshot of a run, as best.json names it."""
    return pathlib.Path(run) / json.loads((pathlib.Path(run) / "best.json").read_text())["snapshot"]


def stage_flags(folder, **more):
    """The flags of the four stages over a sandbox, {stage: flags}, paths relative to it.

    `more` goes to the two that train. Those of the later stages hold once the earlier have run: they name the
    best teacher.
    """
    teacher = (
        best(folder / "teacher").relative_to(folder) if (folder / "teacher" / "best.json").exists() else None
    )
    training = {**DATA, **TRAINING, **more}
    return {
        "preprocess": {**DATA, "model_load_dir": "bert", "resave_ofrecord": True},
        "meta_teacher": {**training, "model_load_dir": "bert", "model_save_dir": "teacher"},
        "meta_teacher_eval": {**DATA, "model_load_dir": teacher},
        "meta_distill": {
            **training,
            "student_model": "bert",
            "student_layers": 2,
            "teacher_model": teacher,
            "model_save_dir": "student",
        },
    }


def lay_out(folder, tiny_model, tiny_data):
    """A sandbox: `folder` with copies of the tiny model, `bert`, and of the tiny data, `data`."""
    shutil.copytree(tiny_model, folder / "bert")
    shutil.copytree(tiny_data, folder / "data")
    return folder


@pytest.fixture(scope="session")
def golden(tmp_path_factory, tiny_model, tiny_data):
    """A sandbox in which the four scripts ran one after the other, each as a process: bert, data, teacher,
    student. Not to be changed.
    """
    folder = lay_out(tmp_path_factory.mktemp("golden"), tiny_model, tiny_data)
    for stage in STAGES:
        outcome = call_process(stage, folder, stage_flags(folder)[stage])
        assert outcome.code == 0, outcome.err
    return folder


@pytest.fixture
def sandbox(golden, tmp_path):
    """A copy of the golden sandbox, to be changed."""
    return shutil.copytree(golden, tmp_path / "sandbox", symlinks=True)
