"""Prints the name of the best snapshot of a run folder: `python3 scripts/best.py output/senti-teacher`."""

import json
import pathlib
import sys

path = pathlib.Path(sys.argv[1], "best.json")
try:
    print(json.loads(path.read_text(encoding="utf-8"))["snapshot"])
except OSError:
    sys.exit(f"error: {path} is missing: run the stage that trains there first.")
except (ValueError, TypeError, KeyError):
    sys.exit(f"error: {path} does not name a snapshot: run the stage that trains there again.")
