"""Commands that make task folders out of published data sets and tables, and their helpers.

Not here: what the stages read. No stage imports this package.
"""
