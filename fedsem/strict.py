"""The base of every model that is filled from YAML: frozen, and unknown keys are errors that name the closest key."""

from __future__ import annotations

import inspect
import re
from collections.abc import Mapping
from typing import Any

from pydantic import BaseModel, ConfigDict, GetJsonSchemaHandler, model_validator
from pydantic_core import CoreSchema, PydanticCustomError

from fedsem.errors import closest


class Strict(BaseModel):
    """Frozen model without unknown keys and without NaN or infinite numbers.

    Types are strict: YAML tells text, numbers and booleans apart, so "10", 10.0 and true are no whole numbers. A whole
    number may stand where a number is wanted.
    """

    model_config = ConfigDict(frozen=True, extra="forbid", strict=True, allow_inf_nan=False, populate_by_name=True)

    @model_validator(mode="before")
    @classmethod
    def _no_unknown_keys(cls, data: Any) -> Any:
        if isinstance(data, Mapping):
            known = {field.alias or name for name, field in cls.model_fields.items()}
            for key in data:
                if key not in known:
                    raise PydanticCustomError(
                        "unknown_key", "unknown key.{hint}", {"key": str(key), "hint": closest(str(key), known)}
                    )
        return data

    @classmethod
    def __get_pydantic_json_schema__(cls, schema: CoreSchema, handler: GetJsonSchemaHandler) -> dict[str, Any]:
        """Let editors show what the docstrings of the class and its bases say, also on each field."""
        json = handler.resolve_ref_schema(handler(schema))
        json["description"] = inspect.cleandoc(cls.__doc__ or "").partition("Attributes:\n")[0].strip()
        fields = json.get("properties", {})
        for base in cls.__mro__:
            for name, text in attributes(inspect.cleandoc(base.__doc__ or "")):
                if name in fields:
                    fields[name].setdefault("description", " ".join(text.split()))
        for field in fields.values():
            if "patternProperties" in field:
                field["additionalProperties"] = False
        return json


def attributes(docstring: str) -> list[tuple[str, str]]:
    """Names and texts of the section "Attributes" of a docstring."""
    section = docstring.partition("Attributes:\n")[2]
    return re.findall(r"^ {4}(\w+): (.+(?:\n {5,}.+)*)", section, re.MULTILINE)
