"""Prints the name of the best snapshot of a run folder: `python3 scripts/best.py output/senti-teacher`."""

import json
import pathlib
import sys

path = pathlib.Path(*sys.argv[1:2], "best.json")
try:
    print(json.loads(path.read_text(encoding="utf-8"))["snapshot"])
except OSError:
    fault = "is missing: run the stage that trains there first (a teacher: scripts/2_meta_teacher.sh)."
except (ValueError, TypeError, KeyError):
    fault = "does not name a snapshot: run the stage that trains there again."
else:
    raise SystemExit
print(f"error: {path} {fault}", file=sys.stderr)
raise SystemExit(2)
