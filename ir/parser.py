"""The parser of the text form."""

from __future__ import annotations

import json
import re

from .errors import RequestError
from .graph import Arg, DType, Graph, Op, Parameter, Source, Value

_TOKEN = re.compile(
    r"""\s*(?:
      (?P<string>"(?:[^"\\]|\\.)*")
    | (?P<value>%[\w.]+(?:-[\w.]+)*)
    | (?P<number>-?(?:\d+\.\d*(?:e[+-]?\d+)?|\d+e[+-]?\d+|\d+|inf|nan)(?![\w.]))
    | (?P<word>[@\w][\w.@]*)
    | (?P<mark>->|[()\[\],:=_])
    | (?P<comment>\#.*)
    )""",
    re.VERBOSE,
)
_DTYPE = re.compile(r"^(?:f|bf|i|u|b|c)\d+\w*$")
_PLACE = re.compile(r"^(?P<file>\S+):(?P<line>\d+)$")


def parse_graph(text: str) -> Graph:
    """Read a graph from its text form. Lines that start with ``group`` or ``#`` are annotations and are skipped.

    Raises:
        RequestError: for a syntax error, with the line and a caret under it.
    """
    graph: Graph | None = None
    values: dict[str, Value] = {}
    for number, line in enumerate(text.splitlines(), 1):
        stripped = line.strip()
        if not stripped or stripped.startswith(("group ", "#")):
            continue
        cursor = _Cursor(line, number, values, graph.extents if graph else {})
        if graph is None:
            graph, outputs = _header(cursor)
        else:
            _statement(cursor, graph)
        cursor.finish()
    if graph is None:
        raise RequestError("the text has no graph", "start with: graph @name(%x: f32[2, 4]) -> %y")
    for name in outputs:
        if name not in values:
            raise RequestError(f"the output %{name} is not defined", "use a value that the graph defines")
        graph.outputs.append(values[name])
    return graph


class _Cursor:
    """The tokens of one line, and the values of earlier lines."""

    def __init__(self, line: str, number: int, values: dict[str, Value], extents: dict[str, int]) -> None:
        self.line, self.number, self.values, self.extents = line, number, values, extents
        self.tokens: list[tuple[str, str, int]] = []
        position = 0
        while position < len(line.rstrip()):
            match = _TOKEN.match(line, position)
            if match is None:
                self.tokens.append(("end", "", position))
                raise self.error("this is not part of the text form")
            kind = str(match.lastgroup)
            self.tokens.append((kind, match.group(kind), match.start(kind)))
            position = match.end()
        self.tokens.append(("end", "", len(line.rstrip())))
        self.at = 0

    def error(self, message: str) -> RequestError:
        at = min(getattr(self, "at", len(self.tokens) - 1), len(self.tokens) - 1)
        column = self.tokens[at][2]
        return RequestError(f"line {self.number}: {message}\n  {self.line}\n  {' ' * column}^")

    def peek(self, *texts: str) -> bool:
        return self.tokens[self.at][1] in texts

    def take(self, kind: str, what: str) -> str:
        if self.tokens[self.at][0] != kind:
            raise self.error(f"expected {what}")
        self.at += 1
        return self.tokens[self.at - 1][1]

    def expect(self, text: str) -> None:
        if not self.accept(text):
            raise self.error(f"expected {text!r}")

    def accept(self, text: str) -> bool:
        if self.tokens[self.at][1] != text:
            return False
        self.at += 1
        return True

    def finish(self) -> None:
        """Check for the end of the line or a comment."""
        if self.tokens[self.at][0] not in ("end", "comment"):
            raise self.error("expected the end of the line")

    def whole(self, what: str) -> int:
        text = self.take("number", what)
        if not text.isdigit():
            self.at -= 1
            raise self.error(f"{text} is not an integer")
        return int(text)

    def quoted(self) -> str:
        text = self.take("string", "a name in quotes")
        try:
            return str(json.loads(text))
        except json.JSONDecodeError:
            self.at -= 1
            raise self.error(f"{text} is not a JSON string") from None

    def known(self) -> Value:
        name = self.take("value", "a value")[1:]
        if name not in self.values:
            self.at -= 1
            raise self.error(f"%{name} is used before it is defined")
        return self.values[name]

    def define(self, name: str, dtype: DType, shape: tuple[int, ...]) -> Value:
        if name in self.values:
            self.at = next(i for i, token in enumerate(self.tokens) if token[1] == f"%{name}")
            raise self.error(f"%{name} is defined twice")
        self.values[name] = Value(name, dtype, shape)
        return self.values[name]

    def type(self) -> tuple[DType, tuple[int, ...]]:
        word = self.take("word", "a type such as f32[2, 4]")
        if not _DTYPE.match(word):
            self.at -= 1
            raise self.error(f"{word!r} is not a dtype")
        self.expect("[")
        shape: list[int] = []
        while not self.accept("]"):
            if self.tokens[self.at][0] == "number":
                shape.append(self.whole("an extent"))
            else:
                name = self.take("word", "an extent")
                if name not in self.extents:
                    self.at -= 1
                    raise self.error(f"the extent {name!r} is not in the header's where clause")
                shape.append(self.extents[name])
            self.accept(",")
        return DType(word), tuple(shape)

    def arg(self) -> Arg:
        kind, text, _ = self.tokens[self.at]
        if kind == "value":
            return self.known()
        if kind == "string":
            return self.quoted()
        self.at += 1
        if text == "[":
            items: list[Arg] = []
            while not self.accept("]"):
                items.append(self.arg())
                self.accept(",")
            return tuple(items)
        if kind == "number":
            return int(text) if re.fullmatch(r"-?\d+", text) else float(text)
        words: dict[str, Arg] = {"true": True, "false": False, "none": None, "inf": float("inf"), "nan": float("nan")}
        if text in words:
            return words[text]
        if kind == "word" and _DTYPE.match(text):
            return DType(text)
        self.at -= 1
        raise self.error("expected an argument")


def _header(cursor: _Cursor) -> tuple[Graph, list[str]]:
    _where(cursor)
    cursor.expect("graph")
    graph = Graph(cursor.take("word", "@name").removeprefix("@"), extents=cursor.extents)
    cursor.expect("(")
    while not cursor.accept(")"):
        name = cursor.take("value", "an input")[1:]
        cursor.expect(":")
        graph.inputs.append(cursor.define(name, *cursor.type()))
        cursor.accept(",")
    cursor.expect("->")
    outputs = [cursor.take("value", "an output")[1:]]
    while cursor.accept(","):
        outputs.append(cursor.take("value", "an output")[1:])
    if cursor.accept("where"):
        cursor.at = len(cursor.tokens) - 1
    return graph, outputs


def _where(cursor: _Cursor) -> None:
    """Read the named extents at the end of the header first, because input types use them."""
    words = [text for _, text, _ in cursor.tokens]
    if "where" not in words:
        return
    cursor.at = words.index("where") + 1
    while cursor.tokens[cursor.at][0] != "end":
        name = cursor.take("word", "the name of an extent")
        cursor.expect("=")
        cursor.extents[name] = cursor.whole("an extent")
    cursor.at = 0


def _statement(cursor: _Cursor, graph: Graph) -> None:
    folded = cursor.accept("fold")
    results: list[str | None] = []
    while not cursor.accept("="):
        results.append(None if cursor.accept("_") else cursor.take("value", "a result")[1:])
        cursor.accept(",")
    word = cursor.take("word", "an operator, param, buffer or constant")
    if word in ("param", "buffer"):
        names = [cursor.quoted()]
        while cursor.accept("="):
            names.append(cursor.quoted())
        value = _typed(cursor, results)[0]
        assert value is not None
        graph.parameters.append(Parameter(value, names[0], tuple(names[1:]), word == "buffer"))
    elif word == "constant":
        graph.constants += [value for value in _typed(cursor, results) if value is not None]
    else:
        (graph.folded if folded else graph.ops).append(_operator(cursor, word, results))


def _operator(cursor: _Cursor, target: str, results: list[str | None]) -> Op:
    cursor.expect("(")
    args: list[Arg] = []
    kwargs: dict[str, Arg] = {}
    while not cursor.accept(")"):
        if cursor.tokens[cursor.at][0] == "word" and cursor.tokens[cursor.at + 1][1] == "=":
            key = cursor.take("word", "a keyword")
            cursor.expect("=")
            kwargs[key] = cursor.arg()
        else:
            args.append(cursor.arg())
        cursor.accept(",")
    made = _typed(cursor, results)
    comment = cursor.tokens[cursor.at][1] if cursor.tokens[cursor.at][0] == "comment" else ""
    return Op(target, tuple(args), kwargs, tuple(made), _source(comment.removeprefix("#").split()))


def _typed(cursor: _Cursor, results: list[str | None]) -> list[Value | None]:
    cursor.expect(":")
    made: list[Value | None] = []
    for name in results:
        if name is None:
            cursor.expect("_")
            made.append(None)
        else:
            made.append(cursor.define(name, *cursor.type()))
        cursor.accept(",")
    return made


def _source(words: list[str]) -> Source:
    place = _PLACE.match(words[-1]) if words else None
    module = " ".join(words[:-1] if place else words)
    return Source(module, place["file"], int(place["line"])) if place else Source(module)
