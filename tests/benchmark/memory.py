"""Peak memory of every stage over very many texts, the training stages with a model as large as MiniLM.

    python3 -m tests.benchmark.memory --texts 1000000 --folder DIR

The texts are those of `--only scale`, of which one in twenty fills 128 tokens, so that some batches are of
24 x 128. A model of one layer x 32 encodes them in stages 1 and 3, whose memory beside the model is what is
looked for; 6 layers x 384 are trained in stages 2 and 4. The knowledge is of answers alone.
"""

import argparse
import pathlib

from util import entry  # isort: skip  (first: it names the BLAS kernel before numpy is loaded)

from modeling.snapshots.folder import read_model
from tests.benchmark import B
from tests.benchmark.sandbox import random_model, write_teacher
from tests.benchmark.scale import run_stage, write_texts
from tokenization import tokenizer_for

SMALL, LARGE = (1, 32), (6, 384)  # layers, width
NO_LAYERS = ("attention_loss_weight", "representation_loss_weight", "transfer_loss_weight")


def stage_flags(folder, steps):
    """{stage: {flag: value}}"""
    small, large, teacher, knowledge = (folder / name for name in ("small", "large", "teacher", "knowledge"))
    training = {"do_train": True, "max_steps": steps, "batch_size_per_device": B}
    return {
        "preprocess": {"model_load_dir": small, "resave_ofrecord": True},
        "meta_teacher": {"model_load_dir": large, "model_save_dir": folder / "run-2", **training},
        "meta_teacher_eval": {
            "model_load_dir": teacher,
            "knowledge_dir": knowledge,
            "knowledge_layers": "none",
        },
        "meta_distill": {
            "student_model": large,
            "teacher_model": teacher,
            "knowledge_dir": knowledge,
            "model_save_dir": folder / "run-4",
            **{name: 0 for name in NO_LAYERS},
            **training,
        },
    }


@entry
def main():
    parser = argparse.ArgumentParser(description=__doc__.split("\n\n")[0])
    parser.add_argument("--texts", type=int, default=1_000_000)
    parser.add_argument("--steps", type=int, default=60, help="of stages 2 and 4")
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--folder", type=pathlib.Path, required=True, help="a new one, 2 kB a text")
    args = parser.parse_args()
    args.folder.mkdir(parents=True)
    small = random_model(args.folder / "small", *SMALL)
    random_model(args.folder / "large", *LARGE)
    model = read_model(small)
    write_teacher(args.folder / "teacher", model.config, tokenizer_for(small), model)
    write_texts(args.folder / "data", args.texts, small / "vocab.txt")
    print("| stage | seconds | peak MB |\n|---|---|---|", flush=True)
    for stage, flags in stage_flags(args.folder, args.steps).items():
        outcome = run_stage(stage, args.folder / "data", flags, args.threads)
        print(f"| `{stage}.py` | {outcome.seconds:.0f} | {outcome.megabytes:,.0f} |", flush=True)


if __name__ == "__main__":
    main()
