"""Snapshots written, whole or not at all, in the layout of Hugging Face's BERT folders."""

import safetensors
from safetensors.numpy import save_file

from data.engine import release_memory
from data.store.files import atomic_file, atomic_folder, write_json
from modeling.snapshots.folder import CHECKED, FORMAT
from modeling.snapshots.tokenizer_file import save_tokenizer_files
from util import UserError, sha256


def save_snapshot(path, model, tokenizer, meta, left_out=(), optimizer=None, card=None):
    """Writes a snapshot folder, whole or not at all.

    Args:
        path: the folder; one of that name is replaced.
        model: a DomainClassifier.
        tokenizer: the FullTokenizer that the model was trained with.
        meta: the content of meta.json; "task", "labels" and "domains" are needed,
            and "seq_length" of one that serves.
        left_out: prefixes of weights that are not written, as a student's distillation heads.
        optimizer: {name: array}, its state, for snapshot_last.
        card: the text of README.md, for a best snapshot.
    """
    arrays = {
        name: parameter.numpy()
        for name, parameter in model.named_parameters()
        if not name.startswith(tuple(left_out))
    }
    release_memory()  # safetensors copies what it writes
    with atomic_folder(path) as folder:
        write_json(folder / "config.json", _describe_model(model, meta["labels"]))
        save_arrays(arrays, folder / "model.safetensors")
        positions = model.bert.config.max_position_embeddings
        save_tokenizer_files(folder, tokenizer, meta.get("seq_length", positions))
        write_json(folder / "meta.json", meta)
        if card is not None:
            with atomic_file(folder / "README.md", "w") as file:
                file.write(card)
        if optimizer is not None:
            save_arrays(optimizer, folder / "optimizer.safetensors")
        written = {file.name for file in folder.iterdir()}
        hashes = {name: sha256(folder / name) for name in sorted(CHECKED & written)}
        write_json(folder / "manifest.json", {"format": FORMAT, "sha256": hashes})
    release_memory()


def _describe_model(model, labels):
    """The content of config.json, as transformers reads it, which knows no head per domain."""
    kind = "BertForSequenceClassification" if hasattr(model, "classifier") else "BertModel"
    return {
        **model.bert.config.to_dict(),
        "architectures": [kind],
        "id2label": {str(number): name for number, name in enumerate(labels)},
        "label2id": {name: number for number, name in enumerate(labels)},
    }


def save_arrays(arrays, path):
    """Writes a safetensors file as transformers reads it, with the permissions of any other new file.

    The library's own permissions are the owner's alone.
    """
    path.touch()
    mode = path.stat().st_mode
    try:
        save_file(arrays, path, metadata={"format": "pt"})
    except safetensors.SafetensorError as error:  # a full disk, for one
        raise UserError(f"{path}: it cannot be written ({error}).") from None
    path.chmod(mode)
