"""What stands on disk: records of a split, a teacher's knowledge,
the parts and manifests that both are made of.

Each is written whole or not at all, checked once when it is opened, and then read by offset. Tasks, TSV files
and batches are in `data`; snapshots are in `modeling/snapshots`.
"""
