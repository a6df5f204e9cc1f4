"""Rows of the paper's table over several seeds: `python3 -m scripts.reproduce`.

rows.py has the rows, plan.py the calls of the four scripts that they take. state.py says which of them are
finished, and runner.py runs the rest. outcomes.py reads finished runs, statistics.py compares them, tables.py
and plots.py write what came out.
"""
