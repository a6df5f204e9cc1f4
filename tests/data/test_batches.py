"""Epochs and selections: every example once, a function of (seed, epoch), little padding, and which examples
the flags choose.
"""

import argparse

import numpy as np
import pytest

from data.batches import corrupted_domains, domain_mix, epoch_batches, make_batch
from data.selection import chosen_blocks, dev_examples, select, training_examples
from data.tasks import BUILT_IN
from util import UserError

TASK = BUILT_IN["senti"]
LENGTHS = np.random.default_rng(0).integers(5, 129, 4000)


def flat(batches):
    return np.concatenate(batches)


# --------------------------------------------------------------------------------------- epochs


@pytest.mark.parametrize("N, B", [(1, 4), (7, 7), (60, 8), (4000, 24), (1201, 24)])
def test_every_example_once_an_epoch(N, B):
    """ceil(N / B) batches of B examples, but for one with what is left; together they are 0..N-1."""
    batches = epoch_batches(LENGTHS[:N], B, 1, 0)
    assert np.array_equal(np.sort(flat(batches)), np.arange(N))
    assert len(batches) == -(-N // B)
    assert sorted(map(len, batches)) == sorted([N % B or B] + [B] * (len(batches) - 1))


def test_an_epoch_is_a_function_of_seed_and_number():
    """Asked for again, after other epochs or first, it is the same; another epoch or seed is not."""
    first = flat(epoch_batches(LENGTHS, 24, 1, 3))
    epoch_batches(LENGTHS, 24, 1, 0)
    np.random.seed(5)
    assert np.array_equal(flat(epoch_batches(LENGTHS, 24, 1, 3)), first)
    for seed, epoch in ((1, 0), (1, 4), (2, 3), (3, 1)):
        assert (flat(epoch_batches(LENGTHS, 24, seed, epoch)) == first).mean() < 0.02


def test_epochs_put_other_examples_together():
    """Two examples that share a batch in one epoch share one in the next about as rarely as chance and like
    length make it.
    """
    partners = []
    for epoch in (0, 1):
        batch_of = np.empty(4000, int)
        for number, rows in enumerate(epoch_batches(LENGTHS, 24, 1, epoch)):
            batch_of[rows] = number
        partners.append(batch_of[:, None] == batch_of)
    again = (partners[0] & partners[1]).sum() - 4000
    assert again / (partners[0].sum() - 4000) < 0.25


def test_short_and_long_examples_come_at_any_time():
    """No quarter of an epoch has longer examples than another, beyond what batches of one length each vary by
    chance.
    """
    quarters = []
    for epoch in range(20):
        means = [LENGTHS[rows].mean() for rows in epoch_batches(LENGTHS, 24, 1, epoch)]
        quarters.append([np.mean(part) for part in np.array_split(means, 4)])
    quarters = np.array(
        quarters
    )  # [20, 4]; a quarter's mean of 42 batches varies by about 36 / sqrt(42) = 5.5
    error = LENGTHS.std() / np.sqrt(42 * 20)
    assert (np.abs(quarters.mean(axis=0) - LENGTHS.mean()) < 4 * error).all()
    assert quarters.std(axis=0).min() > 1  # and the order of batches is shuffled, not made even


def test_little_of_a_batch_is_padding():
    """With lengths spread evenly from 5 to 128, batches of like length compute less than 4% of padding; at
    random it is 45%.
    """

    def padding(batches):
        computed = sum(len(rows) * LENGTHS[rows].max() for rows in batches)
        return 1 - LENGTHS.sum() / computed

    assert padding(epoch_batches(LENGTHS, 24, 1, 0)) < 0.04
    assert padding(np.array_split(np.random.default_rng(1).permutation(4000), 167)) > 0.4


def test_a_batch_is_cut_to_its_longest_example():
    """make_batch takes the rows asked for, in that order, and as many columns as the longest of them has
    tokens.
    """
    T, n = 12, np.array([3, 7, 5, 12])
    mask = (np.arange(T) < n[:, None]).astype(np.int32)
    arrays = {"input_ids": mask * (np.arange(4)[:, None] + 10), "input_mask": mask, "segment_ids": mask * 0}
    arrays.update(
        {name: np.arange(4, dtype=np.int32) for name in ("domain", "label", "idxs")},
        weights=np.arange(4, dtype=np.float32),
    )
    batch = make_batch(arrays, np.array([2, 0, 1]))
    assert batch.input_ids.shape == (3, 7) and batch.input_ids[:, 0].tolist() == [12, 10, 11]
    assert batch.input_mask.sum(axis=1).tolist() == [5, 3, 7] and batch.idxs.tolist() == [2, 0, 1]


# --------------------------------------------------------------------------------------- corrupted labels


def test_corrupted_domains_are_a_permutation_of_the_epoch():
    """Each epoch has as many labels of each domain as there are, in another order each time; about 1/K stay
    where they were.
    """
    domains = np.repeat(np.arange(4), 1000)
    epochs = [corrupted_domains(domains, 1, epoch) for epoch in range(3)]
    for labels in epochs:
        assert np.bincount(labels).tolist() == [1000] * 4 and 0.2 < (labels == domains).mean() < 0.3
    assert 0.2 < (epochs[0] == epochs[1]).mean() < 0.3
    assert np.array_equal(epochs[2], corrupted_domains(domains, 1, 2)) and not np.array_equal(
        epochs[2], corrupted_domains(domains, 2, 2)
    )


def test_neither_length_nor_batch_tells_the_corrupted_label():
    """Domains that differ in length make batches of few domains; the corrupted labels within them are mixed
    all the same.
    """
    domains = np.digitize(LENGTHS, np.quantile(LENGTHS, (0.25, 0.5, 0.75)))  # the length decides the domain
    labels = corrupted_domains(domains, 1, 0)
    batches = epoch_batches(LENGTHS, 24, 1, 0)
    assert np.mean([len(np.unique(domains[rows])) for rows in batches]) < 1.5
    largest = [np.bincount(labels[rows]).max() / len(rows) for rows in batches]
    assert np.mean(largest) < 0.45 and max(largest) < 0.75  # 24 draws out of 4 kinds: 0.38 on average


def test_an_unseen_domain_gets_the_mean_of_those_seen():
    """One-hot rows for domains of training, equal shares of those for another; every row sums to 1."""
    mix = domain_mix(np.array([0, 1, 2, 3]), 4, (0, 2, 3))
    third = np.float32(1) / np.float32(3)
    np.testing.assert_array_equal(
        mix, np.array([[1, 0, 0, 0], [third, 0, third, third], [0, 0, 1, 0], [0, 0, 0, 1]], np.float32)
    )


# --------------------------------------------------------------------------------------- selection

DOMAIN, LABEL = np.arange(400) % 4, np.arange(400) // 4 % 2


def flags(**changed):
    return argparse.Namespace(
        **{
            "train_example_num": None,
            "domain": None,
            "exclude_domain": None,
            "data_portion": 1.0,
            "seed": 1,
            "eval_example_num": None,
            **changed,
        }
    )


def chosen(**changed):
    return select(DOMAIN, LABEL, TASK, flags(**changed))


def test_the_limit_comes_first_and_then_the_filters():
    """--train_example_num means the first N of the file, --domain then chooses of those: 25 of 100, not the
    first 100 of a domain.
    """
    assert np.array_equal(chosen(), np.arange(400)) and np.array_equal(
        chosen(train_example_num=100), np.arange(100)
    )
    assert np.array_equal(chosen(train_example_num=100, domain="dvd"), np.arange(1, 100, 4))
    rows = chosen(train_example_num=100, exclude_domain="dvd")
    assert len(rows) == 75 and 1 not in DOMAIN[rows] and rows.max() < 100


def test_a_portion_is_stratified_and_the_same_for_a_seed():
    """10% is 5 of each of the 8 cells; the same ones for a seed, others for another; a smaller portion is
    part of a larger one.
    """
    rows = chosen(data_portion=0.1)
    assert np.array_equal(np.bincount(DOMAIN[rows] * 2 + LABEL[rows]), [5] * 8) and (np.diff(rows) > 0).all()
    assert np.array_equal(rows, chosen(data_portion=0.1)) and not np.array_equal(
        rows, chosen(data_portion=0.1, seed=2)
    )
    assert set(chosen(data_portion=0.04)) < set(rows)
    assert set(chosen(data_portion=0.1, domain="dvd")) == {row for row in rows if DOMAIN[row] == 1}


def test_the_smallest_portion_has_one_example_of_each_cell():
    """A portion that rounds to nothing still leaves one example per domain and class; an empty cell stays
    empty.
    """
    rows = chosen(data_portion=1e-9)
    assert np.array_equal(np.bincount(DOMAIN[rows] * 2 + LABEL[rows]), [1] * 8)
    assert len(chosen(data_portion=1e-9, exclude_domain="books")) == 6


@pytest.mark.parametrize(
    "changed, words",
    [
        ({"train_example_num": 401}, "--train_example_num 401 is more than the 400"),
        ({"domain": "toys"}, "--domain toys"),
        ({"exclude_domain": "toys"}, "--exclude_domain toys"),
        ({"domain": "dvd", "exclude_domain": "dvd"}, "no training example is left"),
    ],
)
def test_selections_that_cannot_be_met_are_refused(changed, words):
    """More examples than there are, an unknown domain, nothing left: one sentence."""
    with pytest.raises(UserError, match=words):
        chosen(**changed)


class FakeRecords:
    """400 records in parts of 150 with nothing but domain and label."""

    domain, label, weights, lengths = DOMAIN, LABEL, LABEL * 0.0, LABEL + 3

    def __len__(self):
        return 400

    def part_rows(self):
        return [range(0, 150), range(150, 300), range(300, 400)]


def test_blocks_and_arrays_hold_the_chosen_examples_alone():
    """Streaming and stacking choose the same examples, those of `select`."""
    args = flags(train_example_num=390, exclude_domain="kitchen", data_portion=0.5)
    rows = select(DOMAIN, LABEL, TASK, args)
    streamed = np.concatenate([block["idxs"] for block in chosen_blocks(FakeRecords(), rows)])
    assert np.array_equal(streamed, rows) and np.array_equal(
        training_examples(FakeRecords(), TASK, args)["idxs"], rows
    )


def test_dev_keeps_its_first_examples_of_the_domains_of_training():
    """--eval_example_num limits dev first, --domain and --exclude_domain choose of those; --data_portion
    leaves dev alone.
    """
    assert np.array_equal(dev_examples(FakeRecords(), TASK, flags(data_portion=0.1))["idxs"], np.arange(400))
    assert np.array_equal(
        dev_examples(FakeRecords(), TASK, flags(eval_example_num=40, domain="kitchen"))["idxs"],
        np.arange(3, 40, 4),
    )
    with pytest.raises(UserError, match="--eval_example_num 401"):
        dev_examples(FakeRecords(), TASK, flags(eval_example_num=401))
    with pytest.raises(UserError, match="no dev example"):
        dev_examples(FakeRecords(), TASK, flags(eval_example_num=2, domain="kitchen"))
