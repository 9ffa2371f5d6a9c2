"""JSON schemas that models read: of a tool's parameters, and of an agent's output type.

A service can hold a model to an output schema only if that keeps to a part of the language; the rest of it becomes
descriptions, or the whole is told in words. What an answer really is, the output type decides.
"""

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
        # A title is pydantic's name of a type; but a property may be called title too.
        closed = {key: _closed(value) for key, value in schema.items() if key != "title" or not isinstance(value, str)}
        if closed.get("type") == "object" and "properties" in closed:
            closed["additionalProperties"] = False
        return closed
    if isinstance(schema, list):
        return [_closed(value) for value in schema]
    return schema


_FORMATS = frozenset(
    {"date-time", "time", "date", "duration", "email", "hostname", "uri", "ipv4", "ipv6", "uuid"}
)  # fmt: skip
_KEPT = frozenset({"type", "enum", "const", "anyOf", "$ref", "$defs", "properties", "required", "items", "description"})
_SILENT = frozenset({"title", "additionalProperties", "discriminator", "$comment"})  # say nothing to a model


def enforceable(schema: dict[str, Any]) -> dict[str, Any] | None:
    """Return an output schema as services enforce it, or None when no such schema says the same.

    Every object is closed; what cannot be enforced, such as `minimum`, is told in descriptions. Maps with any keys,
    tuples, values of any type, and types that contain themselves, cannot be enforced at all.
    """
    if _contains_itself(schema):
        return None
    try:
        return _enforceable(schema)
    except _NotEnforceable:
        return None


class _NotEnforceable(Exception):
    """A part of a schema says what no service enforces."""


def _enforceable(schema: dict[str, Any]) -> dict[str, Any]:
    found: dict[str, Any] = {name: value for name, value in schema.items() if name in _KEPT}
    rest = {name: value for name, value in schema.items() if name not in _KEPT and name not in _SILENT}
    kind = schema.get("type")
    if not found.keys() & {"type", "anyOf", "oneOf", "$ref", "enum", "const"} and "oneOf" not in rest:
        raise _NotEnforceable  # anything goes
    if "prefixItems" in rest or "allOf" in rest or isinstance(kind, list):
        raise _NotEnforceable
    values = schema.get("enum", [schema.get("const")])
    if any(isinstance(value, (dict, list)) for value in values):
        raise _NotEnforceable
    if kind == "object":
        if "properties" not in schema:
            raise _NotEnforceable  # a map
        found["properties"] = {name: _enforceable(each) for name, each in schema["properties"].items()}
        found["additionalProperties"] = False
    if kind == "array":
        if "items" not in schema:
            raise _NotEnforceable
        found["items"] = _enforceable(schema["items"])
        if rest.get("minItems") in (0, 1):
            found["minItems"] = rest.pop("minItems")
    if rest.get("format") in _FORMATS:
        found["format"] = rest.pop("format")
    any_of = found.get("anyOf") or rest.pop("oneOf", None)
    if any_of is not None:
        found["anyOf"] = [_enforceable(each) for each in any_of]
    if "$defs" in schema:
        found["$defs"] = {name: _enforceable(each) for name, each in schema["$defs"].items()}
    if rest:
        told = ", ".join(f"{name}: {json.dumps(value)}" for name, value in rest.items())
        found["description"] = f"{found['description']} ({told})" if "description" in found else told
    return found


def _contains_itself(schema: dict[str, Any]) -> bool:
    definitions: dict[str, Any] = schema.get("$defs", {})
    for name in definitions:
        reached: set[str] = set()
        waiting = [name]
        while waiting:
            for other in _named(definitions.get(waiting.pop(), {})):
                if other == name:
                    return True
                if other not in reached:
                    reached.add(other)
                    waiting.append(other)
    return False


def _named(schema: _Json) -> list[str]:
    """Return the definitions that a schema refers to."""
    if isinstance(schema, dict):
        reference = schema.get("$ref")
        here = [reference.removeprefix("#/$defs/")] if isinstance(reference, str) else []
        return [*here, *(name for value in schema.values() for name in _named(value))]
    return [name for value in schema for name in _named(value)] if isinstance(schema, list) else []
