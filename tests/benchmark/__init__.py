"""Speed and memory, measured.

    python3 -m tests.benchmark [--against torch --torch_python PATH --model FOLDER --reviews FOLDER]

__main__.py    the command: prepares, runs all measurements of a round one after the other, prints the tables
groups.py      what is measured, against what, and what is to be reached
bench.py       how a measurement is run: a user's command, or a process of ours.py, files.py or with_torch.py
processes.py   a command's seconds and the peak memory of its processes
scale.py       growth with the number of texts: all stages on up to a million of them
memory.py      a command of its own: peak memory of all stages over a million texts, a model like MiniLM
disk.py        a command of its own: knowledge read in the order of an epoch when none of it is in memory
sandbox.py     (a process) makes models, reviews and arrays to measure on
ours.py        (a process) a training step and inference of ours
files.py       (a process) records and knowledge written and read
with_torch.py  (a process) all of PyTorch's side
with_onnx.py   (a process) a student in ONNX Runtime
tables.py      medians, ratios, Markdown
"""

B, EVAL_B, T = (
    24,
    48,
    128,
)  # examples in a step of training, in a batch of inference; tokens of the longest text
STEPS = 3  # steps measured in a process, after one that is not
SEED = 42


def without_first(costs):
    """What the seconds of all steps but the first are multiplied by to be those of the whole epoch.

    Args:
        costs: of each step, tokens that a model computes: examples times the longest of them.
    """
    return sum(costs) / sum(costs[1:])
