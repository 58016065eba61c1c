"""Why a scenario is refused: pydantic's errors as one clear sentence with the YAML path."""

from __future__ import annotations

import math
import re
from collections.abc import Mapping
from typing import Any

from pydantic import ValidationError

from fedsem.errors import ScenarioError, closest, shown
from fedsem.strict import Strict


class WrongKey(ValueError):
    """A validation error that carries its own YAML path."""

    def __init__(self, path: str, message: str) -> None:
        super().__init__(message)
        self.path = path


_WORDS = {
    "missing": "this key is required",
    "int_type": "should be a whole number, not {given}",
    "float_type": "should be a number, not {given}",
    "string_type": "should be text, not {given}",
    "bool_type": "should be true or false, not {given}",
    "list_type": "should be a list, not {given}",
    "tuple_type": "should be a list, not {given}",
    "dict_type": "should be a mapping, not {given}",
    "model_type": "should be a mapping, not {given}",
    "none_required": "should be null, not {given}",
    "greater_than": "should be more than {gt}, not {given}",
    "greater_than_equal": "should be at least {ge}, not {given}",
    "less_than": "should be less than {lt}, not {given}",
    "less_than_equal": "should be at most {le}, not {given}",
    "too_short": "has too few items: {given}",
    "too_long": "has too many items: {given}",
    "value_error": "{error}",
    "assertion_error": "{error}",
}
"""pydantic's types of errors in our words; what is not here keeps pydantic's."""


def sentence(error: ValidationError, tree: Any) -> str:
    """The most telling of pydantic's errors, as one sentence with the YAML path."""
    problems = error.errors()
    first = next((problem for problem in problems if problem["type"] == "unknown_key"), problems[0])
    kind, given = first["type"], first["input"]
    context = {key: f"{value:g}" if isinstance(value, float) else value for key, value in first.get("ctx", {}).items()}
    path: list[str] = []
    for part in first["loc"]:
        # Not every part is a key: pydantic adds the branch of a union.
        if part in (tree if isinstance(tree, Mapping) else range(len(tree)) if isinstance(tree, list) else ()):
            path.append(str(part))
            tree = tree[part]
    if kind == "missing" and isinstance(first["loc"][-1], int):
        kind = "too_short"
    elif kind == "missing":
        path.append(str(first["loc"][-1]))
    elif kind == "unknown_key":
        path.append(context["key"])
    cause = context.get("error")
    where = [cause.path] if isinstance(cause, WrongKey) else path
    allowed = re.findall("'([^']*)'", context.get("expected", ""))
    if allowed and isinstance(given, str):
        said = f"unknown value {shown(given)}.{closest(given, allowed)}"
    elif kind in _WORDS:
        said = _WORDS[kind].format(given=shown(given), **context)
    elif "url" in first or kind == "choice":
        said = f"{first['msg'].removeprefix('Input ')}, not {shown(given)}"
    else:
        said = first["msg"]
    return f"In the scenario{', ' + repr('.'.join(where)) if where else ''}: {said.rstrip('.')}."


def plain(node: Any, path: tuple[str, ...]) -> Any:
    """A copy of a tree in mappings with text keys, lists and scalars: what JSON in UTF-8 can hold.

    Raises:
        ScenarioError: it holds something else, such as one of YAML's dates, .nan, or itself.
    """
    where = f"In the scenario{', ' + repr('.'.join(path)) if path else ''}: "
    if len(path) > 30:
        raise ScenarioError(f"{where}is nested too deeply.")
    if isinstance(node, Mapping):
        for key in node:
            if not isinstance(key, str):
                raise ScenarioError(f"{where}the key {shown(key)} should be text; put it in quotes.")
        return {plain(key, path): plain(value, (*path, key)) for key, value in node.items()}
    if isinstance(node, (list, tuple)):
        return [plain(value, (*path, str(i))) for i, value in enumerate(node)]
    if isinstance(node, str) and not re.search("[\ud800-\udfff]", node):
        return node
    if isinstance(node, float) and not math.isfinite(node):
        raise ScenarioError(f"{where}should be a finite number, not {shown(node)}.")
    if node is None or isinstance(node, (int, float, Strict)):
        return node
    raise ScenarioError(
        f"{where}{shown(node)} is neither valid text nor a number (YAML reads it as {type(node).__name__})."
    )
