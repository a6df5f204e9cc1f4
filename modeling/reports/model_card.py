"""The README.md of a snapshot: a model card as Hugging Face's hub reads it."""

import json

from modeling.reports.markdown import escape, markdown_table
from modeling.snapshots.base_model import UNKNOWN

KINDS = {"teacher": "meta-teacher", "student": "student"}
PIPELINE = """
```python
from transformers import pipeline
classify = pipeline("text-classification", "FOLDER")  # this folder
classify({example}, truncation=True)  # cut after {seq_length} tokens{as_in_training}
```
"""
NO_PIPELINE = (
    "It has one class head for each domain, which transformers does not know: as a `BertModel` it opens "
    "there, without its heads. `meta_teacher_eval.py` and `meta_teacher.py --do_eval` use all of it."
)
LICENSE = (
    "The weights were trained from those of {name}, whose license ({license}) holds for them too, and so "
    "may that of the training data; this card grants nothing beyond them."
)


def model_card(meta, flags, examples, has_classifier):
    """The card as Markdown.

    Args:
        meta: the content of the snapshot's meta.json, "dev" included;
            flags: {name: value} that differ from the defaults.
        examples: the number of training examples.
        has_classifier: it has one class head for all domains, as transformers expects.
    """
    kind, base = KINDS[meta["kind"]], meta.get("base", UNKNOWN)
    sections = {
        "Results on dev": _dev_table(meta["dev"]),
        "Data": _data(meta, examples),
        "Intended use": _use(meta),
        "How to use it": _usage(meta) if has_classifier else NO_PIPELINE,
        "Limits": _limits(meta),
        "Training": _training(meta, flags),
        "License": LICENSE.format(
            name=escape(base["name"] or "another model"), license=escape(base["license"])
        ),
    }
    return (
        _front_matter(kind, meta, base, has_classifier)
        + f"\n# {kind[0].upper()}{kind[1:]} of the task {escape(meta['task'])}\n\n"
        f"A BERT that tells {_listed(meta['labels'])} apart in texts of the domains "
        f"{_listed(meta['domains'])}; Meta-KD on OneFlow.\n"
        + "".join(f"\n## {heading}\n\n{text.strip()}\n" for heading, text in sections.items())
    )


def _front_matter(kind, meta, base, has_classifier):
    """YAML as the hub reads it, each value written as JSON, which is YAML as well."""
    facts = {
        "library_name": "transformers",
        "license": base["license"],
        "base_model": base["name"],
        "language": base["language"],
        "pipeline_tag": "text-classification" if has_classifier else None,
        "tags": ["bert", "text-classification", "meta-kd", "knowledge-distillation", kind],
        "metrics": ["accuracy", "f1"],
        "model-index": [{"name": f"{meta['task']} {kind}", "results": _index(meta)}],
    }
    lines = [f"{name}: {json.dumps(value)}\n" for name, value in facts.items() if value is not None]
    return "---\n" + "".join(lines) + "---\n"


def _index(meta):
    """The results of a model-index: accuracy and macro-F1 on dev."""
    figures = (("accuracy", "accuracy", "accuracy"), ("f1", "macro-F1", "macro_f1"))
    metrics = [{"type": kind, "name": name, "value": meta["dev"][key]} for kind, name, key in figures]
    return [
        {
            "task": {"type": "text-classification", "name": "text classification"},
            "dataset": {"type": meta["task"], "name": meta["task"], "split": "dev"},
            "metrics": metrics,
        }
    ]


def _dev_table(dev):
    rows = {
        **dev["domains"],
        "average of the domains": dev["domain_average"],
        "all examples": dev["accuracy"],
    }
    return (
        table(("domain", "accuracy, percent"), [(name, f"{100 * value:.2f}") for name, value in rows.items()])
        + f"\nOver {dev['examples']} examples; macro-F1 {100 * dev['macro_f1']:.2f}. "
        "This snapshot was chosen on dev, so that dev flatters it; "
        "results on test, where they were made, stand in `results.json` of its run."
    )


def _data(meta, examples):
    seen = [meta["domains"][k] for k in meta["seen_domains"]]
    unlabelled = ", those without a label included" if meta.get("unlabelled_sha256") else ""
    return table(
        ("fact", "value"),
        [
            ("task", meta["task"]),
            ("columns of the text", ", ".join(meta["text"])),
            ("labels", ", ".join(meta["labels"])),
            ("domains", ", ".join(meta["domains"])),
            ("domains in training", ", ".join(seen)),
            (f"training examples{unlabelled}", examples),
            ("longest text in tokens", meta["seq_length"]),
            ("SHA-256 of the training records", meta["content_sha256"]),
        ],
    )


def _use(meta):
    if meta["kind"] == "teacher":
        return (
            "To teach a student (`meta_teacher_eval.py`, then `meta_distill.py`), and to classify texts like "
            "those it was trained on."
        )
    return "To classify texts like those it was trained on, where a larger model is too slow."


def _usage(meta):
    return PIPELINE.format(
        example='"a text"'
        if len(meta["text"]) == 1
        else '{"text": "first text", "text_pair": "second text"}',
        seq_length=meta["seq_length"],
        as_in_training="; training kept the end too" if _keeps_end(meta) else ", as in training",
    )


def _keeps_end(meta):
    return meta.get("truncate", "head") == "head_tail"


def _limits(meta):
    end = (
        ", of which three quarters are from its end; transformers and servers keep the beginning alone, "
        "and answer otherwise"
        if _keeps_end(meta)
        else ""
    )
    return (
        f"- It answers with one of {_listed(meta['labels'])} whatever the text is.\n"
        f"- A text is cut {'to' if end else 'after'} {meta['seq_length']} tokens{end}.\n"
        "- How it does in domains or languages other than those above was not measured, nor whether it "
        "treats groups of people alike.\n"
        "- The probabilities were not calibrated."
    )


def _training(meta, flags):
    lines = [f"Step {meta['step']} of the run."]
    teachers = meta.get("teacher_sha256")
    if isinstance(teachers, list):
        lines.append(f"SHA-256 of its teachers' weights, from whose mean it learned: {', '.join(teachers)}.")
    elif teachers:
        lines.append(f"SHA-256 of its teacher's weights: {teachers}.")
    if not flags:
        return "\n\n".join([*lines, "All flags had their defaults."])
    return "\n\n".join(
        [
            *lines,
            "Flags that differ from their defaults, paths left out:",
            table(("flag", "value"), [(f"--{name}", value) for name, value in flags.items()]),
        ]
    )


def _listed(names):
    return ", ".join(escape(name) for name in names)


def table(header, rows):
    """A table of Markdown that shows the values as they are."""
    return markdown_table([escape(name) for name in header], (map(escape, row) for row in rows))
