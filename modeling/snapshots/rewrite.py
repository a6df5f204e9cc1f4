"""A snapshot whose weights, description or card change after it was written; all else stays as it was."""

import re
import shutil

from data.store.files import atomic_folder, write_json
from modeling.snapshots.folder import CHECKED, FORMAT
from modeling.snapshots.saving import save_arrays
from modeling.snapshots.weights import WEIGHTS
from util import sha256


def rewrite_snapshot(path, arrays=None, meta=None, card=None):
    """Writes the snapshot `path` again.

    Args:
        arrays, meta, card: the new weights, meta.json and README.md; None: as they are.
    """
    with atomic_folder(path) as folder:
        for file in sorted(path.iterdir()):
            if file.name != "manifest.json" and not (file.name == WEIGHTS and arrays is not None):
                shutil.copyfile(file, folder / file.name)
        if arrays is not None:
            save_arrays(arrays, folder / WEIGHTS)
        if meta is not None:
            write_json(folder / "meta.json", meta)
        if card is not None:
            (folder / "README.md").write_text(card, encoding="utf-8", newline="\n")
        hashes = {file.name: sha256(file) for file in sorted(folder.iterdir()) if file.name in CHECKED}
        write_json(folder / "manifest.json", {"format": FORMAT, "sha256": hashes})


def rewrite_card(path, sentence):
    """Replaces what the model card of the snapshot `path`, if it has one, says of its probabilities."""
    file = path / "README.md"
    if not file.is_file():
        return
    text = file.read_text(encoding="utf-8")
    new = re.sub(r"^- The probabilities .*$", lambda _: sentence, text, count=1, flags=re.M)
    if new != text:
        rewrite_snapshot(path, card=new)
