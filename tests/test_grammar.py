"""grammar.py against llguidance and jsonschema, on random schemas. From every state the text can be completed. Schemas
that are refused."""

import json
import random
import re
from collections import Counter
from fractions import Fraction

import jsonschema
import llguidance
import pytest

from grammar import BLANKS, DIGITS, LEVELS, Grammar, GrammarError, Key, step

SCHEMAS, DOCUMENTS = 2_000, 5  # of each schema so many documents, as they are and with a change: 20,000 in all
NOTHING = f"schema: expected what some value satisfies, nested up to {LEVELS} levels deep, found what none does"


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


def valid(schema, value):
    """None: jsonschema does not come to an end, because the schema refers to itself and to nothing else."""
    try:
        return jsonschema.Draft202012Validator(schema).is_valid(value)
    except RecursionError:
        return None


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
    assert valid(schema, json.loads(text))
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
            eighths = bounds(rng, -99, 99, "minimum", "maximum")
            return {"type": kind} | {key: bound / 8 for key, bound in eighths.items()}
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
                return {"oneOf": [{"type": "string"}, {"type": ["integer", "null"]},
                                  {"type": "array", "items": inner()}]}
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


def limits(schema, least, most, low, high):
    """From where to where; `low` and `high` if the schema does not say."""
    low = schema.get(least, min(low, schema.get(most, low)))
    return low, max(schema.get(most, high), low)


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
            size = rng.randint(*limits(schema, "minLength", "maxLength", 0, 6))
            return "".join(rng.choice("aé日😀\n\"\\/\x7f x") for _ in range(size))
        case "integer":
            return rng.randint(*limits(schema, "minimum", "maximum", -99, 99))
        case "number":
            return round(rng.uniform(*limits(schema, "minimum", "maximum", -99, 99)), 3)
        case "boolean":
            return rng.random() < 0.5
        case "null":
            return None
        case "array":
            size = rng.randint(*limits(schema, "minItems", "maxItems", 0, 3))
            return [inner(schema.get("items", True)) for _ in range(size)]
    value = {name: inner(part) for name, part in schema.get("properties", {}).items()
             if name in schema.get("required", []) or rng.random() < 0.5}
    rest = schema.get("additionalProperties", True)
    return value | {name: inner(rest) for name in ["more", *rng.sample(["x", "\x7f", "ü"], 1)]
                    if name in schema.get("required", []) or rest is not False and rng.random() < 0.3}


def spelled(value, rng):
    """A text of the value: white space within our bounds, some characters escaped."""
    def gap():
        return rng.choice(["", "", "", " ", "\n", "\n  ", "\n\t\t"])

    match value:
        case str():
            text = json.dumps(value, ensure_ascii=rng.random() < 0.3)
            return text.replace("a", "\\u0061").replace("/", "\\/") if rng.random() < 0.2 else text
        case list() | dict() if not value:
            return gap().join("[]" if isinstance(value, list) else "{}")
        case list():
            return f"[{gap()}{f'{gap()},{gap()}'.join(spelled(item, rng) for item in value)}{gap()}]"
        case dict():
            parts = [f"{spelled(name, rng)}{gap()}:{gap()}{spelled(item, rng)}" for name, item in value.items()]
            return f"{{{gap()}{f'{gap()},{gap()}'.join(parts)}{gap()}}}"
        case float() if value.is_integer():
            return str(int(value))
    return json.dumps(value)


PARTS = ["", "", *'{}[]:,"\\ \n01-.eE\t\r\x00x', "  ", "null", '"a":1,', ',"a":1', ',"x":[]', "\\n", "\\ud83d",
         "0" * 21]

def mutated(text, rng):
    """The text with a change or two, of a character or of a larger part."""
    for _ in range(rng.randrange(1, 3)):
        at = rng.randrange(len(text) + 1)
        to = min(len(text), at + rng.randrange(4))
        text = text[:at] + rng.choice([*PARTS, text[at:to] * 2]) + text[to:]
    return text


# ---- Against the oracles --------------------------------------------------------------------------------------------

def cases(seed, count):
    """(schema, its documents), each document (value, whether it was made from the schema, its properties in order)."""
    rng = random.Random(seed)
    for _ in range(count):
        schema, documents = some_root(rng), []
        while len(documents) < DOCUMENTS:
            try:
                made = len(documents) > 0
                documents.append((value_of(schema, schema, rng) if made else some_value(rng), made))
            except (RecursionError, IndexError):  # too deep, or an empty enum
                documents.append((some_value(rng), False))
        yield schema, documents, rng


def test_random_schemas_and_documents():
    seen = Counter()
    for schema, documents, rng in cases(20250805, SCHEMAS):
        matcher, made = theirs(schema), [value for value, made in documents if made and valid(schema, value)]
        try:
            grammar = Grammar(schema)
        except GrammarError as error:
            assert str(error) == NOTHING and not made, (schema, error)
            seen["refused"] += 1
            continue
        texts = [spelled(value, rng) for value, _ in documents]
        for text in [*texts, *(mutated(text, rng) for text in texts)]:
            ours = accepts(grammar, text)
            if ours:
                assert valid(schema, parsed(text)) is not False, (schema, text)
                seen["ours"] += 1
            if matcher and they_accept(matcher, text) and valid(schema, json.loads(text)):
                seen["theirs"] += 1
                assert ours or any(difference(text, schema) for difference in DIFFERENCES), (schema, text)
            seen["all"] += 1
        for value in made:
            text = spelled(value, rng)
            assert accepts(grammar, text), (schema, text)
            seen["made"] += 1
    assert seen["all"] > 15_000 and seen["refused"] < 200, seen
    assert min(seen["ours"], seen["theirs"], seen["made"]) > 5_000, seen  # and so they did meet


def test_nothing_is_taken_that_cannot_be_completed():
    """From wherever a walk of allowed bytes stops, a short way leads to the end, and that is a valid text."""
    rng, walks, longest = random.Random(8), 0, 0
    for schema, _, _ in cases(5, 1_500):
        try:
            grammar = Grammar(schema)
        except GrammarError:
            continue
        for steps in (0, 3, 10, 30, 60):
            state, text = grammar.start, b""
            for _ in range(steps):
                allowed = may_follow(state) | {*rng.choices(range(256), k=9), *b'\\\xf0\xe0u '}
                allowed = [byte for byte in allowed if grammar.advance(state, bytes([byte]))]
                if not allowed:
                    assert grammar.complete(state), (schema, text)
                    break
                text += bytes([rng.choice(allowed)])
                state = grammar.advance(state, text[-1:])
            end = completion(grammar, state)
            assert valid(schema, parsed((text + end).decode())) is not False, (schema, text + end)
            walks, longest = walks + 1, max(longest, len(end))
    assert walks > 6_000 and longest < 500, (walks, longest)


def may_follow(state):
    """One byte of each set that reads, and two for what reads otherwise: of a string, the end and a character."""
    tops = [top for top, _ in state]
    tops += [inner for top in tops if isinstance(top, Key) for inner, _ in top.state]
    return {top[0] for top in tops if top and isinstance(top, bytes)} | {*b'"a'}


LAST = b'[{\\ \t\n'  # what makes a text longer than it must be, the worst at the end
FIRST = b'}]",:'

def completion(grammar, state):
    """Bytes that complete the text. Nothing is ever taken back: whatever is allowed leads to an end."""
    text = b""
    while not grammar.complete(state):
        assert len(text) < 5_000, text
        allowed = [byte for byte in may_follow(state) if grammar.advance(state, bytes([byte]))]
        text += bytes([min(allowed, key=lambda byte: (LAST.find(byte), FIRST.find(byte) % 9, byte))])
        state = grammar.advance(state, text[-1:])
    return text


@pytest.mark.parametrize("schema", [schema for schema, _, _ in cases(11, 40)], ids=range(40))
def test_where_tokens_begin_and_end_makes_no_difference(schema):
    rng = random.Random(3)
    try:
        grammar = Grammar(schema)
    except GrammarError as error:
        assert str(error) == NOTHING
        return
    text = completion(grammar, grammar.start)
    for _ in range(30):
        data = mutated(text.decode(), rng).encode() if rng.random() < 0.5 else text
        whole = grammar.advance(grammar.start, data)
        at = sorted(rng.choices(range(len(data) + 1), k=rng.randrange(1, 5)))
        state = grammar.start
        for low, high in zip([0, *at], [*at, len(data)], strict=True):
            state = state and grammar.advance(state, data[low:high])
        assert state == whole


def test_asking_changes_nothing():
    grammar = Grammar({"type": "object", "properties": {"a": {"type": "string"}}})
    state = grammar.advance(grammar.start, b'{"a": "x')
    before, shown = hash(state), repr(state)
    for token in (b'y"', b"\n", b"\xf0\x9f", b'", "b": [1, {"c', b'"}', b""):
        grammar.advance(state, token)
    assert hash(state) == before and repr(state) == shown
    assert state == grammar.advance(grammar.advance(grammar.start, b'{"a":'), b' "x')
    assert grammar.advance(state, b"\n") is None and not grammar.complete(state)
    assert grammar.complete(grammar.advance(state, b'"}'))


# ---- Strings and numbers --------------------------------------------------------------------------------------------

def is_string(data):
    try:
        text = json.loads(data.decode())  # strict: no control characters
        return isinstance(text, str) and text.encode() is not None and data[:1] == b'"' and data[-1:] == b'"'
    except ValueError:
        return False


def test_strings_are_utf8_and_their_escapes_are_whole():
    grammar, rng, good = Grammar({"type": "string"}), random.Random(1), 0
    edges = [0x20, 0x7F, 0x80, 0x7FF, 0x800, 0xD7FF, 0xE000, 0xFFFF, 0x10000, 0x10FFFF]
    for code in [*edges, *rng.choices([code for code in range(0x20, 0x110000) if not 0xD800 <= code < 0xE000], k=3000)]:
        if chr(code) not in '"\\':
            assert accepts(grammar, f'"{chr(code)}"')
    pieces = [b"\\", b"u", b"\\u", b"\\ud8", b"\\uDC", b"00", b"3d", b"a", b"n", b'\\"', b"\\/", b"\x00", b"\x1f",
              *(bytes([byte]) for byte in (0x80, 0x8F, 0x90, 0x9F, 0xA0, 0xBF, 0xC0, 0xC1, 0xC2, 0xDF, 0xE0, 0xE1, 0xEC,
                                           0xED, 0xEE, 0xEF, 0xF0, 0xF1, 0xF3, 0xF4, 0xF5, 0xFF))]
    for _ in range(100_000):
        data = b'"%b"' % b"".join(rng.choices(pieces, k=rng.randrange(1, 6)))
        assert accepts(grammar, data) == is_string(data), data
        good += is_string(data)
    assert 1_000 < good < 50_000, good


@pytest.mark.parametrize("schema", [
    {"type": "integer"}, {"type": "number"}, {"type": "integer", "minimum": -3, "maximum": 250},
    {"type": "integer", "exclusiveMinimum": -0.5}, {"type": "integer", "maximum": -17},
    {"type": "integer", "exclusiveMinimum": 99, "exclusiveMaximum": 1001.5}, {"type": "number", "minimum": 0},
    {"type": "number", "exclusiveMinimum": 0, "maximum": 1},
    {"type": "number", "minimum": -12.75, "exclusiveMaximum": 0.125},
    {"type": "number", "minimum": 0.0625, "maximum": 0.0625}, {"type": "number", "minimum": -2e-7, "maximum": -1e-7},
    {"type": ["integer", "number"], "minimum": 5, "exclusiveMaximum": 1e19}], ids=json.dumps)
def test_numbers(schema):
    """By the definition: JSON's form, within our bounds of length, and from the minimum to the maximum."""
    grammar, rng, good = Grammar(schema), random.Random(2), 0
    form = r"-?(0|[1-9]\d{0,19})"
    if "number" in schema["type"]:
        form += r"(\.\d{1,20})?" + (r"([eE][+-]?\d{1,2})?" if len(schema) == 1 else "")
    near = [str(bound) for bound in schema.values() if not isinstance(bound, (str, list))] or ["17"]
    for _ in range(5_000):
        text = rng.choice([rng.choice(near), str(rng.randrange(-300, 1200)),
                           "".join(rng.choices("0123456789-.", k=rng.randrange(1, 6))),
                           f"{rng.uniform(-15, 15):.{rng.randrange(22)}f}", "9" * rng.randrange(19, 23),
                           f"{rng.uniform(-1, 2):.3e}", f"-0.0000001{rng.randrange(99)}"])
        text = text + rng.choice(["", "", "", "0", "1", ".0", ".5", "e5", "E-07", "e100"])
        fits = re.fullmatch(form, text) is not None
        if fits:
            number = Fraction(text)
            for keyword, bound in schema.items():
                match keyword:
                    case "minimum":
                        fits = fits and number >= Fraction(str(bound))
                    case "maximum":
                        fits = fits and number <= Fraction(str(bound))
                    case "exclusiveMinimum":
                        fits = fits and number > Fraction(str(bound))
                    case "exclusiveMaximum":
                        fits = fits and number < Fraction(str(bound))
        assert accepts(grammar, text) == fits, text
        good += fits
    assert 10 < good < 4_990, good


# ---- By hand --------------------------------------------------------------------------------------------------------

TREE = {"$ref": "#/$defs/tree", "$defs": {"tree": {
    "type": "object", "additionalProperties": False, "properties": {"leaf": {"type": "integer"}, "both": {
        "type": "array", "items": {"$ref": "#/$defs/tree"}, "minItems": 2, "maxItems": 2}}}}}
ENDLESS = {"type": "object", "properties": {"next": {"$ref": "#"}}, "required": ["next"]}
ANIMAL = {"oneOf": [{"$ref": "#/$defs/cat"}, {"$ref": "#/$defs/dog"}], "discriminator": {"propertyName": "kind"},
          "$defs": {
    kind: {"type": "object", "properties": {"kind": {"const": kind, "type": "string"}, sound: {"type": "string"}},
           "required": ["kind", sound], "additionalProperties": False}
    for kind, sound in (("cat", "purr"), ("dog", "bark"))}}


@pytest.mark.parametrize(("schema", "good", "bad"), [
    (True, ["1", "[{}]", '{"a":{"b":[null,true]}}'],
     ["", " 1", "1 ", "[1,]", "[,1]", '{"a"}', "{,}", "01", "1.", "tru"]),
    ({"type": ["string", "null"]}, ['"a"', "null"], ["1", "[]"]),
    ({"enum": ["a", "b", 1, 2.0, None, {"a": ["é"]}]}, ['"a"', '"\\u0062"', "1", "2", "null", '{"a":["é"]}'],
     ['"ab"', '"c"', "2.0", "true", '{"a": ["é"]}']),
    ({"enum": [1, "1", True], "type": "string"}, ['"1"'], ["1", "true"]),
    ({"const": "😀", "enum": ["😀", "x"]}, ['"😀"', '"\\uD83d\\ude00"'], ['"x"', '"\\ud83d"']),
    ({"type": "string", "minLength": 2, "maxLength": 2}, ['"ab"', '"é😀"', '"\\n\\ud83d\\ude00"'], ['"a"', '"abc"']),
    ({"type": "array", "items": {"type": "null"}, "minItems": 1, "maxItems": 2}, ["[null]", "[ null ,\n null ]"],
     ["[]", "[null,null,null]", "[1]"]),
    ({"type": "array", "items": False}, ["[]", "[ ]"], ["[1]"]),
    ({"type": "object", "properties": {"a": {}, "b": {}, "c": {}}, "required": ["b"]},
     ['{"b":1}', '{"a":1,"b":2,"c":3}', '{"b":1,"c":2,"x":3}', '{"\\u0061":1,"b":2}', '{\n  "b": 1\n}'],
     ["{}", '{"b":1,"a":2}', '{"b":1,"\\u0061":2}', '{"b":1,"x":2,"c":3}', '{"b":1,"x":2,"\\u0078":3}',
      '{"b":1,"b":1}']),
    ({"properties": {"a": {"type": "null"}}}, ["7", "{}", '{"a":null}', '{"b":1}'], ['{"a":1}']),
    ({"type": "object", "required": ["z", "y"], "additionalProperties": {"type": "integer"}}, ['{"z":1,"y":2,"a":3}'],
     ['{"z":1}', '{"y":2,"z":1}', '{"z":1,"y":""}']),
    (TREE, ["{}", '{"both":[{},{"leaf":1,"both":[{},{"leaf":2}]}]}'], ['{"both":[{}]}', '{"both":[{},[]]}']),
    (ANIMAL, ['{"kind":"cat","purr":""}', '{"kind":"dog","bark":""}'], ['{"kind":"cat","bark":""}', '{"kind":"cow"}']),
    ({"anyOf": [ENDLESS["properties"]["next"], {"type": "string"}]}, ['"a"'], ["{}", "1"]),  # itself, or a string
    ({"anyOf": [{"type": "array", "items": {"$ref": "#"}, "minItems": 1}, False, {"enum": []}, {"const": 0}]},
     ["0", "[[0],0]"], ["[]", "[[]]", "1"]),
    ({"properties": {"a": False, "b": {"minLength": 2, "maxLength": 1, "type": "string"}}, "type": "object"},
     ["{}", '{"c":1}'], ['{"a', '{"b":']),  # as soon as there is no way on
    ({"type": "object", "anyOf": [{"required": ["a"]}, {"required": ["b"]}]}, ['{"a":1}', '{"b":1,"a":2}'],
     ["{}", '{"c":1}']),
    ({"allOf": [{"$ref": "#/definitions/a~1b"}], "type": "integer", "definitions": {"a/b": {"minimum": 3}}},
     ["3"], ["2", "3.5"]),
    ({"oneOf": [{"const": 1}, {"const": True}, {"type": "object"}, {"enum": ["a"]}]}, ["1", "true", "{}", '"a"'],
     ["2"]),
    ({"type": "integer", "minimum": 8, "maximum": 12}, ["8", "9", "10", "12"],
     ["7", "13", "80", "1", "-", "1.0", "08"]),
], ids=lambda value: json.dumps(value)[:40] if isinstance(value, dict) else None)
def test_texts(schema, good, bad):
    grammar = Grammar(schema)
    for text in good:
        assert accepts(grammar, text), text
        assert valid(schema, parsed(text)) is not False, text
    for text in bad:
        assert not accepts(grammar, text), text


def test_nothing_is_begun_that_nothing_satisfies():
    endless = {"type": "object", "properties": {"next": {"$ref": "#/$defs/endless"}}, "required": ["next"]}
    grammar = Grammar({"type": "object", "properties": {"a": endless, "b": False, "ab": {}}, "required": ["ab"],
                       "additionalProperties": False, "$defs": {"endless": endless}})
    assert grammar.advance(grammar.start, b'{"a"') is None and accepts(grammar, '{"ab":{"ab":1}}')
    assert grammar.advance(grammar.start, b'{"b') is None
    deep = Grammar({"type": "array", "items": {"$ref": "#"}})
    assert accepts(deep, "[" * LEVELS + "]" * LEVELS) and deep.advance(deep.start, b"[" * (LEVELS + 1)) is None


def test_a_choice_at_every_level_does_not_multiply():
    schema = {"type": "object", "properties": {"a": {"$ref": "#"}}, "anyOf": [{"required": ["a"]}, {"required": ["b"]}]}
    grammar = Grammar(schema)
    state = grammar.advance(grammar.start, b'{"a": ' * (LEVELS - 1))
    assert len(state) == 1 and accepts(grammar, '{"a": ' * (LEVELS - 1) + '{"b": 1}' + "}" * (LEVELS - 1))


def test_states_are_equal_however_they_came_about():
    grammar, data = Grammar(True), b'{"a": [' * (LEVELS // 2)
    one = grammar.advance(grammar.start, data)
    step.cache_clear()  # so that the other shares no object with it
    other = grammar.advance(grammar.start, data)
    assert one == other and one is not other and hash(one) == hash(other)


CIRCLE = {}
CIRCLE["items"] = CIRCLE
NESTED = {"type": "string"}
for _ in range(700):
    NESTED = {"items": NESTED}
LONG = {"type": "string"}
for _ in range(LEVELS + 1):
    LONG = {"type": "array", "items": LONG, "minItems": 1}


@pytest.mark.parametrize(("schema", "said"), [
    (3, "schema: expected an object or a boolean, found 3"),
    ({"type": "strin"}, "schema.type: expected a type or a list of types, found strin"),
    ({"type": ["string", 1]}, "schema.type: expected a type or a list of types, found ['string', 1]"),
    ({"properties": {"x": {"type": "string", "pattern": "a+"}}},
     "schema.properties.x: expected keywords that a grammar can enforce, found pattern"),
    *(({"items": {keyword: 1}}, f"schema.items: expected keywords that a grammar can enforce, found {keyword}")
      for keyword in ("format", "multipleOf", "not", "if", "then", "else", "patternProperties", "propertyNames",
                      "uniqueItems", "contains", "minContains", "minProperties", "maxProperties", "dependentRequired",
                      "dependentSchemas", "unevaluatedProperties", "unevaluatedItems", "prefixItems", "additionalItems",
                      "$dynamicRef", "$anchor", "contentEncoding")),
    ({"items": [{"type": "string"}]}, "schema.items: expected an object or a boolean, found [{'type': 'string'}]"),
    ({"properties": []}, "schema.properties: expected an object, found []"),
    ({"required": "a"}, "schema.required: expected a list of names, found a"),
    ({"minItems": -1}, "schema.minItems: expected a whole number of at least 0, found -1"),
    ({"maxLength": 2.5}, "schema.maxLength: expected a whole number of at least 0, found 2.5"),
    ({"minimum": True}, "schema.minimum: expected a number of up to 20 digits, found True"),
    ({"maximum": 1e20}, f"schema.maximum: expected a number of up to 20 digits, found {10**20}"),
    ({"anyOf": []}, "schema.anyOf: expected a list that is not empty, found []"),
    ({"anyOf": [{}, 1]}, "schema.anyOf[1]: expected an object or a boolean, found 1"),
    ({"enum": "ab"}, "schema.enum: expected a list, found ab"),
    ({"enum": ["ab"], "maxLength": 1},
     "schema: expected nothing but a type beside an enum or a const, found maxLength"),
    ({"allOf": [{}, {}]}, "schema.allOf: expected one schema, found 2"),
    ({"$ref": "other.json"}, "schema.$ref: expected # or #/..., found other.json"),
    ({"items": {"$ref": "#/$defs/x"}}, "schema.items.$ref: expected what there is in the schema, found #/$defs/x"),
    ({"$ref": "#/$defs/x", "$defs": {"x": {"format": "date"}}},
     "schema.$defs.x: expected keywords that a grammar can enforce, found format"),
    ({"properties": {"x": {}}, "anyOf": [{"properties": {"y": {}}}]},
     "schema.anyOf[0]: expected keywords that stand only once, found properties"),
    ({"additionalProperties": False, "anyOf": [{"properties": {"y": {}}}]},
     "schema.anyOf[0]: expected properties in one place, found them here and beside it"),
    ({"required": ["a"], "anyOf": [{"required": ["b"]}]},
     "schema.anyOf[0]: expected keywords that stand only once, found required"),
    *(({"oneOf": alternatives}, "schema.oneOf: expected alternatives of different types, or with different constants "
       "as a required property, found some that may overlap") for alternatives in (
        [{}, {}], [{"type": "integer"}, {"type": "number"}], [{"const": 1}, {"enum": [2, 1.0]}],
        [{"type": "object", "properties": {"a": {"const": n}}} for n in range(2)],
        [{"properties": {"a": {"const": n}}, "required": ["a"]} for n in range(2)],
        [{"type": "object", "properties": {"a": {"const": n}}, "required": ["a"]} for n in (0, 1, 0)])),
    *((schema, NOTHING) for schema in (
        False, {"$ref": "#"}, {"anyOf": [{"$ref": "#"}, {"$ref": "#"}]}, {"$ref": "#", "type": "string"}, ENDLESS, LONG,
        {"enum": []}, {"type": []}, {"type": "string", "enum": [1, None]}, {"const": 1, "enum": [2]},
        {"type": "string", "minLength": 2, "maxLength": 1}, {"type": "integer", "minimum": 0.1, "maximum": 0.9},
        {"type": "number", "minimum": 0, "exclusiveMaximum": 0}, {"type": "array", "minItems": 2, "maxItems": 1},
        {"type": "array", "items": False, "minItems": 1}, {"type": "array", "items": {"$ref": "#"}, "minItems": 1},
        {"type": "object", "required": ["a"], "additionalProperties": False},
        {"type": "object", "properties": {"a": False}, "required": ["a"]},
        {"type": "string", "anyOf": [{"type": "null"}]})),
    (NESTED, "schema: expected fewer levels of nesting, found too many to read"),
    (CIRCLE, "schema: expected what JSON can hold, found Circular reference detected"),
    ({"const": {1, 2}}, "schema: expected what JSON can hold, found Object of type set is not JSON serializable"),
    ({"const": "\ud800"}, "schema: expected what JSON can hold, found 'utf-8' codec can't encode character '\\ud800' "
                          "in position 11: surrogates not allowed"),
], ids=lambda value: value if isinstance(value, str) else "")
def test_refused(schema, said):
    with pytest.raises(GrammarError) as error:
        Grammar(schema)
    assert str(error.value) == said


def test_what_only_describes_is_ignored():
    notes = {"title": "", "description": "", "default": 1, "examples": [], "$schema": "", "$id": "", "$comment": "",
             "deprecated": True, "readOnly": True, "writeOnly": True, "discriminator": {}, "$defs": {"a": 1},
             "definitions": {}}
    assert accepts(Grammar({"type": "null"} | notes), "null")
    grammar = Grammar({"properties": {"title": {"type": "integer"}}, "type": "object"})  # a name is no keyword
    assert accepts(grammar, '{"title":1}') and not accepts(grammar, '{"title":""}')
