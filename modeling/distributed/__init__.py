"""Ranks, for GPUs and several machines: started, watched, their sums and barriers, and what machines compare.

Not here: the threads of one process on a CPU (modeling/cpu/threads.py).
"""
