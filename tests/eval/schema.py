"""Whether JSON keeps to a schema: by the package jsonschema where it is installed, else by the words that we use."""

import importlib.util
import json
from pathlib import Path

SCHEMA = json.loads((Path(__file__).parents[2] / "eval" / "report.schema.json").read_text(encoding="utf-8"))
TYPES = {"object": dict, "array": list, "string": str, "boolean": bool, "null": type(None), "integer": int,
         "number": (int, float)}  # fmt: skip
SPOKEN = {"$schema", "$id", "$defs", "title", "description"}
KNOWN = {"type", "const", "required", "properties", "additionalProperties", "items", "minimum", "anyOf", "$ref"}


def faults(value, schema=SCHEMA):
    """What is wrong with a value, a sentence for each fault."""
    if importlib.util.find_spec("jsonschema"):
        import jsonschema

        return [error.message for error in jsonschema.Draft202012Validator(schema).iter_errors(value)]
    return list(found_by_us(value, schema, "report"))


def found_by_us(value, schema, at):
    """The same by plain checks."""
    assert schema.keys() <= SPOKEN | KNOWN, f"the schema has words that the check does not know: {schema.keys()}"
    if "$ref" in schema:
        yield from found_by_us(value, SCHEMA["$defs"][schema["$ref"].rpartition("/")[2]], at)
    if "anyOf" in schema and all(any(found_by_us(value, one, at)) for one in schema["anyOf"]):
        yield f"{at} fits none of {len(schema['anyOf'])} forms"
    if "const" in schema and value != schema["const"]:
        yield f"{at} is {value!r}, expected {schema['const']!r}"
    if "type" in schema:
        names = [schema["type"]] if isinstance(schema["type"], str) else schema["type"]
        if not any(isinstance(value, TYPES[n]) and (n == "boolean" or not isinstance(value, bool)) for n in names):
            yield f"{at} is {value!r}, expected {names}"
    if "minimum" in schema and isinstance(value, int | float) and value < schema["minimum"]:
        yield f"{at} is {value!r}, below {schema['minimum']}"
    if isinstance(value, dict):
        yield from (f"{at} lacks {name}" for name in schema.get("required", []) if name not in value)
        for name, one in value.items():
            inner = schema.get("properties", {}).get(name, schema.get("additionalProperties", {}))
            yield from found_by_us(one, inner, f"{at}.{name}")
    if isinstance(value, list):
        for i, one in enumerate(value):
            yield from found_by_us(one, schema.get("items", {}), f"{at}[{i}]")
