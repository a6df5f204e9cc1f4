"""The rows that scripts.reproduce knows: kinds of teachers and of students, and the flags that make each."""

from typing import NamedTuple, Optional

from util import UserError

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
    "leave-one-out-mixed": PLAIN,
}
NO_FEATURES = "--attention_loss_weight 0 --representation_loss_weight 0 --transfer_loss_weight 0"
ATTENTION = "--attention_loss_weight {attention_weight}"
STUDENTS = {  # flags of meta_distill.py; {third} is a third of the epochs
    "hard": f"--hard_label_weight 1 --soft_label_weight 0 {NO_FEATURES}",
    "logits": NO_FEATURES,
    "layers": f"--expertise_weight none --transfer_loss_weight 0 {ATTENTION}",
    "full": ATTENTION,
    "two-phase": f"--intermediate_epochs {{third}} {ATTENTION}",
    "hidden": f"--hidden_loss_weight 1 {ATTENTION}",
    "full-no-lambda": f"--expertise_weight none {ATTENTION}",
    "full-lambda-spread": f"--expertise_weight spread --expertise_spread 0.5 {ATTENTION}",
    "full-no-transfer": f"--transfer_loss_weight 0 {ATTENTION}",
    # at 0.3, its default, this term is a hundredth of the loss or less
    "full-transfer-30": f"--transfer_loss_weight 30 {ATTENTION}",
    "full-centred": f"--attention_match centred {ATTENTION}",
    "full-hard": f"--hard_label_weight 1 {ATTENTION}",
}
PORTIONS = (0.01, 0.02, 0.05, 0.1, 0.2)  # those of the paper


class Row(NamedTuple):
    """A line of the table.

    groups: names of the groups that it belongs to, separated by spaces.
    teacher: the row of its teacher; None: it has none.
    student: its kind, a key of STUDENTS; None: the row is a teacher, whose kind is its name.
    runs: "all": one run over all domains; "domain": one on each domain; "without": one without each domain,
        tested on that.
    portion: the share of the training examples that it sees.
    start: what a student starts from, "model": the pretrained one, or "teacher": its teacher.
    ensemble: whether a student learns from its teachers of all seeds together.
    unlabelled: whether it learns from the texts of --unlabelled_file too.
    """

    name: str
    groups: str
    teacher: Optional[str] = None
    student: Optional[str] = None
    runs: str = "all"
    portion: float = 1.0
    start: str = "model"
    ensemble: bool = False
    unlabelled: bool = False

    @property
    def several(self) -> bool:
        """Whether a student learns from several teachers: those of all domains, or of all seeds."""
        return self.ensemble or (self.runs == "all" and self.teacher_runs == "domain")

    @property
    def teacher_runs(self) -> Optional[str]:
        """`runs` of its teacher; None: it has none."""
        return ROWS[self.teacher].runs if self.teacher else None


def _teacher_rows() -> list[Row]:
    return [
        Row("single", "table", runs="domain"),
        Row("mixed", "table weights"),
        Row("multi-task", "table"),
        Row("meta", "table weights"),
        Row("meta-unweighted", "weights"),
        Row("meta-raw", "weights"),
        Row("meta-spread-0.1", "weights"),
        Row("meta-spread-1", "weights"),
        Row("meta-no-domain-loss", "weights"),
        Row("leave-one-out", "leave-one-out", runs="without"),
        Row("leave-one-out-mixed", "leave-one-out", runs="without"),
    ]


def _table_rows() -> list[Row]:
    """The students of the paper's table: without a teacher, and of each teacher by logits and by layers.

    multi-: of the single-domain teachers of all domains together, the paper's MTN-KD.
    """
    rows = [Row("hard", "table variants few-shot", None, "hard")]
    for teacher in ("single", "mixed", "multi-task", "meta"):
        groups = "table few-shot" if teacher == "meta" else "table"
        runs = "domain" if teacher == "single" else "all"
        for kind in ("logits", "layers"):
            rows.append(Row(f"{teacher}-{kind}", groups, teacher, kind, runs))
    rows += [Row(f"multi-{kind}", "table", "single", kind) for kind in ("logits", "layers")]
    return [*rows, Row("meta-full", "table variants few-shot", "meta", "full")]


def _variant_rows() -> list[Row]:
    """Students of the meta-teacher with one thing changed."""
    kinds = (
        "two-phase",
        "hidden",
        "full-no-lambda",
        "full-lambda-spread",
        "full-no-transfer",
        "full-transfer-30",
        "full-centred",
        "full-hard",
    )
    rows = [Row(f"meta-{kind}", "variants", "meta", kind) for kind in kinds]
    rows.append(Row("meta-full-from-teacher", "variants", "meta", "full", start="teacher"))
    return [*rows, Row("meta-full-by-domain", "variants", "meta", "full", "domain")]


def _unseen_rows() -> list[Row]:
    """Students on a domain that their teacher has not seen."""
    kinds = ("full", "full-no-lambda", "full-lambda-spread", "full-no-transfer", "layers")
    rows = [Row(f"leave-one-out-{kind}", "leave-one-out", "leave-one-out", kind, "domain") for kind in kinds]
    mixed = "leave-one-out-mixed"
    return [*rows, Row(f"{mixed}-layers", "leave-one-out", mixed, "layers", "domain")]


def _unlabelled_rows() -> list[Row]:
    """Students of the meta-teacher that get texts without labels beside the training examples."""
    kinds = ("logits", "full")
    rows = [Row(f"meta-{kind}-unlabelled", "unlabelled", "meta", kind, unlabelled=True) for kind in kinds]
    recipe = Row(
        "meta-full-from-teacher-unlabelled", "unlabelled", "meta", "full", start="teacher", unlabelled=True
    )
    return [*rows, recipe]


def _few_shot_rows(rows: list[Row]) -> list[Row]:
    """The rows of the group few-shot, on each portion of the training examples."""
    return [
        row._replace(name=f"{row.name}-{portion}", groups="few-shot", portion=portion)
        for portion in PORTIONS
        for row in rows
        if "few-shot" in row.groups.split()
    ]


def _all_rows() -> dict[str, Row]:
    """Every row there is, {name: Row}, teachers before their students."""
    table = _table_rows()
    ensemble = Row("ensemble", "ensemble", "meta", "full", ensemble=True)
    rows = [*_teacher_rows(), *table, *_variant_rows(), *_few_shot_rows(table)]
    rows += [*_unseen_rows(), *_unlabelled_rows(), ensemble]
    return {row.name: row for row in rows}


ROWS = _all_rows()
GROUPS = tuple(dict.fromkeys(group for row in ROWS.values() for group in row.groups.split()))


def chosen_rows(text: str) -> list[Row]:
    """The rows that a comma list of rows and groups names, in the order of ROWS."""
    words = text.split(",")
    for word in words:
        if word not in ROWS and word not in GROUPS:
            raise UserError(
                f"--rows: found {word!r:.60}, "
                f"expected a group ({', '.join(GROUPS)}) or a row ({', '.join(ROWS)})."
            )
    return [row for row in ROWS.values() if {row.name, *row.groups.split()} & set(words)]


def with_teachers(rows: list[Row]) -> list[Row]:
    """The rows and those of their teachers."""
    names = {name for row in rows for name in (row.name, row.teacher)}
    return [row for row in ROWS.values() if row.name in names]
