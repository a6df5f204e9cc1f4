"""Every step of an example's way from a TSV row to arrays, and OneFlow's import.

tasks.py, lines.py, rows.py        tasks, and the files of text that users bring
encoding.py, wordpiece/            texts as tokens
store/                             records and knowledge on disk
selection.py, batches.py           which examples a run takes, in which order
unlabelled.py                      texts that the teacher labels
engine.py                          OneFlow, imported in the environment that it needs
prepare/                           commands that make task folders; no stage imports them
"""

import util  # noqa: F401  (first: it says what is not installed)
