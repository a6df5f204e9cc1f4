"""Parts in the making: what several ranks write side by side,
and what a run that was stopped need not do again.

A folder holds the parts `<prefix>.of_record-<k>` that are done, beside each a hidden JSON file with its size,
its hash and facts of the writer's own, and `.plan.json`, what all of them are made of. Each file is written
under another name and renamed.
"""

import contextlib
import hashlib
import json
import pathlib
import re
import shutil

from data.store.files import atomic_file, write_json
from data.store.manifest import check_replaceable, is_count
from data.store.ofrecord import part_name
from data.store.temporary import remove_partial_writes
from util import UserError, read_json

PLAN = ".plan.json"
# Examples to a part: few enough that ranks come out even and little is lost, enough for batches of like
# length.
PART = 256
MANY = 256  # parts


def windows(blocks, count, size=PART):
    """Cuts blocks of examples, `count` in all, into pieces of at most `size`, or 4 times as many where there
    would be too many files, which stay open when they are read: Examples -> Examples.
    """
    size = size if count <= size * MANY else 4 * size
    for block in blocks:
        for start in range(0, len(block), size):
            yield block.take(slice(start, start + size))


class PartsFolder:
    """A folder of parts in the making.

    Args:
        folder, prefix: where, and what the names of the parts begin with.
        plan: what the parts are made of, as JSON has it; parts of another plan are not gone on with.
    """

    def __init__(self, folder, prefix, plan):
        self.folder, self.prefix, self.plan = pathlib.Path(folder), prefix, json.loads(json.dumps(plan))

    def begin(self):
        """Makes the folder, or cleans the one that a stopped run has left: the first rank's task, before the
        others look into it.

        Raises:
            UserError: a link, a file, or a folder with something else in it has its name.
        """
        self._check_ours()
        if self._found_plan() != self.plan:
            shutil.rmtree(self.folder, ignore_errors=True)
            self.folder.mkdir(parents=True)
            write_json(self.folder / PLAN, self.plan)
        remove_partial_writes(self.folder)

    def _check_ours(self):
        """Refuses to go on in, and to remove, what no run of ours has made."""
        note = rf"\.{re.escape(part_name(self.prefix, ''))}\d+\.json"
        check_replaceable(self.folder, self.prefix, more=(note, re.escape(PLAN)))

    def put(self, number, data, **facts):
        """Writes a part, and then that it is done."""
        name = part_name(self.prefix, number)
        with atomic_file(self.folder / name) as file:
            file.write(data)
        write_json(
            self._note(number), {"bytes": len(data), "sha256": hashlib.sha256(data).hexdigest(), **facts}
        )

    def get(self, number):
        """A part that is done and unchanged, as (bytes, facts); None where there is none."""
        try:
            facts = read_json(self._note(number), "the note on a part")
            data = (self.folder / part_name(self.prefix, number)).read_bytes()
        except (UserError, OSError):
            return None
        whole = (
            is_count(facts.get("bytes"))
            and len(data) == facts["bytes"]
            and hashlib.sha256(data).hexdigest() == facts.get("sha256")
        )
        return (data, facts) if whole else None

    def close(self):
        """Takes the notes away: the parts have become something whole."""
        for note in self.folder.glob(".*.json"):
            note.unlink()

    def remove(self):
        """Takes the folder away: what was to be made of the parts is there."""
        shutil.rmtree(self.folder)

    def discard(self):
        """Takes away what a run that was killed at its very end has left: parts of this plan, or of none."""
        with contextlib.suppress(UserError):  # what is not ours stays
            self._check_ours()
            if self._found_plan() in (self.plan, None):
                shutil.rmtree(self.folder, ignore_errors=True)

    def _found_plan(self):
        try:
            return read_json(self.folder / PLAN, "the plan of the parts")
        except (UserError, OSError):
            return None

    def _note(self, number):
        return self.folder / f".{part_name(self.prefix, number)}.json"
