"""MultiNLI -> train.tsv, dev.tsv and test.tsv of the task mnli:
pairs of a premise and a hypothesis in five genres.

    python3 -m data.prepare.mnli --source multinli_1.0 --data_dir data/MNLI [--dev_example_num 5000]
        [--seed 42]

The Multi-Genre NLI Corpus (Williams, Nangia and Bowman, NAACL 2018), as published (JSON lines or a table) or
as the tables of GLUE. The labels of its test set are not public: so test is dev_matched, and dev is held out
of the training pairs, by genre and label. No prompt and no premise stands in both train and dev.
"""

import collections
import json
import pathlib
from typing import NamedTuple

from config import count, module_parser, natural
from data.lines import line_text, open_text
from data.prepare.amazon import leaks
from data.prepare.splitting import connected_groups, shuffle
from data.prepare.task_files import count_table, write_task
from data.tasks import BUILT_IN, clean
from data.wordpiece.characters import has_visible
from util import UserError, entry

TASK = BUILT_IN["mnli"]
FILES = {
    part: (f"multinli_1.0_{part}.jsonl", f"multinli_1.0_{part}.txt", f"{part}.tsv")
    for part in ("train", "dev_matched")
}
FIELDS = ("sentence1", "sentence2", "genre", "gold_label", "promptID")
NO_LABEL = "-"  # the annotators do not agree


class Pair(NamedTuple):
    """A premise and a hypothesis; pairs of one prompt were written for one premise."""

    premise: str
    hypothesis: str
    genre: str
    label: str
    prompt: str


# --------------------------------------------------------------------------------------- reading


def find_file(source, part: str) -> pathlib.Path:
    """The file of a part (train or dev_matched) in the folder `source`:
    the published JSON lines or table, or GLUE's table.
    """
    folder = pathlib.Path(source)
    if not folder.is_dir():
        raise UserError(f"{folder}: no such folder, expected multinli_1.0 or GLUE's MNLI: check --source.")
    found = [folder / name for name in FILES[part] if (folder / name).is_file()]
    if not found:
        raise UserError(
            f"{folder}: found none of {', '.join(FILES[part])}, expected one of them: check --source."
        )
    return found[0]


def read_pairs(path: pathlib.Path) -> tuple[list[Pair], dict]:
    """The pairs of a file in their order, and the lines of those that were dropped.

    Returns:
        a list of Pair, and {reason: numbers of lines}; a text without a visible character is empty.
    Raises:
        UserError: a fault, with file and line.
    """
    pairs, dropped = [], {"without a gold label": [], "with an empty text": []}
    for line, values in _json_values(path) if path.suffix == ".jsonl" else _table_values(path):
        premise, hypothesis, genre, label, prompt = map(clean, values)
        if label == NO_LABEL:
            dropped["without a gold label"].append(line)
            continue
        for name, found, known in (("genre", genre, TASK.domains), ("gold_label", label, TASK.labels)):
            if found not in known:
                raise UserError(
                    f"{path}:{line}: found {name} {found[:80]!r}, expected one of {', '.join(known)}: mend "
                    "or remove the line."
                )
        if has_visible(premise) and has_visible(hypothesis):
            pairs.append(Pair(premise, hypothesis, genre, label, prompt))
        else:
            dropped["with an empty text"].append(line)
    if not pairs:
        raise UserError(
            f"{path}: found no pair with a gold label, expected one or more: fetch the file again."
        )
    return pairs, dropped


def _lines(path):
    """Yields (number, text) of the lines of a file that are not blank."""
    with open_text(path, "a file of MultiNLI: check --source") as file:
        for line, raw in enumerate(file, 1):
            if text := line_text(path, line, raw).strip("\r "):
                yield line, text


def _json_values(path):
    """Yields (line, the values of FIELDS) for each line of a file of JSON lines."""
    for line, text in _lines(path):
        try:
            record = json.loads(text, parse_int=str)  # some copies have a number for promptID
        except (ValueError, RecursionError) as error:
            raise UserError(
                f"{path}:{line}: the line is not JSON ({error}), expected an object a line: fetch the file "
                "again."
            ) from None
        if not isinstance(record, dict):
            raise UserError(
                f"{path}:{line}: found a {type(record).__name__}, expected a JSON object a line: fetch the "
                "file again."
            )
        yield line, [_text_of(record, name, f"{path}:{line}") for name in FIELDS]


def _text_of(record, name, where):
    value = record.get(name)
    if not isinstance(value, str):
        found = f"a {type(value).__name__} in '{name}'" if name in record else f"no '{name}'"
        raise UserError(f"{where}: found {found}, expected text: mend or remove the line.")
    if value != value.encode("utf-8", "ignore").decode():
        raise UserError(
            f"{where}: found half of a surrogate pair in '{name}', expected text: mend or remove the line."
        )
    return value


def _table_values(path):
    """Yields (line, the values of FIELDS) for each row of a table, whose fields are taken as they stand: no
    quoting, no escapes.

    Empty fields at the end of a row may be left out.
    """
    lines = _lines(path)
    header = next(lines, (1, ""))[1].split("\t")
    for name in FIELDS:
        if header.count(name) != 1:
            raise UserError(
                f"{path}: found the columns {', '.join(map(repr, header))[:300]}, expected '{name}' once "
                "among them: fetch the file again."
            )
    order = [header.index(name) for name in FIELDS]
    for line, text in lines:
        fields = text.split("\t")
        if not max(order) < len(fields) <= len(header):
            raise UserError(
                f"{path}:{line}: found {len(fields)} column(s), expected {len(header)}: mend or remove the "
                "line."
            )
        yield line, [fields[k] for k in order]


# --------------------------------------------------------------------------------------- splitting


def hold_out(pairs: list[Pair], wanted: int, seed: int) -> dict[str, list[Pair]]:
    """Splits the training pairs into train and dev at random,
    as many of each genre and label in dev as its share is.

    Pairs of one prompt, and of one premise, stay on one side. So the share of a genre and label may be missed
    by a few, and where nothing fits into the last places dev has a few less than `wanted`.

    Returns:
        {"train": pairs, "dev": pairs}, in random order; the same for the same arguments.
    Raises:
        UserError: no pair would be left for train, or none fits into dev.
    """
    if wanted >= len(pairs):
        raise UserError(
            f"--dev_example_num {wanted}: found {len(pairs)} training pairs, expected more than that: lower "
            "it."
        )
    units = shuffle(connected_pairs(pairs), seed, 0)
    chosen = _choose(
        [collections.Counter((pair.genre, pair.label) for pair in unit) for unit in units], wanted
    )
    if not 0 < len(chosen) < len(units):
        raise UserError(
            f"--dev_example_num {wanted}: found no way to part {len(units)} groups of pairs with one prompt "
            "or premise, expected some pairs on either side: name another number."
        )
    dev = [pair for k, unit in enumerate(units) if k in chosen for pair in unit]
    train = [pair for k, unit in enumerate(units) if k not in chosen for pair in unit]
    return {"train": shuffle(train, seed, 1), "dev": shuffle(dev, seed, 2)}


def _choose(units, wanted):
    """The numbers of the units that make up dev. Args: units: {(genre, label): pairs}, in random order."""
    room, left, chosen = shares(sum(units, collections.Counter()), wanted), wanted, set()
    for excess in (0, 1):  # a second round fills the places left with what exceeds its share by one
        for k, cells in enumerate(units):
            size = sum(cells.values())
            if (
                k not in chosen
                and size <= left
                and all(n <= room[cell] + excess for cell, n in cells.items())
            ):
                chosen.add(k)
                room.subtract(cells)
                left -= size
    return chosen


def connected_pairs(pairs: list[Pair]) -> list[list[Pair]]:
    """Lists of pairs that share a prompt or a premise, or are tied through others that do."""
    units = connected_groups(pairs, lambda pair: (("premise", pair.premise), ("prompt", pair.prompt)))
    return [[pairs[k] for k in unit] for unit in units]


def shares(cells: collections.Counter, wanted: int) -> collections.Counter:
    """`wanted` pairs dealt to the cells in proportion to their sizes, rounded so that the sum is `wanted`.

    Counter -> Counter.
    """
    total, before, room = sum(cells.values()), 0, collections.Counter()
    for cell, n in sorted(cells.items()):
        room[cell] = (before + n) * wanted // total - before * wanted // total
        before += n
    return room


# --------------------------------------------------------------------------------------- the command


def dropped_lines(path, pairs: list[Pair], dropped: dict) -> list[str]:
    """Lines that say what was read of a file and what was dropped."""
    lines = [f"{path}: {len(pairs)} pairs"]
    for reason, numbers in dropped.items():
        places = (
            f" (line {', '.join(map(str, numbers[:5]))}{', ...' if len(numbers) > 5 else ''})"
            if numbers
            else ""
        )
        lines.append(f"  dropped {reason}: {len(numbers)}{places}")
    return lines


@entry
def main():
    parser = module_parser(__doc__, "data.prepare.mnli")
    parser.add_argument("--source", required=True, help="the folder multinli_1.0, or GLUE's folder MNLI")
    parser.add_argument("--data_dir", required=True, help="where train.tsv, dev.tsv and test.tsv are written")
    parser.add_argument(
        "--dev_example_num",
        type=count,
        default=5000,
        help="training pairs that become dev (default: %(default)s)",
    )
    parser.add_argument(
        "--seed", type=natural, default=42, help="which ones is a function of it (default: %(default)s)"
    )
    args = parser.parse_args()

    parts = {}
    for part in FILES:
        path = find_file(args.source, part)
        parts[part], dropped = read_pairs(path)
        print(*dropped_lines(path, parts[part], dropped), sep="\n")
    splits = {**hold_out(parts["train"], args.dev_example_num, args.seed), "test": parts["dev_matched"]}
    splits = {split: [pair[:4] for pair in pairs] for split, pairs in splits.items()}
    write_task(TASK, args.data_dir, splits)
    print(count_table(TASK, splits))
    print("of the premises:", *leaks(splits), sep="\n  ")
    print(f"written to {args.data_dir}: train.tsv, dev.tsv, test.tsv")


if __name__ == "__main__":
    main()
