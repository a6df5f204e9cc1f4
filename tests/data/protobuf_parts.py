"""Parts as protobuf itself writes them, record by record: the reference for what the suite writes, and the
maker of faulty parts.
"""

import hashlib

from data.store.ofrecord import encode_frame, part_name


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
