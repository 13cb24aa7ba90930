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
openai-harmony 0.0.8, the Rust library that gpt-oss was published with, token for token, its oddities included, and
the tests hold the two side by side. This file refuses to know a model, and to guess what a model meant: chat.py does.
Format: https://cookbook.openai.com/articles/openai-harmony
"""
import re
from collections import deque
from collections.abc import Iterable
from dataclasses import KW_ONLY, dataclass, fields, is_dataclass
from numbers import Integral
from typing import Any

from schema import typescript
from tokenizer import Tokenizer, TokenizerError

ROLES = ("system", "developer", "user", "assistant", "tool")
EFFORTS = ("low", "medium", "high")


class HarmonyError(ValueError):
    """A conversation that cannot be rendered, or tokens that do not form messages."""


def _need(ok: bool, where: str, expected: str, found: Any) -> None:
    if not ok:
        raise HarmonyError(f"{where}: expected {expected}, found {found!r}")


# ---- What a conversation is made of ------------------------------------------------------------------------------

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
    _: KW_ONLY
    name: str | None = None
    channel: str | None = None
    recipient: str | None = None
    content_type: str | None = None


BROWSER = Namespace("browser", """\
Tool for browsing.
The `cursor` appears in brackets before each browsing display: `[{cursor}]`.
Cite information from the tool using the following format:
`【{cursor}†L{line_start}(-L{line_end})?】`, for example: `【6†L9-L11】` or `【8†L3】`.
Do not quote more than 10 words directly from the tool output.
sources=web (default: web)""", (
    Function("search", "Searches for information related to `query` and displays `topn` results.", {
        "type": "object",
        "properties": {"query": {"type": "string"}, "topn": {"type": "number", "default": 10},
                       "source": {"type": "string"}},
        "required": ["query"]}),
    Function("open", """\
Opens the link `id` from the page indicated by `cursor` starting at line number `loc`, showing `num_lines` lines.
Valid link ids are displayed with the formatting: `【{id}†.*】`.
If `cursor` is not provided, the most recent page is implied.
If `id` is a string, it is treated as a fully qualified URL associated with `source`.
If `loc` is not provided, the viewport will be positioned at the beginning of the document or centered on the most \
relevant passage, if available.
Use this function without `id` to scroll to a new location of an opened page.""", {
        "type": "object",
        "properties": {"id": {"type": ["number", "string"], "default": -1}, "cursor": {"type": "number", "default": -1},
                       "loc": {"type": "number", "default": -1}, "num_lines": {"type": "number", "default": -1},
                       "view_source": {"type": "boolean", "default": False}, "source": {"type": "string"}}}),
    Function("find", "Finds exact matches of `pattern` in the current page, or the page given by `cursor`.", {
        "type": "object",
        "properties": {"pattern": {"type": "string"}, "cursor": {"type": "number", "default": -1}},
        "required": ["pattern"]}),
))
PYTHON = Namespace("python", """\
Use this tool to execute Python code in your chain of thought. The code will not be shown to the user. This tool \
should be used for internal reasoning, but not for code that is intended to be visible to the user (e.g. when \
creating plots, tables, or files).

When you send a message containing Python code to python, it will be executed in a stateful Jupyter notebook \
environment. python will respond with the output of the execution or time out after 120.0 seconds. The drive at \
'/mnt/data' can be used to save and persist user files. Internet access for this session is UNKNOWN. Depends on the \
cluster.""")


# ---- Rendering: messages -----------------------------------------------------------------------------------------

def render(messages: list[Message], tokenizer: Tokenizer, *, next_role: str | None = "assistant",
           drop_analysis: bool = True, training: bool = False) -> list[int]:
    """The token ids of a conversation, up to where the next message, by `next_role`, is to be written.

    next_role=None: up to the end of the last message. training=True: the same, and a last message by the assistant on
    channel final is closed by [return]. drop_analysis: see `_without_old_analysis`. Raises HarmonyError."""
    messages, special = list(messages), tokenizer.special_tokens
    for message in messages:
        _need(isinstance(message, Message), "messages", "Message objects", message)
        _check_fields(message)
    _need(next_role is None or next_role in ROLES, "next_role", f"None or one of {', '.join(ROLES)}", next_role)
    functions_offered = any(namespace.name == "functions" and namespace.functions for message in messages
                            for part in _parts(message) if isinstance(part, DeveloperContent)
                            for namespace in _by_name(part.tools))
    try:
        ids = []
        for message in _without_old_analysis(messages) if drop_analysis else messages:
            ids += _render_message(message, tokenizer, functions_offered)
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
    _need(message.role != "tool" or message.name is not None, "name", "the tool's name in a message of role tool", None)
    ids = [special["<|start|>"], *encode(message.name if message.role == "tool" else message.role)]
    if message.name is not None and message.role != "tool":
        ids += encode(f":{message.name}")
    if message.recipient is not None and message.recipient != "all":
        ids += encode(f" to={message.recipient}")
    if message.channel is not None:
        ids += [special["<|channel|>"], *encode(message.channel)]
    if message.content_type is not None:
        if message.content_type.startswith("<|constrain|>"):
            kind = message.content_type.removeprefix("<|constrain|>")
            ids += [*encode(" "), special["<|constrain|>"], *encode(kind)]
        else:
            ids += encode(f" {message.content_type}")
    ids.append(special["<|message|>"])
    for part in _parts(message):
        for kind, role in (SystemContent, "system"), (DeveloperContent, "developer"):
            _need(message.role == role or not isinstance(part, kind), kind.__name__, f"role {role}", message.role)
        ids += encode(part if isinstance(part, str) else "\n\n".join(_sections(part, functions_offered)))
    is_call = message.role == "assistant" and message.recipient is not None
    return [*ids, special["<|call|>" if is_call else "<|end|>"]]


def _parts(message: Message) -> list | tuple:
    return [message.content] if isinstance(message.content, str) else message.content


def _by_name(namespaces: Iterable[Namespace] | None) -> list[Namespace]:
    """In order of name; of two with the same name, the later one."""
    return [namespace for _, namespace in sorted({n.name: n for n in namespaces or ()}.items())]


_ITEMS = {"content": str | SystemContent | DeveloperContent, "tools": Namespace, "functions": Function,
          "valid_channels": str}


def _check_fields(part: Any) -> None:
    """Holds the fields of a dataclass against their annotations, and what is in its lists against `_ITEMS`."""
    for field in fields(part):
        where, value = f"{type(part).__name__}.{field.name}", getattr(part, field.name)
        _need(isinstance(value, field.type), where, _name(field.type), value)
        for item in value if isinstance(value, list | tuple) else ():
            _need(isinstance(item, _ITEMS[field.name]), where, f"a list of {_name(_ITEMS[field.name])}", item)
            if is_dataclass(item):
                _check_fields(item)
    if isinstance(part, Message):
        _need(part.role in ROLES, "Message.role", f"one of {', '.join(ROLES)}", part.role)
    if isinstance(part, SystemContent):
        _need(part.reasoning_effort in (None, *EFFORTS), "SystemContent.reasoning_effort",
              f"None or one of {', '.join(EFFORTS)}", part.reasoning_effort)


def _name(kind: Any) -> str:
    return getattr(kind, "__name__", str(kind)).replace("harmony.", "")


# ---- Rendering: the sections of the system and the developer message --------------------------------------------

def _sections(part: SystemContent | DeveloperContent, functions_offered: bool) -> list[str]:
    sections = []
    if isinstance(part, DeveloperContent):
        if part.instructions is not None:
            sections += ["# Instructions", part.instructions]
        return sections + _tools_section(part.tools)

    lines = {"": part.model_identity, "Knowledge cutoff: ": part.knowledge_cutoff,
             "Current date: ": part.conversation_start_date}
    lines = [label + value for label, value in lines.items() if value is not None]
    if lines:
        sections.append("\n".join(lines))
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
        name, functions = namespace.name, namespace.functions
        lines = [f"## {name}\n"]
        lines += [("// " if functions else "") + line for line in _lines(namespace.description or "")]
        if functions:
            lines.append(f"namespace {name} {{\n")
        for function in functions:
            lines += ["// " + line for line in _lines(function.description)]
            argument = "" if function.parameters is None else f"_: {_argument_type(function)}"
            lines.append(f"type {function.name} = ({argument}) => any;\n")
        if functions:
            lines.append(f"}} // namespace {name}")
        sections.append("\n".join(lines))
    return sections


def _argument_type(function: Function) -> str:
    try:
        return typescript(function.parameters)
    except ValueError as error:
        raise HarmonyError(f"parameters of {function.name}: {error}") from None


def _lines(text: str) -> list[str]:
    """Lines as Rust counts them: str.splitlines would also split at form feeds, U+2028 and lone carriage returns."""
    return text.replace("\r\n", "\n").removesuffix("\n").split("\n") if text else []


# ---- Parsing -----------------------------------------------------------------------------------------------------

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

    `messages`: the finished ones. `state`. `last_content_delta`: the text which the last token completed, or None.
    Of the message being read: `current_role`, `current_channel`, `current_recipient`, `current_content_type`,
    `current_content`."""

    def __init__(self, tokenizer: Tokenizer, role: str | None = None, strict: bool = True):
        _need(role is None or role in ROLES, "role", f"None or one of {', '.join(ROLES)}", role)
        special = tokenizer.special_tokens
        self._start, self._message = special["<|start|>"], special["<|message|>"]
        self._stops = {special["<|return|>"], special["<|end|>"], special["<|call|>"]}
        self._tokenizer, self._strict, self._role = tokenizer, strict, role  # _role: until a header has been read
        self.messages: list[Message] = []
        self.last_content_delta: str | None = None
        self._enter("ExpectStart" if role is None else "Header")

    def _enter(self, state: str, message: Message | None = None) -> None:
        self.state, self._current = state, message
        self._header = []  # tokens
        self._content = []  # pieces of text: one string that grows would be copied at every token
        self._bytes = b""  # that begin a character
        self._held = deque()  # text behind a broken sequence, and None for each further broken sequence
        self._blocked = False  # by a token that does not exist
        shown = message or Message(self._role, "")
        self.current_role, self.current_channel = shown.role, shown.channel
        self.current_recipient, self.current_content_type = shown.recipient, shown.content_type

    @property
    def current_content(self) -> str:
        return "".join(self._content)

    def feed(self, token: int) -> None:
        """Reads one token. Raises HarmonyError where it cannot be part of a message."""
        _need(isinstance(token, Integral) and 0 <= token < 2**32, "feed", "a token id", token)
        if self.state == "ExpectStart":
            _need(token == self._start, "between messages", f"<|start|>, token {self._start}", token)
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
            self._read_content(token)

    def finish(self) -> None:
        """The end of the tokens completes a message that has no stop. Raises HarmonyError inside a header."""
        if self.state == "Header":
            raise HarmonyError("header: expected <|message|>, found the end of the tokens")
        if self.state == "Content":
            self._end_message()

    def _end_header(self) -> None:
        header = self._header
        self._enter("ExpectStart")  # and stays there if the header is refused
        message = _parse_header(self._decode(header), self._role)
        self._role = None
        self._enter("Content", message)

    def _end_in_header(self) -> None:
        """All of the header but role and channel becomes the content; if no role was given, it is lost."""
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

    def _read_content(self, token: int) -> None:
        """Text shows once its bytes are complete, and of broken bytes one sequence a token: what is behind it waits.
        A token that does not exist holds up the rest of the message."""
        self.last_content_delta = None
        try:
            data = self._bytes + self._tokenizer.decode_bytes([token])
        except TokenizerError:
            self._blocked = True
        if not self._blocked:
            pieces, self._bytes = _decode_utf8(data)
            self._held += pieces
            self.last_content_delta = self._next_text() or None
            self._content.append(self.last_content_delta or "")

    def _next_text(self) -> str:
        """What is held, up to the first broken sequence, which becomes U+FFFD."""
        text = ""
        while self._held:
            piece = self._held.popleft()
            if piece is None:
                return text + "\ufffd"
            text += piece
        return text

    def _end_message(self) -> None:
        if self._blocked:
            self._content.append("\ufffd")
        while self._held:
            self._content.append(self._next_text())
        if self._bytes:
            self._content.append("\ufffd")
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
        _need(bool(words), "header", "a role", header)
        role = words[0]
        if role not in ROLES:  # a tool, which goes by its name
            _need(len(words) > 1 or role.startswith("to="), "header", f"a role, one of {', '.join(ROLES)}", role)
            role, name = "tool", words.pop(0)
        elif role == "tool":
            name = role
    if words[:1] == [role]:
        words.pop(0)
    content_type = words.pop() if len(words) > 1 and not words[-1].startswith("to=") else None
    recipient = words.pop().removeprefix("to=") if words else None
    _need(not words, "header", "role, recipient and content type only", header)
    return Message(role, "", name=name, channel=channel, recipient=recipient, content_type=content_type)


_WHITE_SPACE = "\t-\r \x85\xa0\u1680\u2000-\u200a\u2028\u2029\u202f\u205f\u3000"  # Rust's; str.strip takes more


def _split_header(header: str) -> tuple[str | None, list[str]]:
    """The channel, and the words of the rest: split at ASCII's white space, and before <|constrain|>."""
    before, marker, after = header.partition("<|channel|>")
    channel = re.match(rf"[^<{_WHITE_SPACE}]*", after)[0] if marker else None
    _need(channel != "", "header", "a name behind <|channel|>", header)
    rest = re.sub(rf"^[{_WHITE_SPACE}]+|[{_WHITE_SPACE}]+\Z", "", before + after[len(channel or ""):])
    return channel, [word for word in re.split(r"[\t\n\f\r ]", rest.replace("<|constrain|>", " <|constrain|>")) if word]


def _decode_utf8(data: bytes) -> tuple[list[str | None], bytes]:
    """Text, with a None for each maximal broken sequence; and the bytes at the end that begin a character.

    (The incremental decoder of `codecs` would do, but for ED A0: it waits for a third byte, Rust does not.)"""
    pieces = []
    while True:
        try:
            return [*pieces, data.decode()], b""
        except UnicodeDecodeError as error:
            pieces.append(data[:error.start].decode())
            if error.reason == "unexpected end of data":
                return pieces, data[error.start:]
            pieces.append(None)
            data = data[error.end:]
