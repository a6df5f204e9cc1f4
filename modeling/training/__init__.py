"""How stages 2 and 4 train: the run folder, the loop and its log, the optimizer, evaluation, calibration.

Not here: what the loss is (modeling/meta_kd), and where snapshots lie (modeling/snapshots).
"""
