"""What is Meta-KD's own: heads, prototypes, losses and weights, the student's terms, several teachers.

Not here: the encoder (modeling/bert, modeling/cpu), and how a step is trained (modeling/training).
"""
