"""Makes the golden values of this folder with PyTorch and transformers.

Run `python tests/golden/make_golden.py` where both are installed. With `--parity FOLDER [--model FOLDER]` it
makes a model folder with its outputs on a random batch, outputs.npz, for a test on the fly.

bert.npz: a random BERT of 2 layers with a padded batch, its outputs, a loss of these, and its gradients.
adamw.npz: 20 steps of AdamW with clipped gradients, warm-up and linear decay.
"""

import argparse
import pathlib

import numpy as np
import torch
from transformers import BertConfig, BertModel

FOLDER = pathlib.Path(__file__).resolve().parent
CONFIG = {
    "vocab_size": 30,
    "hidden_size": 12,
    "num_hidden_layers": 2,
    "num_attention_heads": 3,
    "intermediate_size": 24,
    "max_position_embeddings": 12,
    "type_vocab_size": 2,
}
LENGTHS, T = (9, 4, 7), 9


def random_bert(seed=0, std=0.3, **config):
    """transformers' BertModel in eval mode, with random parameters.

    Every parameter, gains and biases too, has a normal distribution of `std`.
    """
    torch.manual_seed(seed)
    model = BertModel(BertConfig(**config, attn_implementation="eager")).eval()
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            parameter.normal_(1.0 if name.endswith("LayerNorm.weight") else 0.0, std)
    return model


def random_batch(stream, lengths, T, vocab_size):
    """Arrays input_ids, input_mask, segment_ids [B, T] of examples with `lengths` real tokens."""
    mask = np.arange(T) < np.array(lengths)[:, None]
    ids = stream.integers(5, vocab_size, mask.shape) * mask
    segments = (np.arange(T) >= np.array(lengths)[:, None] // 2) & mask
    return {"input_ids": ids, "input_mask": mask.astype(int), "segment_ids": segments.astype(int)}


def outputs(model, batch):
    """{name: tensor}: hidden.0 to hidden.L, scores.1 to scores.L and pooled.

    Scores are Q K^T / sqrt(D), before mask and softmax.
    """
    scores, hooks = {}, []
    for number, layer in enumerate(model.encoder.layer, 1):
        attention = layer.attention.self

        def keep(module, inputs, _, number=number):
            x = inputs[0]
            q, k = (
                part(x).view(*x.shape[:2], model.config.num_attention_heads, -1).transpose(1, 2)
                for part in (module.query, module.key)
            )
            scores[f"scores.{number}"] = q @ k.transpose(2, 3) / q.shape[-1] ** 0.5

        hooks.append(attention.register_forward_hook(keep))
    ids, mask, segments = (torch.tensor(batch[name]) for name in ("input_ids", "input_mask", "segment_ids"))
    answer = model(ids, mask, segments, output_hidden_states=True)
    for hook in hooks:
        hook.remove()
    return {
        **{f"hidden.{layer}": hidden for layer, hidden in enumerate(answer.hidden_states)},
        **scores,
        "pooled": answer.pooler_output,
    }


def make_bert():
    model, stream = random_bert(**CONFIG), np.random.default_rng(1)
    batch = random_batch(stream, LENGTHS, T, CONFIG["vocab_size"])
    answer = outputs(model, batch)
    real = torch.tensor(batch["input_mask"], dtype=torch.float32)
    weights = {
        "pooled": torch.ones(()),
        "hidden.1": real[:, :, None],
        "hidden.2": real[:, :, None],
        "scores.1": real[:, None, :, None] * real[:, None, None, :],
    }
    weights = {
        name: mask * torch.tensor(stream.standard_normal(answer[name].shape), dtype=torch.float32)
        for name, mask in weights.items()
    }
    sum((answer[name] * weight).sum() for name, weight in weights.items()).backward()
    save(
        FOLDER / "bert",
        {
            **batch,
            **{f"output.{name}": value for name, value in answer.items()},
            **{f"loss.{name}": value for name, value in weights.items()},
            **{f"parameter.{name}": parameter for name, parameter in model.named_parameters()},
            **{f"gradient.{name}": parameter.grad for name, parameter in model.named_parameters()},
        },
    )


def make_parity(folder, source):
    """Saves a model to `folder`, with outputs.npz: a padded batch and its outputs.

    The model is that in `source`, or a random one of 12 layers.
    """
    if source:
        model = BertModel.from_pretrained(source, attn_implementation="eager").eval()
    else:
        model = random_bert(
            std=0.05,
            vocab_size=500,
            hidden_size=256,
            num_hidden_layers=12,
            num_attention_heads=8,
            intermediate_size=1024,
        )
    batch = random_batch(np.random.default_rng(3), (48, 5, 31, 2), 48, model.config.vocab_size)
    with torch.no_grad():
        answer = outputs(model, batch)
    model.save_pretrained(folder)
    save(
        pathlib.Path(folder) / "outputs",
        {**batch, **{f"output.{name}": value for name, value in answer.items()}},
    )


def make_adamw(steps=20, warmup=5, peak=1e-2, decay=0.1):
    stream = np.random.default_rng(2)
    shapes = {"dense.weight": (5, 4), "dense.bias": (5,), "LayerNorm.weight": (4,), "LayerNorm.bias": (4,)}
    start = {name: stream.standard_normal(shape).astype(np.float32) for name, shape in shapes.items()}
    scales = 10 ** stream.uniform(
        -2, 0.3, steps
    )  # gradients of norms from 0.05 to 10, so that some are clipped
    gradients = {
        name: np.float32([scale * stream.standard_normal(shape) for scale in scales])
        for name, shape in shapes.items()
    }
    rates = [peak * min((step + 1) / warmup, (steps - step) / (steps - warmup)) for step in range(steps)]
    parameters = {name: torch.nn.Parameter(torch.tensor(value)) for name, value in start.items()}
    groups = [
        {"params": [parameters["dense.weight"]], "weight_decay": decay},
        {"params": [parameters[name] for name in shapes if name != "dense.weight"], "weight_decay": 0.0},
    ]
    optimizer = torch.optim.AdamW(groups, lr=peak)
    norms, after = [], {name: [] for name in shapes}
    for step in range(steps):
        for name, parameter in parameters.items():
            parameter.grad = torch.tensor(gradients[name][step])
        norms.append(torch.nn.utils.clip_grad_norm_(parameters.values(), 1.0).item())
        for group in optimizer.param_groups:
            group["lr"] = rates[step]
        optimizer.step()
        for name, parameter in parameters.items():
            after[name].append(parameter.detach().numpy().copy())
    save(
        FOLDER / "adamw",
        {
            "rates": np.array(rates),
            "norms": np.array(norms),
            "warmup": np.array(warmup),
            "peak": np.array(peak),
            "decay": np.array(decay),
            **{f"parameter.{name}": value for name, value in start.items()},
            **{f"gradient.{name}": value for name, value in gradients.items()},
            **{f"after.{name}": np.array(value) for name, value in after.items()},
        },
    )


def save(path, arrays):
    """Writes <path>.npz, without pickle."""
    arrays = {
        key: value.detach().numpy() if isinstance(value, torch.Tensor) else value
        for key, value in arrays.items()
    }
    np.savez_compressed(
        f"{path}.npz",
        **{
            key: value.astype(np.int32) if value.dtype.kind == "i" else value for key, value in arrays.items()
        },
    )


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, allow_abbrev=False)
    parser.add_argument(
        "--parity", help="write a model folder with its outputs here, instead of the golden values"
    )
    parser.add_argument("--model", help="the model of --parity; a random one of 12 layers if not given")
    flags = parser.parse_args()
    if flags.parity:
        make_parity(flags.parity, flags.model)
    else:
        make_bert()
        make_adamw()
