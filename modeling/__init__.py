"""The models, what trains them, and what becomes of them.

bert/         the architecture, and the encoder in OneFlow's operators
cpu/          the same encoder for CPUs, in numpy
meta_kd/      what is Meta-KD's own: heads, prototype scores, losses
training/     the loop of stages 2 and 4, and what opens and closes a run
snapshots/    model folders and snapshots: read, checked, saved
distributed/  several GPUs and several machines
reports/      report.html, model card, TensorBoard

inference.py is the one pass of a model over records, metrics.py what its answers are worth. predict.py, with
predict_rows.py and predict_output.py, answers raw texts. convert.py, export.py (with export_gate.py) and
speed.py are commands.
"""
