"""Measured quantities: every number in a record has its unit and its check here.

A field typed with one of these names carries the unit into the JSON schema (key `unit`) and is
checked when a record is read or written. `describe` prints a model field by field.
"""

from __future__ import annotations

from typing import Annotated, Any

from pydantic import BaseModel, Field

KIB = 1024
MIB = 1024**2
GIB = 1024**3


def _unit(name: str) -> dict[str, Any]:
    return {"unit": name}


Count = Annotated[int, Field(ge=0)]
Bytes = Annotated[int, Field(ge=0, json_schema_extra=_unit("B"))]
Nanoseconds = Annotated[int, Field(ge=0, json_schema_extra=_unit("ns"))]
Seconds = Annotated[float, Field(ge=0, json_schema_extra=_unit("s"))]
Megatransfers = Annotated[int, Field(gt=0, json_schema_extra=_unit("MT/s"))]
Sha256 = Annotated[str, Field(pattern=r"^[0-9a-f]{64}$")]
ShortHash = Annotated[str, Field(pattern=r"^[0-9a-f]{12}$")]


def describe(model: BaseModel) -> list[str]:
    """Return one line per field of `model`: name, value, unit; a missing value reads `unknown`."""
    lines: list[str] = []
    for name, schema in type(model).model_json_schema()["properties"].items():
        value = getattr(model, name)
        if isinstance(value, tuple) and value and isinstance(value[0], BaseModel):
            for index, item in enumerate(value):
                lines.extend(f"{name}[{index}].{line}" for line in describe(item))
        else:
            lines.append(f"{name:<16} {_text(value, _unit_of(schema))}")
    return lines


def _unit_of(schema: dict[str, Any]) -> str:
    """Return the unit in a field's JSON schema, which has alternatives when null is allowed."""
    units = [part["unit"] for part in [schema, *schema.get("anyOf", [])] if "unit" in part]
    return str(units[0]) if units else ""


def _text(value: object, unit: str) -> str:
    if value is None:
        return "unknown"
    if value == ():
        return "none"
    if unit == "B" and isinstance(value, int):
        return f"{value / GIB:.1f} GiB"
    return f"{value} {unit}".rstrip()
