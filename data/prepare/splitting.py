"""Splits at random by domain and label: what belongs together stays on one side, and each side has its share
of each cell.
"""

import collections
import math

import numpy as np

from data.tasks import SPLITS
from util import random_stream


def deduplicate(tables: dict) -> dict:
    """The tables with the first row of each text alone, test before dev before train,
    so that given test texts stay.
    """
    seen, kept = set(), {}
    for split in reversed(SPLITS):
        kept[split] = []
        for row in tables.get(split, ()):
            if row.texts not in seen:
                seen.add(row.texts)
                kept[split].append(row)
    return {split: kept[split] for split in tables}


def split_rows(rows: list, portions: dict[str, float], seed: int) -> dict[str, list]:
    """Splits rows at random, as many of each domain and label (a cell) on each side as its share is, rounded
    up or down.

    Rows of one text, and of one group, stay on one side, even where the shares suffer. Train has some of each
    cell; dev and test have some of each domain and of each label where there are rows enough.

    Args:
        portions: {"dev": share, "test": share} of the rows; 0: none.
    Returns:
        {split: rows in random order}; the same for the same arguments.
    """
    stream = random_stream(seed, "split", 0)
    units = connected_groups(rows, lambda row: filter(None, (row.texts, row.group)))
    units = [units[k] for k in stream.permutation(len(units))]
    units.sort(key=lambda unit: len(unit) == 1)  # single rows last: they fill what is left
    cells = [collections.Counter((rows[k].domain, rows[k].label) for k in unit) for unit in units]
    sizes = collections.Counter((row.domain, row.label) for row in rows)
    places = _Places(cells, quotas(sizes, portions))
    for cell in sorted(sizes):
        places.cover("train", cell)
    for split in [split for split in SPLITS[1:] if portions[split]]:
        for name in sorted({(kind, cell[kind]) for cell in sizes for kind in (0, 1)}):
            places.cover(split, name)
    places.fill(stream)
    splits = {split: [] for split in SPLITS}
    for unit, split in zip(units, places.split_of):
        splits[split] += [rows[k] for k in unit]
    return {split: shuffle(part, seed, key) for key, (split, part) in enumerate(splits.items(), 1)}


def connected_groups(items: list, keys) -> list[list[int]]:
    """Lists of the indices of items that share a key, or are tied through others that do, in the order of
    their first ones.

    Args:
        keys: item -> its keys, hashable.
    """
    parent, first, units = list(range(len(items))), {}, collections.defaultdict(list)

    def root(k):
        while parent[k] != k:
            parent[k] = parent[parent[k]]
            k = parent[k]
        return k

    for k, item in enumerate(items):
        for key in keys(item):
            parent[root(k)] = root(first.setdefault(key, k))
    for k in range(len(items)):
        units[root(k)].append(k)
    return list(units.values())


def shuffle(items: list, seed: int, key: int) -> list:
    """The items in random order, a function of seed and key."""
    return [items[k] for k in random_stream(seed, "split", key).permutation(len(items))]


def quotas(cells: dict, portions: dict[str, float]) -> dict[str, dict]:
    """How many rows of each cell go to each split, {split: {cell: rows}}, at least one of each to train.

    Dev and test get the share of a cell rounded up or down, so that the shares of all cells together come out
    right too, and then one more row for each domain and each label that they would have none of, where a cell
    of it can spare one.

    Args:
        cells: {(domain, label): rows}.
    """
    room = {split: dict.fromkeys(sorted(cells), 0) for split in SPLITS}
    for split, portion in portions.items():
        total = 0
        for cell in sorted(cells):
            room[split][cell] = math.floor((total + cells[cell]) * portion + 0.5) - math.floor(
                total * portion + 0.5
            )
            total += cells[cell]
    for cell, n in cells.items():
        while n - sum(room[split][cell] for split in portions) < 1:
            most = max(portions, key=lambda split: room[split][cell] - n * portions[split])
            room[most][cell] -= 1
        room["train"][cell] = n - sum(room[split][cell] for split in portions)
    for split in [split for split in portions if portions[split]]:
        _leave_none_out(room, split)
    return room


def _leave_none_out(room, split):
    """Moves a row of each domain and label that `split` has none of from train, where one more is left."""
    for kind in (0, 1):
        for name in sorted({cell[kind] for cell in room[split]}):
            cells = [cell for cell in room[split] if cell[kind] == name]
            largest = max(cells, key=room["train"].get)
            if not any(room[split][cell] for cell in cells) and room["train"][largest] > 1:
                room["train"][largest] -= 1
                room[split][largest] += 1


class _Places:
    """Which split each unit (rows that stay together) goes to.

    Args:
        cells: for each unit {(domain, label): rows}.
        room: {split: {cell: rows that it has room for}}, used up.
    """

    def __init__(self, cells, room):
        self.cells, self.room, self.split_of, self.covered = cells, room, [None] * len(cells), set()
        self.open = [split for split in SPLITS if any(room[split].values())]
        self.holders = collections.defaultdict(list)  # {name: units that hold it}
        for unit in range(len(cells)):
            for name in self._names(unit):
                self.holders[name].append(unit)

    def _names(self, unit):
        """The cells of a unit, and its domains and labels as (0, domain) and (1, label)."""
        return {*self.cells[unit], *((kind, cell[kind]) for cell in self.cells[unit] for kind in (0, 1))}

    def _excess(self, unit, split):
        """How many rows of the unit the split has no room for."""
        return sum(max(0, n - self.room[split][cell]) for cell, n in self.cells[unit].items())

    def _place(self, unit, split):
        self.split_of[unit] = split
        self.covered |= {(split, name) for name in self._names(unit)}
        for cell, n in self.cells[unit].items():
            self.room[split][cell] -= n

    def cover(self, split, name):
        """Gives the split a unit that holds the name, the one that fits best,
        if it has none and there is one.
        """
        free = [unit for unit in self.holders[name] if self.split_of[unit] is None]
        if free and (split, name) not in self.covered:
            self._place(
                min(free, key=lambda unit: (self._excess(unit, split), sum(self.cells[unit].values()))), split
            )

    def fill(self, stream):
        """Places the other units: at random where there is room, the more the likelier, else where the least
        is too much.
        """
        for unit in range(len(self.cells)):
            if self.split_of[unit] is None:
                room = [
                    0
                    if self._excess(unit, split)
                    else sum(self.room[split][cell] for cell in self.cells[unit])
                    for split in SPLITS
                ]
                if any(room):
                    self._place(
                        unit,
                        SPLITS[np.searchsorted(np.cumsum(room), stream.integers(sum(room)), side="right")],
                    )
                else:
                    self._place(unit, min(self.open, key=lambda split: self._excess(unit, split)))
