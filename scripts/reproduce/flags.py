"""The flags of scripts.reproduce, in groups."""

import os
from argparse import ArgumentParser, ArgumentTypeError

import config
from scripts.reproduce.rows import GROUPS


def comma_list(kind):
    """An argparse type: distinct values of `kind`, such as 1,2,3."""

    def convert(text):
        values = [kind(word) for word in text.split(",")]
        if len(set(values)) < len(values):
            raise ArgumentTypeError(f"found {text!r:.60}, expected different values with commas between them")
        return values

    return convert


def what(parser: ArgumentParser) -> None:
    """The task, the rows and their seeds."""
    seeds, add = comma_list(config.natural), parser.add_argument
    add("--task_name", default="demo", help="name of the task")
    add("--data_dir", default="data/DEMO", help="folder of its TSV files")
    add("--model", default="models/MiniLM", help="the pretrained model that teachers and students start from")
    add("--rows", default="table", help=f"comma list of rows and groups ({', '.join(GROUPS)})")
    add(
        "--seeds",
        type=seeds,
        default=[1, 2, 3, 4, 5],
        help="comma list of the seeds of students and, without --teacher_seeds, of teachers",
    )
    add(
        "--teacher_seeds",
        type=seeds,
        help="comma list; the i-th student learns from the i-th of these, counted round (default: the seeds)",
    )
    add(
        "--unlabelled_file",
        help="a TSV with texts without labels, for the rows of the group unlabelled",
    )
    add(
        "--baseline",
        default="hard",
        help="the row that student rows are compared with; teachers are compared with mixed",
    )


def perturbation(parser: ArgumentParser) -> None:
    """How the training split is made worse; dev and test stay as they are."""
    add = parser.add_argument
    add(
        "--label_noise",
        type=config.share,
        default=0.0,
        help="share of the training examples that get a wrong label, in each domain and class",
    )
    add(
        "--thin_domains",
        default="",
        metavar="DOMAIN=SHARE,...",
        help="domains of which that share of the training examples is kept, as in kitchen=0.1",
    )
    add("--noise_seed", type=config.natural, default=1, help="which labels are wrong and which examples stay")


def training(parser: ArgumentParser) -> None:
    """How teachers and students are trained."""
    add = parser.add_argument
    add("--train_example_num", type=config.count, help="the first N training examples (default: all)")
    add("--seq_length", type=config.number(int, 3), default=64, help="longest text in tokens")
    add("--batch_size", type=config.count, default=24, help="examples of a training step")
    add("--teacher_epochs", type=config.count, default=3, help="passes of a teacher over its examples")
    add(
        "--student_epochs",
        type=config.count,
        default=4,
        help="passes of a student over all examples; few-shot rows have up to eight times as many",
    )
    add(
        "--student_layers",
        type=config.count,
        default=3,
        help="evenly spaced layers of the model that a student takes",
    )
    add(
        "--attention_weight",
        type=config.weight,
        default=0.1,
        help="weight of the attention term where a student has one",
    )
    add(
        "--eval_every",
        type=config.count,
        default=100,
        help="steps from one evaluation on dev to the next, over all examples",
    )
    candidates(parser)


def candidates(parser: ArgumentParser) -> None:
    """The values of which dev chooses."""
    rates, add = comma_list(config.number(float, 0.0, open_low=True)), parser.add_argument
    add(
        "--teacher_learning_rates",
        type=rates,
        default=[5e-5],
        help="comma list of candidates, of which dev chooses for each row",
    )
    add("--student_learning_rates", type=rates, default=[1e-4], help="the same for students")
    add(
        "--grid",
        metavar="FILE",
        help='a file of flags with values to choose from, as {"students": {"temperature": [1, 2]}}, each '
        "combination a setting; a row's name for students or teachers gives that row its own, as many",
    )


def running(parser: ArgumentParser) -> None:
    """What is run, how many at a time, and where results go."""
    add = parser.add_argument
    add(
        "--jobs",
        type=config.count,
        default=len(os.sched_getaffinity(0)),
        help="runs side by side, each on one core",
    )
    add("--output", default="output/reproduce", help="folder of the runs")
    add("--results", default="results", help="folder of table, CSV and plots")
    add(
        "--dry_run",
        action="store_true",
        help="print the commands that are known before anything is chosen, and run nothing",
    )
    add("--test_domain", help="the table is over the test examples of this domain alone (default: over all)")
    add("--collect", action="store_true", help="run nothing; make table, CSV and plots of what is finished")
