"""A script that reads a GGUF file with the package gguf alone and reports what is in it. It is never imported.

It runs in a Python process of its own, in which fxprune cannot be imported. Its argument is the path of the file. The
last line of its output is a JSON object: ``metadata``, key -> value, and ``tensors``, name -> ``[shape, type, sha256 of
the bytes]``, with shapes in torch's order.
"""

import hashlib
import json
import sys

sys.modules["fxprune"] = None  # type: ignore[assignment]  # importing it is an error from here on

from gguf import GGUFReader  # noqa: E402

reader = GGUFReader(sys.argv[1])
tensors = {
    tensor.name: (
        [int(extent) for extent in reversed(tensor.shape)],
        tensor.tensor_type.name,
        hashlib.sha256(tensor.data.tobytes()).hexdigest(),
    )
    for tensor in reader.tensors
}
metadata = {key: field.contents() for key, field in reader.fields.items() if not key.startswith("GGUF.")}
print(json.dumps({"metadata": metadata, "tensors": tensors}))
