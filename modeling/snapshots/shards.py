"""Weights in one file or in several that an index lists."""

import os

from util import UserError, read_json


def read_shards(path, name, load):
    """{tensor's name: value} of a folder's weights: the file `name`, or the shards that its index lists.

    Args:
        load: a function, path of a file -> {name: value}.
    Raises:
        UserError: an index that is none, a shard that is missing or holds other tensors than the index says.
    """
    if (path / name).is_file():
        return load(path / name)
    index = path / f"{name}.index.json"
    places, tensors = read_json(index, "the index of the weights").get("weight_map"), {}
    if (
        not isinstance(places, dict)
        or not places
        or not all(isinstance(file, str) for file in places.values())
    ):
        raise UserError(
            f"{index}: the weight_map is missing or not a map from tensors to files: "
            "take another copy of the model."
        )
    for file in sorted(set(places.values())):
        if file not in os.listdir(path) or not (path / file).is_file():
            raise UserError(
                f"{index}: it names the file {file!r:.80}, which is missing: take another copy of the model."
            )
        found = load(path / file)
        if found.keys() != {tensor for tensor, place in places.items() if place == file}:
            raise UserError(
                f"{path / file}: its tensors are not those that {index.name} says: "
                "take another copy of the model."
            )
        tensors.update(found)
    return tensors
