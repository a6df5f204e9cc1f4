"""What is Meta-KD's own: heads, prototypes, weights, losses, the student's terms, layer matching.

Not here: the encoder (modeling/bert, modeling/cpu), and how a step is trained (modeling/training).
"""
