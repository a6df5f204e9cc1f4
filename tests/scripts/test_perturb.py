"""scripts.reproduce.perturb: wrong labels and thinned domains.

They are in the training split alone, and a function of the seed.
"""

import collections

import pytest

from data.tasks import BUILT_IN, Example, load_task, read_examples, split_path
from scripts.reproduce.perturb import Perturbation, parse_kept, perturb, write_perturbed
from util import UserError

TASK = BUILT_IN["mnli"]  # three labels, five domains
EXAMPLES = [Example(f"a {i}", f"b {i}", i % 5, i // 5 % 3, i + 2) for i in range(300)]  # 20 in each cell


def test_the_share_of_wrong_labels_holds_in_each_cell_and_texts_stay():
    noisy = perturb(TASK, EXAMPLES, Perturbation(0.2), 1)
    assert [each.text_a for each in noisy] == [each.text_a for each in EXAMPLES]
    cells = collections.Counter((a.domain, a.label) for a, b in zip(EXAMPLES, noisy) if a.label != b.label)
    assert set(cells.values()) == {4} and len(cells) == 15
    moves = {(a.label, b.label) for a, b in zip(EXAMPLES, noisy) if a.label != b.label}
    assert len(moves) == 6  # every other label occurs


def test_a_thinned_domain_keeps_its_share_of_each_class_and_the_others_stay():
    left = perturb(TASK, EXAMPLES, Perturbation(kept={"travel": 0.1}), 1)
    counts = collections.Counter((each.domain, each.label) for each in left)
    assert all(
        n == (2 if domain == TASK.domains.index("travel") else 20) for (domain, _), n in counts.items()
    )
    few = perturb(TASK, EXAMPLES, Perturbation(kept={"travel": 0.001}), 1)
    assert collections.Counter((each.domain, each.label) for each in few)[4, 0] == 1


def test_it_is_a_function_of_the_seed():
    how = Perturbation(0.4, {"slate": 0.5})
    assert (
        perturb(TASK, EXAMPLES, how, 1) == perturb(TASK, EXAMPLES, how, 1) != perturb(TASK, EXAMPLES, how, 2)
    )
    assert not Perturbation() and how


def test_dev_and_test_keep_their_bytes(tmp_path, tiny_data):
    task = load_task("senti", tiny_data)
    write_perturbed(task, tiny_data, tmp_path / "noisy", Perturbation(0.25), 1)
    for split in ("dev", "test"):
        assert split_path(tmp_path / "noisy", split).read_bytes() == split_path(tiny_data, split).read_bytes()
    pairs = zip(
        *(read_examples(task, split_path(folder, "train")) for folder in (tiny_data, tmp_path / "noisy"))
    )
    assert sum(a.label != b.label for a, b in pairs) == 8


@pytest.mark.parametrize("text", ["garden=0.1", "books", "books=0", "books=1.5", "books=few"])
def test_a_bad_share_is_a_sentence(text):
    with pytest.raises(UserError, match="--thin_domains: found .* expected DOMAIN=SHARE"):
        parse_kept(text, BUILT_IN["senti"])


def test_two_shares_of_a_domain_are_refused():
    with pytest.raises(UserError, match="--thin_domains: found two shares of books"):
        parse_kept("books=0.1,dvd=1,books=0.5", BUILT_IN["senti"])


def test_shares_are_read():
    assert parse_kept("kitchen=0.1,dvd=1", BUILT_IN["senti"]) == {"kitchen": 0.1, "dvd": 1.0}
