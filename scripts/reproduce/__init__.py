"""Rows of the paper's table over several seeds: `python3 -m scripts.reproduce`.

flags.py has the flags, rows.py the rows, grid.py the settings that dev chooses from, and perturb.py makes the
training data worse where that is asked for. plan.py has the calls of the four scripts that the rows take.
state.py says which of them are finished, and runner.py runs the rest. outcomes.py reads finished runs,
statistics.py compares them, tables.py and plots.py write what came out. bag_of_words.py is a command of its
own: what a model must beat.
"""
