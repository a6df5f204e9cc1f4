"""Parts as protobuf itself writes them, record by record: the reference for what the suite writes, and the
maker of faulty parts.
"""

import hashlib

from data.store.ofrecord import decode_frames, encode_frame, open_part, part_name, read_whole


def write_parts(folder, prefix, records, schema, part_size=4096):
    """Writes a list of records, {key: array or bytes}, and returns the manifest's list of parts."""
    parts, records = [], list(records)
    for start in range(0, len(records), part_size):
        chosen = records[start : start + part_size]
        name, data = part_name(prefix, len(parts)), b"".join(encode_frame(each, schema) for each in chosen)
        (folder / name).write_bytes(data)
        digest = hashlib.sha256(data).hexdigest()
        parts.append({"file": name, "count": len(chosen), "bytes": len(data), "sha256": digest})
    return parts


def read_part(path, schema, remedy, part=None):
    """Yields the records of a part one by one; part: what the manifest says of it, if there is one."""
    with open_part(path, remedy, part) as file:
        data = read_whole(file, part, remedy)
    yield from decode_frames(path, data, schema, remedy, part)
