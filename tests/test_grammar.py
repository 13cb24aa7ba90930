"""grammar.py against llguidance and jsonschema; against itself: every state can be completed; schemas that are refused."""

import json
import random
import re

import jsonschema
import llguidance
import pytest

from grammar import BLANKS, DIGITS, LEVELS, Grammar, GrammarError

SCHEMAS, DOCUMENTS = 2_000, 5  # of each schema so many documents: 10,000 in all


def accepts(grammar, text):
    data = text if isinstance(text, bytes) else text.encode()
    state = grammar.advance(grammar.start, data)
    return state is not None and grammar.complete(state)


# ---- The oracles ----------------------------------------------------------------------------------------------------

BYTES = llguidance.LLTokenizer.from_tiktoken(  # one token for each byte
    encoder={bytes([n]): n for n in range(256)}, special_tokens={"<|end|>": 256}, pattern=r"[\s\S]", eos_token=256,
    n_vocab=257)


def theirs(schema):
    """llguidance's automaton. None: it cannot hold the schema."""
    grammar = llguidance.LLMatcher.grammar_from_json_schema(json.dumps(schema))
    matcher = llguidance.LLMatcher(BYTES, grammar, log_level=0)
    return None if matcher.get_error() else matcher


def they_accept(matcher, text):
    data = list(text.encode())
    matcher.reset()
    return matcher.try_consume_tokens(data) == len(data) and matcher.is_accepting()


def pairs_once(pairs):
    assert len({name for name, _ in pairs}) == len(pairs), "a key twice"
    return dict(pairs)


def parsed(text):
    """The value of a JSON text, strictly: no key twice, no half of a surrogate pair."""
    value = json.loads(text, object_pairs_hook=pairs_once)
    json.dumps(value, ensure_ascii=False).encode()
    return value


# What they accept, what is valid, and what we refuse: each with a text that shows it.
NUMERAL = re.compile(r"-?(\d+)(?:\.(\d+))?(?:[eE][+-]?(\d+))?")


def outside_strings(text):
    return re.sub(r'"(?:[^"\\]|\\.)*"', '""', text)


def wide_space(text, schema):
    """White space of more than a blank, or than a line feed and some blanks or tabs."""
    return any(not re.fullmatch(rf" |\n[ \t]{{0,{BLANKS}}}", run) for run in re.findall(r"\s+", outside_strings(text)))


def long_number(text, schema):
    return any(len(whole) > DIGITS or len(fraction) > DIGITS or len(exponent) > 2
               for whole, fraction, exponent in NUMERAL.findall(outside_strings(text)))


def deep(text, schema):
    depths = [0]
    for char in outside_strings(text):
        depths.append(depths[-1] + (char in "[{") - (char in "]}"))
    return max(depths) > LEVELS


def key_twice(text, schema):
    try:
        json.loads(text, object_pairs_hook=pairs_once)
    except AssertionError:
        return True
    return False


def known_key_in_disguise(text, schema):
    """They take a property that is spelled with an escape for an additional one, which may then stand anywhere."""
    return "properties" in json.dumps(schema) and re.search(r'\\[^"]*"\s*:', text) is not None


DIFFERENCES = {
    wide_space: ({}, '{"a":  1}'),
    long_number: ({"type": "integer"}, "1" * (DIGITS + 1)),
    deep: ({}, "[" * (LEVELS + 1) + "]" * (LEVELS + 1)),
    key_twice: ({"type": "object"}, '{"a": 1, "a": 2}'),
    known_key_in_disguise: ({"properties": {"a": {}, "b": {}}}, '{"b": 1, "\\u0061": 2}'),
}


@pytest.mark.parametrize("difference", DIFFERENCES, ids=lambda difference: difference.__name__)
def test_a_difference_is_real(difference):
    schema, text = DIFFERENCES[difference]
    assert they_accept(theirs(schema), text)
    assert jsonschema.Draft202012Validator(schema).is_valid(json.loads(text))
    assert not accepts(Grammar(schema), text)
    assert [other for other in DIFFERENCES if other(text, schema)] == [difference]


# ---- Random schemas -------------------------------------------------------------------------------------------------

NAMES = ["a", "b", "name", "kind", "é", 'say "hi"', "\n", "😀", "a/b", ""]
TEXTS = ["", "a", "ab", "celsius", "é", "日本", "😀", 'q"\\/', "\t\x01", "\x7f", "e\u0301", "\U0010ffff", "\u2028"]
CONSTANTS = [*TEXTS, None, True, False, 0, 1, -7, 2.5, 1e-7, 3.0]


def some_value(rng, depth=2):
    """A value of any kind."""
    kind = rng.randrange(7 if depth else 5)
    if kind == 5:
        return [some_value(rng, depth - 1) for _ in range(rng.randrange(3))]
    if kind == 6:
        return {rng.choice(NAMES): some_value(rng, depth - 1) for _ in range(rng.randrange(3))}
    return [rng.choice(TEXTS), rng.randrange(-20, 20), rng.choice([0.5, -2.25, 12345.0625, 3.0]), rng.random() < 0.5,
            None][kind]


def bounds(rng, low, high, least, most):
    """Perhaps a bound from below and one from above; seldom ones that nothing satisfies."""
    a, b = sorted(rng.choices(range(low, high), k=2))
    if rng.random() < 0.05:
        a, b = b, a
    return {key: bound for key, bound in ((least, a), (most, b)) if rng.random() < 0.4}


def some_schema(rng, depth=3):
    nested = ["object", "object", "array", "array", "anyOf", "oneOf", "beside", "allOf"]
    kind = rng.choice(["string", "integer", "number", "boolean", "null", "enum", "const", "list", "$ref", "any"]
                      + nested * (depth > 0))
    inner = lambda: some_schema(rng, depth - 1)  # noqa: E731
    match kind:
        case "string":
            return {"type": kind, **bounds(rng, 0, 5, "minLength", "maxLength")}
        case "integer":
            return {"type": kind, **bounds(rng, -120, 120, "minimum", "maximum"),
                    **(bounds(rng, -120, 120, "exclusiveMinimum", "exclusiveMaximum") if rng.random() < 0.2 else {})}
        case "number":
            return {"type": kind} | {key: bound / 8 for key, bound in bounds(rng, -99, 99, "minimum", "maximum").items()}
        case "boolean" | "null":
            return {"type": kind, "description": "…"}
        case "enum":
            return {"enum": rng.choices(CONSTANTS, k=rng.randrange(1, 5))}
        case "const":
            return {"const": rng.choice(CONSTANTS)}
        case "list":
            return {"type": rng.sample(["string", "integer", "number", "null", "boolean", "array", "object"], 2)}
        case "$ref":
            return {"$ref": rng.choice(["#", "#/$defs/one", "#/$defs/two"])}
        case "any":
            return rng.choice([True, {}, {"title": "any"}, False])
        case "array":
            schema = {"type": "array", **bounds(rng, 0, 4, "minItems", "maxItems")}
            if rng.random() < 0.8:
                schema["items"] = inner()
            return schema
        case "object":
            names = rng.sample(NAMES, rng.randrange(5))
            schema = {"type": "object", "properties": {name: inner() for name in names}}
            schema["required"] = [name for name in names if rng.random() < 0.4]
            if rng.random() < 0.1:
                schema["required"].append("more")
            if rng.random() < 0.7:
                schema["additionalProperties"] = False if rng.random() < 0.6 else inner()
            return schema
        case "anyOf":
            return {"anyOf": [inner() for _ in range(rng.randrange(1, 4))]}
        case "oneOf":
            if rng.random() < 0.5:
                return {"oneOf": [{"type": "string"}, {"type": ["integer", "null"]}, {"type": "array", "items": inner()}]}
            return {"oneOf": [{"type": "object", "properties": {"kind": {"const": kind}, "of": inner()},
                               "required": ["kind"]} for kind in rng.sample(TEXTS, 2)]}
        case "allOf":
            return {"allOf": [inner()]}
        case "beside":
            schema = {"type": "object", "properties": {"a": inner(), "b": inner()}}
            return rng.choice([schema | {"anyOf": [{"required": ["a"]}, {"required": ["b"]}]},
                               {"type": ["object", "null"], "anyOf": [schema, {"type": "null"}]},
                               {"$ref": "#/$defs/one", "title": "…"}, {"type": "string", "$ref": "#/$defs/two"},
                               {"type": ["string", "integer"], "enum": rng.choices(CONSTANTS, k=4)}])


def some_root(rng):
    schema = some_schema(rng)
    schema = {"allOf": [schema]} if isinstance(schema, bool) else dict(schema)
    return schema | {"$defs": {"one": some_schema(rng, 2), "two": some_schema(rng, 1)}}


def value_of(schema, root, rng, depth=6):
    """A value that mostly satisfies the schema, with its properties in order. May raise RecursionError."""
    if depth < 0:
        raise RecursionError
    inner = lambda part: value_of(part, root, rng, depth - 1)  # noqa: E731
    if isinstance(schema, bool) or not schema.keys() - {"title", "$defs", "description"}:
        return some_value(rng)
    for key in ("anyOf", "oneOf", "allOf"):
        if key in schema:
            part = rng.choice(schema[key])
            beside = {other: schema[other] for other in schema if other != key}
            if not isinstance(part, bool) and "properties" in beside:
                part = beside | part
            return value_of(part, root, rng, depth - 1)
    if "$ref" in schema:
        return inner(root if schema["$ref"] == "#" else root["$defs"][schema["$ref"].split("/")[-1]])
    if "enum" in schema or "const" in schema:
        return rng.choice(schema.get("enum", [schema.get("const")]))
    kind = schema["type"] if isinstance(schema["type"], str) else rng.choice(schema["type"])
    match kind:
        case "string":
            size = rng.randrange(schema.get("minLength", 0), max(schema.get("maxLength", 6), schema.get("minLength", 0)) + 1)
            return "".join(rng.choice("aé日😀\n\"\\/\x7f x") for _ in range(size))
        case "integer":
            return rng.randrange(schema.get("minimum", -99), max(schema.get("maximum", 99), schema.get("minimum", -99)) + 1)
        case "number":
            return rng.uniform(schema.get("minimum", -99), schema.get("maximum", 99))
        case "boolean":
            return rng.random() < 0.5
        case "null":
            return None
        case "array":
            size = rng.randrange(schema.get("minItems", 0), max(schema.get("maxItems", 3), schema.get("minItems", 0)) + 1)
            return [inner(schema.get("items", True)) for _ in range(size)]
    value = {name: inner(part) for name, part in schema.get("properties", {}).items()
             if name in schema.get("required", []) or rng.random() < 0.5}
    rest = schema.get("additionalProperties", True)
    return value | {name: inner(rest) for name in ["more", *rng.sample(["x", "\x7f", "ü"], 1)]
                    if name in schema.get("required", []) or rest is not False and rng.random() < 0.3}


def spelled(value, rng):
    """A text of the value: white space within our bounds, some characters escaped."""
    gap = lambda: rng.choice(["", "", "", " ", "\n", "\n  ", "\n\t\t"])  # noqa: E731
    match value:
        case [] | {} if not value:
            return gap().join("[]" if isinstance(value, list) else "{}")
        case str():
            text = json.dumps(value, ensure_ascii=rng.random() < 0.3)
            return text.replace("a", "\\u0061").replace("/", "\\/") if rng.random() < 0.2 else text
        case list():
            return "[" + gap() + (gap() + "," + gap()).join(spelled(item, rng) for item in value) + gap() + "]"
        case dict():
            return "{" + gap() + (gap() + "," + gap()).join(
                spelled(name, rng) + gap() + ":" + gap() + spelled(item, rng) for name, item in value.items()) + gap() + "}"
    return json.dumps(int(value) if value in (3.0, -2.0) and not isinstance(value, bool) else value)


def mutated(text, rng):
    """The text with a change: of a character or two, or of a larger part."""
    for _ in range(rng.randrange(1, 3)):
        at, to = sorted(rng.choices(range(len(text) + 1), k=2))
        to = min(to, at + rng.randrange(4))
        part = rng.choice(["", "", rng.choice('{}[]:,"\\ \n01-.eE\t\r\x00x'), text[at:to] * 2, "  ", "null", '"a":1,', ',"a":1',
                           ',"x":[]', "\\n", "\\ud83d", "0" * 21])
        text = text[:at] + part + text[to:]
    return text


# ---- Against the oracles --------------------------------------------------------------------------------------------

def test_random_schemas_and_documents():
    rng, seen = random.Random(20250805), dict.fromkeys(["accepted", "valid", "theirs", "held", "empty", "differ"], 0)
    for _ in range(SCHEMAS):
        schema = some_root(rng)
        validator = jsonschema.Draft202012Validator(schema)
        documents = []
        for n in range(DOCUMENTS):
            try:
                value = some_value(rng) if n == 0 else value_of(schema, schema, rng)
                valid = validator.is_valid(value)
            except (RecursionError, ValueError):
                continue  # too deep, or an empty range
            text = spelled(value, rng)
            documents += [(text, valid and n > 0), (mutated(text, rng), False)]
        try:
            grammar = Grammar(schema)
        except GrammarError as error:
            assert str(error).endswith("found what none does"), schema
            assert not any(valid for _, valid in documents), schema
            seen["empty"] += 1
            continue
        matcher = theirs(schema)
        seen["held"] += matcher is not None
        for text, must in documents:
            ours = accepts(grammar, text)
            if ours:
                assert validator.is_valid(parsed(text)), (schema, text)
                seen["accepted"] += 1
            if must:  # generated from the schema, its properties in order
                assert ours, (schema, text)
                seen["valid"] += 1
            if matcher and they_accept(matcher, text) and validator.is_valid(json.loads(text)):
                seen["theirs"] += 1
                if not ours:
                    assert any(difference(text, schema) for difference in DIFFERENCES), (schema, text)
                    seen["differ"] += 1
    print(seen)
