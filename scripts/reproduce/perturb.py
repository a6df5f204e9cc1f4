"""Data made worse on purpose, for experiments: wrong labels and thinned domains,
in the training split alone.
"""

import itertools
import pathlib
import shutil
import urllib.parse
from argparse import Namespace
from typing import NamedTuple, Optional

import numpy as np

from data.prepare.task_files import write_tsv
from data.store.files import make_folder
from data.tasks import SPLITS, Example, Task, read_examples, split_path
from util import UserError, random_stream


class Perturbation(NamedTuple):
    """What is done to the training split.

    label_noise: the share of examples that get another label, in each domain and class.
    kept: {domain: the share of its examples that stays, in each class}.
    """

    label_noise: float = 0.0
    kept: dict = {}

    def __bool__(self) -> bool:
        return self.label_noise > 0 or bool(self.kept)


def parse_kept(text: str, task: Task) -> dict:
    """{domain: share} of a text such as "kitchen=0.1,dvd=0.5".

    Raises:
        UserError: an unknown domain, one that comes twice, or a share that is not above 0 and at most 1.
    """
    kept = {}
    for part in filter(None, text.split(",")):
        domain, _, share = part.rpartition("=")
        try:
            value = float(share)
        except ValueError:
            value = 0.0
        if domain in kept:
            raise UserError(f"--thin_domains: found two shares of {domain}, expected one: leave one out.")
        if domain not in task.domains or not 0 < value <= 1:
            raise UserError(
                f"--thin_domains: found {part!r:.60}, expected DOMAIN=SHARE with a domain of "
                f"{', '.join(task.domains)} and a share above 0 and at most 1."
            )
        kept[domain] = value
    return kept


def perturb(task: Task, examples: list, how: Perturbation, seed: int) -> list:
    """The training examples that stay, some with a wrong label; a function of the seed.

    Thinning comes first, so that the share of wrong labels holds in what is left.
    """
    examples = thin(task, examples, how.kept, seed)
    noisy = list(examples)
    for (domain, label), rows in group_cells(examples).items():
        stream = random_stream(seed, "noise", 1, domain, label)
        wrong = stream.permutation(rows)[: round(how.label_noise * len(rows))]
        others = [other for other in range(len(task.labels)) if other != label]
        for row, pick in zip(wrong, stream.integers(len(others), size=len(wrong))):
            noisy[row] = noisy[row]._replace(label=others[pick])
    return noisy


def thin(task: Task, examples: list, kept: dict, seed: int) -> list:
    """The examples, of the domains in `kept` that share alone, at least one of each class, in their order."""
    stay = np.ones(len(examples), bool)
    for (domain, label), rows in group_cells(examples).items():
        share = kept.get(task.domains[domain], 1.0)
        wanted = max(1, round(share * len(rows)))
        stay[random_stream(seed, "noise", 0, domain, label).permutation(rows)[wanted:]] = False
    return [example for example, stays in zip(examples, stay) if stays]


def group_cells(examples: list) -> dict:
    """{(domain, label): the places of its examples}."""
    cells = {}
    for place, example in enumerate(examples):
        cells.setdefault((example.domain, example.label), []).append(place)
    return cells


def write_perturbed(
    task: Task, data_dir: str, target: pathlib.Path, how: Perturbation, seed: int, limit: Optional[int] = None
) -> None:
    """Writes the task's data into the folder `target`, train.tsv perturbed, dev.tsv and test.tsv as they are.

    limit: the first so many training examples are taken, and the others left out; None: all.
    """
    make_folder(target)
    for split in SPLITS[1:]:
        shutil.copyfile(split_path(data_dir, split), split_path(target, split))
    if (description := pathlib.Path(data_dir, "task.json")).exists():
        shutil.copyfile(description, target / description.name)
    examples = list(itertools.islice(read_examples(task, split_path(data_dir, "train")), limit))
    rows = (row_of_task(task, example) for example in perturb(task, examples, how, seed))
    write_tsv(task, split_path(target, "train"), rows)


def row_of_task(task: Task, example: Example) -> tuple:
    """(texts..., domain name, label name), as `write_tsv` takes it."""
    texts = (example.text_a, example.text_b)[: len(task.text)]
    return (*texts, task.domains[example.domain], task.labels[example.label])


# ------------------------------------------------------------------------------ of scripts.reproduce


def perturbation(args: Namespace, task: Task) -> Perturbation:
    """What --label_noise and --thin_domains ask for."""
    return Perturbation(args.label_noise, parse_kept(args.thin_domains, task))


def variant_name(args: Namespace) -> str:
    """The name of the folder of perturbed data, of its runs and of their results."""
    parts = {"noise": f"{args.label_noise:g}", "thin": urllib.parse.quote(args.thin_domains, safe="=,")}
    parts |= {"seed": args.noise_seed, "first": args.train_example_num or "all"}
    return "-".join(f"{name}={value}" for name, value in parts.items() if value not in ("", "0", "all"))


def with_perturbed_data(args: Namespace) -> Namespace:
    """The flags of a set on perturbed data: its folders are within those of `args`; it takes all examples."""
    name = variant_name(args)
    folders = {key: str(pathlib.Path(getattr(args, key), name)) for key in ("output", "results")}
    data_dir = str(pathlib.Path(folders["output"], "data"))
    return Namespace(**{**vars(args), **folders, "data_dir": data_dir, "train_example_num": None})
