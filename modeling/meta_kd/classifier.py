"""Teacher and student: a BERT encoder with the heads that Meta-KD puts on it (arXiv 2012.01266).

B examples, T tokens, H width of the encoder, M classes, K domains.
"""

from typing import NamedTuple

from data.engine import load_oneflow
from modeling.bert.dropout import Dropout, DropoutMasks
from modeling.bert.model import BertModel
from modeling.meta_kd.terms import MAPS, TERMS

flow = load_oneflow()
nn = flow.nn


class ClassifierOutput(NamedTuple):
    """What teacher and student say of a batch: class logits [B, M], and the EncoderOutput."""

    logits: "flow.Tensor"
    encoder: tuple


class DomainHead(nn.Module):
    """h_d(x) = tanh(W (f(x) + E_D(k)) + b).

    f(x) is the mean hidden state over the tokens of the text, E_D a learned domain embedding.

    With `domains_out`, domain logits = linear(dropout(h_d)), trained against corrupted domain labels.
    """

    def __init__(self, config, K, masks, domains_out):
        super().__init__()
        H = config.hidden_size
        self.embedding = nn.Embedding(K, H)
        self.dense = nn.Linear(H, H)
        if domains_out:
            self.dropout = Dropout(config.hidden_dropout_prob, masks.heads)
            self.classifier = nn.Linear(H, K)

    def forward(self, embedding, domain_mix):  # [B, H], [B, K] -> [B, H]
        return flow.tanh(self.dense(embedding + flow.matmul(domain_mix, self.embedding.weight)))

    def domain_logits(self, feature):  # [B, H] -> [B, K]
        return self.classifier(self.dropout(feature))


class ClassHeads(nn.Module):
    """A class head for each domain, of a multi-task model: an example is judged by the head of its domain.

    One of a domain that was not trained is judged by the mean of the heads that were, as `domain_mix` says.
    """

    def __init__(self, config, M, K):
        super().__init__()
        self.shape, self.dense = (-1, K, M), nn.Linear(config.hidden_size, K * M)

    def forward(self, pooled, domain_mix):  # [B, H], [B, K] -> [B, M]
        return (self.dense(pooled).reshape(*self.shape) * domain_mix.unsqueeze(-1)).sum(dim=1)


class DomainClassifier(nn.Module):
    """BERT with a class head on the pooled [CLS] output, or one for each domain; a domain head on request.

    Args:
        config: the encoder's BertConfig.
        M, K: number of classes and of domains.
        class_heads: "shared": one class head; "per_domain": ClassHeads.
        domain_head: None: no such head; "corrupted": the teacher's, with domain logits;
            "feature": the student's, without.
        maps: {name: (inputs, outputs)}, learned linear maps without bias
            from the student's width to the teacher's.
        make_encoder: takes (config, DropoutMasks) to the encoder, as `choose_encoder` gives it.
    """

    def __init__(
        self, config, M, K, domain_head=None, maps=None, class_heads="shared", make_encoder=BertModel
    ):
        super().__init__()
        self.masks = DropoutMasks()
        self.bert = make_encoder(config, self.masks)
        self.dropout = Dropout(config.hidden_dropout_prob, self.masks.heads)
        if class_heads == "per_domain":
            self.domain_classifiers = ClassHeads(config, M, K)
        else:
            self.classifier = nn.Linear(config.hidden_size, M)
        self.domain_head = domain_head and DomainHead(
            config, K, self.masks, domains_out=domain_head == "corrupted"
        )
        for name, (inputs, outputs) in (maps or {}).items():
            self.add_module(name, nn.Linear(inputs, outputs, bias=False))

    def forward(self, batch, scores_of=(), hidden_of=(), mean_over_heads=True, last_hidden=True):
        """ClassifierOutput of a TensorBatch.

        Args:
            scores_of: layers, from 1, whose attention scores are wanted, of each head or averaged over them.
            hidden_of: layers whose hidden states are wanted.
            last_hidden: whether the last hidden states are wanted, as by `domain_feature`;
                less work where not.
        """
        encoder = self.bert(
            batch.input_ids,
            batch.input_mask,
            batch.segment_ids,
            scores_of,
            hidden_of,
            mean_over_heads,
            last_hidden,
        )
        pooled = self.dropout(encoder.pooled)
        if hasattr(self, "domain_classifiers"):
            return ClassifierOutput(self.domain_classifiers(pooled, batch.domain_mix), encoder)
        return ClassifierOutput(self.classifier(pooled), encoder)

    def domain_feature(self, encoder, batch):
        """h_d of each example, [B, H], from the EncoderOutput."""
        return self.domain_head(text_embedding(encoder.last_hidden, batch.content_weights), batch.domain_mix)


def build_teacher(config, task, domain_head, class_heads="shared", make_encoder=BertModel):
    """A teacher for `task`: with a domain-corruption head or without, one class head or one per domain."""
    return DomainClassifier(
        config,
        len(task.labels),
        len(task.domains),
        "corrupted" if domain_head else None,
        class_heads=class_heads,
        make_encoder=make_encoder,
    )


def class_head_kind(folder):
    """Which class heads the weights of a ModelFolder are of: "shared" or "per_domain"."""
    return "per_domain" if any(name.startswith("domain_classifiers.") for name in folder.arrays) else "shared"


def build_student(config, task, teacher_width, terms, make_encoder=BertModel):
    """A student for `task`, with the domain feature and the maps that the distillation `terms` need.

    Args:
        terms: the names of the loss terms, of "representation", "transfer", "hidden" and others.
    """
    widths = (config.hidden_size, teacher_width)
    projected = [TERMS[name].map_name for name in terms if TERMS[name].projected]
    maps = {name: widths for name in projected} if len(set(widths)) > 1 else {}
    return DomainClassifier(
        config,
        len(task.labels),
        len(task.domains),
        "feature" if any(TERMS[name].domain_feature for name in terms) else None,
        maps,
        make_encoder=make_encoder,
    )


STUDENT_ONLY = ("domain_head.", *(f"{name}." for name in MAPS))  # what a student that serves does without


def text_embedding(hidden, content_weights):
    """f(x): the mean of the last hidden states over the text's tokens, without [CLS], [SEP] and padding.

    hidden [B, T, H]; content_weights [B, T], 1/n at the n tokens of the text, else 0 -> [B, H].
    """
    return flow.matmul(content_weights.unsqueeze(1), hidden).squeeze(1)


def evenly_spaced_layers(wanted, layers):
    """`wanted` layer numbers of 1..layers, evenly spaced, ending with the last: 3 of 6 -> (2, 4, 6)."""
    return tuple(-(-(i * layers) // wanted) for i in range(1, wanted + 1))


def match_layers(stored, student_layers):
    """Which student layer each stored teacher layer teaches: stored layer i of n, ceil(i * L_student / n).

    Where two fall on one student layer the later teacher layer stays.

    Returns:
        {student layer, from 1: teacher layer}.
    """
    return dict(zip(evenly_spaced_layers(len(stored), student_layers), stored))
