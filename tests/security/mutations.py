"""What a fuzzer makes of valid files: JSON with a node that is another one, headers and bytes that were changed."""

from __future__ import annotations

import copy
import json
from collections.abc import Iterator
from typing import Any

from hypothesis import strategies as st

DEEP: Any = []
for _ in range(300):
    DEEP = [DEEP]

WRONG: list[Any] = [
    None, True, False, 0, 1, -1, 2, 7, 2**31, 2**63, -(2**63), 10**30, 0.5, -0.0, 1e308, float("inf"), float("nan"),
    "", "x", "0", "\x1b[2J\x1b]0;x\x07", "a\nerror: b", "\ud800", "\u202e", "\0", "../../../etc/passwd", "/",
    "x" * 3000,
    [], [0], [None], [[]], ["x"], [-1, 2**40], {}, {"x": 1}, {"": {}}, DEEP, [1] * 500, "F32", "float8_e4m3fn", "BOOL",
    "LlamaForCausalLM", "gpt2", "mamba", "torch.nn.Linear", "model.safetensors", "auto",
]  # fmt: skip

INSERTED = [b"\xef\xbb\xbf", b"\0", b"[" * 2000, b"9" * 5000, b'"', b"\xff", b"{}"]

Path = tuple[str | int, ...]


def nodes(data: Any, path: Path = ()) -> Iterator[Path]:
    """The paths of all nodes in JSON data, that of the whole first."""
    yield path
    inner = data.items() if isinstance(data, dict) else enumerate(data) if isinstance(data, list) else ()
    for key, value in inner:
        yield from nodes(value, (*path, key))


def at(data: Any, path: Path) -> Any:
    for key in path:
        data = data[key]
    return data


wrong = st.one_of(
    st.sampled_from(WRONG),
    st.integers(),
    st.text(max_size=8),
    st.recursive(
        st.one_of(st.none(), st.booleans(), st.integers(-9, 99), st.text(max_size=3)),
        lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=3), inner, max_size=3),
        max_leaves=6,
    ),
)


@st.composite
def changed_json(draw: st.DrawFn, seed: Any) -> Any:
    """The data with one to three of its nodes replaced, removed, doubled, called otherwise or exchanged."""
    data = copy.deepcopy(seed)
    for _ in range(draw(st.sampled_from([1, 1, 1, 2, 3]))):
        paths = list(nodes(data))
        path = draw(st.sampled_from(paths))
        if not path:
            path = draw(st.sampled_from(paths[1:] or [()]))  # the whole is less often replaced
            if not path:
                return draw(wrong)
        owner, key = at(data, path[:-1]), path[-1]
        kind = draw(st.sampled_from(["replace", "replace", "replace", "remove", "double", "rename", "exchange"]))
        if kind == "replace":
            owner[key] = copy.deepcopy(draw(wrong))
        elif kind == "remove":
            del owner[key]
        elif kind == "double" and isinstance(owner, list):
            owner.append(copy.deepcopy(owner[key]))
        elif isinstance(owner, dict) and kind != "exchange":
            name = draw(st.one_of(st.sampled_from([str(p[-1]) for p in paths[1:]]), st.text(max_size=5)))
            owner[name] = copy.deepcopy(owner[key]) if kind == "double" else owner.pop(key)
        else:
            owner[key] = copy.deepcopy(at(data, draw(st.sampled_from(paths))))
    return data


@st.composite
def changed_bytes(draw: st.DrawFn, seed: bytes) -> bytes:
    """Some bytes are others, gone, or new."""
    data = bytearray(seed)
    for _ in range(draw(st.integers(1, 4))):
        place = draw(st.integers(0, max(0, len(data) - 1)))
        kind = draw(st.sampled_from(["flip", "cut", "insert", "remove"]))
        if kind == "flip" and data:
            data[place] ^= 1 << draw(st.integers(0, 7))
        elif kind == "cut":
            del data[place:]
        elif kind == "insert":
            data[place:place] = draw(st.sampled_from(INSERTED))
        else:
            del data[place : place + draw(st.integers(1, 8))]
    return bytes(data)


@st.composite
def json_files(draw: st.DrawFn, seed: bytes) -> bytes:
    """What may be in a JSON file: mostly JSON of another structure, sometimes other bytes."""
    if draw(st.integers(0, 4)) == 0:
        return draw(changed_bytes(seed))
    data = draw(changed_json(json.loads(seed)))
    return json.dumps(data, ensure_ascii=draw(st.booleans())).encode("utf-8", "surrogatepass")


@st.composite
def row_files(draw: st.DrawFn, seed: bytes) -> bytes:
    """The same for a file with one object in each line."""
    lines = seed.split(b"\n")
    number = draw(st.integers(0, len(lines) - 1))
    lines[number] = draw(json_files(lines[number]))
    return b"\n".join(lines)


@st.composite
def tensor_files(draw: st.DrawFn, seed: bytes) -> bytes:
    """What may be in a safetensors file: another header, another length of it, or other bytes."""
    length = int.from_bytes(seed[:8], "little")
    header = json.loads(seed[8 : 8 + length])
    texts = [name for name, text in header.get("__metadata__", {}).items() if text.startswith("{")]
    kind = draw(st.sampled_from(["header", "header", "header", "length", "bytes", *["text"] * 5 * len(texts)]))
    if kind == "length":
        told = draw(st.sampled_from([0, 1, length - 1, length + 1, 2**31, 2**63, 2**64 - 1]))
        return told.to_bytes(8, "little") + seed[8:]
    if kind == "bytes":
        return draw(changed_bytes(seed))
    if kind == "text":  # JSON in the metadata
        text = draw(json_files(header["__metadata__"][texts[0]].encode())).decode("utf-8", "replace")
        changed = {**header, "__metadata__": {**header["__metadata__"], texts[0]: text}}
    else:
        changed = draw(changed_json(header))
    data = json.dumps(changed).encode()
    return len(data).to_bytes(8, "little") + data + seed[8 + length :]
