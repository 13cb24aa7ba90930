"""A JSON schema as a TypeScript type: the form in which gpt-oss was shown the arguments of its tools.

    {"type": "object",                                  {
     "properties": {                                    // City and country
       "city": {"type": "string",                 ->    city: string,
                "description": "City and country"},     unit?: "celsius" | "kelvin", // default: celsius
       "unit": {"type": "string",                       }
                "enum": ["celsius", "kelvin"],
                "default": "celsius"}},
     "required": ["city"]}

The rules are openai-harmony 0.0.8's, whose output the model knows, down to its oddities: strings are not escaped, a
union in an array has no parentheses, and where a schema says more than these rules (anyOf, $ref, const, pattern ...)
it is not said. This file refuses to validate schemas, or to know messages (harmony.py).
"""

import json
import re
from collections.abc import Iterable
from typing import Any

from checkpoint import expect


def typescript(schema: Any, error: type[Exception] = ValueError, where: str = "schema") -> str:
    """The type that a JSON schema, as Python values, describes. Raises `error` for what JSON cannot hold."""
    return _type(_as_json(schema, error, where))


def _type(schema: Any, indent: str = "") -> str:
    """The type that `schema` describes; what has no rule here (anyOf, $ref, const ...) is `any`."""
    if not isinstance(schema, dict):
        return "any"
    if isinstance(schema.get("oneOf"), list):
        return "".join(f"\n{line}" for line in _variants(schema, indent))
    match schema.get("type"):
        case "object":
            return _object(schema, indent)
        case "array":
            return f"{_type(schema['items'], indent)}[]" if "items" in schema else "Array<any>"
        case "string":
            enum = schema.get("enum")
            values = [f'"{value}"' for value in enum if isinstance(value, str)] if isinstance(enum, list) else []
            return " | ".join(values) or "string"
        case "number" | "integer" | "boolean" as kind:
            return "number" if kind == "integer" else kind
        case list(kinds):
            names = ["number" if kind == "integer" else kind for kind in kinds if isinstance(kind, str)]
            return " | ".join(names) if names else "any"
    return "any"


def _object(schema: dict, indent: str) -> str:
    description, properties, required = (schema.get(key) for key in ("description", "properties", "required"))
    out = f"{indent}// {description}\n{{\n" if isinstance(description, str) else "{\n"
    for key, value in properties.items() if isinstance(properties, dict) else ():
        optional = "" if isinstance(required, list) and key in required else "?"
        out += _property(key + optional, value if isinstance(value, dict) else {}, indent)
    return out + indent + "}"


def _property(key: str, schema: dict, indent: str) -> str:
    """The comments above a property, and its line; with a oneOf, a line for each variant."""
    title, description, examples = (schema.get(name) for name in ("title", "description", "examples"))
    comments = [f"// {title}", "//"] if isinstance(title, str) else []
    if isinstance(description, str) and "oneOf" not in schema:
        comments.append(f"// {description}")
    if isinstance(examples, list) and examples:
        comments += ["// Examples:"] + [f'// - "{example}"' for example in examples if isinstance(example, str)]
    default = [f"// default: {_default(schema)}"] if "default" in schema else []
    if isinstance(schema.get("oneOf"), list):
        if isinstance(description, str) and [description] != [_get(v, "description") for v in schema["oneOf"][:1]]:
            comments.append(f"// {description}")
        comments += default
        lines = [f"{indent}{key}:", *_variants(schema, indent, of_property=True), f"{indent},"]
    else:
        remark = "".join(f" {text}" for text in default if "oneOf" not in schema)
        lines = [f"{indent}{key}: {_nullable(schema, indent + '    ')},{remark}"]
    return "".join(f"{line}\n" for line in [indent + comment for comment in comments] + lines)


def _variants(schema: dict, indent: str, of_property: bool = False) -> Iterable[str]:
    """A line for each variant of a oneOf, with its description, unless the property's says it, and its default."""
    told = schema.get("description") if of_property else None
    for n, variant in enumerate(schema["oneOf"]):
        remarks, description = [], _get(variant, "description")
        if isinstance(description, str) and description != told and not (n == 0 and isinstance(told, str)):
            remarks.append(description)
        if isinstance(variant, dict) and "default" in variant:
            remarks.append(f"default: {_default(variant, bare=of_property)}")
        yield f"{indent} | {_nullable(variant, indent + '   ')}" + (f" // {' '.join(remarks)}" if remarks else "")


def _get(schema: Any, key: str) -> Any:
    return schema.get(key) if isinstance(schema, dict) else None

def _nullable(schema: Any, indent: str) -> str:
    text = _type(schema, indent)
    return f"{text} | null" if _get(schema, "nullable") is True and "null" not in text else text

def _default(schema: dict, bare: bool = True) -> str:
    """A default as text; `bare`: without quotes if it is one of an enum."""
    value, enum = schema["default"], schema.get("enum")
    if not isinstance(value, str):
        return _json(value)
    if not (isinstance(enum, list) and enum):
        return f'"{value}"'
    return value if bare else _json(value)


# ---- As serde_json does it ------------------------------------------------------------------------------------------

def _json(value: Any) -> str:
    """Compact JSON as Rust's serde_json writes it: that of json.dumps, but for floats."""
    if isinstance(value, dict):
        return f"{{{','.join(f'{_json(key)}:{_json(item)}' for key, item in value.items())}}}"
    if isinstance(value, list):
        return f"[{','.join(map(_json, value))}]"
    if isinstance(value, float):
        mantissa, _, exponent = repr(value).partition("e")
        if exponent == "-05":  # where Python turns to exponents, one place before Rust: 1e-05, 0.00001
            return re.sub(r"^(-?)(\d)\.?", r"\g<1>0.0000\2", mantissa)
        return f"{mantissa}e{int(exponent)}" if exponent else mantissa
    return json.dumps(value, ensure_ascii=False)


def _as_json(schema: Any, error: type[Exception], where: str) -> Any:
    """`schema` as it reaches the library, through JSON text: tuples become lists, numbers what serde_json reads."""
    deepest = 118  # levels of nesting: serde_json reads 128, and a conversation in JSON needs some around a schema
    try:
        schema = json.loads(json.dumps(schema, allow_nan=False), parse_int=_number, parse_float=_number)
        depth = _depth(schema)
    except (TypeError, ValueError, RecursionError) as reason:
        raise error(f"{where}: expected what JSON can hold, found {reason}") from None
    expect(depth <= deepest, error, where, f"at most {deepest} levels of nesting", depth)
    return schema

def _depth(value: Any) -> int:
    inner = value.values() if isinstance(value, dict) else value if isinstance(value, list) else None
    return 0 if inner is None else 1 + max(map(_depth, inner), default=0)


def _number(text: str) -> int | float:
    """Integers of 64 bits stay whole. All else takes serde_json's short way to a float, which may miss the nearest one
    by a unit in the last place: at most 64 bits of digits, times or over one power of ten."""
    mantissa, _, exponent = text.partition("e")
    whole, _, fraction = mantissa.partition(".")
    if whole == text and -2**63 <= int(text) < 2**64:
        return int(text)
    digits, exponent = abs(int(whole + fraction)), int(exponent or 0) - len(fraction)
    while digits >= 2**64:
        digits, exponent = digits // 10, exponent + 1
    value = float(digits)
    if exponent < -308:
        value, exponent = value / 1e308, exponent + 308
    value = value / float(f"1e{-exponent}") if exponent < 0 else value * float(f"1e{exponent}")
    if value == float("inf"):
        raise ValueError(f"a number beyond 64-bit floats, {text[:20]}")
    return -value if text.startswith("-") else value
