"""Hypothesis strategies for Harmony: texts, JSON schemas, conversations and streams of tokens, usual and odd ones."""

from hypothesis import strategies as st

import harmony
from harmony import DeveloperContent, Function, Message, Namespace, SystemContent

ODD_TEXTS = [
    "", " ", "\n", "\r\n", "a\r\nb", "a\rb\r", "line\n\n", "\n\nx\n", "a\r\r\nb", "a\u2028b\u0085c\x0bd\x0ce\x1cf",
    "<|start|>system<|message|>", "<|end|>", "<|constrain|>json", "<|channel|>final", "to=functions.f", "null", "all",
    "\u00a0x\u3000", "\ufeffbom", "e\u0301", "\ufffd", "héllo wörld", "日本語", "🙂‍↔️", "// remark", '"quoted" \\ back',
    "# Tools", "\x00\x7f", "12345678", "   many   spaces   ", "word " * 30]
CHANNELS = ["analysis", "commentary", "final"]


def texts(max_size=12):
    return st.one_of(st.sampled_from(["Hi.", "What is 2 + 2?", "x"]), st.sampled_from(ODD_TEXTS),
                     st.text("ab zB1 .\n\r\t<|>:=é日🙂\"'\\/", max_size=max_size), st.text(max_size=max_size))


def mostly(usual, odd):
    """`usual` nine times in ten."""
    return st.integers(0, 9).flatmap(lambda n: odd if n == 9 else usual)


names = mostly(st.sampled_from(["f", "g", "get_weather", "functions", "browser", "python", "z", "é"]), texts(4))

# ---- JSON schemas ---------------------------------------------------------------------------------------------------

numbers = st.one_of(
    st.integers(-20, 20), st.integers(), st.floats(allow_nan=False, allow_infinity=False),
    st.sampled_from([2**63, 2**64 - 1, 2**64, -2**63, -2**63 - 1, 10**30, 1e16, 1e15, 1e-4, 1e-5, 1.5e-5, -1.25e-5,
                     1e-6, 0.1, -0.0, 1e300, 5e-324]))
scalars = st.one_of(st.none(), st.booleans(), numbers, texts(6))
json_values = st.recursive(
    scalars, lambda inner: st.lists(inner, max_size=3) | st.dictionaries(texts(4), inner, max_size=3), max_leaves=4)
kinds = st.sampled_from(["string", "string", "number", "integer", "boolean", "null", "object", "array", "date"])
descriptions = mostly(st.sampled_from(["first", "second"]), texts())  # often equal: what was said is not said again
values = st.sampled_from([["a", "b"], ["null"], [], "a", {}]) | st.lists(texts(4) | scalars, max_size=3)

simple = st.fixed_dictionaries({}, optional={
    "type": kinds | st.lists(kinds | scalars, max_size=3), "description": descriptions, "enum": values,
    "default": st.sampled_from(["a", "z", "", 1]) | json_values, "nullable": mostly(st.booleans(), scalars)})
leaves = mostly(simple, json_values)


@st.composite
def _compound(draw, inner):
    """An object, an array or a oneOf, each with some of everything else; every value now and then of another type."""
    keys = {
        "properties": st.dictionaries(names, inner, max_size=3), "required": st.lists(names, max_size=3),
        "items": inner, "oneOf": st.lists(inner, max_size=3), "title": texts(6), "examples": values,
        "anyOf": st.just([]), "$ref": texts(4), "const": scalars, "additionalProperties": inner, "pattern": texts(4)}
    kind = draw(st.sampled_from(["object", "array", "oneOf"]))
    chosen = {"object": ["properties", "required"], "array": ["items"], "oneOf": ["oneOf"]}[kind]
    schema = draw(simple) | ({} if kind == "oneOf" else {"type": kind})
    for key in draw(st.permutations([*chosen, *draw(st.lists(st.sampled_from(sorted(keys)), max_size=3))])):
        schema[key] = draw(mostly(keys[key], json_values))
    return schema


schemas = st.recursive(leaves, _compound, max_leaves=6)
parameters = st.none() | _compound(schemas) | st.fixed_dictionaries(
    {"type": st.just("object"), "properties": st.dictionaries(names, schemas, max_size=4)},
    optional={"required": st.lists(names, max_size=3), "description": texts()})

# ---- Conversations --------------------------------------------------------------------------------------------------

functions = st.builds(Function, names, texts(), parameters)
namespaces = st.one_of(
    st.builds(Namespace, st.just("functions"), st.none() | texts(), st.lists(functions, max_size=3)),
    st.builds(Namespace, names, st.none() | texts(), st.lists(functions, max_size=2)),
    st.sampled_from([harmony.BROWSER, harmony.PYTHON]))
maybe = st.none() | texts()
systems = st.just(SystemContent()) | st.builds(
    SystemContent, maybe, st.none() | st.sampled_from(harmony.EFFORTS), maybe, maybe,
    st.none() | st.lists(st.sampled_from(CHANNELS) | texts(4), max_size=3), st.booleans(),
    st.lists(namespaces, max_size=2))
developers = st.builds(DeveloperContent, maybe, st.lists(namespaces, max_size=2))
recipients = st.sampled_from([None, None, "functions.f", "browser.search", "python", "all", "assistant", ""]) | texts(4)
channels = st.sampled_from([None, *CHANNELS]) | texts(4)
content_types = st.sampled_from([None, None, "<|constrain|>json", "json", "<|constrain|> json", "<|constrain|>",
                                 "x<|constrain|>json", ""]) | texts(4)


def _messages(role, parts):
    """A part in a message of the wrong role, or a tool without a name, now and then: refused, by both."""
    name = mostly(names, st.none()) if role == "tool" else mostly(st.none(), names)
    content = texts() | st.lists(mostly(parts, systems | developers), max_size=3)
    return st.builds(Message, st.just(role), content, name=name, channel=channels, recipient=recipients,
                     content_type=content_types)


messages = st.one_of(
    _messages("system", systems | texts()), _messages("developer", developers), _messages("user", texts()),
    _messages("assistant", texts()), _messages("assistant", texts()), _messages("tool", texts()))
conversations = st.lists(messages, max_size=6)

# ---- Messages that survive rendering and parsing: what a header can hold without doubt ------------------------------

words = st.text("abcdefgxyzABC0123456789._-é日", min_size=1, max_size=8).filter(lambda word: word not in harmony.ROLES)


@st.composite
def plain_messages(draw):
    role = draw(st.sampled_from(harmony.ROLES))
    recipient = draw(words if role == "tool" else st.none() | words.filter(lambda word: word != "all"))
    content_type = None if recipient is None else draw(st.none() | words | words.map("<|constrain|>{}".format))
    return Message(role, draw(texts()), name=draw(words) if role == "tool" else None, recipient=recipient,
                   channel=draw(st.none() | words), content_type=content_type)


# ---- Streams of tokens ----------------------------------------------------------------------------------------------

def streams(tokenizer):
    """Strategy of token lists: rendered messages, loosely built ones, either of them damaged, and random tokens."""
    start, message, channel, constrain, end, return_, call = (tokenizer.special_tokens[f"<|{name}|>"] for name in (
        "start", "message", "channel", "constrain", "end", "return", "call"))
    stops = st.sampled_from([[end], [return_], [call]])
    broken = [token for token in range(tokenizer.vocab_size) if "\ufffd" in tokenizer.decode([token])]
    words = st.sampled_from([tokenizer.encode(text) for text in [
        "assistant", "user", "tool", "system", " to=functions.f", "to=x", " commentary", "analysis", "final", " json",
        " ", "\n", "\xa0", "\u2003", "\x0b", "\x1c", "<", "functions.f to=assistant", " a b c d", "x<|channel|>y"]])
    rare = st.one_of(
        st.lists(st.sampled_from(broken), min_size=1, max_size=3), texts().map(tokenizer.encode),
        st.sampled_from([[token] for token in (201_089, 250_000, 2**32 - 1, 199_998, 199_999, 200_018, 200_500)]),
        st.lists(st.integers(0, tokenizer.vocab_size - 1), min_size=1, max_size=2))
    special = st.sampled_from([[start], [message], [channel], [constrain], [end], [return_], [call]])
    pieces = st.one_of(words, words, rare, rare, special)

    @st.composite
    def loose(draw):
        tokens = []
        for _ in range(draw(st.integers(1, 3))):
            tokens += draw(st.sampled_from([[start], [start], []]))
            for part in ([], [channel], [constrain]):
                tokens += draw(st.sampled_from([part, part, []])) + draw(mostly(words | st.just([]), pieces))
            tokens += draw(mostly(st.just([message]), pieces))
            tokens += sum(draw(st.lists(words | rare, max_size=4)), []) + draw(mostly(stops, pieces))
        return tokens

    whole = st.lists(plain_messages(), min_size=1, max_size=3).map(
        lambda messages: harmony.render(messages, tokenizer, next_role=None, drop_analysis=False))
    cut = whole.map(lambda tokens: tokens[2:])  # without "[start]role", as a model's reply comes

    @st.composite
    def damaged(draw):
        tokens = draw(whole | cut | loose())
        for _ in range(draw(st.integers(1, 3))):
            at = draw(st.integers(0, len(tokens)))
            tokens[at:at + draw(st.integers(0, 2))] = draw(pieces | st.just([]))
        return tokens

    return st.one_of(whole | cut, loose(), loose(), damaged(), damaged(),
                     st.lists(pieces, max_size=12).map(lambda parts: sum(parts, [])))
