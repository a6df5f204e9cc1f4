"""Several teachers as one: the mean of what each knows of an example, by the interface of `Knowledge` that
stage 4 uses.

The answers are averaged as probabilities, softened by the temperature of the loss. Attention, hidden states,
representation and domain feature are averaged where the teachers have the same width, layers and heads; where
they do not, the answers are all there is to learn from.

E teachers, B examples, M classes.
"""

import numpy as np

from data.store.knowledge import Knowledge, knowledge_folder
from data.store.knowledge_format import MAPS, VECTORS
from modeling.meta_kd.losses import log_mean_softmax
from modeling.meta_kd.terms import PREDICTION, names_of_phase
from modeling.snapshots.best import find_snapshot
from modeling.snapshots.checks import teacher_meta
from modeling.snapshots.folder import read_snapshot_facts
from util import UserError

AVERAGED = tuple(name for name in (*VECTORS, *MAPS) if name != "logits")  # of an example, beside those
STRUCTURE = {"width": "width", "layers": "layers stored", "attention_heads": "heads"}  # of a manifest


class Ensemble:
    """The knowledge of E teachers as that of one.

    Args:
        members: a Knowledge of each teacher.
        weights: positive numbers, one for each; None: all count the same.
        temperature: of the soft cross-entropy, at which the answers are averaged for it.
    Attributes: `manifest`, of what can be averaged, with the hash of each teacher in `teacher_sha256`;
    `difference`: in what the teachers differ, "" where in nothing that counts.
    """

    def __init__(self, members: list[Knowledge], weights=None, temperature: float = 1.0):
        self.members, self.temperature = members, temperature
        self.weights = weight_shares([1.0] * len(members) if weights is None else weights)
        manifests = [member.manifest for member in members]
        self.difference = describe_difference(manifests)
        self.manifest = {
            "teacher_sha256": [manifest["teacher_sha256"] for manifest in manifests],
            "width": manifests[0]["width"],
            "layers": [] if self.difference else manifests[0]["layers"],
            "attention_heads": "mean" if self.difference else manifests[0]["attention_heads"],
            "hidden_states": not self.difference and all(each["hidden_states"] for each in manifests),
            "domain_feature": not self.difference and all(each["domain_feature"] for each in manifests),
            "vectors": [manifest["vectors"] for manifest in manifests],
            "unlabelled_sha256": manifests[0].get("unlabelled_sha256"),
        }

    @property
    def summary(self) -> str:
        """For the log: whose knowledge, with which weights, and whether the answers are all of it."""
        shares = ", ".join(
            f"{member.folder} x {weight:.3g}" for member, weight in zip(self.members, self.weights)
        )
        alone = f" (their answers alone, since they differ in {self.difference})" if self.difference else ""
        return f"knowledge of {len(self.members)} teachers: {shares}{alone}"

    def require(self, **facts) -> None:
        """Raises a UserError where the manifest of one of them says otherwise."""
        for member in self.members:
            member.require(**facts)

    def rows(self, idxs) -> None:
        """Raises a UserError where one of the teachers has not answered some of these examples."""
        for member in self.members:
            try:
                member.rows(idxs)
            except UserError as error:
                raise UserError(
                    f"{str(error).removesuffix('.')}; each of several teachers has to answer every text: "
                    "for one that was trained on a single domain run stage 3 without --domain."
                ) from None

    def read(self, idxs) -> list[dict]:
        """The mean knowledge of examples, a list of B dicts of float32 arrays, as of `Knowledge.read`.

        `logits`: the softmax of these is the mean of the teachers' probabilities. `softened`: the same at the
        temperature, softmax(softened / T) = sum of w * softmax(logits / T).
        """
        knows = [member.read(idxs) for member in self.members]
        logits = np.stack([[item["logits"] for item in items] for items in knows])  # [E, B, M]
        mean = log_mean_softmax(logits, self.weights)
        softened = log_mean_softmax(logits, self.weights, self.temperature)
        return [
            {"idxs": int(number), "logits": mean[i], "softened": softened[i], **self._mean(each)}
            for i, (number, each) in enumerate(zip(idxs, zip(*knows)))
        ]

    def _mean(self, items) -> dict:
        """{name: mean of the arrays} of what E teachers know of one example, beside its logits."""
        if self.difference:  # no term takes these
            return {name: items[0][name] for name in ("representation", "domain_feature")}
        names = [name for name in AVERAGED if all(name in item for item in items)]
        return {
            name: sum(
                np.float32(weight) * item[name].astype(np.float32)
                for weight, item in zip(self.weights, items)
            )
            for name in names
        }

    def logits(self, idxs):
        """Logits whose softmax is the mean of the teachers' probabilities, float32 [B, M]."""
        return log_mean_softmax(np.stack([member.logits(idxs) for member in self.members]), self.weights)

    def prefetch(self, idxs) -> None:
        """Has the system read the knowledge of examples from the disk meanwhile; it does not wait."""
        for member in self.members:
            member.prefetch(idxs)


def weight_shares(weights):
    """w / sum(w) of positive numbers, float64 [E]; they are made small first, lest their sum overflows.

    Raises:
        UserError: one is so much smaller than the largest that it would not count.
    """
    _, exponent = np.frexp(max(weights))
    found = np.ldexp(weights, -exponent)  # times a power of two, which leaves each quotient as it is
    found /= found.sum()
    if not found.all():
        raise UserError(
            f"--teacher_weights: found {min(weights):g} beside {max(weights):g}, expected weights that all "
            "count: leave that teacher out, or raise its weight."
        )
    return found


def describe_difference(manifests: list[dict]) -> str:
    """In which parts of STRUCTURE the manifests differ, with their values; "" where they agree."""
    parts = []
    for key, word in STRUCTURE.items():
        values = [manifest[key] for manifest in manifests]
        if key == "attention_heads" and not any(manifest["layers"] for manifest in manifests):
            continue  # no heads are stored
        if any(value != values[0] for value in values):
            parts.append(f"{word} ({' / '.join(map(str, values))})")
    return ", ".join(parts)


# --------------------------------------------------------------------------------------- opening


def open_teachers(models, knowledge_dirs, weights, temperature, task, records, ofrecord_dir):
    """The Knowledge of a teacher, or the Ensemble of several, made from these records.

    Args:
        models: as --teacher_model names them; knowledge_dirs: as --knowledge_dir does, or None.
        weights: as --teacher_weights gives them, or None; temperature: of the loss.
        records: of the training split.
    Raises:
        UserError: no teacher of this task, two that are one, or other numbers of folders or weights.
    """
    for flag, values in (("--knowledge_dir", knowledge_dirs), ("--teacher_weights", weights)):
        if values is not None and len(values) != len(models):
            raise UserError(
                f"{flag}: found {len(values)} for the {len(models)} of --teacher_model, "
                "expected one for each: give as many, in the same order."
            )
    members, seen = [], {}
    for model, folder in zip(models, knowledge_dirs or [None] * len(models)):
        path = find_snapshot(model)
        meta, teacher = read_snapshot_facts(path, "--teacher_model")
        teacher_meta(meta, task, path)
        if teacher in seen:
            raise UserError(
                f"--teacher_model: found the same weights in {seen[teacher]} and {path}, expected different "
                "teachers: leave one out, or give it more of --teacher_weights."
            )
        seen[teacher] = path
        try:
            members.append(Knowledge(knowledge_folder(ofrecord_dir, teacher, folder)))
            members[-1].require(teacher_sha256=teacher, content_sha256=records.content_sha256)
        except UserError as error:  # the folder's name, a hash, does not say whose it is
            raise UserError(f"{str(error).removesuffix('.')}; this teacher is {path}.") from None
    return members[0] if len(members) == 1 else Ensemble(members, weights, temperature)


def terms_in_reach(terms: dict, knowledge, intermediate_epochs: int = 0) -> dict:
    """The terms that can be learned from this knowledge: the answers alone where its teachers differ.

    Raises:
        UserError: none is left, or none for the first of two phases.
    """
    if not getattr(knowledge, "difference", ""):
        return terms
    if intermediate_epochs:
        raise UserError(
            f"--intermediate_epochs {intermediate_epochs}: these teachers differ in {knowledge.difference}, "
            "so that there are only answers to learn from, and nothing for the first phase: set it to 0, or "
            "name teachers alike."
        )
    kept = {name: terms[name] for name in names_of_phase(PREDICTION, terms)}
    if not kept:
        raise UserError(
            f"--teacher_model: these teachers differ in {knowledge.difference}, "
            "so that there are only answers to learn from, and --soft_label_weight and --hard_label_weight "
            "are 0: raise one, or name teachers alike."
        )
    return kept
