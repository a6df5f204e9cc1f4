"""How a measurement is run: as a user's command, or as a process of ours.py, files.py or with_torch.py.

Every method that measures returns {"seconds", "units", "megabytes"}.
`units` is how much was done in that time.
"""

import json
import shutil
import sys

from tests.benchmark import SEED, B, T
from tests.benchmark.processes import ROOT, run


class Bench:
    """Where and on what is measured.

    Attributes:
        workers: the threads to measure with, 1 and --cores.
        examples: reviews of an epoch.
        half, third: reviews of an epoch with one worker, and with the wide teacher.
        facts: what `prepare` says.

    Args:
        args: the flags of the benchmark's command; folder: an empty one.
    """

    def __init__(self, args, folder):
        self.folder, self.against, self.torch_python = folder, args.against, args.torch_python
        self.groups, self.reviews, self.growth, self.size = args.only, args.reviews, args.growth, args.size
        self.given, self.model, self.npz = args.model, args.model or folder / "model", folder / "reviews.npz"
        self.workers, self.cores, self.examples = sorted({1, args.cores}), args.cores, args.examples
        self.half, self.third = (max(2 * B, args.examples // part) for part in (2, 3))

    def workload(self, workers):
        """How many reviews an epoch has with that many workers: one worker does half."""
        return self.examples if workers == self.cores else self.half

    def prepare(self):
        """Makes models, data, scores and knowledge; nothing of it is measured."""
        settings = {
            "groups": self.groups,
            "model": self.given,
            "size": self.size,
            "reviews": self.reviews,
            "examples": self.examples,
            "workloads": [self.examples, self.half, self.third],
            "growth": self.growth,
        }
        run([sys.executable, "-m", "tests.benchmark.sandbox", self.folder, json.dumps(settings)])
        self.facts = json.loads((self.folder / "facts.json").read_text(encoding="utf-8"))
        if "prediction" in self.groups:
            self._prepare_prediction()
        if {"teacher", "distillation"} & set(self.groups):
            self.stage_1(self.examples, self.model)
        if "distillation" in self.groups:
            for teacher, count in (("narrow", self.examples), ("wide", self.third)):
                self.stage_3(
                    self.examples,
                    self.folder / f"teacher-{teacher}",
                    self.folder / f"knowledge-{teacher}",
                    train_example_num=count,
                )

    def _prepare_prediction(self):
        """texts.txt, a line for each training text, and the small model as ONNX."""
        table = self.folder / str(self.growth[-1]) / "train.tsv"
        texts = [line.split("\t")[0] for line in table.read_text(encoding="utf-8").splitlines()[1:]]
        (self.folder / "texts.txt").write_text("\n".join(texts) + "\n", encoding="utf-8")
        self.onnx = self.folder / "small.onnx"
        if self.against:
            words = ("export", self.folder / "teacher-small", self.onnx)
            run([self.torch_python, "-m", "tests.benchmark.with_onnx", *words])

    # --------------------------------------------------------------------------------------- ours

    def stage_1(self, count, model):
        """preprocess.py on data folder <count>, from start to end, records written anew."""
        shutil.rmtree(self.folder / str(count) / "ofrecord", ignore_errors=True)
        return {
            **self._stage("preprocess", count, model_load_dir=model, resave_ofrecord=True),
            "units": count,
        }

    def stage_3(self, count, teacher, knowledge, **more):
        """meta_teacher_eval.py on data folder <count>, from start to end."""
        shutil.rmtree(knowledge, ignore_errors=True)
        return {
            **self._stage(
                "meta_teacher_eval", count, model_load_dir=teacher, knowledge_dir=knowledge, **more
            ),
            "units": count,
        }

    def teacher_epoch(self, count, workers):
        """An epoch of meta_teacher.py --do_train, by its timing.jsonl."""
        return self._epoch("meta_teacher", count, workers, model_load_dir=self.model)

    def student_epoch(self, count, workers, teacher):
        """An epoch of meta_distill.py --do_train for a student of 3 layers, by its timing.jsonl."""
        return self._epoch(
            "meta_distill",
            count,
            workers,
            student_model=self.model,
            student_layers=3,
            teacher_model=self.folder / f"teacher-{teacher}",
            knowledge_dir=self.folder / f"knowledge-{teacher}",
        )

    def process(self, module, *words, workers=1):
        """What a process of ours.py or files.py prints."""
        return _figures(run([sys.executable, "-m", f"tests.benchmark.{module}", *words], threads=workers))

    def _stage(self, script, count, workers=None, **flags):
        flags = {
            "task_name": "senti",
            "data_dir": self.folder / str(count),
            "seq_length": T,
            "seed": SEED,
            "cpu_threads": workers or self.cores,
            **flags,
        }
        return self._run(script, flags, workers or self.cores)

    def _run(self, script, flags, threads):
        words = [
            word
            for name, value in flags.items()
            for word in ([f"--{name}"] if value is True else [f"--{name}", value])
        ]
        outcome = run([sys.executable, ROOT / f"{script}.py", *words], threads=threads)
        return {"seconds": outcome.seconds, "megabytes": outcome.megabytes}

    def _epoch(self, script, count, workers, **flags):
        folder = self.folder / "run"
        outcome = self._stage(
            script,
            self.examples,
            workers,
            model_save_dir=folder,
            do_train=True,
            num_epochs=1,
            train_example_num=count,
            batch_size_per_device=B,
            log_every_step_num=1,
            **flags,
        )
        lines = [
            json.loads(line) for line in (folder / "timing.jsonl").read_text(encoding="utf-8").splitlines()
        ]
        ends = [line["seconds"] for line in lines if line["event"] == "steps"]
        shutil.rmtree(folder)
        return {
            **outcome,
            "seconds": (ends[-1] - ends[0]) * self.facts[str(count)]["without_first"],
            "units": count,
        }

    def predict(self, count):
        """--do_predict over the training texts of data folder <count>, from start to end."""
        flags = {
            "do_predict": True,
            "model_load_dir": self.folder / "teacher-small",
            "predict_file": self.folder / "texts.txt",
            "output_file": self.folder / "predicted.tsv",
            "cpu_threads": self.cores,
        }
        return {**self._run("meta_teacher", flags, self.cores), "units": count}

    # --------------------------------------------------------------------------------------- PyTorch's

    def onnx_predict(self, count):
        """The same by ONNX Runtime, from start to end."""
        words = (
            "predict",
            self.folder / "teacher-small",
            self.onnx,
            self.folder / "texts.txt",
            self.folder / "out",
        )
        outcome = run([self.torch_python, "-m", "tests.benchmark.with_onnx", *words], threads=self.cores)
        return {"seconds": outcome.seconds, "megabytes": outcome.megabytes, "units": count}

    def torch(self, *words, workers=1):
        """What a process of with_torch.py prints."""
        return _figures(run([self.torch_python, "-m", "tests.benchmark.with_torch", *words], threads=workers))


def _figures(outcome):
    return {**json.loads(outcome.out.splitlines()[-1]), "megabytes": outcome.megabytes}
