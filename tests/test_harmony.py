"""harmony.py against openai-harmony, the library gpt-oss was published with; and by itself."""

import dataclasses
import os
import time
import tracemalloc

import harmony_strategies as strategies
import openai_harmony as reference
import pytest
from hypothesis import event, given, settings
from hypothesis import strategies as st

import harmony
from harmony import (
    BROWSER,
    PYTHON,
    DeveloperContent,
    Function,
    HarmonyError,
    Message,
    Namespace,
    StreamParser,
    SystemContent,
    parse,
    render,
)
from tokenizer import load as load_tokenizer

# The long run, 100,000 of each (a conversation counts forwards and backwards):
#     for seed in 1 2 3 4 5 6 7 8 9 10; do
#         HYPOTHESIS_PROFILE=long python -m pytest tests/test_harmony.py --hypothesis-seed=$seed || break; done
LONG = os.environ.get("HYPOTHESIS_PROFILE") == "long"
CONVERSATIONS, STREAMS = (5_000, 10_000) if LONG else (2_000, 5_000)

TOKENIZER = load_tokenizer()
REFERENCE = reference.load_harmony_encoding("HarmonyGptOss")
START, MESSAGE, CHANNEL, END, RETURN, CALL = (TOKENIZER.special_tokens[f"<|{name}|>"] for name in (
    "start", "message", "channel", "end", "return", "call"))
REFUSED = "refused"


# ---- Our objects as theirs ------------------------------------------------------------------------------------------

def theirs(part):
    match part:
        case str():
            return reference.TextContent(text=part)
        case Function():
            return reference.ToolDescription(name=part.name, description=part.description, parameters=part.parameters)
        case Namespace():
            return reference.ToolNamespaceConfig(name=part.name, description=part.description,
                                                 tools=[theirs(function) for function in part.functions])
        case DeveloperContent():
            return reference.DeveloperContent(instructions=part.instructions,
                                              tools={namespace.name: theirs(namespace) for namespace in part.tools})
        case SystemContent():
            channels = None if part.valid_channels is None else reference.ChannelConfig(
                valid_channels=list(part.valid_channels), channel_required=part.channel_required)
            effort = part.reasoning_effort and reference.ReasoningEffort(part.reasoning_effort.capitalize())
            return reference.SystemContent(
                model_identity=part.model_identity, reasoning_effort=effort, knowledge_cutoff=part.knowledge_cutoff,
                conversation_start_date=part.conversation_start_date, channel_config=channels,
                tools={namespace.name: theirs(namespace) for namespace in part.tools})
        case Message():
            parts = [part.content] if isinstance(part.content, str) else part.content
            return reference.Message(author=reference.Author(role=part.role, name=part.name), channel=part.channel,
                                     content=[theirs(p) for p in parts], recipient=part.recipient,
                                     content_type=part.content_type)


def their_render(conversation, next_role, drop_analysis, training):
    config = reference.RenderConversationConfig(auto_drop_analysis=drop_analysis)
    try:
        if training:
            return REFERENCE.render_conversation_for_training(conversation, config)
        if next_role is None:
            return REFERENCE.render_conversation(conversation, config)
        return REFERENCE.render_conversation_for_completion(conversation, reference.Role(next_role), config)
    except (RuntimeError, ValueError):  # in a conversation, and in the reading of its JSON
        return REFUSED


def our_render(messages, next_role, drop_analysis, training):
    try:
        return render(messages, TOKENIZER, next_role=next_role, drop_analysis=drop_analysis, training=training)
    except HarmonyError:
        return REFUSED


def assert_same_render(messages, next_role="assistant"):
    conversation = reference.Conversation(messages=[theirs(message) for message in messages])
    for drop_analysis in (True, False):
        for role, training in ((next_role, False), (None, False), (next_role, True)):
            expected = their_render(conversation, role, drop_analysis, training)
            found = our_render(messages, role, drop_analysis, training)
            if found != expected:
                text = [ids if ids == REFUSED else TOKENIZER.decode(ids) for ids in (expected, found)]
                pytest.fail(f"next_role={role}, drop_analysis={drop_analysis}, training={training}\n"
                            f"expected {text[0]}\n   found {text[1]}")
    return found


# ---- Rendering: equal to the reference ------------------------------------------------------------------------------

@settings(max_examples=CONVERSATIONS)
@given(strategies.conversations, st.sampled_from(harmony.ROLES))
def test_render_equals_the_reference(messages, next_role):
    """Forwards and backwards: that is two conversations, as much depends on what comes before a final answer."""
    for conversation in (messages, messages[::-1]):
        found = assert_same_render(conversation, next_role)
    event("refused" if found == REFUSED else "rendered")


def test_the_built_in_tools_are_the_reference_s():
    assert theirs(BROWSER) == reference.ToolNamespaceConfig.browser()
    assert theirs(PYTHON) == reference.ToolNamespaceConfig.python()


@settings(max_examples=CONVERSATIONS // 2)
@given(strategies.parameters)
def test_schemas_render_as_the_reference_s(parameters):
    assert_same_render([Message("developer", [DeveloperContent(tools=[
        Namespace("functions", None, [Function("f", "Does f.", parameters)])])])])


STRING, FIRST = {"type": "string"}, {"type": "string", "description": "first"}


@pytest.mark.parametrize("schema", [
    # Once said is not said again, and sometimes not at all.
    {"description": "first", "oneOf": [FIRST, FIRST, STRING]}, {"description": "other", "oneOf": [FIRST, FIRST]},
    {"oneOf": [FIRST, STRING], "title": "T", "examples": ["e"], "default": "d"}, {"description": "first", "oneOf": []},
    {"description": "first", "oneOf": [{"description": 5}]}, {"description": "first", "oneOf": ["no schema", None]},
    # null once, by any means; a property's nullable does not reach its variants.
    {"type": ["string", "null"], "nullable": True}, {"type": "null", "nullable": True},
    {"type": "string", "enum": ["nullable"], "nullable": True},
    {"nullable": True, "oneOf": [STRING]}, {"oneOf": [{"nullable": True}, {"nullable": 1}]},
    # Defaults: quoted, bare, as JSON.
    *({"type": "string", "enum": enum, "default": default} for enum in (["a"], [5], [], "a", None, {"a": 1})
      for default in ("a", 'q"\\', None, 1.0, ["a", {"b": 1e-5}])),
    {"type": "array", "items": {"oneOf": [{"enum": ["a"], "default": 'q"'}, {"default": "a", "description": "d"}]}},
    {"oneOf": 5, "description": "first", "default": 1}, {"oneOf": [{"enum": ["a"], "default": 'q"'}]},
    # Types that are no type.
    {"type": []}, {"type": [""]}, {"type": [5]}, {"type": 5}, {"type": ["integer", "date", 5]}, {"type": "array"}, {},
    {"type": "array", "items": None}, {"type": "array", "items": True}, {"type": "string", "enum": [1]},
    {"type": "array", "items": {"type": "object", "description": "d\ne", "properties": {"x": STRING}}},
    {"type": "object", "properties": {"x": {"type": "object", "properties": {"y": FIRST, "z": []}, "required": ["y"]}}},
    {"type": "object", "properties": ["x"], "required": {"x": 1}}, {"type": "object", "description": ["d"]},
    {"title": 5, "description": 5, "examples": []}, {"examples": [1]}, {"examples": "e"},
    {"description": "two\nlines", "title": "and\ntwo", "examples": ["three\nlines"]},
], ids=repr)
def test_each_rule_for_schemas(schema):
    for parameters in (schema, {"type": "object", "properties": {"p": schema, "q": schema}, "required": ["q", 5]}):
        assert_same_render([Message("developer", [DeveloperContent(tools=[
            Namespace("functions", None, [Function("f", "Does f.", parameters)])])])])


@pytest.mark.parametrize("levels", [118, 119, 2_000])
def test_deep_schemas_are_refused_where_the_reference_refuses(levels):
    schema = {}
    for _ in range(levels - 1):
        schema = {"type": "array", "items": schema}
    messages = [Message("developer", [DeveloperContent(tools=[Namespace("functions", None, [
        Function("f", "", schema)])])])]
    assert (our_render(messages, None, True, False) == REFUSED) == (levels > 118)
    if levels < 1_000:  # json.dumps, which both begin with, gives up there
        assert_same_render(messages)


def test_of_two_namespaces_with_one_name_the_later_counts():
    first, second = (Namespace("functions", None, [Function(name, "", None)]) for name in "fg")
    assert_same_render([Message("system", [SystemContent()]), Message("developer", [
        DeveloperContent(tools=[first, BROWSER, second])])])
    assert_same_render([Message("system", [SystemContent()]), Message("developer", [
        DeveloperContent(tools=[first, Namespace("functions")])])])


def test_functions_count_as_offered_even_in_a_message_that_is_dropped():
    tools = DeveloperContent(tools=[Namespace("functions", None, [Function("f", "")])])
    messages = [Message("system", [SystemContent()]), Message("developer", [tools], channel="analysis"),
                Message("assistant", "x", channel="final")]
    assert_same_render(messages)
    text = TOKENIZER.decode(render(messages, TOKENIZER))
    assert "must go to the commentary channel: 'functions'" in text and "# Tools" not in text


def test_no_text_becomes_a_special_token():
    text = "".join(TOKENIZER.special_tokens)
    ids = render([Message("system", [SystemContent(model_identity=text, knowledge_cutoff=text)]),
                  Message("developer", [DeveloperContent(text, [Namespace(text, text, [Function(text, text)])])]),
                  Message("user", text, name=text, channel=text, recipient=text, content_type=text),
                  Message("tool", text, name=text)], TOKENIZER)
    specials = [token for token in ids if token in TOKENIZER.special_tokens.values()]
    assert specials == [START, MESSAGE, END] * 2 + [START, CHANNEL, MESSAGE, END] + [START, MESSAGE, END, START]


# ---- The format's published examples, written out -------------------------------------------------------------------

WEATHER = Function("get_current_weather", "Gets the current weather in the provided location.", {
    "type": "object",
    "properties": {
        "location": {"type": "string", "description": "The city and state, e.g. San Francisco, CA"},
        "format": {"type": "string", "enum": ["celsius", "fahrenheit"], "default": "celsius"}},
    "required": ["location"]})

EVERYTHING = Function("book", "Books a table.\nAsk before you book.", {
    "type": "object",
    "properties": {
        "name": {"type": "string", "title": "GUEST", "description": "Who comes", "examples": ["Ada", "Alan"]},
        "people": {"type": "integer", "default": 2},
        "smoking": {"type": "boolean", "default": False},
        "note": {"type": "string", "nullable": True, "default": "none"},
        "days": {"type": "array", "items": {"type": "string", "enum": ["sat", "sun"]}},
        "tags": {"type": "array"},
        "id": {"type": ["integer", "string", "null"]},
        "address": {"type": "object", "description": "Where", "properties": {
            "street": {"type": "string"}, "number": {"type": "number", "default": 1.5}}, "required": ["street"]},
        "time": {"description": "When", "default": "soon", "oneOf": [
            {"type": "string", "description": "As text", "enum": ["soon", "later"], "default": "soon"},
            {"type": "number", "description": "In minutes", "nullable": True}]},
        "anything": {"anyOf": [{"type": "string"}, {"type": "number"}]}},
    "required": ["name", "address"]})

EXAMPLES = {
    "simple": (dict(), [
        Message("system", [SystemContent("You are ChatGPT, a large language model trained by OpenAI.",
                                         conversation_start_date="2025-06-28")]),
        Message("user", "What is 2 + 2?")],
        """\
<|start|>system<|message|>You are ChatGPT, a large language model trained by OpenAI.
Knowledge cutoff: 2024-06
Current date: 2025-06-28

Reasoning: medium

# Valid channels: analysis, commentary, final. Channel must be included for every message.<|end|>\
<|start|>user<|message|>What is 2 + 2?<|end|><|start|>assistant"""),

    "effort": (dict(), [
        Message("system", [SystemContent(reasoning_effort="high", knowledge_cutoff=None)]),
        Message("developer", [DeveloperContent("Answer in rhymes.")]),
        Message("user", "Why is the sky blue?")],
        """\
<|start|>system<|message|>You are ChatGPT, a large language model trained by OpenAI.

Reasoning: high

# Valid channels: analysis, commentary, final. Channel must be included for every message.<|end|>\
<|start|>developer<|message|># Instructions

Answer in rhymes.<|end|><|start|>user<|message|>Why is the sky blue?<|end|><|start|>assistant"""),

    "a finished turn, its thought dropped": (dict(), [
        Message("user", "What is 2 + 2?"),
        Message("assistant", "2 + 2 is 4.", channel="analysis"),
        Message("assistant", "4", channel="final"),
        Message("user", "And 9 / 2?")],
        "<|start|>user<|message|>What is 2 + 2?<|end|><|start|>assistant<|channel|>final<|message|>4<|end|>"
        "<|start|>user<|message|>And 9 / 2?<|end|><|start|>assistant"),

    "a turn in the middle of a call, its thought kept": (dict(), [
        Message("user", "Weather in Tokyo?"),
        Message("assistant", "I need the tool.", channel="analysis"),
        Message("assistant", '{"location":"Tokyo"}', channel="commentary", recipient="functions.get_current_weather",
                content_type="<|constrain|>json"),
        Message("tool", '{"sunny":true}', name="functions.get_current_weather", recipient="assistant",
                channel="commentary")],
        '<|start|>user<|message|>Weather in Tokyo?<|end|>'
        '<|start|>assistant<|channel|>analysis<|message|>I need the tool.<|end|>'
        '<|start|>assistant to=functions.get_current_weather<|channel|>commentary <|constrain|>json<|message|>'
        '{"location":"Tokyo"}<|call|>'
        '<|start|>functions.get_current_weather to=assistant<|channel|>commentary<|message|>{"sunny":true}<|end|>'
        '<|start|>assistant'),

    "training": (dict(training=True), [
        Message("user", "What is 2 + 2?"),
        Message("assistant", "4", channel="final")],
        "<|start|>user<|message|>What is 2 + 2?<|end|><|start|>assistant<|channel|>final<|message|>4<|return|>"),

    "functions": (dict(), [
        Message("system", [SystemContent(conversation_start_date="2025-06-28")]),
        Message("developer", [DeveloperContent("Use a friendly tone.", [Namespace("functions", None, [
            Function("get_location", "Gets the location of the user."), WEATHER])])])],
        """\
<|start|>system<|message|>You are ChatGPT, a large language model trained by OpenAI.
Knowledge cutoff: 2024-06
Current date: 2025-06-28

Reasoning: medium

# Valid channels: analysis, commentary, final. Channel must be included for every message.
Calls to these tools must go to the commentary channel: 'functions'.<|end|><|start|>developer<|message|># Instructions

Use a friendly tone.

# Tools

## functions

namespace functions {

// Gets the location of the user.
type get_location = () => any;

// Gets the current weather in the provided location.
type get_current_weather = (_: {
// The city and state, e.g. San Francisco, CA
location: string,
format?: "celsius" | "fahrenheit", // default: celsius
}) => any;

} // namespace functions<|end|><|start|>assistant"""),

    "every feature of a schema": (dict(next_role=None), [
        Message("developer", [DeveloperContent(tools=[Namespace("functions", "For tables.", [EVERYTHING])])])],
        """\
<|start|>developer<|message|># Tools

## functions

// For tables.
namespace functions {

// Books a table.
// Ask before you book.
type book = (_: {
// GUEST
//
// Who comes
// Examples:
// - "Ada"
// - "Alan"
name: string,
people?: number, // default: 2
smoking?: boolean, // default: false
note?: string | null, // default: "none"
days?: "sat" | "sun"[],
tags?: Array<any>,
id?: number | string | null,
// Where
address:     // Where
{
    street: string,
    number?: number, // default: 1.5
    },
// When
// default: "soon"
time?:
 | "soon" | "later" // default: soon
 | number | null // In minutes
,
anything?: any,
}) => any;

} // namespace functions<|end|>"""),

    "browser and python": (dict(next_role=None), [
        Message("system", [SystemContent("You are a helpful assistant.", "low", "2025-08-05",
                                         tools=[PYTHON, BROWSER])])],
        """\
<|start|>system<|message|>You are a helpful assistant.
Knowledge cutoff: 2024-06
Current date: 2025-08-05

Reasoning: low

# Tools

## browser

// Tool for browsing.
// The `cursor` appears in brackets before each browsing display: `[{cursor}]`.
// Cite information from the tool using the following format:
// `【{cursor}†L{line_start}(-L{line_end})?】`, for example: `【6†L9-L11】` or `【8†L3】`.
// Do not quote more than 10 words directly from the tool output.
// sources=web (default: web)
namespace browser {

// Searches for information related to `query` and displays `topn` results.
type search = (_: {
query: string,
topn?: number, // default: 10
source?: string,
}) => any;

// Opens the link `id` from the page indicated by `cursor` starting at line number `loc`, showing `num_lines` lines.
// Valid link ids are displayed with the formatting: `【{id}†.*】`.
// If `cursor` is not provided, the most recent page is implied.
// If `id` is a string, it is treated as a fully qualified URL associated with `source`.
// If `loc` is not provided, the viewport will be positioned at the beginning of the document or centered on the most \
relevant passage, if available.
// Use this function without `id` to scroll to a new location of an opened page.
type open = (_: {
id?: number | string, // default: -1
cursor?: number, // default: -1
loc?: number, // default: -1
num_lines?: number, // default: -1
view_source?: boolean, // default: false
source?: string,
}) => any;

// Finds exact matches of `pattern` in the current page, or the page given by `cursor`.
type find = (_: {
pattern: string,
cursor?: number, // default: -1
}) => any;

} // namespace browser

## python

Use this tool to execute Python code in your chain of thought. The code will not be shown to the user. This tool \
should be used for internal reasoning, but not for code that is intended to be visible to the user (e.g. when creating \
plots, tables, or files).

When you send a message containing Python code to python, it will be executed in a stateful Jupyter notebook \
environment. python will respond with the output of the execution or time out after 120.0 seconds. The drive at \
'/mnt/data' can be used to save and persist user files. Internet access for this session is UNKNOWN. Depends on the \
cluster.

# Valid channels: analysis, commentary, final. Channel must be included for every message.<|end|>"""),
}


@pytest.mark.parametrize("name", EXAMPLES)
def test_published_examples(name):
    options, messages, expected = EXAMPLES[name]
    ids = render(messages, TOKENIZER, **options)
    assert TOKENIZER.decode(ids) == expected
    assert ids == TOKENIZER.encode(expected, "all")  # here no token would cross the borders between pieces
    assert_same_render(messages)


# ---- Refused with one clear sentence --------------------------------------------------------------------------------

@pytest.mark.parametrize("messages, sentence", [
    (["Hi."], "messages[0]: expected Message, found 'Hi.'"),
    ([Message("robot", "Hi.")], "Message.role: expected one of system, developer, user, assistant, tool, found 'robot"),
    ([Message("user", 4)], "Message.content: expected str | list | tuple, found 4"),
    ([Message("user", [4])], "Message.content[0]: expected str | SystemContent | DeveloperContent, found 4"),
    ([Message("user", "Hi.", channel=5)], "Message.channel: expected str | None, found 5"),
    ([Message("tool", "Hi.")], "Message.name: expected a tool's name, found None"),
    ([Message("user", [SystemContent()])], "SystemContent: expected a message of role system, found user"),
    ([Message("system", [DeveloperContent()])], "DeveloperContent: expected a message of role developer, found system"),
    ([Message("system", [SystemContent(reasoning_effort="much")])],
     "SystemContent.reasoning_effort: expected one of low, medium, high, None, found 'much'"),
    ([Message("system", [SystemContent(valid_channels="final")])], "SystemContent.valid_channels: expected"),
    ([Message("system", [SystemContent(tools=["browser"])])],
     "SystemContent.tools[0]: expected Namespace, found 'browser'"),
    ([Message("developer", [DeveloperContent(tools=[Namespace("f", None, [Function("g", "", {"default": {1, 2}})])])])],
     "parameters of g: expected what JSON can hold"),
    ([Message("developer", [DeveloperContent(tools=[Namespace("f", None, [Function("g", "", {"default": 1e400})])])])],
     "parameters of g: expected what JSON can hold"),
    ([Message("user", "lone \udc00")], "expected text that has a UTF-8 form, found the lone surrogate U+DC00"),
])
def test_what_is_no_conversation_is_refused(messages, sentence):
    with pytest.raises(HarmonyError) as refusal:
        render(messages, TOKENIZER)
    assert sentence in str(refusal.value) and "\n" not in str(refusal.value)


@pytest.mark.parametrize("part, message_with", [
    (Function("f", ""), lambda part: Message("developer", [DeveloperContent(tools=[Namespace("n", None, [part])])])),
    (Namespace("n"), lambda part: Message("developer", [DeveloperContent(tools=[part])])),
    (DeveloperContent(), lambda part: Message("developer", [part])),
    (SystemContent(), lambda part: Message("system", [part])),
    (Message("user", "Hi."), lambda part: part),
], ids=lambda part: type(part).__name__)
def test_every_field_is_checked(part, message_with):
    render([message_with(part)], TOKENIZER)
    for field in dataclasses.fields(part):
        broken = dataclasses.replace(part, **{field.name: object()})
        with pytest.raises(HarmonyError, match=rf"^{type(part).__name__}\.{field.name}: expected .*, found <object"):
            render([message_with(broken)], TOKENIZER)


def test_unknown_roles_are_refused():
    for call in (lambda: render([], TOKENIZER, next_role="robot"), lambda: StreamParser(TOKENIZER, "robot")):
        with pytest.raises(HarmonyError, match="role: expected one of .*, assistant, tool, None, found 'robot'"):
            call()


# ---- Parsing: equal to the reference, token by token ----------------------------------------------------------------

# The same error has another wording here.
ERRORS = {"Unexpected token": "between messages", "Unexpected EOS": "header: expected <|message|>",
          "could not decode header": "header: expected tokens", "Could not decode tokens": "header: expected tokens",
          "channel marker present": "header: expected a name",
          "unexpected tokens remaining": "header: expected role, recipient",
          "message header did not": "header: expected a role", "Unknown role": "header: expected a role"}


def their_state(parser):
    messages = [(m.author.role.value, "".join(c.text for c in m.content), m.author.name, m.channel, m.recipient,
                 m.content_type) for m in parser.messages]
    return (messages, parser.state.value, parser.current_role and parser.current_role.value, parser.current_channel,
            parser.current_recipient, parser.current_content_type, parser.current_content, parser.last_content_delta)


def our_state(parser):
    messages = [(m.role, m.content, m.name, m.channel, m.recipient, m.content_type) for m in parser.messages]
    return (messages, parser.state, parser.current_role, parser.current_channel, parser.current_recipient,
            parser.current_content_type, parser.current_content, parser.last_content_delta)


def error_of(exception, call, *arguments):
    try:
        call(*arguments)
    except exception as error:
        return str(error)


def assert_same_parse(tokens, role, strict):
    """Holds both parsers' whole state side by side at every token, also behind errors, and at the end."""
    theirs_ = reference.StreamableParser(REFERENCE, role and reference.Role(role), strict=strict)
    ours = StreamParser(TOKENIZER, role, strict)
    errors = 0
    for n, token in enumerate([*tokens, None]):
        if token is None:
            expected = error_of(reference.HarmonyError, theirs_.process_eos)
            found = error_of(HarmonyError, ours.finish)
        else:
            expected = error_of(reference.HarmonyError, theirs_.process, token)
            found = error_of(HarmonyError, ours.feed, token)
        errors += found is not None
        kind = expected and next(ours for start, ours in ERRORS.items() if expected.startswith(start))
        assert (found is None) if kind is None else found and found.startswith(kind), (n, token, expected, found)
        assert our_state(ours) == their_state(theirs_), (n, token)
    return errors


@settings(max_examples=STREAMS)
@given(strategies.streams(TOKENIZER), st.sampled_from([None, None, "assistant", "assistant", "user", "tool"]),
       st.booleans())
def test_stream_parser_equals_the_reference(tokens, role, strict):
    errors = assert_same_parse(tokens, role, strict)
    event(f"{'strict' if strict else 'lenient'}, {'with' if errors else 'no'} errors")


@pytest.mark.parametrize("token", [-1, 2**32, 10**30, 1.5, "a", None])
def test_what_is_no_token_is_refused_and_changes_nothing(token):
    for state in ([], [START], [MESSAGE], [MESSAGE, 25]):
        parser = StreamParser(TOKENIZER, None if state == [START] else "assistant")
        for known in state:
            parser.feed(known)
        before = our_state(parser)
        with pytest.raises(HarmonyError, match="feed: expected a token id, found"):
            parser.feed(token)
        assert our_state(parser) == before


@settings(max_examples=500)
@given(st.lists(st.one_of(st.integers(), st.booleans(), st.sampled_from([START, MESSAGE, CHANNEL, END, RETURN, CALL]),
                          st.integers(0, 201_088))), st.sampled_from([None, "assistant"]), st.booleans())
def test_parse_survives_any_list_of_integers(tokens, role, strict):
    try:
        messages = parse(tokens, TOKENIZER, role, strict)
    except HarmonyError as error:
        assert "\n" not in str(error)
    else:
        render(messages, TOKENIZER)


# ---- Render and parse are each other's inverse ----------------------------------------------------------------------

@settings(max_examples=CONVERSATIONS // 4)
@given(st.lists(strategies.plain_messages(), max_size=4))
def test_parse_undoes_render(messages):
    """Where headers are without doubt (see `plain_messages`) and the name is not that of a user; and back again."""
    ids = render(messages, TOKENIZER, next_role=None, drop_analysis=False)
    for strict in (True, False):
        assert parse(ids, TOKENIZER, strict=strict) == messages
    if messages:
        role = [] if messages[0].role == "tool" else TOKENIZER.encode(messages[0].role)
        if role:  # as a reply comes: the prompt already ends with "[start]role"
            assert ids[:1 + len(role)] == [START, *role]
            assert parse(ids[1 + len(role):], TOKENIZER, messages[0].role) == messages


def test_what_parse_cannot_bring_back():
    """The losses of the format, one by one, so that nobody counts on more."""
    def there_and_back(*arguments, **fields):
        message = Message(*arguments, **fields)
        return parse(render([message], TOKENIZER, next_role=None), TOKENIZER)[0]

    assert there_and_back("user", "x", recipient="all").recipient is None
    assert there_and_back("user", "x", content_type="json").recipient == "json"  # one word is a recipient
    assert there_and_back("user", ["a", "b"]).content == "ab"
    for fields in (dict(name="ada"), dict(channel=""), dict(recipient="a b c")):
        with pytest.raises(HarmonyError):
            there_and_back("user", "x", **fields)


# ---- What a model writes when it errs (each was seen in the wild): lenient parsing, as the reference has it ---------

def said(text, role="assistant", strict=False):
    tokens = TOKENIZER.encode(text, "all")
    assert_same_parse(tokens, role, strict)
    return parse(tokens, TOKENIZER, role, strict)


@pytest.mark.parametrize("text, fields", [
    ("<|channel|>commentary to=functions.f <|constrain|>json<|message|>{}<|call|>",
     dict(channel="commentary", recipient="functions.f", content_type="<|constrain|>json")),
    (" to=functions.f<|channel|>commentary<|constrain|>json<|message|>{}<|call|>",
     dict(channel="commentary", recipient="functions.f", content_type="<|constrain|>json")),
    ("<|channel|>commentary <|constrain|>json<|message|>{}<|call|>",
     dict(channel="commentary", recipient="<|constrain|>json")),
    ("<|channel|>commentary? to=functions.f<|message|>{}<|call|>",
     dict(channel="commentary?", recipient="functions.f")),
    ("<|channel|>commentary<|channel|>commentary<|message|>{}<|call|>",
     dict(channel="commentary", recipient="<|channel|>commentary")),
    (" to=f<|channel|>commentary<|channel|>x json<|message|>{}<|call|>",
     dict(channel="commentary", recipient="f<|channel|>x", content_type="json")),
    ("<|channel|>final to=functions.f a b<|message|>{}<|end|>", None),
    ("<|channel|>commentary to=assistant<|message|>{}<|end|>", dict(channel="commentary", recipient="assistant")),
    ("<|channel|>analysis to=python code<|message|>{}<|call|>",
     dict(channel="analysis", recipient="python", content_type="code")),
    ("<|channel|><|message|>{}<|end|>", None),
    ("<|message|>{}<|end|>", dict()),
])
def test_odd_headers(text, fields):
    if fields is None:
        with pytest.raises(HarmonyError):
            said(text)
    else:
        assert said(text) == [Message("assistant", "{}", **fields)] == said(text, strict=True)


def test_a_reply_that_stops_inside_its_header():
    assert said("Sure,  here\nis it.<|return|>") == [Message("assistant", "Sure, here is it.")]
    assert said("<|channel|>final Hello!<|end|>") == [Message("assistant", "Hello!", channel="final")]
    assert said("<|return|>") == []
    assert said("<|start|>user Hello!<|end|>", role=None) == []  # no role was given: the words are lost
    with pytest.raises(HarmonyError, match="header: expected <|message|>, found the end of the tokens"):
        said("Sure.<|return|>", strict=True)
    # Strict swallows the stop into the header of the next message.
    assert said("<|end|><|start|>assistant<|channel|>final<|message|>x<|end|>", strict=True) == [
        Message("assistant", "x", channel="final", recipient="<|end|><|start|>assistant")]


def test_text_appears_as_its_bytes_are_complete():
    wave = TOKENIZER.encode("👋🏽")
    deltas, parser = [], StreamParser(TOKENIZER, "assistant")
    for token in [MESSAGE, *wave, CHANNEL, END]:
        parser.feed(token)
        deltas.append(parser.last_content_delta)
    assert len(wave) > 2 and None in deltas[1:-3]
    assert "".join(delta or "" for delta in deltas) == "👋🏽<|channel|>" == parser.messages[0].content
    assert deltas[-1] is None


def test_broken_bytes_do_not_reach_the_next_message():
    half = TOKENIZER.encode("👋🏽")[:1]
    ids = [MESSAGE, *half, END, START, *TOKENIZER.encode("assistant"), MESSAGE, *TOKENIZER.encode("ok"), END]
    assert_same_parse(ids, "assistant", True)
    assert [message.content for message in parse(ids, TOKENIZER, "assistant")] == ["\ufffd", "ok"]


def test_a_token_that_the_reference_knows_and_the_model_does_not():
    """201088 is one beyond the model's rows; openai-harmony has a name for it."""
    assert REFERENCE.decode([201_088]) == "<|reserved_201088|>"
    assert parse([MESSAGE, 201_088, 25, END], TOKENIZER, "assistant")[0].content == "\ufffd"


# ---- Linear time and memory -----------------------------------------------------------------------------------------

broken_token = next(token for token in range(TOKENIZER.vocab_size) if TOKENIZER.decode([token]).count("\ufffd") > 2)


@pytest.mark.parametrize("shape", ["content", "broken", "unknown", "header", "lenient", "messages", "starts"])
def test_parse_is_linear_in_time_and_memory(shape):
    """200,000 tokens: about a second here; were a growing string copied at every token, it would be minutes."""
    n = 200_000
    stream, role, strict = {
        "content": ([MESSAGE] + [25] * n, "assistant", True),
        "broken": ([MESSAGE] + [broken_token] * (n // 2) + [25] * (n // 2), "assistant", True),
        "unknown": ([MESSAGE, 250_000] + [25] * n, "assistant", True),
        "header": ([25] * n + [MESSAGE], "assistant", True),
        "lenient": ([25, 220] * (n // 2) + [END], "assistant", False),
        "messages": ([START, 1428, MESSAGE, 25, END] * (n // 5), None, True),
        "starts": ([START] * n + [MESSAGE], "assistant", True),
    }[shape]
    start = time.process_time()
    parse(stream, TOKENIZER, role, strict)
    assert time.process_time() - start < 20

    tracemalloc.start()
    parse(stream[-n // 10:] if shape == "messages" else stream[:n // 10] + stream[-1:], TOKENIZER, role, strict)
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert peak < 500 * n // 10  # bytes a token; a message of few tokens is the largest, with its fields
