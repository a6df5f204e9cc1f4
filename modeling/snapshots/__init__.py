"""Model folders and snapshots: read, checked, converted, saved; and which snapshot of a run is its best.

Not here: the folder of a run with its log and metrics (modeling/training/run.py).
"""
