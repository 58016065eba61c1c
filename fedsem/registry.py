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

from fedsem.errors import FedsemError, closest, shown
from fedsem.strict import Strict

GROUPS = ("attack", "defense", "channel", "task", "dataset", "partition", "encoder", "aggregator", "pre_aggregator")
"""What can be plugged in."""


class Options(Strict):
    """Frozen options of a plug-in; an unknown option is an error. `kind` and `group` are set by `register`.

    Attributes:
        evaluation_only: names of options of encoders and tasks that training does not read: scenarios that differ in
            these alone share a training.
        budgeted: of attacks: whether grids that name them need `psr_db`.
        distributions: packages that fedsem itself does not need, and whose version decides what the plug-in computes.
    """

    kind: ClassVar[str]
    group: ClassVar[str]
    evaluation_only: ClassVar[frozenset[str]] = frozenset()
    budgeted: ClassVar[bool] = True
    distributions: ClassVar[tuple[str, ...]] = ()

    @classmethod
    def __get_pydantic_json_schema__(cls, schema: CoreSchema, handler: GetJsonSchemaHandler) -> dict[str, Any]:
        json = super().__get_pydantic_json_schema__(schema, handler)
        json["properties"] = {"kind": {"const": cls.kind}, **json.get("properties", {})}
        json["required"] = ["kind", *(name for name in json.get("required", []) if name != "kind")]
        return json


_registry: dict[str, dict[str, type[Options]]] = {group: {} for group in GROUPS}
P = TypeVar("P", bound=type[Options])


def register(group: str, name: str) -> Callable[[P], P]:
    """Class decorator: make `cls` known as `name` in `group`.

    Raises:
        FedsemError: another class already has that name, or there is no such group.
    """
    if group not in _registry:
        raise FedsemError(f"A plug-in '{name}' wants to be in the unknown group '{group}'.{closest(group, GROUPS)}")

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
        FedsemError: a plug-in package cannot be imported, or two plug-ins have one name.
    """
    found = entry_points(group="fedsem.plugins")
    if not any(point.name == "fedsem-attacks" for point in found):
        raise FedsemError("fedsem is not installed in this environment; run 'pip install -e .' in its folder.")
    for point in sorted(found, key=lambda p: p.name):
        try:
            module = point.load()
            for info in pkgutil.iter_modules(getattr(module, "__path__", [])):
                importlib.import_module(f"{module.__name__}.{info.name}")
        except FedsemError:
            raise
        except Exception as error:  # A third party's code can fail in any way.
            raise FedsemError(
                f"The plug-in package '{point.value}' (entry point '{point.name}') cannot be imported "
                f"({type(error).__name__}: {error}); repair or uninstall it."
            ) from error


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
        if isinstance(value, Options) and value.group == self.group:
            return value
        if isinstance(value, str):
            value = {"kind": value}
        if not isinstance(value, dict):
            raise _error(f"should be a mapping with a 'kind', or the name of one {self.group}, not {shown(value)}")
        if "kind" not in value:
            raise _error(f"needs a 'kind'.{closest('', names(self.group))}")
        if not isinstance(value["kind"], str):
            raise _error(f"'kind' should be the name of one {self.group}, not {shown(value['kind'])}")
        try:
            cls = find(self.group, value["kind"])
        except KeyError as error:
            raise _error(error.args[0]) from None
        return cls.model_validate({key: option for key, option in value.items() if key != "kind"})

    def __get_pydantic_json_schema__(self, schema: CoreSchema, handler: GetJsonSchemaHandler) -> dict[str, Any]:
        known = names(self.group)
        short = [name for name, cls in known.items() if not any(f.is_required() for f in cls.model_fields.values())]
        # pydantic calls this hook for fields of a model's type, not for a bare core schema.
        written = [cls.__get_pydantic_json_schema__(cls.__pydantic_core_schema__, handler) for cls in known.values()]
        return {"anyOf": [{"enum": short}, *written]}


def _error(message: str) -> PydanticCustomError:
    return PydanticCustomError("plugin", "{message}", {"message": message})
