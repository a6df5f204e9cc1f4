"""Model folders: which are read or refused, which weight goes where, and how snapshots are saved."""

import dataclasses
import json
import os
import pickle
import re
import shutil
import stat
import struct
from types import SimpleNamespace

import numpy as np
import pytest
from fuzz import WRONG, rehash_snapshot, with_value
from safetensors.numpy import load_file, save_file

from data.store.files import write_json
from data.tasks import BUILT_IN
from modeling.bert.config import BertConfig
from modeling.bert.model import flow, init_weights
from modeling.meta_kd.classifier import STUDENT_ONLY, DomainClassifier, build_student, build_teacher
from modeling.snapshots import folder as reading
from modeling.snapshots.checks import check_fits_model, check_task, teacher_meta
from modeling.snapshots.folder import read_model, read_optimizer, read_snapshot_facts
from modeling.snapshots.loading import keep_layers, load_weights
from modeling.snapshots.manager import best_snapshot
from modeling.snapshots.saving import save_snapshot
from modeling.training.optimization import make_optimizer, restore_optimizer
from modeling.training.stage import load_initial_model
from tokenization import tokenizer_for
from util import UserError, sha256

TASK = BUILT_IN["senti"]
META = {
    "kind": "teacher",
    "task": "senti",
    "labels": TASK.labels,
    "domains": TASK.domains,
    "step": 7,
    "best": None,
    "domain_head": True,
    "seen_domains": [0, 1, 2, 3],
    "flags": {"seed": 1},
}


@pytest.fixture
def plain(tiny_model, tmp_path):
    """A copy of the tiny Hugging Face folder, to be changed."""
    return shutil.copytree(tiny_model, tmp_path / "bert")


def teacher(folder):
    model = build_teacher(read_model(folder).config, TASK, domain_head=True)
    init_weights(model, 3, 0.2)
    return model


@pytest.fixture(scope="module")
def saved(tiny_model, tmp_path_factory):
    """A snapshot of a teacher with optimizer state. Not to be changed."""
    path = tmp_path_factory.mktemp("snapshots") / "snapshot_last"
    save_snapshot(
        path,
        teacher(tiny_model),
        tokenizer_for(tiny_model),
        META,
        optimizer={"exp_avg.x": np.ones(2, np.float32)},
    )
    return path


@pytest.fixture
def snapshot(saved, tmp_path):
    """A copy of the snapshot, to be changed."""
    return shutil.copytree(saved, tmp_path / "snapshot_last")


def change_weights(folder, change):
    arrays = load_file(folder / "model.safetensors")
    arrays = change(arrays) or arrays
    save_file(arrays, folder / "model.safetensors", metadata={"format": "pt"})


def change_config(folder, **changed):
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps({**config, **changed}))


def refused(call, *words):
    """The one sentence of the UserError that `call` raises; all `words` stand in it."""
    with pytest.raises(UserError) as error:
        call()
    sentence = str(error.value)
    assert "\n" not in sentence and sentence.endswith(".") and all(word in sentence for word in words), (
        sentence
    )
    return sentence


# --------------------------------------------------------------------------------------- plain folders


def test_a_hugging_face_folder_needs_no_manifest(plain):
    """config.json and model.safetensors are enough; a folder without meta.json is a plain model."""
    (plain / "vocab.txt").unlink()
    folder = read_model(plain)
    assert (
        folder.meta is None
        and folder.config.num_hidden_layers == 4
        and folder.sha256 == sha256(plain / "model.safetensors")
    )
    assert "bert.embeddings.word_embeddings.weight" in folder.arrays


def test_older_names_are_understood(plain, tiny_model):
    """Older names give the same weights.

    No prefix `bert.`, LayerNorm's gamma and beta, half precision, a buffer of positions.
    """
    expected = read_model(tiny_model).arrays

    def rename(arrays):
        old = {
            name[len("bert.") :]
            .replace("LayerNorm.weight", "LayerNorm.gamma")
            .replace("LayerNorm.bias", "LayerNorm.beta"): array
            for name, array in arrays.items()
        }
        return {
            **{name: array.astype(np.float16) for name, array in old.items()},
            "embeddings.position_ids": np.arange(32)[None],
        }

    change_weights(plain, rename)
    found = read_model(plain).arrays
    assert found.keys() == expected.keys() and all(array.dtype == np.float32 for array in found.values())
    for name, array in expected.items():
        np.testing.assert_array_equal(found[name], array.astype(np.float16).astype(np.float32))


@pytest.mark.parametrize("name", ["config.json", "model.safetensors"])
def test_a_folder_that_lacks_a_file_is_refused(plain, name):
    """The sentence names the flag, the folder and the file."""
    (plain / name).unlink()
    refused(lambda: read_model(plain, "--student_model"), "--student_model", str(plain), name)
    refused(lambda: read_model(plain / "nowhere", "--student_model"), "--student_model", "no such folder")


def test_weights_that_are_no_finite_floats_are_refused(plain):
    """NaN, infinity and whole numbers, with the tensor's name."""
    name = "bert.pooler.dense.bias"
    for value in (np.nan, np.inf):
        change_weights(
            plain, lambda arrays, value=value: arrays.update({name: np.array([0, value] * 8, np.float32)})
        )
        refused(lambda: read_model(plain), name, "not finite")
    change_weights(plain, lambda arrays: arrays.update({name: np.zeros(16, np.int64)}))
    refused(lambda: read_model(plain), name, "int64")


@pytest.mark.parametrize("size", [0, 4, 100, -1])
def test_a_file_that_was_cut_is_refused(plain, size):
    """Nothing, half a header, and all but the last byte: a sentence, no traceback of the library."""
    path = plain / "model.safetensors"
    path.write_bytes(path.read_bytes()[:size])
    refused(lambda: read_model(plain), str(path), "not a readable safetensors file")


def test_no_pickle_is_read(plain):
    """A model.safetensors that is a pickle is refused and runs nothing.

    A pytorch_model.bin beside or instead of it is not opened.
    """

    class Planted:
        def __reduce__(self):
            return os.mkdir, (str(plain / "planted"),)

    for name in ("pytorch_model.bin", "model.safetensors"):
        (plain / name).write_bytes(pickle.dumps(Planted()))
        if name == "model.safetensors":
            refused(lambda: read_model(plain), "not a readable safetensors file")
            (plain / name).unlink()
            refused(lambda: read_model(plain), "model.safetensors is missing")
        else:
            read_model(plain)
    assert not (plain / "planted").exists()


# ------------------------------------------------------------------------------------ which weight goes where


def test_every_weight_is_reported(plain):
    """So many loaded, new with their names, left over with their names."""
    more = {"cls.predictions.bias": np.ones(40, np.float32)}
    change_weights(
        plain,
        lambda arrays: {**{name: array for name, array in arrays.items() if "pooler" not in name}, **more},
    )
    model, lines = teacher(plain), []
    before = model.classifier.weight.numpy().copy()
    load_weights(model, read_model(plain), lines.append)
    encoder = 5 + 4 * 16
    assert (
        len(lines) == 1
        and f"{encoder} loaded, 9 new (" in lines[0]
        and "1 left over (cls.predictions.bias)" in lines[0]
    )
    assert all(
        name in lines[0]
        for name in ("bert.pooler.dense.weight", "classifier.weight", "domain_head.embedding.weight")
    )
    np.testing.assert_array_equal(model.classifier.weight.numpy(), before)
    arrays = load_file(plain / "model.safetensors")
    for name, parameter in model.named_parameters():
        if name in arrays:
            np.testing.assert_array_equal(parameter.numpy(), arrays[name])


def test_another_architecture_is_refused(plain):
    """A tensor of another shape, or a lost or extra encoder weight, gives a sentence with its name.

    No layer is left random without a word.
    """
    name = "bert.encoder.layer.1.output.dense.weight"
    for change, words in (
        (lambda arrays: arrays.update({name: np.ones((16, 31), np.float32)}), "(16, 31)"),
        (lambda arrays: arrays.pop(name) is None, "missing"),
    ):
        change_weights(plain, change)
        refused(lambda: load_weights(teacher(plain), read_model(plain)), str(plain), name, words)


def test_a_config_with_other_layers_than_the_weights_is_refused(plain):
    """num_hidden_layers above or below what model.safetensors holds."""
    for layers, name in ((3, "bert.encoder.layer.3."), (5, "bert.encoder.layer.4.")):
        change_config(plain, num_hidden_layers=layers)
        refused(lambda: load_weights(teacher(plain), read_model(plain)), name)


def test_heads_may_be_new_only_where_training_starts(snapshot, tiny_model):
    """`exact`, as for a resumed run or a teacher, asks for every weight."""
    model = build_teacher(read_model(tiny_model).config, TASK, domain_head=True)
    refused(
        lambda: load_weights(model, read_model(tiny_model), allow_missing=()),
        "7 weights",
        "classifier.weight",
    )
    load_weights(model, read_model(snapshot), allow_missing=())


def test_keep_layers_takes_layers_2_4_6_of_6(tiny_model):
    """Kept layers are those of the folder, renumbered; the rest is as it was; 7 of 6 is refused."""
    config = BertConfig.from_dict({**read_model(tiny_model).config.to_dict(), "num_hidden_layers": 6})
    six = DomainClassifier(config, 2, 4)
    init_weights(six, 1, 0.2)
    folder = read_model(tiny_model)._replace(
        config=config, arrays={name: p.numpy() for name, p in six.named_parameters()}
    )
    kept = keep_layers(folder, 3)
    assert kept.config.num_hidden_layers == 3 and len(kept.arrays) == len(folder.arrays) - 3 * 16
    three = DomainClassifier(kept.config, 2, 4)
    load_weights(three, kept, allow_missing=())
    for name, parameter in three.named_parameters():
        source = re.sub(
            r"layer\.(\d)", lambda found: f"layer.{2 * int(found.group(1)) + 1}", name
        )  # 0, 1, 2 -> 1, 3, 5, from 0
        np.testing.assert_array_equal(parameter.numpy(), folder.arrays[source])
    refused(lambda: keep_layers(folder, 7), "--student_layers 7", "6 layers")


def test_models_that_do_not_fit_are_refused(tiny_model, tmp_path):
    """Refused: more tokens than positions, more words than embeddings, pairs for a model of one segment."""
    folder, tokenizer = read_model(tiny_model), tokenizer_for(tiny_model)
    check_fits_model(folder, TASK, 32, tokenizer)
    refused(lambda: check_fits_model(folder, TASK, 33, tokenizer), "--seq_length 33", "32 positions")
    vocabulary = tmp_path / "vocab.txt"
    vocabulary.write_text((tiny_model / "vocab.txt").read_text() + "more\n")
    refused(
        lambda: check_fits_model(folder, TASK, 32, tokenizer_for(tiny_model, vocabulary)),
        str(vocabulary),
        "41 tokens",
        "40 word",
    )
    pairs = dataclasses.replace(TASK, text=("one", "two"))
    check_fits_model(folder, pairs, 32, tokenizer)
    single = folder._replace(config=dataclasses.replace(folder.config, type_vocab_size=1))
    refused(lambda: check_fits_model(single, pairs, 32, tokenizer), "type_vocab_size")


# --------------------------------------------------------------------------------------- snapshots


def test_what_is_saved_is_read_back(saved, tiny_model):
    """Weights, configuration, vocabulary, meta.json and optimizer state are read back exactly.

    The names are those of a Hugging Face classifier.
    """
    model, folder = teacher(tiny_model), read_model(saved)
    parameters = dict(model.named_parameters())
    assert folder.arrays.keys() == parameters.keys()
    for name, parameter in parameters.items():
        np.testing.assert_array_equal(folder.arrays[name], parameter.numpy())
    assert folder.config == read_model(tiny_model).config and folder.meta == json.loads(json.dumps(META))
    assert tokenizer_for(saved).vocab == tokenizer_for(tiny_model).vocab
    np.testing.assert_array_equal(read_optimizer(saved)["exp_avg.x"], np.ones(2, np.float32))
    config = json.loads((saved / "config.json").read_text())
    assert config["architectures"] == ["BertForSequenceClassification"] and config["id2label"] == {
        "0": "positive",
        "1": "negative",
    }
    again = build_teacher(folder.config, TASK, domain_head=True)
    load_weights(again, folder, allow_missing=())
    ids = np.array([[2, 5, 6, 3]], np.int32)
    inputs = [flow.tensor(array) for array in (ids, np.ones_like(ids), np.zeros_like(ids))]
    model.eval()
    again.eval()
    np.testing.assert_array_equal(model.bert(*inputs).pooled.numpy(), again.bert(*inputs).pooled.numpy())


def test_the_same_snapshot_has_the_same_bytes(saved, tiny_model, tmp_path):
    """No clock, no order of a dict: saved again, every file is the same."""
    again = tmp_path / "again"
    save_snapshot(
        again,
        teacher(tiny_model),
        tokenizer_for(tiny_model),
        META,
        optimizer={"exp_avg.x": np.ones(2, np.float32)},
    )
    assert {f.name: sha256(f) for f in again.iterdir()} == {f.name: sha256(f) for f in saved.iterdir()}


def test_snapshots_have_the_permissions_of_other_new_files(saved, tmp_path):
    """What the library would write for its owner alone is readable for whoever may read other files."""
    (tmp_path / "file").touch()
    (tmp_path / "folder").mkdir()
    mode = stat.S_IMODE((tmp_path / "file").stat().st_mode)
    assert {file.name: stat.S_IMODE(file.stat().st_mode) for file in saved.iterdir()} == {
        file.name: mode for file in saved.iterdir()
    }
    assert saved.stat().st_mode == (tmp_path / "folder").stat().st_mode


def test_a_student_that_serves_has_no_distillation_heads(tiny_model, tmp_path):
    """The best student is saved without its maps and domain head, and loads as a plain classifier."""
    config = read_model(tiny_model).config
    student = build_student(config, TASK, 24, ("representation", "transfer", "hidden"))
    init_weights(student, 0, 0.2)
    assert {name.split(".")[0] + "." for name, _ in student.named_parameters()} == {
        "bert.",
        "classifier.",
        *STUDENT_ONLY,
    }
    save_snapshot(
        tmp_path / "best",
        student,
        tokenizer_for(tiny_model),
        {**META, "kind": "student"},
        left_out=STUDENT_ONLY,
    )
    arrays = read_model(tmp_path / "best").arrays
    assert not [name for name in arrays if not name.startswith(("bert.", "classifier."))]
    load_weights(DomainClassifier(config, 2, 4), read_model(tmp_path / "best"), allow_missing=())


# --------------------------------------------------------------------------------- snapshots that are refused


def test_a_snapshot_without_its_manifest_is_refused(snapshot):
    """One with meta.json must have it: it is written last."""
    (snapshot / "manifest.json").unlink()
    refused(lambda: read_model(snapshot), str(snapshot), "no manifest.json")


@pytest.mark.parametrize(
    "name",
    [
        "config.json",
        "model.safetensors",
        "vocab.txt",
        "meta.json",
        "optimizer.safetensors",
        "tokenizer_config.json",
    ],
)
def test_a_changed_byte_is_found(snapshot, name):
    """A changed byte is found in each file, at its start, middle and end.

    A lost file is found too, unless it is meta.json: then the folder is a plain one.
    """
    content = (snapshot / name).read_bytes()
    for place in (0, len(content) // 2, len(content) - 1):
        (snapshot / name).write_bytes(content[:place] + bytes([content[place] ^ 1]) + content[place + 1 :])
        refused(lambda: read_model(snapshot), str(snapshot / name), "not what the snapshot's manifest says")
    (snapshot / name).unlink()
    if name != "meta.json":
        refused(lambda: read_model(snapshot), name, "missing")
    else:
        refused(
            lambda: read_snapshot_facts(snapshot, "--teacher_model"),
            "--teacher_model",
            "meta.json is missing",
        )


@pytest.mark.parametrize(
    "change, words",
    [
        (lambda manifest: {**manifest, "format": "meta-kd-snapshot-2"}, "another version"),
        (lambda manifest: {"format": manifest["format"]}, "hashes"),
        (lambda manifest: {**manifest, "sha256": list(manifest["sha256"])}, "hashes"),
        (
            lambda manifest: {
                **manifest,
                "sha256": {k: v for k, v in manifest["sha256"].items() if k != "model.safetensors"},
            },
            "hashes",
        ),
        (
            lambda manifest: {**manifest, "sha256": {**manifest["sha256"], "../outside": "0" * 64}},
            "../outside",
        ),
        (
            lambda manifest: {**manifest, "sha256": {**manifest["sha256"], "/etc/passwd": "0" * 64}},
            "/etc/passwd",
        ),
        (
            lambda manifest: {**manifest, "sha256": {**manifest["sha256"], "model.safetensors": None}},
            "not what the snapshot's manifest says",
        ),
        (lambda manifest: [manifest], "expected a JSON object"),
    ],
)
def test_a_manifest_that_is_none_is_refused(snapshot, change, words):
    """Another format, hashes that are missing, of the wrong kind, or of files outside the folder."""
    (snapshot.parent / "outside").write_text("")
    manifest = json.loads((snapshot / "manifest.json").read_text())
    write_json(snapshot / "manifest.json", change(manifest))
    refused(lambda: read_model(snapshot), words)


def test_only_a_teacher_of_the_task_teaches(saved, tiny_model):
    """A plain model, a student, and a teacher of other labels or domains are refused by what they are."""
    meta = read_model(saved).meta
    assert teacher_meta(meta, TASK, saved) == meta
    refused(lambda: teacher_meta(None, TASK, tiny_model), str(tiny_model), "meta-teacher")
    refused(lambda: teacher_meta({**meta, "kind": "student"}, TASK, saved), "a student")
    for key in ("labels", "domains"):
        other = dataclasses.replace(TASK, **{key: getattr(TASK, key)[::-1]})
        refused(
            lambda other=other: check_task(meta, other, saved),
            key,
            "positive" if key == "labels" else "kitchen",
        )


def test_a_best_snapshot_is_no_snapshot_to_resume_from(snapshot):
    """Without optimizer state there is nothing to go on with."""
    manifest = json.loads((snapshot / "manifest.json").read_text())
    del manifest["sha256"]["optimizer.safetensors"]  # what lies there without being named is not believed
    (snapshot / "manifest.json").write_text(json.dumps(manifest))
    refused(lambda: read_optimizer(snapshot), "--resume_from", "optimizer.safetensors is missing")


# ---------------------------------------------------------------------------------- hash right, content wrong


def open_text(path):
    """A snapshot_last as the stages open it, as a teacher or to resume: (folder, moments)."""
    args = SimpleNamespace(do_train=True, do_eval=True, resume_from=str(path))
    folder = load_initial_model(args, TASK, str(path), "--model_load_dir")
    teacher_meta(folder.meta, TASK, path)
    check_fits_model(folder, TASK, 32, tokenizer_for(path))
    return folder, read_optimizer(path)


@pytest.mark.parametrize(
    "change, words",
    [
        (lambda arrays: arrays.pop("classifier.weight") is None, "classifier.weight"),
        (lambda arrays: arrays.pop("bert.encoder.layer.3.output.dense.bias") is None, "missing"),
        (lambda arrays: arrays.update({"classifier.weight": np.ones((3, 16), np.float32)}), "(3, 16)"),
        (lambda arrays: arrays.update({"classifier.weight": np.ones((16, 2), np.float32)}), "(16, 2)"),
        (
            lambda arrays: arrays.update(
                {"bert.embeddings.word_embeddings.weight": np.ones((0, 16), np.float32)}
            ),
            "(0, 16)",
        ),
        (
            lambda arrays: arrays.update(
                {"bert.embeddings.word_embeddings.weight": np.ones((40, 16, 1), np.float32)}
            ),
            "(40, 16, 1)",
        ),
        (
            lambda arrays: arrays.update({"bert.encoder.layer.4.output.dense.bias": np.ones(16, np.float32)}),
            "does not describe",
        ),
        (lambda arrays: arrays.update({"classifier.bias": np.array([1, np.nan], np.float32)}), "not finite"),
        (lambda arrays: arrays.update({"classifier.bias": np.array([1, -np.inf], np.float16)}), "not finite"),
        (lambda arrays: arrays.update({"classifier.bias": np.array([1, 1e300])}), "not finite"),  # in float32
        (lambda arrays: arrays.update({"classifier.bias": np.array([1, 2])}), "int64"),
        (lambda arrays: arrays.update({"classifier.bias": np.array([True, False])}), "bool"),
        (lambda arrays: arrays.update({"pooler.dense.bias": np.ones(16, np.float32)}), "under two names"),
        (
            lambda arrays: arrays.update({"bert.embeddings.LayerNorm.gamma": np.ones(16, np.float32)}),
            "under two names",
        ),
    ],
)
def test_weights_that_the_manifest_vouches_for_are_checked_all_the_same(snapshot, tiny_model, change, words):
    """Faulty weights under a right hash are told with the tensor's name, before the engine has them.

    Missing, extra, reshaped, not finite, of other kinds, there twice.
    """
    change_weights(snapshot, change)
    rehash_snapshot(snapshot)
    refused(lambda: load_weights(teacher(tiny_model), open_text(snapshot)[0], allow_missing=()), words)


def forged_head(change):
    """A rewriting of the JSON head of a safetensors file."""

    def forge(data):
        (length,) = struct.unpack("<Q", data[:8])
        head = json.dumps(change(json.loads(data[8 : 8 + length]))).encode()
        return struct.pack("<Q", len(head)) + head + data[8 + length :]

    return forge


@pytest.mark.parametrize(
    "forge",
    [
        lambda data: b"",
        lambda data: data[:7],
        lambda data: data[:8],
        lambda data: data[:-1],
        lambda data: data + b"\0",
        lambda data: struct.pack("<Q", 2**62) + data[8:],
        lambda data: struct.pack("<Q", 0) + data[8:],
        lambda data: data[:8] + b"[" + data[9:],
        forged_head(lambda head: []),
        forged_head(lambda head: {}),
        forged_head(lambda head: {**head, "x": 1}),
        forged_head(
            lambda head: {**head, "classifier.bias": {**head["classifier.bias"], "shape": [2**62, 2**62]}}
        ),
        forged_head(lambda head: {**head, "classifier.bias": {**head["classifier.bias"], "shape": [10**12]}}),
        forged_head(lambda head: {**head, "classifier.bias": {**head["classifier.bias"], "shape": [-2]}}),
        forged_head(lambda head: {**head, "classifier.bias": {**head["classifier.bias"], "dtype": "F128"}}),
        forged_head(
            lambda head: {
                **head,
                "classifier.bias": {**head["classifier.bias"], "dtype": "F8_E4M3", "shape": [8]},
            }
        ),
        forged_head(
            lambda head: {**head, "classifier.bias": {**head["classifier.bias"], "data_offsets": [0, 2**60]}}
        ),
        forged_head(
            lambda head: {**head, "classifier.bias": {**head["classifier.bias"], "data_offsets": [8, 0]}}
        ),
    ],
)
@pytest.mark.parametrize("name", ["model.safetensors", "optimizer.safetensors"])
def test_a_forged_safetensors_file_is_refused(snapshot, name, forge):
    """A forged safetensors file is refused, and no large memory is set aside for it.

    It is cut or grown, or its head promises more than there is or makes no sense.
    """
    if name == "optimizer.safetensors":
        shutil.copyfile(snapshot / "model.safetensors", snapshot / name)
    (snapshot / name).write_bytes(forge((snapshot / name).read_bytes()))
    rehash_snapshot(snapshot)
    refused(lambda: open_text(snapshot), str(snapshot))


def test_wrong_values_of_every_key_of_every_json_file(snapshot):
    """Any wrong value of any key of a JSON file is told on one line, or gives the same weights.

    The files are config, meta, tokenizer_config and manifest.
    """
    whole, accepted = open_text(snapshot)[0], []
    for name in ("config.json", "meta.json", "tokenizer_config.json", "manifest.json"):
        content = (snapshot / name).read_bytes()
        good = json.loads(content)
        for place in (*((key,) for key in good), *(("sha256", key) for key in good.get("sha256", ()))):
            for wrong in (*WRONG, KeyError):
                (snapshot / name).write_text(json.dumps(with_value(good, place, wrong)))
                if name != "manifest.json":
                    rehash_snapshot(snapshot)
                try:
                    folder, _ = open_text(snapshot)
                except UserError as error:
                    assert len(str(error).splitlines()) == 1 and len(str(error)) < 1200
                else:
                    accepted.append((*place, wrong))
                    assert folder.arrays.keys() == whole.arrays.keys()
        (snapshot / name).write_bytes(content)
        rehash_snapshot(snapshot)
    assert not {key for key, *_ in accepted} & {
        "hidden_size",
        "vocab_size",
        "kind",
        "labels",
        "domains",
        "format",
        "sha256",
    }


@pytest.mark.parametrize(
    "name",
    [
        "..",
        ".",
        "",
        "x" * 300,
        "a/b",
        "/etc/passwd",
        "../bert/config.json",
        "x\0",
        "\ud800",
        "a\nb",
        "config.json/",
    ],
)
def test_a_manifest_leads_to_no_other_file(snapshot, name):
    """Whatever the manifest calls a file: one that is not there by this very name is told, on one line."""
    manifest = json.loads((snapshot / "manifest.json").read_text())
    (snapshot / "manifest.json").write_text(
        json.dumps({**manifest, "sha256": {**manifest["sha256"], name: "0" * 64}})
    )
    refused(lambda: read_model(snapshot), "not valid JSON" if name == "\ud800" else "missing or not in it")


@pytest.mark.parametrize(
    "name",
    [
        "config.json",
        "model.safetensors",
        "vocab.txt",
        "meta.json",
        "tokenizer_config.json",
        "optimizer.safetensors",
    ],
)
def test_links_in_a_snapshot_are_followed_and_checked(snapshot, name):
    """Links in a snapshot, as in Hugging Face's cache, are followed: their content counts.

    A folder of the name is refused.
    """
    (snapshot / name).rename(snapshot.parent / "elsewhere")
    (snapshot / name).symlink_to(snapshot.parent / "elsewhere")
    open_text(snapshot)
    (snapshot.parent / "elsewhere").write_bytes((snapshot / name).read_bytes() + b" ")
    refused(lambda: open_text(snapshot), name, "not what the snapshot's manifest says")
    (snapshot / name).unlink()
    (snapshot / name).mkdir()
    refused(lambda: open_text(snapshot), name, "missing")


@pytest.mark.parametrize("listed", [True, False])
def test_the_model_card_is_the_users_own(snapshot, listed):
    """README.md may be edited and deleted, also where an older manifest names it."""
    (snapshot / "README.md").write_text("a card")
    if listed:
        manifest = json.loads((snapshot / "manifest.json").read_text())
        manifest["sha256"]["README.md"] = sha256(snapshot / "README.md")
        write_json(snapshot / "manifest.json", manifest)
    (snapshot / "README.md").write_text("license: mit")
    read_model(snapshot)
    (snapshot / "README.md").unlink()
    read_model(snapshot)


def test_what_the_manifest_does_not_name_is_not_believed(snapshot):
    """A tokenizer_config.json that was put there later would change the case of letters without a word."""
    manifest = json.loads((snapshot / "manifest.json").read_text())
    del manifest["sha256"]["tokenizer_config.json"]
    write_json(snapshot / "manifest.json", manifest)
    refused(lambda: read_model(snapshot), "hashes")


def test_200_flipped_bits_of_each_file_are_told(snapshot):
    """A flipped bit of any file is told.

    In the manifest it may also turn a letter of a sentence that nobody reads.
    """
    stream = np.random.default_rng(0)
    for path in sorted(snapshot.iterdir()):
        data = bytearray(path.read_bytes())
        for bit in stream.integers(8 * len(data), size=200 if path.suffix == ".safetensors" else 40).tolist():
            data[bit // 8] ^= 1 << bit % 8
            path.write_bytes(data)
            data[bit // 8] ^= 1 << bit % 8
            try:
                read_snapshot_facts(snapshot)
                assert path.name == "manifest.json"
            except UserError as error:
                assert str(snapshot) in str(error) and len(str(error).splitlines()) == 1
        path.write_bytes(data)
    read_snapshot_facts(snapshot)


@pytest.mark.parametrize(
    "values, words",
    [
        (np.ones(3, np.float32), None),
        (np.ones((2, 2), np.float32), None),
        (np.ones(2), "no optimizer has"),
        (np.ones(2, np.int64), "no optimizer has"),
        (np.array([1, np.nan], np.float32), "no optimizer has"),
        (-np.ones(2, np.float32), "no optimizer has"),
    ],
)
def test_moments_that_no_optimizer_has_are_refused(snapshot, tiny_model, values, words):
    """Moments that no optimizer has are refused.

    Not finite, of other kinds or negative squares: when read. Of other shapes or too few: when put back.
    """
    model = teacher(tiny_model)
    moments = {
        f"{slot}.{name}": np.ones(parameter.shape, np.float32)
        for name, parameter in model.named_parameters()
        for slot in ("exp_avg", "exp_avg_sq")
    }
    save_file({**moments, "exp_avg_sq.classifier.bias": values}, snapshot / "optimizer.safetensors")
    rehash_snapshot(snapshot)
    if words:
        refused(lambda: open_text(snapshot), words, "exp_avg_sq.classifier.bias")
    else:
        refused(
            lambda: restore_optimizer(make_optimizer(model, 1e-3, 0.01), open_text(snapshot)[1], 7),
            "exp_avg_sq.classifier.bias",
            "shape",
        )


@pytest.mark.parametrize(
    "best",
    [
        [],
        {},
        "x",
        {"snapshot": "snapshot_x", "step": 1},
        *(
            {"snapshot": "snapshot_x", "step": 1, "accuracy": 0.5, **wrong}
            for wrong in (
                {"snapshot": "../x"},
                {"step": -1},
                {"accuracy": np.nan},
                {"accuracy": "1"},
                {"accuracy": 2},
                {"more": 1},
            )
        ),
    ],
)
def test_progress_that_no_run_made_is_not_gone_on_with(snapshot, best):
    """The best so far decides what is kept and removed: a wrong name, step or accuracy is refused."""
    meta = json.loads((snapshot / "meta.json").read_text())
    (snapshot / "meta.json").write_text(json.dumps({**meta, "best": best}))
    rehash_snapshot(snapshot)
    refused(
        lambda: open_text(snapshot), "meta.json", "not valid JSON" if "NaN" in json.dumps(best) else "best"
    )


def test_best_json_names_a_snapshot_in_its_folder(snapshot):
    """Each kind of wrong value, paths out of the folder, and a name without a folder behind it."""
    run = SimpleNamespace(folder=snapshot.parent)
    (run.folder / "best.json").write_text(json.dumps({"snapshot": "snapshot_last"}))
    assert best_snapshot(run).path == snapshot
    for wrong in (
        *WRONG,
        "snapshot_last/../../x",
        "snapshot_last/",
        "../snapshot_last",
        "snapshot_none",
        str(snapshot),
        "snapshot_\0",
    ):
        (run.folder / "best.json").write_text(json.dumps({"snapshot": wrong}))
        refused(lambda: best_snapshot(run), "snapshot")
    for text in ("", "[]", "{}", "null"):
        (run.folder / "best.json").write_text(text)
        refused(lambda: best_snapshot(run), "best.json")


# --------------------------------------------------------------------------------------- what people bring


def save_bfloat16(path, arrays, half):
    """A safetensors file whose tensors named in `half` are bfloat16, the upper half of a float32."""
    head, data = {"__metadata__": {"format": "pt"}}, b""
    for name, array in arrays.items():
        raw = array.astype("<f4")
        raw = (raw.view("<u4") >> 16).astype("<u2").tobytes() if name in half else raw.tobytes()
        kind = "BF16" if name in half else "F32"
        head[name] = {
            "dtype": kind,
            "shape": list(array.shape),
            "data_offsets": [len(data), len(data) + len(raw)],
        }
        data += raw
    text = json.dumps(head).encode()
    path.write_bytes(struct.pack("<Q", len(text)) + text + data)


def test_bfloat16_weights_are_widened(plain):
    """One tensor or all: the same bits, then zeros, and a line of the log says how many there were."""
    arrays = read_model(plain).arrays
    for half in ([next(iter(arrays))], list(arrays)):
        save_bfloat16(plain / "model.safetensors", arrays, half)
        folder, lines = read_model(plain), []
        for name, array in folder.arrays.items():
            expected = arrays[name].view(np.uint32) & (0xFFFF0000 if name in half else 0xFFFFFFFF)
            assert array.dtype == np.float32 and np.array_equal(array.view(np.uint32), expected)
        load_weights(teacher(plain), folder, lines.append)
        assert lines[-1] == f"{len(half)} bfloat16 weights widened to float32"


def test_a_head_of_another_shape_or_task_is_new_where_training_starts(tmp_path, snapshot, tiny_model):
    """Such a head is named with its shape; a head of this task is loaded.

    Without a task to train, it is an error.
    """
    lines, five = [], dataclasses.replace(TASK, labels=("a", "b", "c", "d", "e"))
    other = dataclasses.replace(TASK, labels=("good", "bad"))
    for task, words in ((five, "classifier.weight"), (other, "of another task"), (TASK, None)):
        model = build_teacher(read_model(tiny_model).config, task, domain_head=True)
        init_weights(model, 1, 0.02)
        before = model.classifier.weight.numpy().copy()
        load_weights(model, read_model(snapshot), lines.append, task=task)
        report = "\n".join(lines)
        assert words is None or words in report
        assert np.array_equal(model.classifier.weight.numpy(), before) is (task is not TASK)
        lines.clear()
    model = build_teacher(read_model(tiny_model).config, five, domain_head=True)
    refused(
        lambda: load_weights(model, read_model(snapshot), allow_missing=()), "classifier.weight", "(5, 16)"
    )


def test_class_heads_of_another_kind_are_said_to_be_left_over(tiny_model):
    """A student that starts from a multi-task teacher, the other way round, and where there is no reason."""
    config = read_model(tiny_model).config
    shared, per_domain = (build_teacher(config, TASK, False, kind) for kind in ("shared", "per_domain"))
    for source, model, words in (
        (per_domain, shared, "found one for each domain, this model has one for all domains"),
        (shared, per_domain, "found one for all domains, this model has one for each domain"),
        (shared, shared, None),
    ):
        lines, arrays = [], {name: each.numpy() for name, each in source.named_parameters()}
        load_weights(model, read_model(tiny_model)._replace(arrays=arrays), lines.append, task=TASK)
        said = [line for line in lines if line.startswith("its class heads are left over: ")]
        assert [line.endswith(words) for line in said] == [True] if words else not said


@pytest.mark.parametrize("flag, kind", [("--model_load_dir", "teacher"), ("--student_model", "student")])
def test_a_snapshot_of_the_other_script_is_only_started_from(saved, tmp_path, tiny_model, flag, kind):
    """To evaluate it or to go on with it names what it holds, what is expected, and the other script."""
    scripts = {"teacher": "meta_teacher.py", "student": "meta_distill.py"}
    other = next(each for each in scripts if each != kind)
    path, meta = tmp_path / "other", json.loads((saved / "meta.json").read_text())
    save_snapshot(path, teacher(tiny_model), tokenizer_for(tiny_model), {**meta, "kind": other})

    def load(**flags):
        args = SimpleNamespace(do_eval=True, early_stopping_patience=None, changed={}, **flags)
        return load_initial_model(args, TASK, path, flag)

    assert load(do_train=True, resume_from=None).meta["kind"] == other
    words = (f"{path}: it holds a {other}, expected a {kind}", f"or run {scripts[other]} on this one")
    refused(lambda: load(do_train=False, resume_from=None), *words)
    refused(lambda: load(do_train=True, resume_from=str(path)), *words)


def test_tensors_that_no_bert_needs_are_left_over(plain):
    """Integers such as token_type_ids are named as left over; a weight of integers stays an error."""
    arrays, lines = load_file(plain / "model.safetensors"), []
    more = {
        "bert.embeddings.token_type_ids": np.zeros((1, 8), np.int64),
        "norm.num_batches_tracked": np.array(3),
    }
    save_file({**arrays, **more}, plain / "model.safetensors")
    load_weights(teacher(plain), read_model(plain), lines.append)
    assert all(name in lines[0] for name in more) and "2 left over" in lines[0]


@pytest.mark.parametrize("prefix", ["module.", "_orig_mod.module.", "model.", "encoder.bert."])
def test_a_prefix_before_all_names_is_taken_off(plain, prefix):
    """What DataParallel, torch.compile, Lightning and wrappers put before `bert.`."""
    expected = read_model(plain).arrays
    save_file(
        {
            prefix + name.removeprefix("bert." if "bert" in prefix else ""): array
            for name, array in expected.items()
        },
        plain / "model.safetensors",
    )
    found = read_model(plain).arrays
    assert found.keys() == expected.keys() and all(
        np.array_equal(found[name], expected[name]) for name in found
    )


@pytest.mark.parametrize("name", ["model.safetensors", "config.json"])
def test_a_git_lfs_pointer_is_told(plain, name):
    """The sentence says what it is and how to fetch the file."""
    (plain / name).write_text("version https://git-lfs.github.com/spec/v1\noid sha256:00\nsize 90\n")
    refused(lambda: read_model(plain), str(plain / name), "Git LFS pointer", "git lfs pull")


def test_json_with_a_byte_order_mark_is_read(plain):
    """As Windows' editors write it."""
    text = (plain / "config.json").read_bytes()
    (plain / "config.json").write_bytes(b"\xef\xbb\xbf" + text)
    read_model(plain)


@pytest.mark.parametrize("kind", ["distilbert", "roberta", "albert", "deberta-v2", "modernbert", "t5"])
def test_other_models_are_refused_by_name(plain, kind):
    """Whatever else is or is not in the folder."""
    (plain / "config.json").write_text(json.dumps({"model_type": kind}))
    refused(lambda: read_model(plain), f"model_type '{kind}'")
    (plain / "model.safetensors").unlink()
    refused(lambda: read_model(plain), f"model_type '{kind}'")


def test_a_folder_around_a_bert_points_at_it(plain, tmp_path):
    """An old sentence-transformers folder has its BERT in 0_BERT."""
    outer = tmp_path / "outer"
    (outer / "0_BERT").parent.mkdir()
    shutil.copytree(plain, outer / "0_BERT")
    (outer / "modules.json").write_text("[]")
    refused(lambda: read_model(outer), "sentence-transformers", str(outer / "0_BERT"))


def test_the_weights_of_a_snapshot_are_hashed_once(snapshot, monkeypatch):
    """The hash that the manifest was held against is the one that stands for the model."""
    hashed, whole = [], reading.sha256
    monkeypatch.setattr(reading, "sha256", lambda path: hashed.append(path.name) or whole(path))
    assert read_model(snapshot).sha256 == whole(snapshot / "model.safetensors")
    assert hashed.count("model.safetensors") == 1
