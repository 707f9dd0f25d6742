"""Expressions of conditions in CEL: compiled and type-checked once, evaluated for each decision that depends on one.

An evaluation holds the interpreter's lock from beginning to end, so its cost is bounded: by the expression's length and
nesting, which CEL's parser limits, and by the size of the values that a loop gets.
"""

import re
from collections.abc import Mapping
from functools import lru_cache
from typing import Any, NamedTuple

from rolecall.formats.networks import parse_address, parse_networks

__all__ = [
    "MAX_EXPRESSION",
    "MAX_LOOPED",
    "MAX_NESTING",
    "VARIABLES",
    "Condition",
    "ExpressionError",
    "Values",
    "values_of",
]

MAX_EXPRESSION = 4096
"""Maximum bytes of an expression."""

MAX_NESTING = 32
"""Maximum nesting of an expression, which CEL's parser checks."""

MAX_LOOPED = 4096
"""Maximum size of the values of an expression with a loop, or with more than MAX_ADDITIONS.

`map` over 64 KiB holds the interpreter's lock for 3 s, the sum of 25 lists of that size for 1.4 s.
"""

MAX_ADDITIONS = 4
"""Maximum signs `+` of an expression that takes values of any size."""

# Size of a value beside its characters: about what it takes in a message.
_VALUE_SIZE = 10

VARIABLES = {
    "subject.id": "string",
    "subject.email": "string",
    "subject.roles": "list<string>",
    "subject.kind": "string",
    "subject.properties": "map",
    "resource.type": "string",
    "resource.id": "string",
    "resource.path": "string",
    "resource.properties": "map",
    "action.name": "string",
    "action.properties": "map",
    "scope": "string",
    "context": "map",
    "time": "timestamp",
}
"""Variables of an expression, and their types. A value is missing where the question doesn't have it."""

Values = Mapping[str, Any]
"""Values of the variables, by their full names."""

_FUNCTION = "in_network(address, network)"
# Without the container's name, which is always empty, and the list of expected tokens.
_PROBLEM = re.compile(
    r"ERROR: <input>:(\d+):(\d+): (.+?)(?: \(in container ''\)| expecting .*?)?(?: \[[A-Z_]+\])?$", re.MULTILINE
)


class Problem(NamedTuple):
    """Problem of an expression: its offset in characters, what it is, and its fix."""

    offset: int
    message: str
    fix: str


class ExpressionError(Exception):
    """Expression that can't be a condition."""

    def __init__(self, problems: list[Problem]) -> None:
        super().__init__(" ".join(problem.message for problem in problems))
        self.problems = problems


class Condition:
    """Condition of the policy: a compiled expression that is true or false for the values of a question."""

    __slots__ = ("_evaluate", "_is_costly", "_paths", "description", "expression", "name", "variables")

    def __init__(self, name: str, expression: str, description: str = "") -> None:
        """Compile the expression. Raises `ExpressionError`."""
        self.name = name
        self.expression = expression
        self.description = description
        compiled, tree = _compile(expression)
        self._evaluate = compiled.eval
        self._is_costly = tree.has_loop or tree.additions > MAX_ADDITIONS
        self.variables = tuple(sorted(tree.variables))
        self._paths = tuple(sorted(tree.paths - tree.tested))

    def __reduce__(self) -> tuple[object, tuple[str, str, str]]:
        """Pickle the text: another process compiles it again."""
        return Condition, (self.name, self.expression, self.description)

    def __eq__(self, other: object) -> bool:
        """Whether the other is a condition with the same name, expression and description."""
        return isinstance(other, Condition) and self.__reduce__() == other.__reduce__()

    def __hash__(self) -> int:
        """Hash what `__eq__` compares."""
        return hash((self.name, self.expression, self.description))

    def holds(self, values: Values) -> bool | None:
        """Return whether the condition holds; None where it can't be evaluated, as for want of a value."""
        data = self._data(values)
        if self._is_costly and _size(data) > MAX_LOOPED:
            return None
        try:
            value = self._evaluate(data=data).value()
        except Exception:  # noqa: BLE001 - fail closed, whatever the values are
            return None
        # An error is a value, too: its text.
        return value if isinstance(value, bool) else None

    def missing(self, values: Values) -> tuple[str, ...]:
        """Return the values that the expression names and that are missing, as `context.ip`, in order."""
        data = self._data(values)
        absent = {name for name in self.variables if name not in data}
        for path in self._paths:
            place: Any = data.get(path[0])
            for depth, key in enumerate(path[1:], 2):
                if not isinstance(place, Mapping):
                    break
                if key not in place:
                    absent.add(".".join(path[:depth]))
                    break
                place = place[key]
        return tuple(sorted(absent))

    def problem(self, values: Values) -> str:
        """Return why the condition can't be evaluated, beside missing values; empty where it can."""
        data = self._data(values)
        if self._is_costly and (size := _size(data)) > MAX_LOOPED:
            return f"its values have about {size} bytes, more than the {MAX_LOOPED} of an expression with a loop"
        try:
            value = self._evaluate(data=data).value()
        except Exception as error:  # noqa: BLE001 - as in `holds`
            return str(error)
        return "" if isinstance(value, bool) else str(value)

    def _data(self, values: Values) -> dict[str, Any]:
        """Return the values that the expression names; a map that isn't there is empty."""
        data: dict[str, Any] = {}
        for name in self.variables:
            try:
                data[name] = values[name]
            except KeyError:
                if VARIABLES[name] == "map":
                    data[name] = {}
        return data


def values_of(action: str, resource: str) -> dict[str, Any]:
    """Return the values that a question's action and resource are."""
    kind, _, rest = resource.partition("/")
    return {"action.name": action, "resource.type": kind, "resource.id": rest, "resource.path": resource}


def _size(value: object) -> int:
    """Return about the bytes of a value in a message."""
    if isinstance(value, str):
        return _VALUE_SIZE + len(value)
    if isinstance(value, Mapping):
        return sum(_size(key) + _size(inner) for key, inner in value.items())
    if isinstance(value, list | tuple):
        return _VALUE_SIZE + sum(map(_size, value))
    return _VALUE_SIZE


def _compile(text: str) -> tuple[Any, "_Tree"]:
    if (size := len(text.encode())) > MAX_EXPRESSION:
        message = f"The expression has {size} bytes, more than {MAX_EXPRESSION}."
        raise ExpressionError([Problem(0, message, "Split it into several conditions, each with rules of its own.")])
    try:
        compiled = _environment().compile(text)
    except RuntimeError as error:
        raise ExpressionError(_problems(str(error), text)) from None
    kind = compiled.return_type().name()
    if kind != "BOOL":
        fix = "Compare it, as in `context.mfa == true`." if kind == "DYN" else "Compare it with a value."
        raise ExpressionError([Problem(0, f"The expression is of the type {kind.lower()}, not bool.", fix)])
    tree = _Tree(compiled.serialize())
    if tree.has_nested_loop:
        message = "The expression has a loop (`all`, `exists`, `exists_one`, `filter` or `map`) within another."
        raise ExpressionError([Problem(0, message, "Write it with one loop, or with loops one after the other.")])
    return compiled, tree


def _problems(error: str, text: str) -> list[Problem]:
    """Return the problems that CEL's compiler found."""
    starts = [0]
    for line in text.split("\n"):
        starts.append(starts[-1] + len(line) + 1)
    problems: list[Problem] = []
    for line, column, message in _PROBLEM.findall(error):
        fix = "Correct the expression."
        if message.startswith("undeclared reference"):
            fix = f"The variables are {', '.join(VARIABLES)}; beside CEL's own functions there is {_FUNCTION}."
        offset = starts[min(int(line), len(starts)) - 1] + int(column) - 1
        problems.append(Problem(offset, f"{_sentence(message)}.", fix))
    if problems:
        return problems
    if "recursion" in error:
        message = f"The expression is nested more than {MAX_NESTING} deep; a chain as `a + b + c` counts as nested."
        return [Problem(0, message, "Split it into several conditions, each with rules of its own.")]
    return [Problem(0, f"{_sentence(error)}.", "Correct the expression.")]


def _sentence(text: str) -> str:
    return text[:1].upper() + text[1:].rstrip(".")


def _in_network(address: str, network: str) -> bool:
    """Return whether the address lies in the network. Raises `ValueError`, `InvalidField` for malformed ones."""
    parsed = parse_address(address)
    if parsed is None:
        raise ValueError("no IP address")
    return parsed in _network(network)


@lru_cache(1024)
def _network(text: str) -> Any:
    return parse_networks([text])[0]


@lru_cache
def _environment() -> Any:
    # A policy without conditions doesn't load the library.
    from cel_expr_python import cel  # noqa: PLC0415

    text = cel.Type.STRING
    types = {
        "string": text,
        "list<string>": cel.Type.List(text),
        "map": cel.Type.Map(text, cel.Type.DYN),
        "timestamp": cel.Type.TIMESTAMP,
    }
    overload = cel.Overload(
        "in_network_string_string", return_type=cel.Type.BOOL, parameters=[text, text], impl=_in_network
    )
    return cel.NewEnv(
        variables={name: types[kind] for name, kind in VARIABLES.items()},
        functions=[cel.FunctionDecl("in_network", [overload])],
    )


class _Tree:
    """Syntax tree of a compiled expression, as far as it matters: its variables, the values it selects, its loops.

    `paths` are selections of constant keys from a variable, as ("context", "ip"); `tested` those within `has(...)`.
    """

    def __init__(self, serialized: bytes) -> None:
        """Read the tree from a `google.protobuf.Any` with a `cel.expr.CheckedExpr`, as CEL's compiler serializes it."""
        self.variables: set[str] = set()
        self.paths: set[tuple[str, ...]] = set()
        self.tested: set[tuple[str, ...]] = set()
        self.has_loop = False
        self.has_nested_loop = False
        self.additions = 0
        checked = _fields(_fields(serialized)[2][0])
        self._visit(checked[4][0], loops=0)

    def _visit(self, message: bytes, *, loops: int) -> tuple[str, ...]:
        """Visit an `Expr`. Returns its path if it is one."""
        expr = _fields(message)
        if 4 in expr:  # Expr.Ident
            name = _fields(expr[4][0])[1][0].decode().removeprefix(".")
            if name in VARIABLES:
                self.variables.add(name)
                return (name,)
        elif 5 in expr:  # Expr.Select: operand, field, test_only
            select = _fields(expr[5][0])
            return self._select(select[1][0], select[2][0].decode(), is_test=3 in select, loops=loops)
        elif 6 in expr:  # Expr.Call: target, function, args
            call = _fields(expr[6][0])
            arguments = call.get(1, []) + call.get(3, [])
            self.additions += call[2][0] == b"_+_"
            if call[2][0] == b"_[_]" and (key := _constant_text(arguments[1])) is not None:
                return self._select(arguments[0], key, is_test=False, loops=loops)
            self._visit_all(arguments, loops=loops)
        elif 7 in expr:  # Expr.CreateList: elements
            self._visit_all(_fields(expr[7][0]).get(1, []), loops=loops)
        elif 8 in expr:  # Expr.CreateStruct: entries with map_key, value
            for entry in _fields(expr[8][0]).get(2, []):
                fields = _fields(entry)
                self._visit_all(fields.get(3, []) + fields.get(4, []), loops=loops)
        elif 9 in expr:  # Expr.Comprehension: iter_range, accu_init, loop_condition, loop_step, result
            self.has_loop = True
            self.has_nested_loop = self.has_nested_loop or loops > 0
            fields = _fields(expr[9][0])
            self._visit_all(fields.get(2, []), loops=loops)
            inner = [part for number in (4, 5, 6, 7) for part in fields.get(number, [])]
            self._visit_all(inner, loops=loops + 1)
        return ()

    def _visit_all(self, messages: list[bytes], *, loops: int) -> None:
        for message in messages:
            self._visit(message, loops=loops)

    def _select(self, operand: bytes, key: str, *, is_test: bool, loops: int) -> tuple[str, ...]:
        base = self._visit(operand, loops=loops)
        if not base:
            return ()
        path = (*base, key)
        self.paths.add(path)
        if is_test:
            self.tested.add(path)
        return path


def _constant_text(message: bytes) -> str | None:
    """Return the text of an `Expr` that is a string constant; None of any other."""
    constant = _fields(message).get(3)
    text = _fields(constant[0]).get(6) if constant else None
    return text[0].decode() if text else None


def _fields(message: bytes) -> dict[int, list[bytes]]:
    """Return the fields of a protobuf message by number; those that aren't length-delimited as empty bytes."""
    found: dict[int, list[bytes]] = {}
    position = 0
    while position < len(message):
        tag, position = _varint(message, position)
        number, wire_type = tag >> 3, tag & 7
        value = b""
        if wire_type == 0:
            _, position = _varint(message, position)
        elif wire_type == 2:
            length, position = _varint(message, position)
            value = message[position : position + length]
            position += length
        else:
            position += 8 if wire_type == 1 else 4
        found.setdefault(number, []).append(value)
    return found


def _varint(message: bytes, position: int) -> tuple[int, int]:
    value = shift = 0
    while True:
        byte = message[position]
        position += 1
        value |= (byte & 0x7F) << shift
        shift += 7
        if byte < 0x80:
            return value, position
