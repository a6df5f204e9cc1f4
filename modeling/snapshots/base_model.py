"""What a snapshot's card says of the model that its weights come from: name, license and language."""

import re
from typing import NamedTuple, Optional

HEAD = re.compile(r"---\r?\n(.*?)\r?\n---", re.S)  # the front matter of a model card
# Of a snapshot that is older than these facts:
UNKNOWN = {"name": None, "license": "unknown", "language": None}


class CardOptions(NamedTuple):
    """The flags of what a model card says of the base model; None: as its folder says."""

    card_base_model: Optional[str] = None
    card_license: Optional[str] = None
    card_language: Optional[str] = None


def base_facts(folder, options):
    """{"name", "license", "language"} of the model in `folder`, a ModelFolder, for meta.json.

    The CardOptions say it; else the snapshot that the model is, else the README.md of its folder. A model
    whose card has no license has the license "unknown", and without a language there is None.
    """
    if folder.meta is None:
        facts = {"name": folder.path.resolve().name, **_card_facts(folder.path / "README.md")}
    else:
        facts = folder.meta.get("base", UNKNOWN)
    given = {
        "name": options.card_base_model,
        "license": options.card_license,
        "language": options.card_language,
    }
    return {**facts, **{name: value for name, value in given.items() if value is not None}}


def _card_facts(path):
    """License and language of the model card at `path`: single values or the first of a list."""
    text = path.read_text(encoding="utf-8", errors="replace") if path.is_file() else ""
    head = HEAD.match(text)
    facts = {"license": "unknown", "language": None}
    for name in facts:
        found = head and re.search(
            rf"^{name}:[ \t]*(?:\r?\n[ \t]*-[ \t]*)?[\"']?([\w.-]+)", head.group(1), re.M
        )
        if found:
            facts[name] = found.group(1)
    return facts
