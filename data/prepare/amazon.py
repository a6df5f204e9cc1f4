"""Raw Amazon reviews of four domains -> train.tsv, dev.tsv and test.tsv, in the split of the paper's authors.

    python3 -m data.prepare.amazon --source sorted_data_acl --data_dir data/SENTI [--dedup]

The Multi-Domain Sentiment Dataset (Blitzer, Dredze and Pereira, ACL 2007): 1,000 positive and 1,000 negative
reviews of books, DVDs, electronics and kitchen goods. Some reviews were published twice: in the authors'
split a few texts stand on both sides.
"""

import collections
import itertools
import lzma
import pathlib
import re
import tarfile
import zlib

import numpy as np

from config import module_parser
from data.prepare.task_files import count_table, write_task
from data.tasks import BUILT_IN, SPLITS, clean
from data.wordpiece.characters import has_visible
from util import UserError, entry

TASK = BUILT_IN["senti"]
FOLDERS = {
    "books": ("books",),
    "dvd": ("dvd",),
    "electronics": ("electronics",),
    "kitchen": ("kitchen_&_housewares", "kitchen"),
}
REVIEWS = 1000  # in each of the eight files
MOST_BYTES = 32 << 20  # of a file; the largest published one has 2 MB
SEED = 11111  # the authors'

# --------------------------------------------------------------------------------------- reading


def read_reviews(source) -> list[tuple[str, str, str]]:
    """The 8,000 rows (text, domain, label), domain by domain, positive before negative,
    in the order of the files.

    A file is held in memory while it is read, one at a time.

    Args:
        source: the folder sorted_data_acl, a folder that contains it, or the published archive.
    Raises:
        UserError: a file is missing or is not what was published.
    """
    source = pathlib.Path(source)
    if not source.exists():
        raise UserError(
            f"{source}: no such folder or archive, expected sorted_data_acl or domain_sentiment_data.tar.gz: "
            "check --source."
        )
    contents = _folder_contents(source) if source.is_dir() else _archive_contents(source)
    texts = {name: parse_reviews(content, f"{source}: {'/'.join(name)}") for name, content in contents}
    rows = []
    for domain in TASK.domains:
        for label in TASK.labels:
            names = [(folder, f"{label}.review") for folder in FOLDERS[domain]]
            found = [name for name in names if name in texts]
            if not found:
                raise UserError(
                    f"{source}: {'/'.join(names[0])} is missing, expected 8 files "
                    "(4 domains, positive.review and negative.review in each)."
                )
            rows += [(text, domain, label) for text in texts[found[0]]]
    return rows


def _folder_contents(folder):
    """Yields ((folder of the domain, name of the file), bytes) of the review files in `folder`
    or in its sorted_data_acl.
    """
    inner = folder / "sorted_data_acl"
    root = inner if inner.is_dir() else folder
    for path in sorted(root.glob("*/*.review")):
        if _wanted(path):
            _check_size(f"{folder}: {path.parent.name}/{path.name}", path.stat().st_size)
            yield (path.parent.name, path.name), path.read_bytes()


def _archive_contents(archive):
    """The same of a tar archive; members are read by name, nothing is extracted, links are passed over."""
    try:
        with tarfile.open(archive, tarinfo=_Member) as tar:
            for member in tar:
                path = pathlib.PurePosixPath(member.name)
                if member.isreg() and _wanted(path):
                    _check_size(f"{archive}: {member.name:.200}", member.size)
                    yield (path.parent.name, path.name), tar.extractfile(member).read()
    except (tarfile.TarError, zlib.error, lzma.LZMAError, EOFError, OSError) as error:
        reason = str(error).partition("\n")[0].rstrip(":") or type(error).__name__
        raise UserError(
            f"{archive}: cannot be read as a tar archive ({reason}): fetch domain_sentiment_data.tar.gz "
            "again."
        ) from None


class _Member(tarfile.TarInfo):
    """A member whose header is small: tarfile holds long names and extended headers in memory."""

    @classmethod
    def frombuf(cls, *args):
        member = super().frombuf(*args)
        if member.type not in tarfile.REGULAR_TYPES:
            _check_size("a header of the archive", member.size)
        return member


def _check_size(where, size):
    if size > MOST_BYTES:
        raise UserError(
            f"{where}: found {size:,} bytes, expected {MOST_BYTES:,} at most, as the published files have "
            "far fewer: fetch domain_sentiment_data.tar.gz again."
        )


def _wanted(path):
    folders = {name for names in FOLDERS.values() for name in names}
    return path.parent.name in folders and path.name in {f"{label}.review" for label in TASK.labels}


def parse_reviews(content: bytes, where: str) -> list[str]:
    """The texts of a .review file given as bytes.

    It is not XML (bare & and <, control characters), so patterns find them.
    """
    texts = []
    for k, review in enumerate(re.findall(rb"<review>(.*?)</review>", content, re.S), 1):
        match = re.search(rb"<review_text>(.*?)</review_text>", review, re.S)
        try:
            text = clean(match.group(1).decode("utf-8")) if match else ""
        except UnicodeDecodeError as error:
            raise UserError(
                f"{where}: review {k} is not UTF-8 ({error}), expected the published file."
            ) from None
        if not has_visible(text):
            raise UserError(f"{where}: review {k} has no text, expected the published file.")
        texts.append(text)
    if len(texts) != REVIEWS:
        raise UserError(f"{where}: found {len(texts)} reviews, expected {REVIEWS}: is the file cut?")
    return texts


# --------------------------------------------------------------------------------------- splitting


def split_reviews(rows: list) -> dict[str, list]:
    """The authors' split: a shuffle, then the first of ten stratified folds is test,
    and again of the rest is dev.

    Returns:
        {"train": rows, "dev": rows, "test": rows}, 6,480, 720 and 800 of 8,000, in the order of the shuffle.
    """
    from sklearn.model_selection import StratifiedKFold  # here, since it takes half a second to import

    rest = [rows[k] for k in np.random.RandomState(SEED).permutation(len(rows))]
    splits = {}
    for split in ("test", "dev"):
        folds = StratifiedKFold(10, shuffle=True, random_state=SEED).split(
            rest, [label for *_, label in rest]
        )
        kept, taken = next(folds)
        splits[split], rest = [rest[k] for k in taken], [rest[k] for k in kept]
    return {"train": rest, "dev": splits["dev"], "test": splits["test"]}


def deduplicate(splits: dict[str, list]) -> tuple[dict, dict]:
    """The splits without repeated texts: the first copy stays, in the order test, dev, train.

    So test and dev hold the authors' texts, and their figures stay comparable; train pays for the leak. A
    text found with two labels or in two domains is dropped everywhere, for no copy can be called right (there
    is none among the published reviews).

    Returns:
        the splits, and {split: [rows whose text stands in a split before it, other dropped rows]}.
    """
    kinds = collections.defaultdict(set)
    for text, *kind in itertools.chain(*splits.values()):
        kinds[text].add(tuple(kind))
    seen, kept, dropped = {text for text in kinds if len(kinds[text]) > 1}, {}, {}
    for split in ("test", "dev", "train"):
        before, kept[split] = frozenset(seen), []
        for row in splits[split]:
            if row[0] not in seen:
                seen.add(row[0])
                kept[split].append(row)
        leaked = sum(row[0] in before for row in splits[split])
        dropped[split] = [leaked, len(splits[split]) - len(kept[split]) - leaked]
    return {split: kept[split] for split in SPLITS}, dropped


def leaks(splits: dict[str, list]) -> list[str]:
    """Lines that say how many texts stand on both sides of each pair of splits."""
    texts = {split: {row[0] for row in rows} for split, rows in splits.items()}
    pairs = (("train", "test"), ("train", "dev"), ("dev", "test"))
    return [f"texts of {a} that stand in {b} as well: {len(texts[a] & texts[b])}" for a, b in pairs]


# --------------------------------------------------------------------------------------- the command


@entry
def main():
    parser = module_parser(__doc__, "data.prepare.amazon")
    parser.add_argument(
        "--source",
        required=True,
        help="the folder sorted_data_acl, one that contains it, or domain_sentiment_data.tar.gz",
    )
    parser.add_argument("--data_dir", required=True, help="where train.tsv, dev.tsv and test.tsv are written")
    parser.add_argument(
        "--dedup", action="store_true", help="keep each text once, so that none stands in two splits"
    )
    args = parser.parse_args()

    splits = split_reviews(read_reviews(args.source))
    if args.dedup:
        splits, dropped = deduplicate(splits)
        for split, (leaked, repeated) in dropped.items():
            print(
                f"{split}: dropped {leaked} reviews whose text stands in a split named before, {repeated} "
                "repeats within the split"
            )
    write_task(TASK, args.data_dir, splits)
    print(count_table(TASK, splits))
    print("\n".join(leaks(splits)))
    print(f"written to {args.data_dir}: train.tsv, dev.tsv, test.tsv")


if __name__ == "__main__":
    main()
