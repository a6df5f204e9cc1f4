"""How stages 2 and 4 train: the run folder, what both open and close, the loop, the optimizer, calibration.

Not here: what the loss is (modeling/meta_kd), and where snapshots lie (modeling/snapshots).
"""
