"""Model folders and snapshots: read, checked, converted from other forms, saved; which of a run's is its best.

Not here: the folder of a run with its log and metrics (modeling/training/run.py).
"""
