"""The settings of which dev chooses for each row: learning rates, or any flags by a file.

    {"students": {"learning_rate": [1e-4, 2e-4], "temperature": [1, 2]},
     "meta-logits": {"learning_rate": [5e-5, 1e-4, 2e-4, 4e-4]}}

Each combination is a setting. A row's own entry takes the place of the one for all teachers or students.
Every row of teachers has the same number of settings, and so has every row of students.
"""

import argparse
import itertools
import re
import urllib.parse
from argparse import Namespace
from typing import NamedTuple

import config
from modeling.meta_kd.idle_flags import check_student_flags, check_teacher_flags
from modeling.meta_kd.terms import add_flags
from scripts.reproduce.rows import ATTENTION, NO_FEATURES, STUDENTS, TEACHERS, Row
from util import UserError, read_json

GROUPS = {
    "teachers": (config.training, config.teacher),
    "students": (config.training, config.distillation, add_flags),
}
FIXED = (  # what the plan gives, or what would make runs that cannot be compared
    "do_train",
    "do_eval",
    "model_save_dir",
    "resume",
    "resume_from",
    "eval_every_step_num",
    "eval_example_num",
    "student_model",
    "teacher_model",
    "teacher_weights",
    "log_dir",
)


class Setting(NamedTuple):
    """What dev chooses: a learning rate, and other flags, ((name, value), ...)."""

    rate: float
    flags: tuple = ()

    def __str__(self) -> str:
        return " ".join([f"{self.rate:g}", *(f"{name}={value}" for name, value in self.flags)])

    @property
    def name(self) -> str:
        """What the name of a run has of it."""
        flags = [f"{name}={urllib.parse.quote(str(value), safe='')}" for name, value in self.flags]
        return "-".join([repr(self.rate), *flags])

    def words(self) -> list[str]:
        """The flags of the command line, but the learning rate and the number of epochs."""
        words = []
        for name, value in self.flags:
            if name != "num_epochs" and value is not False:
                words.append(f"--{name}" if value is True else f"--{name}={value}")
        return words


def row_kind(row: Row) -> str:
    return "students" if row.student else "teachers"


def candidates(row: Row, args: Namespace) -> list[Setting]:
    """The settings of which dev chooses for a row.

    args.grid: {row: its settings}, as of `read_grid`, or None.
    """
    if args.grid and row.name in args.grid:
        return args.grid[row.name]
    return [Setting(rate) for rate in learning_rates(row, args)]


def learning_rates(row: Row, args: Namespace) -> list[float]:
    return args.student_learning_rates if row.student else args.teacher_learning_rates


def describe_candidates(args: Namespace) -> str:
    """What there was to choose from, a line."""
    if args.grid:
        counts = ", ".join(f"{len(settings)} for {row}" for row, settings in args.grid.items())
        return f"settings to choose from: {counts}"
    teachers, students = (
        ", ".join(f"{rate:g}" for rate in rates)
        for rates in (args.teacher_learning_rates, args.student_learning_rates)
    )
    return f"learning rates to choose from: {teachers} for teachers, {students} for students"


# ------------------------------------------------------------------------------ the file


def read_grid(path: str, rows: list[Row], args: Namespace) -> dict[str, list[Setting]]:
    """{row: its settings} of the rows for which the file has an entry.

    Raises:
        UserError: an entry for no row, a flag or value that is none, a flag that makes the row what it is or
            would change nothing there, or other numbers of settings for rows of one kind.
    """
    content, grid = read_json(path, "the grid of settings"), {}
    names = [*GROUPS, *(row.name for row in rows)]
    for key, entry in content.items():
        if key not in names:
            raise UserError(f"--grid {path}: found an entry {key!r:.60}, expected one of {', '.join(names)}.")
        if not isinstance(entry, dict):
            raise UserError(
                f"--grid {path}: {key}: found {entry!r:.60}, expected flags with lists of values."
            )
    for row in rows:
        entry = content.get(row.name, content.get(row_kind(row)))
        if entry is not None:
            grid[row.name] = list_settings(path, row, entry, args)
    check_equal_numbers(path, rows, Namespace(**{**vars(args), "grid": grid}))
    return grid


def list_settings(path: str, row: Row, entry: dict, args: Namespace) -> list[Setting]:
    """Every combination of the values of an entry, as settings of a row."""
    parser, own, flags = config.Parser(""), own_flags(row), {}
    for group in GROUPS[row_kind(row)]:
        group(parser)
    for name, values in entry.items():
        action = parser._option_string_actions.get(f"--{name}")  # argparse has no public list of its flags
        where = f"--grid {path}: {row.name}: {name}"
        idle = isinstance(action, (config.Ignored, config.Unbuilt))
        if action is None or action.dest in FIXED or action.nargs == "+" or idle:
            raise UserError(f"{where}: expected a flag of {row_kind(row)} that may vary from run to run.")
        if action.dest in own:
            raise UserError(
                f"{where}: this flag makes the row what it is: leave it out, or give the row an entry of "
                "its own."
            )
        if action.dest in flags:
            raise UserError(f"{where}: this is {action.dest} by another name: leave one of them out.")
        flags[action.dest] = check_values(where, action, values)
    rates = flags.pop("learning_rate", learning_rates(row, args))
    combinations = [tuple(zip(flags, values)) for values in itertools.product(*flags.values())]
    for each in combinations:
        try:
            check_flags_count(row, Setting(float(rates[0]), each), args)
        except UserError as error:
            raise UserError(f"--grid {path}: {row.name}: {error}") from None
    return [Setting(float(rate), each) for rate in rates for each in combinations]


def check_flags_count(row: Row, setting: Setting, args: Namespace) -> None:
    """Raises a UserError where a flag of the row or the setting would change nothing there."""
    words, kind = [*row_words(row, args), *setting.words()], row_kind(row)
    check = check_student_flags if row.student else check_teacher_flags
    check(config.parse("", *GROUPS[kind], argv=words))


def row_words(row: Row, args: Namespace, third: int = 1) -> list[str]:
    """The flags that make a row what it is. third: a third of its epochs."""
    if not row.student:
        return TEACHERS[row.name].split()
    return STUDENTS[row.student].format(attention_weight=args.attention_weight, third=third).split()


def own_flags(row: Row) -> set[str]:
    """The names of the flags that make a row what it is."""
    words = STUDENTS[row.student].replace(ATTENTION, "") if row.student else TEACHERS[row.name]
    without_features = {"hidden_loss_weight"} if NO_FEATURES in words else set()
    return {*re.findall(r"--(\w+)", words), *without_features}


def check_values(where: str, action: argparse.Action, values) -> list:
    """`values`, which must be a list of distinct values that the flag takes."""
    if not isinstance(values, list) or not values or any(values.count(value) > 1 for value in values):
        raise UserError(f"{where}: found {values!r:.60}, expected a list of different values.")
    for value in values:
        try:
            config.file_word(action.dest, action, value)
        except (ValueError, argparse.ArgumentTypeError) as error:
            raise UserError(f"{where}: {error}: mend the value.") from None
    return values


def check_equal_numbers(path: str, rows: list[Row], args: Namespace) -> None:
    """Raises a UserError where two rows of one kind have other numbers of settings."""
    first = {}
    for row in rows:
        other, count = first.setdefault(row_kind(row), row), len(candidates(row, args))
        expected = len(candidates(other, args))
        if count != expected:
            raise UserError(
                f"--grid {path}: found another number of settings, {expected} for {other.name}, {count} for "
                f"{row.name}, expected as many for each, since the best of more looks better: "
                "give both as many."
            )
