"""Which JSON schemas a service can enforce while the model writes: the subset that "strict" answers allow.

A schema beyond it is sent as a wish, and the answer is checked here either way. When in doubt a schema is not strict: a
service refuses the whole request for one keyword that it does not enforce.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, cast

_KEYWORDS = frozenset({
    "$defs", "$ref", "additionalProperties", "anyOf", "const", "description", "enum", "exclusiveMaximum",
    "exclusiveMinimum", "format", "items", "maxItems", "maximum", "minItems", "minimum", "multipleOf", "pattern",
    "properties", "required", "title", "type",
})  # fmt: skip
_FORMATS = frozenset({"date", "date-time", "duration", "email", "hostname", "ipv4", "ipv6", "time", "uuid"})


def is_strict(schema: Mapping[str, Any]) -> bool:
    """Tell whether every answer of *schema* can be enforced: an object whose properties are all required and known."""
    return schema.get("type") == "object" and "anyOf" not in schema and _enforceable(schema)


def _enforceable(schema: object) -> bool:
    if not isinstance(schema, Mapping):
        return False  # `true` and `false` are schemas too.
    said = cast(Mapping[str, Any], schema)
    if said.keys() - _KEYWORDS or said.get("format", "date") not in _FORMATS:
        return False
    if "$ref" in said:
        return len(said) == 1
    if "type" not in said and "anyOf" not in said:
        return False  # Anything at all, or a list of values whose type the service would have to guess.
    if said.get("type") == "object":
        properties = cast(Mapping[str, Any], said.get("properties", {}))
        if said.get("additionalProperties") is not False or set(said.get("required", ())) != set(properties):
            return False
    inner: list[Any] = [*said.get("properties", {}).values(), *said.get("$defs", {}).values(), *said.get("anyOf", ())]
    if said.get("type") == "array":
        inner.append(said.get("items"))
    return all(_enforceable(each) for each in inner)
