"""What a person reads of a run: report.html, charts, the acceptance of a student, model card, TensorBoard.

Not here: the figures themselves, which modeling/inference.py and modeling/training/evaluation.py work out.
"""
