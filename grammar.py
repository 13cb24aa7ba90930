"""The texts that a JSON schema allows, as an automaton that reads them byte by byte and knows what may follow.

A grammar is a set of rules: an array becomes "[" and its elements, elements become "]", or a value and more elements.
What is still to come is kept as a stack of symbols. The symbol on top reads a byte, or it becomes others by its rule.
Where a rule leaves a choice, there is a stack for each: the state of the automaton is a set of stacks.
For {"type": "array", "items": {"type": "integer"}}:

    read     the stacks, the top at the left           what may follow
             [ space elements                          [
    [        space elements                            blank, line feed, ], or an integer: - 0 1 ... 9
    [-7      digits space elements, space elements     0 1 ... 9, blank, line feed, comma, ]
    [-7]     the empty stack                           nothing: the text is complete

The second half of this file makes nodes of a schema, once. The first half makes symbols of nodes, as they are needed.
A state never changes: one may ask about a token without taking it.

Every keyword is obeyed, or the schema is refused, and from every state the text can be completed: what nothing
satisfies is left out. JSON Schema (draft 2020-12) speaks of values. Of the texts of a value these are allowed:

- Properties in the order of the schema, then additional ones. No key twice, in whatever way it is spelled.
- Between tokens nothing, a blank, or a line feed and up to 40 blanks or tabs. Around the value nothing.
- Strings in UTF-8, any character of which may be escaped. Half a surrogate pair is no character.
- Integers of up to 20 digits, without point or exponent. Numbers with 20 more after the point and an exponent of one or
  two digits; with a minimum or a maximum: no exponent. Constants as json.dumps writes them, without blanks.
- Values nested up to 64 levels deep.

This file knows no tokens and no model.
"""

import json
import math
import re
from dataclasses import dataclass
from fractions import Fraction
from functools import lru_cache
from itertools import combinations
from typing import NamedTuple
from urllib.parse import unquote

from checkpoint import expect

LEVELS, BLANKS, DIGITS = 64, 40, 20  # bounds on what a model may repeat
LONGEST, PARTS, ALTERNATIVES = 120_000, 5000, 500  # of a schema: characters, parts after merging, those of one oneOf


class GrammarError(ValueError):
    """A schema that nothing satisfies, or that this file cannot hold."""


# ---- The automaton --------------------------------------------------------------------------------------------------
# A symbol is bytes: it reads one byte, any of these; or a tuple (rule, *arguments): it becomes any of the sequences of
# symbols that rule(*arguments) yields; or an object: its read(byte) gives the symbols that it becomes; None: refused.
# A state is a set of (symbol on top, state below it). Stacks that differ only further below are one in it; else their
# number could double with every level of nesting. (Tomita 1985: a graph-structured stack.)

END = b"", frozenset()  # the bottom of every stack; it reads nothing

def push(symbols, state):
    for symbol in reversed(symbols):
        state = frozenset([(symbol, state)])
    return state


def settle(tops):
    """The state in which the rules among these tops are replaced by what they may become, until every top reads."""
    below = {}  # symbol -> the state below it
    while tops:
        found, changed = {}, {}
        for symbol, rest in tops:  # gathered first: to unite them one by one would take the square of the time
            found.setdefault(symbol, [below[symbol]] if symbol in below else []).append(rest)
        for symbol, rests in found.items():
            rest = rests[0] if len(rests) == 1 else frozenset().union(*rests)
            if rest != below.get(symbol):  # if it is, a rule has become itself
                below[symbol] = changed[symbol] = rest
        tops = [top for symbol, rest in changed.items() if type(symbol) is tuple
                for symbols in symbol[0](*symbol[1:]) for top in push(symbols, rest)]
    return frozenset(top for top in below.items() if type(top[0]) is not tuple)


@lru_cache(1 << 14)  # most of a text is inside strings, where the same state comes again and again
def step(state, byte):
    """The state after one more byte: empty if the byte is refused."""
    after = []
    for symbol, below in state:
        if type(symbol) is bytes:
            symbols = () if byte in symbol else None
        else:
            symbols = symbol.read(byte)
        if symbols is not None:
            after += push(symbols, below)
    return settle(after)


# ---- Rules: space, strings, numbers ---------------------------------------------------------------------------------

def space():
    yield from [(), (b" ",), (b"\n", (some, b" \t", BLANKS))]

def some(symbol, most):
    """Nothing, or the symbol up to `most` times."""
    yield ()
    if most:
        yield symbol, (some, symbol, most - 1)

def exactly(text):
    return tuple(bytes([byte]) for byte in text.encode())

SPACE, DIGIT, HEX, TAIL = (space,), b"0123456789", b"0123456789abcdefABCDEF", bytes(range(0x80, 0xC0))


def escape():
    """What follows a backslash: u and the four digits of a character or the eight of a surrogate pair, or a letter."""
    yield (b'"\\/bfnrt',)
    yield b"u", b"0123456789abcefABCEF", HEX, HEX, HEX
    yield b"u", b"dD", b"01234567", HEX, HEX
    yield b"u", b"dD", b"89abAB", HEX, HEX, b"\\", b"u", b"dD", b"cdefCDEF", HEX, HEX


AFTER = {byte: symbols for first, *symbols in [  # the first byte of a character -> its others (Unicode, table 3-7)
    (b"\\", (escape,)), (bytes({*range(0x20, 0x80)} - {*b'"\\'}),), (bytes(range(0xC2, 0xE0)), TAIL),
    (b"\xe0", TAIL[0x20:], TAIL), (bytes({*range(0xE1, 0xF0)} - {0xED}), TAIL, TAIL), (b"\xed", TAIL[:0x20], TAIL),
    (b"\xf0", TAIL[0x10:], TAIL, TAIL), (b"\xf1\xf2\xf3", TAIL, TAIL, TAIL), (b"\xf4", TAIL[:0x10], TAIL, TAIL),
] for byte in first}


class String(NamedTuple):
    """What follows the opening quote of a string of `least` to `most` characters."""
    least: int = 0
    most: float = math.inf

    def read(self, byte):
        if byte == ord('"'):
            return None if self.least else ()
        if byte in AFTER and self.most:
            return *AFTER[byte], String(max(self.least - 1, 0), self.most - 1)


def one_of(texts):
    """What follows the opening quote of one of these strings, however its characters are spelled."""
    if "" in texts:
        yield (b'"',)
    rests = {}
    for text in filter(None, texts):
        rests.setdefault(text[0], []).append(text[1:])
    for char, rest in rests.items():
        after = one_of, tuple(rest)
        if char >= " " and char not in '"\\':
            yield *exactly(char), after
        if char in SHORT:
            yield b"\\", SHORT[char], after
        code = char.encode("utf-16-be").hex()  # four digits, or the eight of a surrogate pair
        escaped = "".join(f"\\u{code[n : n + 4]}" for n in range(0, len(code), 4))
        yield *((c + c.upper() if c in "abcdef" else c).encode() for c in escaped), after

SHORT = dict(zip('"\\/\b\f\n\r\t', exactly('"\\/bfnrt'), strict=True))


def integer():
    for sign in (), (b"-",):
        yield *sign, b"0"
        yield *sign, b"123456789", (some, DIGIT, DIGITS - 1)

def fraction():
    yield from [(), (b".", DIGIT, (some, DIGIT, DIGITS - 1))]

def exponent():
    yield from [(), (b"eE", (some, b"+-", 1), DIGIT, (some, DIGIT, 1))]


def decimal(low, high, places, read):
    """What follows `read`, the first characters of a number without a sign that has up to so many places after the
    point. low and high count units of the last of these places, and are not negative."""
    if read[-1:].isdigit() and low <= Fraction(read) * 10**places <= high:
        yield ()
    for char in "0123456789.":
        whole, point, decimals = (read + char).partition(".")
        if re.fullmatch(r"(0|[1-9]\d*)(\.\d*)?", read + char) and len(decimals) <= places >= len(point):
            unit = 10 ** (places - len(decimals))
            first = int(whole + decimals) * unit
            if any(first * 10**n <= high and (first + unit) * 10**n > low  # if n more digits come before the point
                   for n in range(1 if point or not first else DIGITS)):
                yield char.encode(), (decimal, low, high, places, read + char)


# ---- Rules: values --------------------------------------------------------------------------------------------------

class Node:
    """A schema: satisfied by what satisfies one of its choices. A choice is (levels, needed, rule, *arguments): the
    rule of its text, the nodes without which there is none, and how many levels they are nested inside."""
    choices, height = (), math.inf  # height: how deep the flattest text is nested; inf: there is none

def height(choice):
    return choice[0] + max((node.height for node in choice[1]), default=0)


def value(node, room):
    """A value nested up to `room` levels deep. What needs more is not begun, because it could not be completed."""
    for choice in node.choices:
        if height(choice) <= room:
            levels, _, *rule = choice
            yield ((*rule, room - levels),)

def scalar(symbols, room):
    yield symbols


def array(item, least, most, room):
    yield b"[", SPACE, (elements, item, least, most, True, room)

def elements(item, least, most, first, room):
    """What stands where an element begins, or a comma before it."""
    if not least:
        yield (b"]",)
    if most:
        comma = () if first else (b",", SPACE)
        yield *comma, (value, item, room), SPACE, (elements, item, max(least - 1, 0), most - 1, False, room)


@dataclass(eq=False)
class Object:
    properties: list  # (name, node, whether it is required)
    rest: Node  # of all further properties

def object(shape, room):
    yield b"{", SPACE, (members, shape, 0, frozenset(name for name, _, _ in shape.properties), True, room)

def members(shape, n, taken, first, room):
    """What stands where property n of the schema, or a later one, begins, or a comma before it."""
    if not any(required for _, _, required in shape.properties[n:]):
        yield (b"}",)
    if any(keys(shape, n, taken, room)):
        comma = () if first else (b",", SPACE)
        yield *comma, b'"', (keys, shape, n, taken, room)

def keys(shape, n, taken, room):
    """What follows the opening quote of a key. taken: the names that an additional property cannot have."""
    for m, (name, node, required) in enumerate(shape.properties[n:], n + 1):
        if node.height <= room:
            yield (one_of, (name,)), *property(shape, node, m, taken, room)
        if required:
            return
    if shape.rest.height <= room:
        yield (Key(shape, taken, room),)

def property(shape, node, n, taken, room):
    """What follows a key."""
    return SPACE, b":", SPACE, (value, node, room), SPACE, (members, shape, n, taken, False, room)


class Key(NamedTuple):
    """What follows the opening quote of an additional key: a string, which is read by an automaton inside this one."""
    shape: Object
    taken: frozenset
    room: int
    text: bytes = b'"'
    state: frozenset = frozenset([(String(), frozenset([END]))])

    def read(self, byte):
        text, state = self.text + bytes([byte]), step(self.state, byte)
        if END not in state:
            return (self._replace(text=text, state=state),) if state else None
        name = json.loads(text)
        if name not in self.taken:
            taken = self.taken | {name}
            return property(self.shape, self.shape.rest, len(self.shape.properties), taken, self.room)


# ---- From a schema to nodes -----------------------------------------------------------------------------------------

KINDS = {dict: "object", list: "array", str: "string", bool: "boolean", int: "integer", float: "number",
         type(None): "null"}
ANY = "anything", lambda found: True
COUNT = "a whole number of at least 0", lambda found: type(found) is int and found >= 0
BOUND = f"a number of up to {DIGITS} digits", lambda found: type(found) in (int, float) and abs(found) < 10**DIGITS
SCHEMAS = "a list that is not empty", lambda found: isinstance(found, list) and found
KEYWORDS = {
    "type": ("a type or a list of types", lambda found: all(kind in KINDS.values() for kind in as_list(found))),
    "const": ANY, "enum": ("a list", lambda found: isinstance(found, list)),
    "properties": ("an object", lambda found: isinstance(found, dict)), "additionalProperties": ANY, "items": ANY,
    "required": ("a list of names", lambda found: isinstance(found, list) and all(isinstance(n, str) for n in found)),
    **dict.fromkeys(("minItems", "maxItems", "minLength", "maxLength"), COUNT),
    **dict.fromkeys(("minimum", "maximum", "exclusiveMinimum", "exclusiveMaximum"), BOUND),
    **dict.fromkeys(("allOf", "anyOf", "oneOf"), SCHEMAS),
    "$ref": ("# or #/...", lambda found: isinstance(found, str) and (found + "/").startswith("#/"))}
ANNOTATIONS = {"title", "description", "default", "examples", "$schema", "$id", "$comment", "deprecated", "readOnly",
               "writeOnly", "discriminator", "nullable", "$defs", "definitions"}  # the last two: what is referred to


class Grammar:
    """The texts that `schema`, a JSON schema as Python values, allows. Raises GrammarError for one that this file
    cannot hold: which part of the schema, what was expected, what was found.

        state = grammar.start
        state = grammar.advance(state, b'{"na')  # None: refused

    States can be compared and hashed, and never change."""

    def __init__(self, schema):
        self._nodes, nodes = {}, []
        self._complete = nodes.append  # children before their parents, except where a schema refers to itself
        try:
            self._schema = as_json(schema)
            root = self._node(self._schema, "schema")
        except RecursionError:
            raise GrammarError("schema: expected fewer levels of nesting, found too many to read") from None
        before = None
        while before != (before := [node.height for node in nodes]):  # what needs itself for ever stays at inf
            for node in nodes:
                node.height = min(map(height, node.choices), default=math.inf)
        expect(root.height <= LEVELS, GrammarError, "schema",
               f"what some value satisfies, nested up to {LEVELS} levels deep", "what none does")
        self.start = settle([((value, root, LEVELS), frozenset([END]))])

    def advance(self, state, data):
        """The state after some more bytes. None: they are refused, because no allowed text begins like this."""
        for byte in data:
            state = step(state, byte)
        return state or None

    def complete(self, state):
        """Whether the text may end here."""
        return END in state

    def _node(self, schema, where):
        """The node of a schema. Of the same schema, wherever it stands, the same node: so recursion comes to an end."""
        schema = {} if schema is True else schema
        key = json.dumps(schema)
        if key not in self._nodes:
            expect(len(self._nodes) < PARTS, GrammarError, "schema", f"at most {PARTS} parts", "more")
            node = self._nodes[key] = Node()
            node.choices = [*self._choices(checked(schema, where), where)] if schema is not False else []
            self._complete(node)
        return self._nodes[key]

    def _choices(self, schema, where):
        for keyword in "$ref", "allOf", "anyOf", "oneOf":
            if keyword in schema:
                return self._references(schema, keyword, where)
        return self._kinds(schema, where) if constants(schema) is None else self._constants(schema, where)

    def _references(self, schema, keyword, where):
        """The choices of a schema that refers to others. What it says beside that holds for each of them."""
        beside = {other: found for other, found in schema.items() if other != keyword}
        parts = {f"{where}.{keyword}[{n}]": part for n, part in enumerate(schema[keyword])}
        if keyword == "$ref":
            parts = {"schema" + unquote(schema["$ref"][1:]).replace("/", "."): self._target(schema, where)}
        expect(keyword != "allOf" or len(parts) == 1, GrammarError, f"{where}.allOf", "one schema", f"{len(parts)}")
        for name, part in parts.items():
            node = self._node(both(beside, part, name), name)
            yield 0, [node], value, node
        if keyword == "oneOf":
            targets = [self._target(part, name) for name, part in parts.items()]
            expect(len(targets) <= ALTERNATIVES, GrammarError, f"{where}.oneOf", f"at most {ALTERNATIVES}", "more")
            expect(all(apart(*pair) for pair in combinations(targets, 2)), GrammarError, f"{where}.oneOf",
                   "alternatives of different types, or with different constants as a required property",
                   "some that may overlap")

    def _target(self, schema, where):
        """What a schema refers to; if it refers to nothing, itself."""
        if not isinstance(schema, dict) or "$ref" not in schema:
            return schema
        found = self._schema
        for name in unquote(schema["$ref"]).split("/")[1:]:
            found = found.get(name.replace("~1", "/").replace("~0", "~")) if isinstance(found, dict) else None
            expect(found is not None, GrammarError, f"{where}.$ref", "what there is in the schema", schema["$ref"])
        return found

    def _constants(self, schema, where):
        beside = min(schema.keys() - {"enum", "const", "type"}, default=None)
        expect(beside is None, GrammarError, where, "nothing but a type beside an enum or a const", beside)
        kinds = kinds_of(schema)
        found = [constant for constant in constants(schema) if KINDS[type(constant)] in kinds]
        if texts := tuple(text for text in found if isinstance(text, str)):
            yield 0, [], scalar, (b'"', (one_of, texts))
        for constant in found:
            if not isinstance(constant, str):
                yield 0, [], scalar, exactly(json.dumps(constant, ensure_ascii=False, separators=(",", ":")))

    def _kinds(self, schema, where):
        kinds = kinds_of(schema)
        if "object" in kinds:
            required = schema.get("required", [])
            rest = self._node(schema.get("additionalProperties", True), f"{where}.additionalProperties")
            nodes = {name: self._node(part, f"{where}.properties.{name}")
                     for name, part in schema.get("properties", {}).items()}
            nodes |= {name: rest for name in required if name not in nodes}
            shape = Object([(name, node, name in required) for name, node in nodes.items()], rest)
            yield 1, [nodes[name] for name in required], object, shape
        least, most = schema.get("minItems", 0), schema.get("maxItems", math.inf)
        if "array" in kinds and least <= most:
            item = self._node(schema.get("items", True), f"{where}.items")
            yield 1, [item][:least], array, item, least, most
        least, most = schema.get("minLength", 0), schema.get("maxLength", math.inf)
        if "string" in kinds and least <= most:
            yield 0, [], scalar, (b'"', String(least, most))
        if "integer" in kinds:  # and it is wherever "number" is
            yield from numbers(schema, DIGITS if "number" in kinds else 0)
        for text in ["true", "false"] * ("boolean" in kinds) + ["null"] * ("null" in kinds):
            yield 0, [], scalar, exactly(text)


def checked(schema, where):
    """What a schema says, without what only describes, if every keyword is known and has the form that it must have."""
    expect(isinstance(schema, dict), GrammarError, where, "an object or a boolean", schema)
    schema = {keyword: found for keyword, found in schema.items() if keyword not in ANNOTATIONS}
    for keyword, found in schema.items():
        expect(keyword in KEYWORDS, GrammarError, where, "keywords that a grammar can enforce", keyword)
        expected, fits = KEYWORDS[keyword]
        expect(fits(found), GrammarError, f"{where}.{keyword}", expected, found)
    return schema


def both(one, other, where):
    """A schema that says what both say; `one` has been checked."""
    if not one or other is False:
        return other
    if other is True:
        return one
    merged = one | checked(other, where)
    for keyword in one.keys() & other.keys():
        if keyword == "type":
            merged["type"] = sorted(kinds_of(one) & kinds_of(other))
        else:
            expect(same(one[keyword], other[keyword]), GrammarError, where, "keywords that stand only once", keyword)
    lists = [{"properties", "additionalProperties"} & schema.keys() for schema in (one, other)]
    expect(not all(lists), GrammarError, where, "properties in one place", "them here and beside it")
    return merged


def numbers(schema, places):
    """The choices of a number with up to so many places after the point, or of an integer if there are none."""
    bounds = {keyword: Fraction(str(schema[keyword])) * 10**places for keyword in schema if KEYWORDS[keyword] is BOUND}
    if not bounds:
        yield 0, [], scalar, ((integer,), (fraction,), (exponent,)) if places else ((integer,),)
        return
    low, high = 1 - 10 ** (DIGITS + places), 10 ** (DIGITS + places) - 1
    low = max(low, math.ceil(bounds.get("minimum", low)), math.floor(bounds.get("exclusiveMinimum", low - 1)) + 1)
    high = min(high, math.floor(bounds.get("maximum", high)), math.ceil(bounds.get("exclusiveMaximum", high + 1)) - 1)
    if max(low, 0) <= high:
        yield 0, [], scalar, ((decimal, max(low, 0), high, places, ""),)
    if low <= min(high, -1):
        yield 0, [], scalar, (b"-", (decimal, max(-high, 0), -low, places, ""))


def apart(one, other):
    """Whether it is clear that no value satisfies both schemas: by their types, or by constants."""
    if not isinstance(one, dict) or not isinstance(other, dict):
        return False
    one, other = checked(one, "schema.oneOf"), checked(other, "schema.oneOf")
    if None not in (a := constants(one), b := constants(other)):
        return {*map(canonical, a)}.isdisjoint(map(canonical, b))
    kinds, properties = kinds_of(one) & kinds_of(other), [schema.get("properties", {}) for schema in (one, other)]
    names = {*one.get("required", ())}.intersection(other.get("required", ()), *properties)
    return not kinds or kinds == {"object"} and any(apart(*(part[name] for part in properties)) for name in names)


def constants(schema):
    """The values that enum and const leave. None: there is no such keyword."""
    if "enum" in schema and "const" in schema:
        return [constant for constant in schema["enum"] if same(constant, schema["const"])]
    return [schema["const"]] if "const" in schema else schema.get("enum")


def kinds_of(schema):
    """The types that a schema allows."""
    kinds, found = {*as_list(schema.get("type", [*KINDS.values()]))}, constants(schema)
    kinds |= {"integer"} if "number" in kinds else set()
    return kinds if found is None else kinds & {KINDS[type(constant)] for constant in found}

def as_list(found):
    return found if isinstance(found, list) else [found]

def canonical(value):
    """A text that two values share if they are equal as JSON. (In Python, True equals 1.)"""
    return json.dumps(value, sort_keys=True)

def same(one, other):
    return canonical(one) == canonical(other)

def as_json(schema):
    """`schema` as JSON holds it. There 1.0 is an integer."""
    try:
        text = json.dumps(schema, ensure_ascii=False, allow_nan=False)
        text.encode()
    except (TypeError, ValueError) as reason:
        raise GrammarError(f"schema: expected what JSON can hold, found {reason}") from None
    expect(len(text) <= LONGEST, GrammarError, "schema", f"at most {LONGEST:,} characters", f"{len(text):,}")
    return json.loads(text, parse_float=lambda text: int(float(text)) if float(text).is_integer() else float(text))
