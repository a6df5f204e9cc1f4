"""Makes an ONNX file of a snapshot, float32 or int8, and keeps it only if it answers like the snapshot.

    python3 -m modeling.export --snapshot output/demo-student --data_dir data/DEMO --target onnx-student

OneFlow is not needed: it runs in a Python of its own with optimum and ONNX Runtime (docs/serving.md has the
versions). The test texts of the task go through the new file, and its labels are held against those that
the run has stored in predictions.tsv.
"""

import contextlib
import importlib
import importlib.util
import pathlib
import shutil
import sys
import tempfile
import types

if importlib.util.find_spec("tqdm") is None:  # no bar is drawn here
    sys.modules["tqdm"] = types.SimpleNamespace(tqdm=None)

from data.store.files import atomic_folder, write_json

from util import UserError, entry, read_json  # isort: skip  (before numpy: it names the BLAS kernel)

import config
from data.tasks import load_task, read_examples, split_path
from modeling.export_gate import LabelledTexts, accuracy, changed_share, gate, measure_file, measure_snapshot
from modeling.reports.run_files import read_predictions
from modeling.snapshots.best import find_snapshot

INSTALL = (
    "run it in a Python with pip install 'optimum-onnx==0.1.0' 'transformers==4.57.6' 'onnxruntime==1.32.0' "
    "'torch==2.13.0' 'onnx==1.23.2'"
)
# What a server needs beside the model:
FILES = ("config.json", "tokenizer.json", "tokenizer_config.json", "vocab.txt")
SENSITIVE = "/output/dense/"  # the second product of a feed-forward layer, whose inputs have outliers
RECIPES = {  # of int8, the smallest file first; one is kept that passes
    "per channel, with the embedding": {"op_types_to_quantize": ["MatMul", "Gather"]},
    "per channel, without the embedding": {"op_types_to_quantize": ["MatMul"]},
    "per channel, without the embedding, 7 bits": {"op_types_to_quantize": ["MatMul"], "reduce_range": True},
    "per channel, without the embedding and the second feed-forward products": {
        "op_types_to_quantize": ["MatMul"],
        "exclude": SENSITIVE,
    },
}


@entry
def main():
    args = parse_flags()
    libraries = import_libraries()
    snapshot, target = find_snapshot(args.snapshot), pathlib.Path(args.target)
    meta = read_json(snapshot / "meta.json", "the description of the snapshot")
    if target.exists() and (not target.is_dir() or any(target.iterdir())):
        raise UserError(f"--target {target}: it holds something already: name a new folder.")
    texts = read_texts(snapshot, meta, args.data_dir)
    tokenizer = libraries["transformers"].AutoTokenizer.from_pretrained(snapshot, local_files_only=True)

    # ------------ float32
    with tempfile.TemporaryDirectory() as folder, telling_of_room(folder):
        whole = pathlib.Path(folder, "float32")
        export = libraries["optimum.exporters.onnx"].main_export
        export(
            str(snapshot), str(whole), task="text-classification", do_validation=False, local_files_only=True
        )
        model = whole / "model.onnx"
        table = {"snapshot, PyTorch": measure_snapshot(libraries, snapshot, tokenizer, meta, texts)}
        table["ONNX float32"] = measure_file(libraries, model, tokenizer, meta, texts)
        faults = gate(table["ONNX float32"], texts, "float32", args.max_changed, args.max_loss)
        told = [f"float32: {fault}" for fault in faults]

        # ------------ int8
        if args.quantize and not faults:
            model, figures, refused = quantize(
                libraries, model, tokenizer, meta, texts, args.max_changed, args.max_loss
            )
            told += refused
            table.update(figures)
        print_table(table, texts)
        print("\n".join(told))
        if faults or model is None:
            raise UserError(
                f"{snapshot}: no file was kept, since what came out answers otherwise than the snapshot: "
                "see the lines above; raise --max_changed or --max_loss if that will do, or try other "
                "versions of the libraries."
            )
        keep(model, snapshot, target, list(table.values())[-1], texts, args.quantize or "float32")


def parse_flags():
    parser = config.module_parser(__doc__, "modeling.export")
    parser.add_argument("--snapshot", required=True, help="a student's snapshot, or its run folder")
    parser.add_argument("--target", required=True, help="the folder to make")
    parser.add_argument(
        "--data_dir", required=True, help="the task's data, whose test.tsv the snapshot was tested on"
    )
    parser.add_argument("--quantize", choices=("int8",), help="weights of 8 bits (default: float32)")
    parser.add_argument(
        "--max_changed",
        type=config.share,
        help="share of the labels that may change (default: 0.005, of int8 0.02)",
    )
    parser.add_argument(
        "--max_loss", type=config.share, default=0.005, help="accuracy that may be lost (default: 0.005)"
    )
    return parser.parse_args()


def import_libraries():
    """{name: module} of what the export needs. UserError: one is not installed."""
    names = (
        "torch",
        "transformers",
        "optimum.exporters.onnx",
        "onnxruntime",
        "onnxruntime.quantization",
        "onnx",
    )
    try:
        return {name: importlib.import_module(name) for name in names}
    except ImportError as error:
        raise UserError(
            f"{error.name or error} is not installed for this Python ({sys.executable}): {INSTALL}."
        ) from None


@contextlib.contextmanager
def telling_of_room(folder):
    """Has what the libraries raise where the disk of `folder` is full be one sentence; they name no file."""
    try:
        yield
    except Exception as error:
        if getattr(error, "filename", None) or "No space left on device" not in str(error):
            raise
        raise UserError(
            f"{folder}: No space left on device, expected room for what the libraries make on the way: make "
            "room, or name a folder on another disk by TMPDIR."
        ) from None


def read_texts(snapshot, meta, data_dir):
    """The LabelledTexts of test.tsv with the answers in the predictions.tsv of the run.

    Raises:
        UserError: the run has tested another snapshot, or another test.tsv.
    """
    run = snapshot.resolve().parent
    tested = read_json(run / "results.json", "the results of the snapshot's run").get("snapshot")
    if tested != snapshot.name:
        raise UserError(
            f"{run / 'results.json'}: it tells of {tested!r:.80}, expected {snapshot.name}: name that "
            "snapshot."
        )
    stored = read_predictions(run / "predictions.tsv")["test"]
    task = load_task(meta["task"], data_dir)
    examples = list(read_examples(task, split_path(data_dir, "test")))
    gold = [task.labels[each.label] for each in examples]
    if gold != [row["label"] for row in stored]:
        raise UserError(
            f"{split_path(data_dir, 'test')}: its labels are not those of {run / 'predictions.tsv'}: name "
            "the data of this run."
        )
    rows = [(each.text_a,) if each.text_b is None else (each.text_a, each.text_b) for each in examples]
    return LabelledTexts(rows, gold, [row["predicted"] for row in stored])


# --------------------------------------------------------------------------------------- int8


def quantize(libraries, model, tokenizer, meta, texts, max_changed, max_loss):
    """The first file by a recipe of RECIPES that passes the gate.

    Returns:
        its path, None where none passes; {name: its Figures}; a sentence for each recipe that was refused.
    """
    refused = []
    for number, (name, options) in enumerate(RECIPES.items()):
        path = model.with_name(f"int8-{number}.onnx")
        write_int8(libraries, model, path, **options)
        figures = measure_file(libraries, path, tokenizer, meta, texts)
        faults = gate(figures, texts, "int8", max_changed, max_loss)
        if not faults:
            return path, {f"ONNX int8, {name}": figures}, refused
        refused.append(f"refused: int8, {name}: {'; '.join(faults)}")
    return None, {}, refused


def write_int8(libraries, model, path, exclude=None, **options):
    """The ONNX file `model` with weights of 8 bits, a scale to each output channel.

    exclude: what the names of the nodes have in common that stay as they are.
    """
    nodes = libraries["onnx"].load(str(model)).graph.node
    left_out = [
        node.name for node in nodes if exclude and exclude in node.name and "attention" not in node.name
    ]
    libraries["onnxruntime.quantization"].quantize_dynamic(
        str(model), str(path), per_channel=True, nodes_to_exclude=left_out, **options
    )


# --------------------------------------------------------------------------------------- the outcome


def print_table(table, texts):
    """A line for each file: what changes, how large and how fast it is."""
    print(f"{'':<60} {'MB':>7} {'changed':>8} {'accuracy':>9} {'p50 ms':>7} {'p95 ms':>7} {'texts/s':>8}")
    for name, each in table.items():
        print(
            f"{name:<60.60} {each.megabytes:>7.1f} {100 * changed_share(each.labels, texts):>7.2f}% "
            f"{100 * accuracy(each.labels, texts):>8.2f}% {each.p50:>7.2f} {each.p95:>7.2f} "
            f"{each.texts_per_second:>8.0f}"
        )


def keep(model, snapshot, target, figures, texts, precision):
    """Puts the file and what a server needs beside it into the folder `target`, with export.json, which
    says how it was judged.
    """
    with atomic_folder(target) as folder:
        shutil.copyfile(model, folder / "model.onnx")
        for name in FILES:
            if (snapshot / name).is_file():
                shutil.copyfile(snapshot / name, folder / name)
        facts = {
            "snapshot": snapshot.name,
            "precision": precision,
            "test_examples": len(texts.gold),
            "labels_changed": changed_share(figures.labels, texts),
            "accuracy": accuracy(figures.labels, texts),
            "accuracy_of_the_snapshot": accuracy(texts.answers, texts),
        }
        write_json(folder / "export.json", facts)
    print(f"{target}: model.onnx is kept")


if __name__ == "__main__":
    main()
