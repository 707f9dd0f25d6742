"""The Casbin models that are served, without and with conditions, and the differences of another model from them."""

import re

from rolecall.policy.parsed import MODEL_FILE, ParsedPolicy, lines_of

__all__ = ["CONDITIONAL_MODEL", "MODEL", "read_model"]

# Two values are equal up to spacing if their tokens are equal.
_TOKEN = re.compile(r'"[^"]*"|\w+|[^\w\s]')

# Section -> key -> value.
_Model = dict[str, dict[str, str]]
_MODEL: _Model = {
    "request_definition": {"r": "sub, obj, act"},
    "policy_definition": {"p": "sub, obj, act, eft"},
    "role_definition": {"g": "_, _"},
    "policy_effect": {"e": "some(where (p.eft == allow)) && !some(where (p.eft == deny))"},
    "matchers": {
        "m": 'g(r.sub, p.sub) && (keyMatch(r.obj, p.obj) || keyMatch(r.obj, p.obj + "/*"))'
        ' && (p.act == "*" || r.act == p.act)'
    },
}
_CONDITIONAL_MODEL: _Model = {
    **_MODEL,
    "request_definition": {"r": "sub, obj, act, ctx"},
    "policy_definition": {"p": "sub, obj, act, eft, cond"},
    "matchers": {"m": f'{_MODEL["matchers"]["m"]} && (p.cond == "" || condition(p.cond, r.ctx))'},
}


def _text(model: _Model) -> str:
    return "\n".join(f"[{section}]\n{key} = {value}" for section, d in model.items() for key, value in d.items())


MODEL = _text(_MODEL)
"""Model of a policy without conditions."""
CONDITIONAL_MODEL = _text(_CONDITIONAL_MODEL)
"""Model of a policy whose rules may end in the name of a condition. `ctx` is what the function `condition` gets."""


def read_model(text: str, parsed: ParsedPolicy) -> None:
    """Compare a model with the served one that it resembles, and add a finding to `parsed` for each difference.

    Sets whether the rules may have conditions.
    """
    lines = lines_of(text, MODEL_FILE, parsed)
    parsed.has_condition_column = any("cond" in _TOKEN.findall(line) for _, line in lines)
    model = _CONDITIONAL_MODEL if parsed.has_condition_column else _MODEL
    section = ""
    seen: set[tuple[str, str]] = set()
    for number, line in lines:
        stripped = line.strip()
        if stripped.startswith("[") and stripped.endswith("]"):
            section = stripped[1:-1]
            if section not in model:
                parsed.add(MODEL_FILE, number, 1, f"Section [{section}] is not part of the model.", "Delete it.")
            continue
        key, _, value = (part.strip() for part in stripped.partition("="))
        expected = model.get(section, {}).get(key)
        if expected is None:
            parsed.add(MODEL_FILE, number, 1, f"`{key}` is not part of [{section}] of the model.", "Delete the line.")
        elif (section, key) in seen:
            parsed.add(MODEL_FILE, number, 1, f"`{key}` of [{section}] is defined twice.", "Delete one of the two.")
        elif _TOKEN.findall(value) != _TOKEN.findall(expected):
            column = len(line) - len(line.partition("=")[2].lstrip()) + 1
            message = f"[{section}] says `{key} = {value}`, but Rolecall serves only `{key} = {expected}`."
            parsed.add(MODEL_FILE, number, column, message, f"Write `{key} = {expected}`.")
        seen.add((section, key))
    for name, keys in model.items():
        for key, value in keys.items():
            if (name, key) not in seen:
                fix = f"Add `{key} = {value}` under [{name}]."
                parsed.add(MODEL_FILE, 0, 0, f"`{key}` of [{name}] is missing.", fix)
