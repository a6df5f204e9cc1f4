"""What a model must beat: TF-IDF of words and word pairs with logistic regression, one model for all domains.

    python3 -m scripts.reproduce.bag_of_words --task_name senti --data_dir data/SENTI

The strength of the regularisation is chosen on dev. Seconds on one core.
"""

import itertools

import numpy as np
from sklearn.feature_extraction.text import TfidfVectorizer
from sklearn.linear_model import LogisticRegression

from config import count, module_parser
from data.tasks import SPLITS, load_task, read_examples, split_path
from modeling.metrics import domain_accuracies
from util import entry

STRENGTHS = (0.25, 1, 4, 16, 64, 256)  # scikit-learn's C


def read_split(task, data_dir, split, limit=None):
    """Texts [N], domains [N], labels [N], of the first `limit` rows or of all.

    The two texts of a pair are joined.
    """
    examples = list(itertools.islice(read_examples(task, split_path(data_dir, split)), limit))
    texts = [f"{example.text_a} {example.text_b or ''}" for example in examples]
    return (
        texts,
        np.array([example.domain for example in examples]),
        np.array([example.label for example in examples]),
    )


def accuracies(task, right, domains):
    """Percent right per domain (nan where a split has none of it), the mean of these, and over all.

    Args:
        right: bool [N]; domains: [N].
    """
    found = domain_accuracies(right, domains, task.domains)
    per_domain = [100 * found.get(name, np.nan) for name in task.domains]
    return [*per_domain, np.nanmean(per_domain), 100 * right.mean()]


@entry
def main():
    parser = module_parser(__doc__, "scripts.reproduce.bag_of_words")
    parser.add_argument("--task_name", default="senti")
    parser.add_argument("--data_dir", default="data/SENTI")
    parser.add_argument(
        "--train_example_num", type=count, help="the first N training examples (default: all)"
    )
    args = parser.parse_args()

    task = load_task(args.task_name, args.data_dir)
    limits = (args.train_example_num, None, None)
    texts, domains, labels = zip(
        *(read_split(task, args.data_dir, split, limit) for split, limit in zip(SPLITS, limits))
    )
    vectorizer = TfidfVectorizer(ngram_range=(1, 2), min_df=2, sublinear_tf=True)
    features = [vectorizer.fit_transform(texts[0]), *map(vectorizer.transform, texts[1:])]

    models = [
        LogisticRegression(C=strength, max_iter=1000).fit(features[0], labels[0]) for strength in STRENGTHS
    ]
    best = max(models, key=lambda model: model.score(features[1], labels[1]))
    print(f"C = {best.C} of {', '.join(map(str, STRENGTHS))}, {features[0].shape[1]} features")
    print(f"{'accuracy':<9}" + "".join(f"{name:>13}" for name in (*task.domains, "mean", "all")))
    for k in (1, 2):
        row = accuracies(task, best.predict(features[k]) == labels[k], domains[k])
        print(f"{SPLITS[k]:<9}" + "".join(f"{value:>13.1f}" for value in row))


if __name__ == "__main__":
    main()
