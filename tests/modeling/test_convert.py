"""Models of other forms made into model folders: each weight is where it belongs, whatever wrote it.

Faults are told, and shards are read. Real writers make the files where their environments are named:
$METAKD_TF_PYTHON (tensorflow-cpu, numpy and safetensors, no more) and $METAKD_TORCH_PYTHON (torch and
transformers). No OneFlow snapshot of 2021 was at hand: those here follow the layout that OneFlow-Benchmark's
convert_tf_ckpt_to_of.py and OneFlow's checkpoint code wrote at the time.
"""

import hashlib
import json
import os
import pickle
import re
import shutil
import subprocess
import sys

import numpy as np
import pytest
from conftest import ROOT, TINY, call, words
from safetensors.numpy import load_file, save_file

from modeling.bert.config import BertConfig
from modeling.bert.model import flow
from modeling.snapshots.folder import read_model
from modeling.snapshots.sources import find_checkpoint, source_format
from tokenization import tokenizer_for
from util import UserError, sha256

TF_PYTHON, TORCH_PYTHON = os.environ.get("METAKD_TF_PYTHON"), os.environ.get("METAKD_TORCH_PYTHON")
NEEDS_TF = pytest.mark.skipif(not TF_PYTHON, reason="METAKD_TF_PYTHON does not name a Python with TensorFlow")
NEEDS_TORCH = pytest.mark.skipif(
    not TORCH_PYTHON, reason="METAKD_TORCH_PYTHON does not name a Python with transformers"
)
CONFIG = {"hidden_act": "gelu", **{name: TINY.get(name, 2) for name in (*TINY, "type_vocab_size")}}
HELPER = """
import contextlib, io, json, os, pathlib, pickle, sys
from modeling import convert as command

def convert(source, target, *words):
    "The exit code of the command and what it printed."
    sys.argv = ["convert", "--source", str(source), "--target", str(target), *words]
    out, code = io.StringIO(), 0
    try:
        with contextlib.redirect_stdout(out), contextlib.redirect_stderr(out):
            command.main()
    except SystemExit as end:
        code = end.code
    return code, out.getvalue()
"""


@pytest.fixture(scope="module")
def original(tiny_model, tmp_path_factory):
    """A Hugging Face folder as read_model takes it, no two of its values alike. Not to be changed."""
    folder = shutil.copytree(tiny_model, tmp_path_factory.mktemp("original") / "bert")
    stream = np.random.default_rng(0)
    arrays = {
        name: stream.normal(0, 0.3, array.shape).astype(np.float32)
        for name, array in load_file(folder / "model.safetensors").items()
    }
    save_file(arrays, folder / "model.safetensors", metadata={"format": "pt"})
    return folder


def released(arrays):
    """The arrays as Google's BERT release names and turns them, with heads, optimizer slots and step."""
    made = {}
    for name, array in arrays.items():
        norm, embedding = "LayerNorm" in name, "_embeddings" in name
        name = re.sub(r"\.weight$", "/gamma" if norm else "" if embedding else "/kernel", name)
        name = re.sub(r"\.bias$", "/beta" if norm else "/bias", name)
        made[re.sub(r"layer\.(\d+)", r"layer_\1", name).replace(".", "/")] = (
            array.T if name.endswith("kernel") else array
        )
    slots = {f"{name}/adam_{slot}": np.ones_like(array) for name, array in made.items() for slot in "mv"}
    return {
        **made,
        **slots,
        "cls/predictions/output_bias": np.ones(40, np.float32),
        "cls/seq_relationship/output_weights": np.ones((2, 16), "f4"),
    }


def write_oneflow(folder, arrays, meta):
    """A OneFlow snapshot of 2021.

    With `meta` as OneFlow saved its variables, without it as convert_tf_ckpt_to_of.py wrote them.
    """
    from google.protobuf import text_format
    from oneflow.core.framework.variable_meta_info_pb2 import VariableMetaInfo

    for name, array in released(arrays).items():
        name = name.replace("/", "-").replace("kernel", "weight").replace("adam_", "")
        (folder / name).mkdir(parents=True)
        if meta and "position" in name:
            array = array[None]
        (folder / name / "out").write_bytes(array.astype("<f4").tobytes())
        if meta:
            info = VariableMetaInfo()
            info.shape.dim[:] = array.shape
            info.data_type = 2  # kFloat
            (folder / name / "meta").write_text(text_format.MessageToString(info))
    (folder / "System-Train-TrainStep-train").mkdir()
    (folder / "System-Train-TrainStep-train" / "out").write_bytes(bytes(8))  # int64
    (folder / "snapshot_done").write_text("")
    return folder


@pytest.fixture(params=[True, False], ids=["with meta", "without"])
def snapshot(original, tmp_path, request):
    """A OneFlow snapshot, to be changed."""
    return write_oneflow(tmp_path / "snapshot", load_file(original / "model.safetensors"), request.param)


def converted(snapshot, original, **flags):
    """How the command ends for a OneFlow snapshot; `flags` go before the right ones."""
    return call(
        "modeling.convert",
        snapshot.parent,
        {
            "source": snapshot.name,
            "target": "made",
            "vocab_file": original / "vocab.txt",
            "num_attention_heads": 4,
            **flags,
        },
    )


def same_model(folder, original):
    """The folder is read, and its architecture, weights and tokens are those of the original."""
    found, expected = read_model(folder), read_model(original)
    assert (
        found.config == expected.config
        and found.meta is None
        and found.arrays.keys() == expected.arrays.keys()
    )
    for name, array in expected.arrays.items():
        np.testing.assert_array_equal(found.arrays[name], array, err_msg=name)
    assert (
        tokenizer_for(folder).vocab == tokenizer_for(original).vocab and tokenizer_for(folder).do_lower_case
    )
    return True


def summarise(outcome, *parts):
    """A sentence, exit code 2, and no traceback."""
    assert (
        outcome.code == 2
        and outcome.err.startswith("error: ")
        and outcome.err.endswith(".\n")
        and len(outcome.err.splitlines()) == 1
    ), outcome
    assert all(part in outcome.err for part in parts), outcome.err


# --------------------------------------------------------------------------------------- OneFlow snapshots


def test_a_oneflow_snapshot_is_converted(snapshot, original):
    """Every weight and the architecture come from the files alone.

    What is left out is named or, if it is of the optimizer, counted.
    """
    outcome = converted(snapshot, original)
    assert outcome.code == 0, outcome.err
    assert same_model(snapshot.parent / "made", original)
    slots = 2 * len(load_file(original / "model.safetensors"))
    assert (
        f"tensors left out: {slots} optimizer slots; System-Train-TrainStep-train, "
        "cls-predictions-output_bias, cls-seq_relationship-output_weights\n"
    ) in outcome.out


def test_a_config_says_what_the_sizes_do_not(snapshot, original):
    """--config replaces the sizes, and must agree with the weights; unknown keys are named."""

    def with_config(**changed):
        (snapshot.parent / "bert_config.json").write_text(
            json.dumps({**CONFIG, "pooler_type": "first_token_transform", **changed})
        )
        return converted(snapshot, original, config="bert_config.json", num_attention_heads=None)

    summarise(with_config(intermediate_size=64), "intermediate", "64")
    summarise(with_config(num_hidden_layers=5), "bert.encoder.layer.4", "missing")
    summarise(with_config(num_hidden_layers=3), "does not describe", "bert-encoder-layer_3")
    summarise(with_config(num_attention_heads=3), "not a multiple")
    summarise(with_config(hidden_act="relu"), "hidden_act", "'relu'")
    summarise(with_config(model_type="electra"), "'electra'")
    other = with_config(model_type="distilbert", hidden_size=None)  # it has `dim`: the kind comes first
    summarise(other, "'distilbert'", "no segments and no pooler")
    summarise(with_config(hidden_size=True), "hidden_size is True, expected a value of kind int")
    summarise(converted(snapshot, original, config="bert_config.json"), "--num_attention_heads")
    outcome = with_config()
    assert "keys left out: pooler_type\n" in outcome.out and same_model(snapshot.parent / "made", original)


QUERY = "bert-encoder-layer_1-attention-self-query-weight"


@pytest.mark.parametrize(
    "change, parts",
    [
        (
            lambda folder: shutil.rmtree(folder / QUERY),
            ["bert.encoder.layer.1.attention.self.query.weight", "missing"],
        ),
        (
            lambda folder: (folder / QUERY / "out").unlink(),
            ["bert.encoder.layer.1.attention.self.query.weight", "missing"],
        ),
        (lambda folder: os.truncate(folder / QUERY / "out", 1023), [QUERY, "1023 bytes", "1024"]),
        (lambda folder: os.truncate(folder / QUERY / "out", 2048), [QUERY, "2048 bytes", "1024"]),
        (
            lambda folder: os.truncate(folder / "bert-embeddings-LayerNorm-gamma" / "out", 0),
            ["hidden_size is 0"],
        ),
        (lambda folder: np.full(256, np.nan, "<f4").tofile(folder / QUERY / "out"), [QUERY, "not finite"]),
        (lambda folder: np.full(256, -np.inf, "<f4").tofile(folder / QUERY / "out"), [QUERY, "not finite"]),
        (
            lambda folder: (folder / QUERY / "meta").write_text(
                "shape {\n  dim: 8\n  dim: 32\n}\ndata_type: kFloat\n"
            ),
            ["(8, 32)", "(16, 16)"],
        ),
        (
            lambda folder: (folder / QUERY / "meta").write_text(
                "shape {\n  dim: 16\n  dim: 16\n}\ndata_type: kDouble\n"
            ),
            ["kDouble", "kFloat"],
        ),
        (
            lambda folder: (folder / QUERY / "meta").write_bytes(b"\x12\x04\x08\x10\x08\x10\x18\x02\xff"),
            ["meta", "expected"],
        ),
        (
            lambda folder: shutil.copytree(folder / QUERY, folder / QUERY.replace("_1-", "_77-")),
            ["bert.encoder.layer.4", "missing"],
        ),
        (
            lambda folder: shutil.copytree(folder / QUERY, folder / QUERY.replace("weight", "kernel")),
            ["two names", QUERY],
        ),
        (
            lambda folder: shutil.rmtree(folder / "bert-pooler-dense-bias"),
            ["bert.pooler.dense.bias", "missing"],
        ),
    ],
)
def test_faults_of_a_snapshot_are_told(snapshot, original, change, parts):
    """Every fault of a snapshot is named, and nothing is written.

    A tensor is missing, cut, grown, not finite, of another shape or type, of a layer too many, or there
    twice.
    """
    change(snapshot)
    summarise(converted(snapshot, original), *parts)
    assert sorted(path.name for path in snapshot.parent.iterdir()) == ["snapshot"]


def test_a_model_without_a_pooler_is_one(snapshot, original):
    """Training makes a new one; a line says so."""
    for name in ("weight", "bias"):
        shutil.rmtree(snapshot / f"bert-pooler-dense-{name}")
    assert "without the pooler" in converted(snapshot, original).out
    assert not [name for name in read_model(snapshot.parent / "made").arrays if "pooler" in name]


def test_flags_that_cannot_be_are_told(snapshot, original, tmp_path):
    """Flags that cannot work together are refused.

    No source, one that needs nothing, one of no kind, a full target, heads and vocabularies that do not
    fit.
    """
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "precious").write_text("")
    (tmp_path / "long.txt").write_text((original / "vocab.txt").read_text() + "more\n")
    summarise(converted(snapshot, original, source="nowhere"), "--source nowhere", "no such folder")
    summarise(converted(snapshot, original, source=original), "model.safetensors", "no conversion")
    summarise(converted(snapshot, original, source="full"), "--source full", "bert_model.ckpt.index")
    summarise(converted(snapshot, original, target="full"), "--target full", "new folder")
    summarise(converted(snapshot, original, target="long.txt"), "--target long.txt", "new folder")
    summarise(converted(snapshot, original, num_attention_heads=None), "16 wide", "--num_attention_heads")
    summarise(converted(snapshot, original, num_attention_heads=3), "not a multiple")
    summarise(
        converted(snapshot, original, num_attention_heads=0), "--num_attention_heads: 0 is not of at least 1"
    )
    summarise(converted(snapshot, original, vocab_file=None), "--vocab_file")
    summarise(converted(snapshot, original, vocab_file="long.txt"), "41 tokens", "40 word vectors")
    assert os.listdir(tmp_path / "full") == ["precious"] and not (tmp_path / "made").exists()


@pytest.mark.parametrize(
    "token, config, lower",
    [
        ("the", None, True),
        ("The", None, False),
        ("The", {"do_lower_case": True}, True),
        ("the", {"do_lower_case": False}, False),
    ],
)
def test_the_case_of_letters(snapshot, original, tmp_path, token, config, lower):
    """tokenizer_config.json says whether case counts; without it, capital letters in the vocabulary do."""
    tokens = (original / "vocab.txt").read_text().replace("\nthe\n", f"\n{token}\n")
    (tmp_path / "words.txt").write_text(tokens)
    if config:
        (snapshot / "tokenizer_config.json").write_text(json.dumps(config))
    assert converted(snapshot, original, vocab_file="words.txt").code == 0
    assert tokenizer_for(tmp_path / "made").do_lower_case == lower


def test_the_checkpoint_of_a_run_is_found_under_its_own_name(tmp_path):
    """A folder's checkpoint is found, also under a name such as model.ckpt-1000.

    Of several, it is the one that TensorFlow's `checkpoint` names; without that they are listed.
    """
    for name in ("model.ckpt-1000", "model.ckpt-200"):
        for end in ("index", "data-00000-of-00001"):
            (tmp_path / f"{name}.{end}").write_bytes(b"")
    assert source_format(tmp_path) == "tensorflow"
    with pytest.raises(UserError, match="found several checkpoints, model.ckpt-1000, model.ckpt-200"):
        find_checkpoint(tmp_path)
    (tmp_path / "checkpoint").write_text('model_checkpoint_path: "/far/model.ckpt-200"\nall_model: "x"\n')
    assert find_checkpoint(tmp_path) == "model.ckpt-200"
    (tmp_path / "model.ckpt-1000.index").unlink()
    (tmp_path / "checkpoint").unlink()
    assert find_checkpoint(tmp_path) == "model.ckpt-200"


def test_only_what_is_readable_is_said_to_need_no_conversion(original, tmp_path):
    """A model.safetensors that is a pointer or broken is told as such."""
    folder = shutil.copytree(original, tmp_path / "pointer")
    (folder / "model.safetensors").write_text("version https://git-lfs.github.com/spec/v1\n")
    summarise(converted(folder, original), "Git LFS pointer")
    (folder / "model.safetensors").write_bytes(b"x" * 100)
    summarise(converted(folder, original), "not a readable safetensors file")


# --------------------------------------------------------------------------------------- libraries


def test_neither_oneflow_nor_another_library_is_loaded(original, tmp_path):
    """The command converts a OneFlow snapshot in a Python that has numpy and safetensors alone."""
    source = write_oneflow(tmp_path / "snapshot", load_file(original / "model.safetensors"), meta=True)
    hide = (
        "import sys\n"
        "for name in ('oneflow', 'torch', 'tensorflow', 'google', 'sklearn'):\n"
        "    sys.modules[name] = None\n"
    )
    (tmp_path / "sitecustomize.py").write_text(hide)
    flags = {
        "source": source,
        "target": tmp_path / "made",
        "num_attention_heads": 4,
        "vocab_file": original / "vocab.txt",
    }
    done = subprocess.run(
        [sys.executable, "-m", "modeling.convert", *words(flags)],
        cwd=ROOT,
        env={**os.environ, "PYTHONPATH": str(tmp_path)},
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0 and not done.stderr, done.stderr
    assert same_model(tmp_path / "made", original)


@pytest.mark.parametrize(
    "module, package, mark",
    [
        ("safetensors.numpy", "safetensors", "model.safetensors"),
        ("torch", "torch", "pytorch_model.bin"),
        ("tensorflow", "tensorflow-cpu", "bert_model.ckpt.index"),
    ],
)
def test_a_library_that_is_missing_is_named(original, tmp_path, monkeypatch, module, package, mark):
    """And how to have it; it is asked for only where the source needs it."""
    source = shutil.copytree(original, tmp_path / "source")
    (source / "model.safetensors").rename(source / mark)
    monkeypatch.setitem(sys.modules, module, None)
    summarise(
        call("modeling.convert", tmp_path, {"source": "source", "target": "made"}), f"pip install {package}'"
    )


def test_the_suite_names_the_command(snapshot, original, tmp_path):
    """What can be converted is told with the command that does it, by the flag that named it."""
    for mark in ("pytorch_model.bin", "pytorch_model.bin.index.json", "bert_model.ckpt.index", None):
        folder = tmp_path / (mark or "snapshot")
        if mark:
            folder.mkdir()
            (folder / mark).write_bytes(pickle.dumps({}))
        with pytest.raises(
            UserError,
            match=r"--student_model .*'python3 -m modeling.convert "
            rf"--source {re.escape(str(folder))} --target DIR'",
        ):
            read_model(folder, "--student_model")


# --------------------------------------------------------------------------------------- shards


@pytest.fixture
def sharded(original, tmp_path):
    """The original in two shards, to be changed."""
    folder = shutil.copytree(original, tmp_path / "sharded")
    arrays = load_file(folder / "model.safetensors")
    (folder / "model.safetensors").unlink()
    places = {
        name: f"model-0000{1 + number % 2}-of-00002.safetensors" for number, name in enumerate(sorted(arrays))
    }
    for file in set(places.values()):
        save_file({name: arrays[name] for name, place in places.items() if place == file}, folder / file)
    (folder / "model.safetensors.index.json").write_text(
        json.dumps({"metadata": {"total_size": 1}, "weight_map": places})
    )
    return folder


def test_shards_are_read_as_they_are(sharded, original):
    """Shards give the same weights, and their hash is that of the shards' hashes.

    One model.safetensors goes before an index beside it.
    """
    assert same_model(sharded, original)
    hashes = "".join(sha256(sharded / f"model-0000{number}-of-00002.safetensors") for number in (1, 2))
    assert (
        read_model(sharded).sha256
        == hashlib.sha256(hashes.encode()).hexdigest()
        != read_model(original).sha256
    )
    shutil.copyfile(original / "model.safetensors", sharded / "model.safetensors")
    assert read_model(sharded).sha256 == read_model(original).sha256


SHARD = "model-00001-of-00002.safetensors"


@pytest.mark.parametrize(
    "change, part",
    [
        (lambda index: {}, "weight_map"),
        (lambda index: {"weight_map": {}}, "weight_map"),
        (lambda index: {"weight_map": ["x"]}, "weight_map"),
        (lambda index: {"weight_map": {**index["weight_map"], "x": 1}}, "weight_map"),
        (
            lambda index: {"weight_map": {**index["weight_map"], "x": "../bert/model.safetensors"}},
            "'../bert/model.safetensors'",
        ),
        (lambda index: {"weight_map": {**index["weight_map"], "x": "gone\0"}}, "gone"),
        (lambda index: {"weight_map": {**index["weight_map"], "classifier.weight": SHARD}}, SHARD),
        (
            lambda index: {
                "weight_map": {
                    name: file for name, file in index["weight_map"].items() if "pooler" not in name
                }
            },
            "not those",
        ),
        (
            lambda index: {
                "weight_map": {name: file for name, file in index["weight_map"].items() if file == SHARD}
            },
            "missing",
        ),
        (lambda index: [], "JSON object"),
    ],
)
def test_an_index_that_lies_is_told(sharded, change, part):
    """A false index is named: no map, a file outside the folder, a tensor in a wrong shard, a lost shard."""
    path = sharded / "model.safetensors.index.json"
    path.write_text(json.dumps(change(json.loads(path.read_text()))))
    with pytest.raises(UserError, match=re.escape(part)):
        read_model(sharded)


def test_a_shard_that_is_gone_or_cut_is_told(sharded):
    """By its name."""
    os.truncate(sharded / SHARD, 100)
    with pytest.raises(UserError, match=SHARD):
        read_model(sharded)
    (sharded / SHARD).unlink()
    with pytest.raises(UserError, match=SHARD):
        read_model(sharded)


# --------------------------------------------------------------------------------------- real writers

TF_SCRIPT = (
    HELPER
    + """
import numpy as np
loaded = {name for name, module in sys.modules.items() if hasattr(module, "__file__")}
assert not {"tqdm", "oneflow", "torch"} & loaded
import tensorflow as tf
v1, source = tf.compat.v1, pathlib.Path("source")
with v1.Graph().as_default(), v1.Session() as session:
    for name, array in np.load("released.npz").items():
        v1.get_variable(name, initializer=array)
    v1.train.get_or_create_global_step()
    session.run(v1.global_variables_initializer())
    v1.train.Saver().save(session, str(source / "bert_model.ckpt"), write_meta_graph=True)
outcomes = {"good": convert(source, "made")}
config = json.loads((source / "bert_config.json").read_text())
for name, wrong in (
    ("shape", {"intermediate_size": 33}),
    ("missing", {"num_hidden_layers": 5}),
    ("extra", {"num_hidden_layers": 3}),
):
    pathlib.Path("wrong.json").write_text(json.dumps({**config, **wrong}))
    outcomes[name] = convert(source, "refused", "--config", "wrong.json")
data = source / "bert_model.ckpt.data-00000-of-00001"
os.truncate(data, data.stat().st_size // 2)
outcomes["cut"] = convert(source, "refused")
(source / "bert_model.ckpt.index").write_bytes(b"none")
outcomes["no index"] = convert(source, "refused")
print(json.dumps(outcomes))
"""
)


@pytest.fixture(scope="module")
def from_google(original, tmp_path_factory):
    """A folder with TensorFlow's checkpoint `source` and our model `made` of it; what the command said."""
    folder = tmp_path_factory.mktemp("google")
    (folder / "source").mkdir()
    np.savez(folder / "released.npz", **released(load_file(original / "model.safetensors")))
    shutil.copyfile(original / "vocab.txt", folder / "source" / "vocab.txt")
    (folder / "source" / "bert_config.json").write_text(json.dumps(CONFIG))
    return folder, run_script(TF_PYTHON, TF_SCRIPT, folder)


def run_script(python, script, folder, *argv):
    """What the script, run by another Python, prints as JSON on its last line."""
    quiet = {
        "PYTHONPATH": str(ROOT),
        "CUDA_VISIBLE_DEVICES": "",
        "HF_HUB_OFFLINE": "1",
        "OMP_NUM_THREADS": "1",
    }
    done = subprocess.run(
        [python, "-c", script, *map(str, argv)],
        cwd=folder,
        env={**os.environ, **quiet},
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout.splitlines()[-1])


@NEEDS_TF
def test_a_release_of_google_is_converted(from_google, original):
    """A checkpoint of TensorFlow 1's Saver, with optimizer slots and the step, is converted.

    TensorFlow's environment has no OneFlow and no tqdm.
    """
    folder, outcomes = from_google
    assert outcomes["good"][0] == 0, outcomes["good"]
    assert same_model(folder / "made", original)
    slots = 2 * len(load_file(original / "model.safetensors"))
    assert (
        f"tensors left out: {slots} optimizer slots; cls/predictions/output_bias, "
        "cls/seq_relationship/output_weights, global_step\n"
    ) in outcomes["good"][1]


@NEEDS_TF
@pytest.mark.parametrize(
    "fault, part",
    [
        ("shape", "intermediate"),
        ("missing", "bert.encoder.layer.4"),
        ("extra", "bert/encoder/layer_3"),
        ("cut", "TensorFlow cannot read"),
        ("no index", "TensorFlow cannot read"),
    ],
)
def test_faults_of_a_release_are_told(from_google, fault, part):
    """Weights that are not as the config says, and files that were cut: one sentence each."""
    folder, outcomes = from_google
    code, said = outcomes[fault]
    assert code == 2 and part in said and said.startswith("error: ") and len(said.splitlines()) == 1, said
    assert not (folder / "refused").exists()


TORCH_SCRIPT = (
    HELPER
    + """
import torch, transformers
original, pairs, outcomes = sys.argv[1], dict(zip(sys.argv[2::2], sys.argv[3::2])), {}
transformers.logging.set_verbosity_error()
ids = torch.arange(48).reshape(3, 16) % 40
mask = (torch.arange(16) < torch.tensor([[16], [9], [2]])).long()

def outputs(folder):
    model = transformers.BertModel.from_pretrained(folder, attn_implementation="eager").eval()
    with torch.no_grad():
        return model(ids, attention_mask=mask, token_type_ids=ids % 2, output_hidden_states=True)

def same(folder, reference):
    found = outputs(folder)
    arrays, expected = ((*each.hidden_states, each.pooler_output) for each in (found, reference))
    return all(torch.equal(a, b) for a, b in zip(arrays, expected))

def folder_of(name, tensors, model=None, **config):
    folder = pathlib.Path(name)
    (model or plain).config.save_pretrained(folder)
    values = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps({**values, **config}))
    (folder / "vocab.txt").write_bytes(pathlib.Path(original, "vocab.txt").read_bytes())
    torch.save(tensors, folder / "pytorch_model.bin")
    return folder

reference = outputs(original)
plain = transformers.BertModel.from_pretrained(original)
state = plain.state_dict()
plain.save_pretrained("sharded", max_shard_size="8KB")
pretraining = transformers.BertForPreTraining(plain.config)
pretraining.bert.load_state_dict(state)
heads = pretraining.state_dict()
fits = {f"fit_denses.{n}.{kind}": torch.ones(8) for n in range(5) for kind in ("weight", "bias")}
def old_name(name):
    return name.replace("Norm.weight", "Norm.gamma").replace("Norm.bias", "Norm.beta")
old = {old_name(name): t for name, t in heads.items()}
folder_of("plain", state)
folder_of("pretraining", heads, pretraining)
folder_of("old names", old)
folder_of("half", {name: t.half() if t.is_floating_point() else t for name, t in state.items()})
folder_of("bfloat16", {name: t.bfloat16() if t.is_floating_point() else t for name, t in state.items()})
folder_of("TinyBERT", {**heads, **fits}, cell={}, emb_size=16, pre_trained="", structure=[])
folder_of("bin shards", {})
pathlib.Path("bin shards", "pytorch_model.bin").unlink()
places = {name: f"pytorch_model-0000{1 + n % 3}-of-00003.bin" for n, name in enumerate(state)}
for file in set(places.values()):
    tensors = {name: state[name] for name, place in places.items() if place == file}
    torch.save(tensors, pathlib.Path("bin shards", file))
index = json.dumps({"metadata": {}, "weight_map": places})
pathlib.Path("bin shards", "pytorch_model.bin.index.json").write_text(index)
folder_of("module", {"module." + name: t for name, t in heads.items()})
folder_of("model_state_dict", {"model_state_dict": state, "epoch": 3, "optimizer": {"lr": 1e-5}})
folder_of("state_dict", {"state_dict": {"model.bert." + name: t for name, t in state.items()}})
folder_of("own name", state)
pathlib.Path("own name", "pytorch_model.bin").rename(pathlib.Path("own name", "best.pt"))
torch.save({"state": {}}, pathlib.Path("own name", "optimizer.pt"))
folder_of("beside a pointer", state)
pointer = "version https://git-lfs.github.com/spec/v1\\n"
pathlib.Path("beside a pointer", "model.safetensors").write_text(pointer)
BROUGHT = ("module", "model_state_dict", "state_dict", "own name", "beside a pointer")
for name in ("plain", "pretraining", "old names", "half", "bfloat16", "TinyBERT", "bin shards", *BROUGHT):
    outcomes[name] = convert(name, "made " + name)
    pairs[name] = "made " + name
equal = {name: same(folder, reference) for name, folder in pairs.items()}

class Planted:
    def __reduce__(self):
        return os.mkdir, ("ran",)

folder_of("planted by torch", {**state, "x": Planted()})
(folder_of("planted", {}) / "pytorch_model.bin").write_bytes(pickle.dumps(Planted(), protocol=2))
os.truncate(folder_of("cut", state) / "pytorch_model.bin", 5000)
folder_of("NaN", {**state, "pooler.dense.bias": torch.full((16,), float("nan"))})
folder_of("whole numbers", {**state, "pooler.dense.bias": torch.ones(16, dtype=torch.int64)})
folder_of("shape", {**state, "pooler.dense.bias": torch.ones(15)})
folder_of("missing", {name: t for name, t in state.items() if name != "encoder.layer.2.output.dense.bias"})
folder_of("twice", {**state, "bert.pooler.dense.bias": torch.ones(16)})
folder_of("no tensors", [3])
weights = ("NaN", "whole numbers", "shape", "missing", "twice", "no tensors")
for name in ("planted by torch", "planted", "cut", *weights):
    outcomes[name] = convert(name, "refused")
print(json.dumps({"outcomes": outcomes, "equal": equal}))
"""
)


@pytest.fixture(scope="module")
def from_transformers(original, tmp_path_factory, request):
    """Models written by transformers and converted by the command.

    The folder; what the command said, and which outputs are the same.
    """
    folder = tmp_path_factory.mktemp("transformers")
    write_oneflow(folder / "snapshot", load_file(original / "model.safetensors"), meta=True)
    assert converted(folder / "snapshot", original, target="from oneflow").code == 0
    pairs = ["OneFlow", "from oneflow"]
    if TF_PYTHON:
        pairs += ["Google", request.getfixturevalue("from_google")[0] / "made"]
    return folder, run_script(TORCH_PYTHON, TORCH_SCRIPT, folder, original, *pairs)


@NEEDS_TORCH
@pytest.mark.parametrize(
    "name",
    ["plain", "pretraining", "old names", "TinyBERT", "bin shards"]
    + ["module", "model_state_dict", "state_dict", "own name", "beside a pointer"],
)
def test_a_pytorch_model_is_converted(from_transformers, original, name):
    """With and without `bert.`, gamma and beta, shards, heads; the command runs in PyTorch's environment."""
    folder, report = from_transformers
    code, said = report["outcomes"][name]
    assert code == 0, said
    assert same_model(folder / f"made {name}", original)
    assert ("cls.predictions.bias" in said) == (name in ("pretraining", "old names", "TinyBERT", "module"))
    if name == "TinyBERT":
        assert "cell, " in said and "emb_size, " in said and "fit_denses.0.bias" in said


@NEEDS_TORCH
@pytest.mark.parametrize(
    "name, kept",
    [
        ("half", lambda array: array.astype(np.float16)),
        ("bfloat16", lambda array: flow.tensor(array).to(flow.bfloat16).to(flow.float32).numpy()),
    ],
)
def test_half_precision_becomes_single(from_transformers, original, name, kept):
    """Each value as the source has it."""
    found = read_model(from_transformers[0] / f"made {name}").arrays
    for key, array in read_model(original).arrays.items():
        np.testing.assert_array_equal(found[key], kept(array).astype(np.float32), err_msg=key)


@NEEDS_TORCH
def test_transformers_gives_the_same_outputs(from_transformers):
    """Bit for bit those of the original, for every form in single precision that was converted."""
    equal = from_transformers[1]["equal"]
    assert {name for name, same in equal.items() if not same} == {"half", "bfloat16"}
    assert len(equal) == 13 + bool(TF_PYTHON)


@NEEDS_TORCH
def test_shards_of_transformers_are_read(from_transformers, original):
    """As save_pretrained writes them with max_shard_size."""
    folder = from_transformers[0] / "sharded"
    assert len(list(folder.glob("*.safetensors"))) > 1 and not (folder / "model.safetensors").exists()
    found, expected = read_model(folder), read_model(original)
    assert (
        found.config == expected.config == BertConfig.from_file(original / "config.json")
        and found.arrays.keys() == expected.arrays.keys()
    )
    for name, array in expected.arrays.items():
        np.testing.assert_array_equal(found.arrays[name], array)


@NEEDS_TORCH
@pytest.mark.parametrize(
    "name, part",
    [
        ("planted by torch", "as weights alone"),
        ("planted", "as weights alone"),
        ("cut", "as weights alone"),
        ("NaN", "pooler.dense.bias"),
        ("whole numbers", "int64"),
        ("shape", "(15,)"),
        ("missing", "bert.encoder.layer.2.output.dense.bias"),
        ("twice", "two names"),
        ("no tensors", "as weights alone"),
    ],
)
def test_faults_of_a_pytorch_model_are_told(from_transformers, name, part):
    """Code in a pickle is not run.

    Cut files and impossible weights are told in one sentence, and nothing is written.
    """
    folder, report = from_transformers
    code, said = report["outcomes"][name]
    assert code == 2 and part in said and said.startswith("error: ") and len(said.splitlines()) == 1, said
    assert not (folder / "ran").exists() and not (folder / "refused").exists()
