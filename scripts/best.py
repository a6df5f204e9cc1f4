"""Prints the name of the best snapshot of a run folder: `python3 scripts/best.py output/senti-teacher`."""

import json
import pathlib
import sys

try:
    print(json.loads(pathlib.Path(sys.argv[1], "best.json").read_text(encoding="utf-8"))["snapshot"])
except OSError:
    sys.exit(f"error: {sys.argv[1]}/best.json is missing: run the stage that trains there first.")
