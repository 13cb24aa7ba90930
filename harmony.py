"""Harmony: the messages of a conversation as the token ids gpt-oss was trained on, and the model's ids as messages.

A message is a header and a content. In this picture [start] is the special token <|start|>, one id, and so on; what is
between brackets is plain text, encoded piece by piece, so that no text can ever turn into a special token:

    [start] assistant  to=functions.weather  [channel] commentary   [constrain] json  [message]  {"city":"Oslo"}  [call]
            role       recipient             channel                content type                 content          stop

    [start]   opens a message                      [end]     closes it
    [channel] before the name of a channel         [call]    closes a call of a tool: now the recipient acts
    [message] ends the header                      [return]  closes the model's answer: now the user acts

Role and stop are always there, the rest if it applies. The first message says who the model is and how hard it thinks
(SystemContent), the second what a developer wants of it (DeveloperContent); then user and assistant take turns. The
assistant thinks on channel "analysis", calls tools on "commentary" and answers on "final".

A mistake here fails silently: one token other than in training, and the model is a little worse. So `render` equals
openai-harmony 0.0.8, the Rust library that gpt-oss was published with, token for token, its oddities included. This
file does not know a model, and it does not guess what a model meant: conversation.py does both.
Format: https://cookbook.openai.com/articles/openai-harmony
"""

import re
from collections import deque
from collections.abc import Iterable
from dataclasses import dataclass, field, is_dataclass
from numbers import Integral
from typing import Any, get_type_hints

from checkpoint import expect
from schema import typescript
from tokenizer import Tokenizer, TokenizerError

ROLES = ("system", "developer", "user", "assistant", "tool")
EFFORTS = ("low", "medium", "high")


class HarmonyError(ValueError):
    """A conversation that cannot be rendered, or tokens that do not form messages."""


# ---- What a conversation is made of ---------------------------------------------------------------------------------

@dataclass
class Function:
    """A tool. `parameters`: the JSON schema of its one argument, an object; None: it takes none."""
    name: str
    description: str
    parameters: dict | None = None


@dataclass
class Namespace:
    """Tools that are called as `name.function`. A developer's own are in the namespace "functions"."""
    name: str
    description: str | None = None
    functions: list | tuple = ()  # of Function


@dataclass
class SystemContent:
    """The system message. A None leaves its line out."""
    model_identity: str | None = "You are ChatGPT, a large language model trained by OpenAI."
    reasoning_effort: str | None = "medium"  # one of EFFORTS
    conversation_start_date: str | None = None  # 2025-08-05
    knowledge_cutoff: str | None = "2024-06"
    valid_channels: list | tuple | None = ("analysis", "commentary", "final")
    channel_required: bool = True
    tools: list | tuple | None = ()  # of Namespace; the model was trained with BROWSER and PYTHON


@dataclass
class DeveloperContent:
    """The developer message: what other formats call the system prompt, and the developer's own tools."""
    instructions: str | None = None
    tools: list | tuple | None = ()  # of Namespace


@dataclass
class Message:
    """One message. `content`: text, or a list of str, SystemContent and DeveloperContent, rendered without separators.

    `name`: the author's; for role "tool" it is the tool's ("functions.weather") and stands in place of the role."""
    role: str
    content: str | list | tuple
    name: str | None = field(default=None, kw_only=True)
    channel: str | None = field(default=None, kw_only=True)
    recipient: str | None = field(default=None, kw_only=True)
    content_type: str | None = field(default=None, kw_only=True)


# ---- Rendering: messages --------------------------------------------------------------------------------------------

def render(messages: list[Message], tokenizer: Tokenizer, *, next_role: str | None = "assistant",
           drop_analysis: bool = True, training: bool = False) -> list[int]:
    """The token ids of a conversation, up to where the next message, by `next_role`, is to be written.

    next_role=None: up to the end of the last message. training=True: the same, and a last message by the assistant on
    channel final is closed by [return]. drop_analysis: see `_without_old_analysis`. Raises HarmonyError."""
    messages, special = list(messages), tokenizer.special_tokens
    _check(messages, list, "messages")
    _check(next_role, str | None, "next_role")
    functions_offered = any(namespace.name == "functions" and namespace.functions for message in messages
                            for part in _parts(message) if isinstance(part, DeveloperContent)
                            for namespace in _by_name(part.tools))
    try:
        kept = _without_old_analysis(messages) if drop_analysis else messages
        ids = [id for message in kept for id in _render_message(message, tokenizer, functions_offered)]
        if not training and next_role is not None:
            ids += [special["<|start|>"], *tokenizer.encode(next_role)]
    except TokenizerError as error:
        raise HarmonyError(str(error)) from None
    if training and messages and messages[-1].role == "assistant" and messages[-1].channel == "final":
        ids[-1] = special["<|return|>"]
    return ids


def _without_old_analysis(messages: list[Message]) -> list[Message]:
    """Drops what was thought, called and fetched on channel analysis before the first final answer.

    Only if a final answer is the last that the assistant said: in the middle of tool calls it sees all its thoughts.
    (OpenAI's guide drops the analysis of every finished turn. This is what the library does.)"""
    last = next((message for message in reversed(messages) if message.role == "assistant"), None)
    if last is None or last.channel != "final":
        return messages
    first_final = next(n for n, message in enumerate(messages) if message.channel == "final")
    return [message for n, message in enumerate(messages) if n >= first_final or message.channel != "analysis"]


def _render_message(message: Message, tokenizer: Tokenizer, functions_offered: bool) -> list[int]:
    special, encode = tokenizer.special_tokens, tokenizer.encode
    expect(message.role != "tool" or message.name is not None, HarmonyError, "Message.name", "a tool's name", None)
    ids = [special["<|start|>"], *encode(message.name if message.role == "tool" else message.role)]
    if message.name is not None and message.role != "tool":
        ids += encode(f":{message.name}")
    if message.recipient is not None and message.recipient != "all":
        ids += encode(f" to={message.recipient}")
    if message.channel is not None:
        ids += [special["<|channel|>"], *encode(message.channel)]
    if message.content_type is not None:
        kind = message.content_type.removeprefix("<|constrain|>")
        constrained = kind != message.content_type
        ids += [*encode(" "), special["<|constrain|>"], *encode(kind)] if constrained else encode(f" {kind}")
    ids.append(special["<|message|>"])
    for part in _parts(message):
        role = {SystemContent: "system", DeveloperContent: "developer"}.get(type(part), message.role)
        expect(message.role == role, HarmonyError, type(part).__name__, f"a message of role {role}", message.role)
        ids += encode(part if isinstance(part, str) else "\n\n".join(_sections(part, functions_offered)))
    return [*ids, special["<|call|>" if message.role == "assistant" and message.recipient is not None else "<|end|>"]]


def _parts(message: Message) -> list | tuple:
    return [message.content] if isinstance(message.content, str) else message.content

def _by_name(namespaces: Iterable[Namespace] | None) -> list[Namespace]:
    """In order of name; of two with the same name, the later one."""
    return sorted({namespace.name: namespace for namespace in namespaces or ()}.values(), key=lambda n: n.name)


# ---- Rendering: the sections of the system and the developer message ------------------------------------------------

def _sections(part: SystemContent | DeveloperContent, functions_offered: bool) -> list[str]:
    if isinstance(part, DeveloperContent):
        instructions = [] if part.instructions is None else ["# Instructions", part.instructions]
        return instructions + _tools_section(part.tools)

    labels = {"": part.model_identity, "Knowledge cutoff: ": part.knowledge_cutoff,
              "Current date: ": part.conversation_start_date}
    lines = [label + value for label, value in labels.items() if value is not None]
    sections = ["\n".join(lines)] if lines else []
    if part.reasoning_effort is not None:
        sections.append(f"Reasoning: {part.reasoning_effort}")
    sections += _tools_section(part.tools)
    if part.valid_channels:
        channels = f"# Valid channels: {', '.join(part.valid_channels)}."
        if part.channel_required:
            channels += " Channel must be included for every message."
        if functions_offered:
            channels += "\nCalls to these tools must go to the commentary channel: 'functions'."
        sections.append(channels)
    return sections


def _tools_section(namespaces: Iterable[Namespace] | None) -> list[str]:
    """Tools as the model was shown them: each a TypeScript function type, with its description as a comment."""
    sections = ["# Tools"] if namespaces else []
    for namespace in _by_name(namespaces):
        name, description = namespace.name, _lines(namespace.description or "")
        types = []
        for function in namespace.functions:
            schema, where = function.parameters, f"parameters of {function.name}"
            argument = "" if schema is None else f"_: {typescript(schema, HarmonyError, where)}"
            types += [*(f"// {line}" for line in _lines(function.description)),
                      f"type {function.name} = ({argument}) => any;\n"]
        if types:
            description = [f"// {line}" for line in description]
            types = [f"namespace {name} {{\n", *types, f"}} // namespace {name}"]
        sections.append("\n".join([f"## {name}\n", *description, *types]))
    return sections


# ---- Parsing --------------------------------------------------------------------------------------------------------

class StreamParser:
    """Messages out of tokens, one token at a time, so that a reply can be shown while it is being written.

                     [start]             [message]
        ExpectStart ---------> Header --------------> Content --+
             ^                   |                     |   ^    | any other token
             |                   | stop (lenient)      |   +----+
             +-------------------+---------------------+
                                      stop, finish()                  stop: [end], [return] or [call]

    role: that of the first message if "[start]role" was the end of the prompt; the parser then begins in Header.
    strict=False also saves a reply that stops inside its header. A HarmonyError leaves the parser ready for more
    tokens, of the next message as a rule. Time and memory are linear in the number of tokens.

    `messages`: the finished ones. `last_content_delta`: the text that the last token completed, or None. Of the message
    being read: `current_role`, `current_channel`, `current_recipient`, `current_content_type`, `current_content`."""

    def __init__(self, tokenizer: Tokenizer, role: str | None = None, strict: bool = True):
        _check(role, str | None, "role")
        special = tokenizer.special_tokens
        self._start, self._message = special["<|start|>"], special["<|message|>"]
        self._stops = {special["<|return|>"], special["<|end|>"], special["<|call|>"]}
        self._tokenizer, self._strict, self._role = tokenizer, strict, role  # _role: until a header has been read
        self.messages: list[Message] = []
        self.last_content_delta: str | None = None
        self._enter("ExpectStart" if role is None else "Header")

    def _enter(self, state: str, message: Message | None = None) -> None:
        self.state, self._current, self._text = state, message, _TextDecoder(self._tokenizer)
        self._header, self._content = [], []  # tokens; pieces of text: a string that grows would be copied each time
        shown = message or Message(self._role, "")
        self.current_role, self.current_channel = shown.role, shown.channel
        self.current_recipient, self.current_content_type = shown.recipient, shown.content_type

    @property
    def current_content(self) -> str:
        return "".join(self._content)

    def feed(self, token: int) -> None:
        """Reads one token. Raises HarmonyError where it cannot be part of a message."""
        expect(isinstance(token, Integral) and 0 <= token < 2**32, HarmonyError, "feed", "a token id", repr(token))
        if self.state == "ExpectStart":
            expect(token == self._start, HarmonyError, "between messages", f"<|start|>, token {self._start}", token)
            self._enter("Header")
        elif self.state == "Header":
            if token == self._message:
                self._end_header()
            elif token in self._stops and not self._strict:
                self._end_in_header()
            else:
                self._header.append(token)
        elif token in self._stops:
            self._end_message()
        else:
            self.last_content_delta = self._text.feed(token) or None
            self._content.append(self.last_content_delta or "")

    def finish(self) -> None:
        """The end of the tokens completes a message that has no stop. Raises HarmonyError inside a header."""
        expect(self.state != "Header", HarmonyError, "header", "<|message|>", "the end of the tokens")
        if self.state == "Content":
            self._end_message()

    def _end_header(self) -> None:
        header = self._header
        self._enter("ExpectStart")  # and stays there if the header is refused
        message = _parse_header(self._decode(header), self._role)
        self._role = None
        self._enter("Content", message)

    def _end_in_header(self) -> None:
        """All of the header but role and channel becomes the content; if no role was given, all is lost."""
        if self._role is not None and self._header:
            channel, words = _split_header(self._decode(self._header))
            if words[:1] == [self._role]:
                words.pop(0)
            self.messages.append(Message(self._role, " ".join(words), channel=channel))
        self._role = None
        self._enter("ExpectStart")

    def _decode(self, header: list[int]) -> str:
        try:
            return self._tokenizer.decode_bytes(header).decode()
        except (TokenizerError, UnicodeDecodeError) as error:
            raise HarmonyError(f"header: expected tokens that form text, found {error}") from None

    def _end_message(self) -> None:
        self._content.append(self._text.finish())
        self._current.content = self.current_content
        self.messages.append(self._current)
        self.last_content_delta = None
        self._enter("ExpectStart")


def parse(tokens: Iterable[int], tokenizer: Tokenizer, role: str | None = None, strict: bool = True) -> list[Message]:
    """The messages that `tokens` form; see StreamParser, also for role and strict. Raises HarmonyError."""
    parser = StreamParser(tokenizer, role, strict)
    for token in tokens:
        parser.feed(token)
    parser.finish()
    return parser.messages


def _parse_header(header: str, role: str | None) -> Message:
    """A message without content yet. Three words at most: a role (or a tool's name), a recipient, a content type."""
    channel, words = _split_header(header)
    name = None
    if role is None:
        expect(words, HarmonyError, "header", "a role", repr(header))
        role = words[0]
        if role not in ROLES:  # a tool, which goes by its name
            expect(len(words) > 1 or role.startswith("to="), HarmonyError, "header",
                   f"a role, one of {', '.join(ROLES)}", repr(role))
            role, name = "tool", words.pop(0)
        elif role == "tool":
            name = role
    if words[:1] == [role]:
        words.pop(0)
    content_type = words.pop() if len(words) > 1 and not words[-1].startswith("to=") else None
    recipient = words.pop().removeprefix("to=") if words else None
    expect(not words, HarmonyError, "header", "role, recipient and content type only", repr(header))
    return Message(role, "", name=name, channel=channel, recipient=recipient, content_type=content_type)


def _split_header(header: str) -> tuple[str | None, list[str]]:
    """The channel, and the words of the rest: split at ASCII's white space, and before <|constrain|>."""
    before, marker, after = header.partition("<|channel|>")
    channel = re.match(rf"[^<{re.escape(_WHITE_SPACE)}]*", after)[0] if marker else None
    expect(channel != "", HarmonyError, "header", "a name behind <|channel|>", repr(header))
    rest = (before + after[len(channel or ""):]).strip(_WHITE_SPACE)
    return channel, [word for word in re.split(r"[\t\n\f\r ]", rest.replace("<|constrain|>", " <|constrain|>")) if word]


# ---- What render checks ---------------------------------------------------------------------------------------------

_ITEMS = {"messages": Message, "Message.content": str | SystemContent | DeveloperContent,
          "SystemContent.valid_channels": str, "SystemContent.tools": Namespace, "DeveloperContent.tools": Namespace,
          "Namespace.functions": Function}
_CHOICES = {"Message.role": ROLES, "next_role": (*ROLES, None), "role": (*ROLES, None),
            "SystemContent.reasoning_effort": (*EFFORTS, None)}


def _check(value: Any, kind: Any, where: str) -> None:
    """Raises HarmonyError unless `value` is a `kind`, and so are the items of a list and the fields of a dataclass."""
    if not isinstance(value, kind):  # (the repr of all that is right would cost more than the rendering)
        expect(False, HarmonyError, where, getattr(kind, "__name__", str(kind)).replace("harmony.", ""), repr(value))
    if choices := _CHOICES.get(where):
        expect(value in choices, HarmonyError, where, f"one of {', '.join(map(str, choices))}", repr(value))
    if isinstance(value, list | tuple):
        for n, item in enumerate(value):
            _check(item, _ITEMS[where], f"{where}[{n}]")
    elif is_dataclass(value):
        for field_name, field_kind in get_type_hints(type(value)).items():
            _check(getattr(value, field_name), field_kind, f"{type(value).__name__}.{field_name}")


# ---- The tools that gpt-oss was trained with ------------------------------------------------------------------------

_TEXT, _NUMBER = {"type": "string"}, {"type": "number", "default": -1}
BROWSER = Namespace("browser", """\
Tool for browsing.
The `cursor` appears in brackets before each browsing display: `[{cursor}]`.
Cite information from the tool using the following format:
`【{cursor}†L{line_start}(-L{line_end})?】`, for example: `【6†L9-L11】` or `【8†L3】`.
Do not quote more than 10 words directly from the tool output.
sources=web (default: web)""", (
    Function("search", "Searches for information related to `query` and displays `topn` results.", {
        "type": "object", "required": ["query"],
        "properties": {"query": _TEXT, "topn": _NUMBER | {"default": 10}, "source": _TEXT}}),
    Function("open", """\
Opens the link `id` from the page indicated by `cursor` starting at line number `loc`, showing `num_lines` lines.
Valid link ids are displayed with the formatting: `【{id}†.*】`.
If `cursor` is not provided, the most recent page is implied.
If `id` is a string, it is treated as a fully qualified URL associated with `source`.
If `loc` is not provided, the viewport will be positioned at the beginning of the document or centered on the most \
relevant passage, if available.
Use this function without `id` to scroll to a new location of an opened page.""", {
        "type": "object", "properties": {
            "id": {"type": ["number", "string"], "default": -1}, "cursor": _NUMBER, "loc": _NUMBER,
            "num_lines": _NUMBER, "view_source": {"type": "boolean", "default": False}, "source": _TEXT}}),
    Function("find", "Finds exact matches of `pattern` in the current page, or the page given by `cursor`.", {
        "type": "object", "required": ["pattern"], "properties": {"pattern": _TEXT, "cursor": _NUMBER}})))
PYTHON = Namespace("python", """\
Use this tool to execute Python code in your chain of thought. The code will not be shown to the user. This tool \
should be used for internal reasoning, but not for code that is intended to be visible to the user (e.g. when \
creating plots, tables, or files).

When you send a message containing Python code to python, it will be executed in a stateful Jupyter notebook \
environment. python will respond with the output of the execution or time out after 120.0 seconds. The drive at \
'/mnt/data' can be used to save and persist user files. Internet access for this session is UNKNOWN. Depends on the \
cluster.""")


# ---- Where Rust and Python differ -----------------------------------------------------------------------------------

# Rust's; str.strip by itself takes more.
_WHITE_SPACE = "\t\n\v\f\r \x85\xa0\u1680\u2028\u2029\u202f\u205f\u3000" + "".join(map(chr, range(0x2000, 0x200B)))


def _lines(text: str) -> list[str]:
    """Lines as Rust counts them: str.splitlines would also split at form feeds, U+2028 and lone carriage returns."""
    return text.replace("\r\n", "\n").removesuffix("\n").split("\n") if text else []


class _TextDecoder:
    """The bytes of tokens as text. A piece of text comes out at the same token as in the Rust library.

    A character comes out at the token that completes its bytes. Bytes that cannot become a character come out as one
    U+FFFD for each longest broken sequence. At most one such sequence comes out at a token, and what is behind it waits
    for the next token. After a token that does not exist, nothing comes out until `finish`. (The incremental decoder of
    `codecs` waits for a third byte after ED A0, which no byte can save. Rust does not.)"""

    def __init__(self, tokenizer: Tokenizer):
        self._tokenizer, self._stopped = tokenizer, False  # stopped: by a token that does not exist
        self._bytes = b""  # the beginning of a character
        self._waiting = deque()  # pieces of text, each with whether it ends in a broken sequence

    def feed(self, token: int) -> str:
        """The text that comes out at this token."""
        try:
            data = self._tokenizer.decode_bytes([token])
        except TokenizerError:
            self._stopped = True
        if self._stopped:
            return ""
        data, broken = self._bytes + data, True
        while broken:
            try:
                text, data, broken = data.decode(), b"", False
            except UnicodeDecodeError as error:
                broken = error.reason != "unexpected end of data"
                text, data = data[:error.start].decode(), data[error.end if broken else error.start:]
            self._waiting.append((text + "\ufffd" * broken, broken))
        self._bytes = data
        text, broken = "", False
        while self._waiting and not broken:
            piece, broken = self._waiting.popleft()
            text += piece
        return text

    def finish(self) -> str:
        """All that has not come out: a U+FFFD for a token that does not exist, what waits, one for half a character."""
        waiting = "".join(text for text, _ in self._waiting)
        return "\ufffd" * self._stopped + waiting + "\ufffd" * bool(self._bytes)
