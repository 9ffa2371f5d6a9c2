"""JSON schemas that models read: of a tool's parameters, and of an agent's output type."""

from __future__ import annotations

import json
import sys
import typing
from typing import Any, TypeAlias, cast

import msgspec

from understudy.actors.actor import Actor
from understudy.actors.job import Job

_Json: TypeAlias = dict[str, Any] | list[Any] | str | float | bool | None


def schema_of(type_: Any) -> dict[str, Any]:
    """Return the JSON schema of a type, its definitions under `$defs`, closed against unknown properties."""
    pydantic = sys.modules.get("pydantic")
    inner: dict[str, Any] = {}  # definitions that pydantic models bring; they are found at the root

    def hook(unknown: Any) -> dict[str, Any]:
        origin = typing.get_origin(unknown) or unknown
        if pydantic is not None and isinstance(origin, type) and issubclass(origin, pydantic.BaseModel):
            model: Any = unknown
            made = dict(model.model_json_schema())
            inner.update(made.pop("$defs", {}))
            return made
        if origin is Job:
            return {"type": "string", "description": "the id of a job"}
        if isinstance(origin, type) and issubclass(origin, Actor):
            kind = json.dumps(origin.kind)
            text = f"the address of an actor: its kind, such as {kind}, and its id"
            return {"type": "array", "items": {"type": "string"}, "description": text}
        raise NotImplementedError(f"{unknown!r} has no JSON schema")

    (schema,), components = msgspec.json.schema_components([type_], schema_hook=hook, ref_template="#/$defs/{name}")
    components |= inner
    reference = schema.get("$ref", "")
    if reference.startswith("#/$defs/"):
        schema = components.pop(reference.removeprefix("#/$defs/"))
        if _refers(components, reference) or _refers(schema, reference):
            components[reference.removeprefix("#/$defs/")] = schema  # It contains itself.
            schema = dict(schema)
    if components:
        schema["$defs"] = components
    return cast(dict[str, Any], _closed(schema))


def _refers(schema: _Json, reference: str) -> bool:
    if isinstance(schema, dict):
        return schema.get("$ref") == reference or any(_refers(value, reference) for value in schema.values())
    return isinstance(schema, list) and any(_refers(value, reference) for value in schema)


def _closed(schema: _Json) -> _Json:
    """Return *schema* with `additionalProperties: false` at every object that lists its properties."""
    if isinstance(schema, dict):
        closed = {key: _closed(value) for key, value in schema.items() if key != "title"}
        if closed.get("type") == "object" and "properties" in closed:
            closed["additionalProperties"] = False
        return closed
    if isinstance(schema, list):
        return [_closed(value) for value in schema]
    return schema
