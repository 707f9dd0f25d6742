"""Strict reader of conditions.yaml: names of conditions, each with an expression and a description."""

import re
from typing import NamedTuple

import yaml

from rolecall.policy.expressions import Condition, ExpressionError
from rolecall.policy.parsed import CONDITIONS_FILE, ParsedPolicy
from rolecall.policy.syntax import value_problem

__all__ = ["MAX_CONDITIONS", "MAX_CONDITIONS_BYTES", "read_conditions"]

MAX_CONDITIONS = 1000
MAX_CONDITIONS_BYTES = 256 * 1024
MAX_DESCRIPTION = 1000

# Levels of the document: the names, and the keys of each.
_LEVELS = 2
_EXAMPLE = "Write `NAME:`, and indented beneath it `expression: ...` and `description: ...`."
# The content of a block begins in the line after its header.
_BLOCK_HEADER = re.compile(r"[|>][^\n]*\n")


class _Entry(NamedTuple):
    """Key and value of a mapping, with their places in the text."""

    name: str
    key: yaml.Node
    value: yaml.Node


def read_conditions(text: str, parsed: ParsedPolicy) -> None:
    """Add the conditions of the text to `parsed`, or a finding for each that is malformed."""
    if len(text.encode()) > MAX_CONDITIONS_BYTES:
        message = f"The file is larger than {MAX_CONDITIONS_BYTES} bytes."
        parsed.add(CONDITIONS_FILE, 0, 0, message, "Delete conditions that no rule uses.")
        return
    try:
        if not _is_flat(text, parsed):
            return
        document = yaml.compose(text, Loader=yaml.SafeLoader)
    except yaml.MarkedYAMLError as error:
        mark = error.problem_mark or error.context_mark
        line, column = (mark.line + 1, mark.column + 1) if mark else (0, 0)
        message = f"This is no YAML: {error.problem or error.context}."
        parsed.add(CONDITIONS_FILE, line, column, message, "Correct the indentation, or quote the value.")
        return
    except yaml.YAMLError as error:
        message = f"This is no YAML: {str(error).splitlines()[0]}."
        parsed.add(CONDITIONS_FILE, 0, 0, message, "Save the file as plain UTF-8 text.")
        return
    if document is None:
        return
    entries = _entries(document, "the conditions", parsed)
    if len(entries) > MAX_CONDITIONS:
        message = f"The file has {len(entries)} conditions, more than {MAX_CONDITIONS}."
        parsed.add(CONDITIONS_FILE, 0, 0, message, "Delete conditions that no rule uses.")
        return
    for entry in entries:
        _read_condition(text, entry, parsed)


def _is_flat(text: str, parsed: ParsedPolicy) -> bool:
    """Whether the document has no more levels than it needs, and no alias; so composing it needs little memory."""
    depth = documents = 0
    for event in yaml.parse(text, Loader=yaml.SafeLoader):
        line, column = event.start_mark.line + 1, event.start_mark.column + 1
        if isinstance(event, yaml.DocumentStartEvent):
            documents += 1
        if isinstance(event, yaml.AliasEvent) or getattr(event, "anchor", None) is not None:
            message = "The file has an anchor or an alias (`&` or `*`)."
            parsed.add(CONDITIONS_FILE, line, column, message, "Write each value out, or put it in quotes.")
            return False
        depth += isinstance(event, yaml.CollectionStartEvent) - isinstance(event, yaml.CollectionEndEvent)
        if depth > _LEVELS or documents > 1:
            what = "a second document" if documents > 1 else "a value that is itself a list or has keys"
            parsed.add(CONDITIONS_FILE, line, column, f"The file has {what}.", _EXAMPLE)
            return False
    return True


def _entries(node: yaml.Node, what: str, parsed: ParsedPolicy) -> list[_Entry]:
    """Return the keys and values of a mapping; a finding for anything else, and for a key that occurs twice."""
    if not isinstance(node, yaml.MappingNode):
        _add(parsed, node, f"The value of {what} has no keys.", _EXAMPLE)
        return []
    entries: dict[str, _Entry] = {}
    for key, value in node.value:
        if not isinstance(key, yaml.ScalarNode):
            _add(parsed, key, "The key is not a text.", _EXAMPLE)
        elif key.value in entries:
            line = entries[key.value].key.start_mark.line + 1
            _add(parsed, key, f"`{key.value}` stands in line {line} already.", "Delete one of the two.")
        else:
            entries[key.value] = _Entry(key.value, key, value)
    return list(entries.values())


def _read_condition(text: str, entry: _Entry, parsed: ParsedPolicy) -> None:
    name = entry.name
    if problem := value_problem("condition", name):
        _add(parsed, entry.key, *problem)
        return
    # Known even if it is malformed: its rules needn't be reported besides.
    parsed.condition_lines[name] = entry.key.start_mark.line + 1
    values: dict[str, yaml.ScalarNode] = {}
    for key in _entries(entry.value, f"`{name}`", parsed):
        if key.name not in ("expression", "description"):
            _add(parsed, key.key, f"`{key.name}` is not a key of a condition.", "Write `expression` or `description`.")
        elif not isinstance(key.value, yaml.ScalarNode) or not key.value.value.strip():
            _add(parsed, key.value, f"The {key.name} of `{name}` is no text.", "Write a text, or delete the key.")
        else:
            values[key.name] = key.value
    if "expression" not in values:
        if isinstance(entry.value, yaml.MappingNode):
            _add(parsed, entry.key, f"The condition `{name}` has no expression.", "Add `expression: ...` beneath it.")
        return
    description = values["description"].value if "description" in values else ""
    if len(description) > MAX_DESCRIPTION:
        message = f"The description of `{name}` has {len(description)} characters, more than {MAX_DESCRIPTION}."
        _add(parsed, values["description"], message, "Shorten it.")
        return
    node = values["expression"]
    try:
        parsed.conditions[name] = Condition(name, node.value, description.strip())
    except ExpressionError as error:
        for found in error.problems:
            index = _index(text, node, found.offset)
            line = text.count("\n", 0, index) + 1
            column = index - (text.rfind("\n", 0, index) + 1) + 1
            parsed.add(CONDITIONS_FILE, line, column, found.message, found.fix)


def _index(text: str, node: yaml.ScalarNode, offset: int) -> int:
    """Return where in the file the character `offset` of a value is: YAML unfolds lines and resolves escapes."""
    index: int = node.start_mark.index
    end: int = node.end_mark.index
    if header := _BLOCK_HEADER.match(text, index):
        index = header.end()
    for character in node.value[:offset]:
        if not character.isspace() and (found := text.find(character, index, end)) >= 0:
            index = found + 1
    if offset < len(node.value) and (found := text.find(node.value[offset], index, end)) >= 0:
        return found
    return index


def _add(parsed: ParsedPolicy, node: yaml.Node, message: str, fix: str) -> None:
    parsed.add(CONDITIONS_FILE, node.start_mark.line + 1, node.start_mark.column + 1, message, fix)
