"""The rows that scripts.reproduce knows, and the calls of the four scripts that each of them takes."""

import itertools
import pathlib
import urllib.parse
from typing import NamedTuple, Optional

from util import UserError

# --------------------------------------------------------------------------------------- the rows

PLAIN = "--domain_loss_weight 0 --weight_scaling none"
TEACHERS = {  # flags of meta_teacher.py
    "single": PLAIN,
    "mixed": PLAIN,
    "multi-task": f"{PLAIN} --class_heads per_domain",
    "meta": "",
    "meta-unweighted": "--weight_scaling none",
    "meta-raw": "--weight_scaling raw",
    "meta-spread-0.1": "--weight_scaling spread --weight_spread 0.1",
    "meta-spread-1": "--weight_scaling spread --weight_spread 1",
    "meta-no-domain-loss": "--domain_loss_weight 0",
    "leave-one-out": "",
}
NO_FEATURES = "--attention_loss_weight 0 --representation_loss_weight 0 --transfer_loss_weight 0"
ATTENTION = "--attention_loss_weight {attention_weight}"
STUDENTS = {  # flags of meta_distill.py
    "hard": f"--hard_label_weight 1 --soft_label_weight 0 {NO_FEATURES}",
    "logits": NO_FEATURES,
    "layers": f"--expertise_weight none --transfer_loss_weight 0 {ATTENTION}",
    "full": ATTENTION,
    "two-phase": f"--intermediate_epochs {{third}} {ATTENTION}",
    "hidden": f"--hidden_loss_weight 1 {ATTENTION}",
    "full-no-lambda": f"--expertise_weight none {ATTENTION}",
    "full-no-transfer": f"--transfer_loss_weight 0 {ATTENTION}",
    "full-transfer-30": f"--transfer_loss_weight 30 {ATTENTION}",  # at 0.3, its default, the term is a hundredth of the loss or less
    "full-centred": f"--attention_match centred {ATTENTION}",
    "full-hard": f"--hard_label_weight 1 {ATTENTION}",
}
PORTIONS = (0.01, 0.02, 0.05, 0.1, 0.2)  # those of the paper


class Row(NamedTuple):
    """A line of the table.

    teacher: the row of its teacher, None: it has none; student: its kind, None: the row is a teacher.
    runs: "all": one run over all domains; "domain": one on each domain; "without": one without each domain, tested on that.
    """

    name: str
    groups: str
    teacher: Optional[str] = None
    student: Optional[str] = None
    runs: str = "all"
    portion: float = 1.0


def _rows():
    """Every row there is, {name: Row}, teachers before their students."""
    teachers = [
        Row("single", "table", runs="domain"),
        Row("mixed", "table weights"),
        Row("multi-task", "table"),
        Row("meta", "table weights"),
        *(
            Row(name, "weights")
            for name in (
                "meta-unweighted",
                "meta-raw",
                "meta-spread-0.1",
                "meta-spread-1",
                "meta-no-domain-loss",
            )
        ),
        Row("leave-one-out", "leave-one-out", runs="without"),
    ]
    table = [
        Row("hard", "table variants few-shot", None, "hard"),
        *(
            Row(
                f"{teacher}-{kind}",
                "table few-shot" if teacher == "meta" else "table",
                teacher,
                kind,
                "domain" if teacher == "single" else "all",
            )
            for teacher in ("single", "mixed", "multi-task", "meta")
            for kind in ("logits", "layers")
        ),
        Row("meta-full", "table variants few-shot", "meta", "full"),
    ]
    variants = [
        Row(f"meta-{kind}", "variants", "meta", kind)
        for kind in (
            "two-phase",
            "hidden",
            "full-no-lambda",
            "full-no-transfer",
            "full-transfer-30",
            "full-centred",
            "full-hard",
        )
    ]
    variants.append(Row("meta-full-by-domain", "variants", "meta", "full", "domain"))
    few = [
        row._replace(name=f"{row.name}-{portion}", groups="few-shot", portion=portion)
        for portion in PORTIONS
        for row in table
        if "few-shot" in row.groups.split()
    ]
    held_out = [Row("leave-one-out-full", "leave-one-out", "leave-one-out", "full", "domain")]
    return {row.name: row for row in (*teachers, *table, *variants, *few, *held_out)}


ROWS = _rows()
GROUPS = tuple(dict.fromkeys(group for row in ROWS.values() for group in row.groups.split()))


def chosen_rows(text):
    """The rows that a comma list of rows and groups names, in the order of ROWS."""
    words = text.split(",")
    for word in words:
        if word not in ROWS and word not in GROUPS:
            raise UserError(
                f"--rows: found {word!r:.60}, expected a group ({', '.join(GROUPS)}) or a row ({', '.join(ROWS)})."
            )
    return [row for row in ROWS.values() if {row.name, *row.groups.split()} & set(words)]


def with_teachers(rows):
    """The rows and those of their teachers."""
    names = {name for row in rows for name in (row.name, row.teacher)}
    return [row for row in ROWS.values() if row.name in names]


# --------------------------------------------------------------------------------------- the plan


class Step(NamedTuple):
    """A call of one of the four scripts. words: its command line after `python3`, in which BEST:<run folder> stands for the best snapshot of
    that run; needs: the names of the steps whose results it uses."""

    name: str
    words: tuple
    needs: tuple

    @property
    def stage(self):
        return self.words[0]

    @property
    def trains(self):
        return "--do_train" in self.words


def plan(rows, task, args, choices):
    """The steps that are known, {name: Step}: seed by seed, so that a set that is stopped has compared its rows over the seeds before; each
    after those that it needs.

    Args:
        rows: with their teachers; choices: {row: learning rate}, of those for which it has been chosen.
    """
    steps = {}
    known = [row for row in rows if row.teacher is None or row.teacher in choices]
    for number in range(max(len(args.seeds), len(args.teacher_seeds or ()))):
        for row in known:
            for (rate, seed), domain in itertools.product(
                attempts(row, number, args, choices), list_domains(row, task)
            ):
                steps.update(
                    (step.name, step) for step in run_steps(row, domain, rate, seed, task, args, choices)
                )
    return steps


def attempts(row, number, args, choices):
    """(learning rate, seed) of the runs of a row with its seed of that number: each candidate with the first, the chosen one with others."""
    seeds = list_seeds(row, args)
    rates = candidates(row, args) if number == 0 else [choices[row.name]] if row.name in choices else []
    return [(rate, seed) for rate in rates for seed in seeds[number : number + 1]]


def list_seeds(row, args):
    return args.seeds if row.student else args.teacher_seeds or args.seeds


def candidates(row, args):
    return args.student_learning_rates if row.student else args.teacher_learning_rates


def list_domains(row, task):
    """The domain of each run of a row; None: all."""
    return (None,) if row.runs == "all" else task.domains


def run_name(row, domain, rate, seed):
    where = "" if domain is None else f"-{urllib.parse.quote(domain, safe='')}"
    return f"{'student' if row.student else 'teacher'}-{row.name}{where}-{rate!r}-s{seed}"


def run_steps(row, domain, rate, seed, task, args, choices):
    """The steps of a run: records, for a student its teacher's knowledge, training."""
    apart = domain if "leave-one-out" in row.groups else None  # prototypes without that domain
    records = records_step(apart, args)
    flags = [*common(args, records.name), *training(row, domain, rate, seed, task, args)]
    name, folder = run_name(row, domain, rate, seed), base(args)
    if not row.student:
        return records, Step(
            name,
            (
                "meta_teacher.py",
                *flags,
                "--model_load_dir",
                args.model,
                "--model_save_dir",
                str(folder / name),
            ),
            (records.name,),
        )
    flags += [
        "--student_model",
        args.model,
        "--student_layers",
        str(args.student_layers),
        "--model_save_dir",
        str(folder / name),
    ]
    if row.teacher is None:
        return records, Step(name, ("meta_distill.py", *flags), (records.name,))
    knowledge, teacher = knowledge_step(row, domain, seed, records, args, choices)
    flags += ["--teacher_model", f"BEST:{folder / teacher}", "--knowledge_dir", str(folder / knowledge.name)]
    return (
        records,
        knowledge,
        Step(name, ("meta_distill.py", *flags), (records.name, teacher, knowledge.name)),
    )


def records_step(apart, args):
    """Stage 1; apart: a domain that the prototypes do without, or None."""
    name = "ofrecord" if apart is None else f"ofrecord-without-{urllib.parse.quote(apart, safe='')}"
    without = () if apart is None else ("--exclude_domain", apart)
    return Step(
        name,
        ("preprocess.py", *common(args, name), *without, "--model_load_dir", args.model, "--resave_ofrecord"),
        (),
    )


def knowledge_step(row, domain, seed, records, args, choices):
    """Stage 3 of the teacher that a student of this seed learns from, and the name of that teacher's run."""
    teacher, seeds = ROWS[row.teacher], args.teacher_seeds or args.seeds
    where = None if teacher.runs == "all" else domain
    run = run_name(teacher, where, choices[teacher.name], seeds[args.seeds.index(seed) % len(seeds)])
    hidden = row.student == "hidden"
    name = f"knowledge-{run}" + "-hidden" * hidden
    words = [
        "meta_teacher_eval.py",
        *common(args, records.name),
        "--model_load_dir",
        f"BEST:{base(args) / run}",
        "--knowledge_dir",
        str(base(args) / name),
    ]
    words += (["--domain", where] if where else []) + (["--hidden_states"] if hidden else [])
    return Step(name, tuple(words), (records.name, run)), run


def common(args, records):
    """Flags of all four scripts; records: the name of their folder."""
    limit = ("--train_example_num", str(args.train_example_num)) if args.train_example_num else ()
    return (
        "--task_name",
        args.task_name,
        "--data_dir",
        args.data_dir,
        "--ofrecord_dir",
        str(base(args) / records),
        "--seq_length",
        str(args.seq_length),
        "--cpu_processes",
        "1",
        *limit,
    )


def training(row, domain, rate, seed, task, args):
    """Flags of a run of stage 2 or 4. A run over fewer examples is evaluated as often in all as one over all of them."""
    epochs, share = (args.student_epochs if row.student else args.teacher_epochs), row.portion
    if row.portion < 1:
        epochs, share = epochs * min(round(1 / row.portion), 8), share * min(round(1 / row.portion), 8)
    if row.runs != "all":
        share *= (1 if row.runs == "domain" else len(task.domains) - 1) / len(task.domains)
    kind = (
        STUDENTS[row.student].format(attention_weight=args.attention_weight, third=max(1, epochs // 3))
        if row.student
        else TEACHERS[row.name]
    )
    which = {"all": (), "domain": ("--domain", domain), "without": ("--exclude_domain", domain)}[row.runs]
    portion = ("--data_portion", str(row.portion)) if row.portion < 1 else ()
    return (
        "--resume",
        "--do_train",
        "--do_eval",
        "--seed",
        str(seed),
        "--num_epochs",
        str(epochs),
        "--learning_rate",
        repr(rate),
        "--batch_size_per_device",
        str(args.batch_size),
        "--eval_every_step_num",
        str(max(1, round(args.eval_every * share))),
        *kind.split(),
        *which,
        *portion,
    )


def base(args):
    """The folder of all runs of the task."""
    return pathlib.Path(args.output, args.task_name)
