"""Plug-ins by name.

A plug-in is a class derived from `Options`: a frozen pydantic model whose fields are its YAML options. It registers
under a group and a name when its module is imported::

    @register("attack", "fgsm")
    class Fgsm(Evasion): ...

Which modules are imported is read from the entry-point group ``fedsem.plugins``; a package named there is imported with
all its modules, so that a new plug-in is one class in one file, here or in another distribution.
"""

from __future__ import annotations

import importlib
import pkgutil
from collections.abc import Callable
from functools import cache
from importlib.metadata import entry_points
from typing import Any, ClassVar, TypeVar

from pydantic import GetCoreSchemaHandler, GetJsonSchemaHandler
from pydantic_core import CoreSchema, PydanticCustomError, core_schema

from fedsem.errors import FedsemError, closest
from fedsem.strict import Strict

GROUPS = ("attack", "defense", "channel", "task", "dataset", "partition", "encoder", "aggregator")
"""What can be plugged in."""


class Options(Strict):
    """Frozen options of a plug-in; an unknown option is an error. `kind` and `group` are set by `register`."""

    kind: ClassVar[str]
    group: ClassVar[str]


_registry: dict[str, dict[str, type[Options]]] = {group: {} for group in GROUPS}
P = TypeVar("P", bound=type[Options])


def register(group: str, name: str) -> Callable[[P], P]:
    """Class decorator: make `cls` known as `name` in `group`.

    Raises:
        FedsemError: another class already has that name.
    """

    def add(cls: P) -> P:
        known = _registry[group].get(name)
        if known is not None and (known.__module__, known.__qualname__) != (cls.__module__, cls.__qualname__):
            raise FedsemError(
                f"Two plug-ins are called {group} '{name}': {known.__module__}.{known.__qualname__} and "
                f"{cls.__module__}.{cls.__qualname__}; rename one."
            )
        cls.kind, cls.group = name, group
        _registry[group][name] = cls
        return cls

    return add


@cache
def load_plugins() -> None:
    """Import every module named by the entry-point group `fedsem.plugins`, once.

    Raises:
        FedsemError: a plug-in package cannot be imported.
    """
    found = entry_points(group="fedsem.plugins")
    if not any(point.name == "fedsem-attacks" for point in found):
        raise FedsemError("fedsem is not installed in this environment; run 'pip install -e .' in its folder.")
    for point in sorted(found, key=lambda p: p.name):
        try:
            module = point.load()
            for info in pkgutil.iter_modules(getattr(module, "__path__", [])):
                importlib.import_module(f"{module.__name__}.{info.name}")
        except ImportError as error:
            raise FedsemError(f"The plug-in package '{point.value}' cannot be imported ({error}).") from error


def names(group: str) -> dict[str, type[Options]]:
    """All plug-ins of a group, by name."""
    load_plugins()
    return dict(sorted(_registry[group].items()))


def find(group: str, name: str) -> type[Options]:
    """The plug-in of that name.

    Raises:
        KeyError: there is none; the message ends with the closest match and the known names.
    """
    known = names(group)
    if name not in known:
        raise KeyError(f"unknown {group} '{name}'.{closest(name, known)}")
    return known[name]


class Plugin:
    """Annotation for a scenario field that holds a plug-in: ``Annotated[Any, Plugin("channel")]``.

    Validates a mapping ``{kind: NAME, option: value, ...}`` (or just NAME) into the options class of that name.
    """

    def __init__(self, group: str) -> None:
        self.group = group

    def __get_pydantic_core_schema__(self, source: Any, handler: GetCoreSchemaHandler) -> CoreSchema:
        return core_schema.no_info_plain_validator_function(
            self._validate,
            serialization=core_schema.plain_serializer_function_ser_schema(
                lambda options: {"kind": options.kind, **options.model_dump(mode="json")}
            ),
        )

    def _validate(self, value: Any) -> Options:
        if isinstance(value, Options):
            return value
        if isinstance(value, str):
            value = {"kind": value}
        if not isinstance(value, dict):
            raise PydanticCustomError(
                "plugin", "should be a mapping with a 'kind', or the name of one {group}", {"group": self.group}
            )
        if "kind" not in value:
            raise PydanticCustomError("plugin", "needs a 'kind'.{known}", {"known": closest("", names(self.group))})
        try:
            cls = find(self.group, str(value["kind"]))
        except KeyError as error:
            raise PydanticCustomError("plugin", "{why}", {"why": error.args[0]}) from None
        return cls.model_validate({key: option for key, option in value.items() if key != "kind"})

    def __get_pydantic_json_schema__(self, schema: CoreSchema, handler: GetJsonSchemaHandler) -> dict[str, Any]:
        variants: list[dict[str, Any]] = []
        for name, cls in names(self.group).items():
            variant = cls.model_json_schema()
            variant["properties"] = {"kind": {"const": name}, **variant.get("properties", {})}
            variant["required"] = ["kind", *variant.get("required", [])]
            variants.append(variant)
        return {"anyOf": [{"enum": list(names(self.group))}, *variants]}
