"""Harmony: the messages of a conversation as the token ids gpt-oss was trained on, and the model's ids as messages.

A message is a header and a content between special tokens. Below, each box is one special token; what is between
boxes is ordinary text, encoded piece by piece, so that no text can ever turn into a special token:

    [start] assistant to=functions.weather [channel] commentary _ [constrain] json [message] {"city":"Oslo"} [call]
            role      recipient            channel              content type             content             stop

    [start]  opens every message                [end]     closes a message
    [channel] comes before the channel's name   [call]    closes a call of a tool (there is a recipient)
    [message] ends the header                   [return]  closes the model's last message: it hands over

Role and stop are always there, the rest if it applies. Everything that can go wrong here goes wrong silently: one
token other than in training, and the model is a little worse. So `render` is equal token for token to openai-harmony
0.0.8, the Rust library gpt-oss was published with, oddities included, and the tests hold the two side by side.

This file is pure text and ids: it refuses to know a model, and to repair what a model wrote (see chat.py for that).
Format: https://cookbook.openai.com/articles/openai-harmony
"""
import json
import re
from collections import deque
from collections.abc import Iterable
from dataclasses import KW_ONLY, dataclass
from numbers import Integral
from typing import Any

from tokenizer import Tokenizer, TokenizerError

ROLES = ("system", "developer", "user", "assistant", "tool")


class HarmonyError(ValueError):
    """A conversation that cannot be rendered, or tokens that do not form messages."""


# ---- What a conversation is made of ------------------------------------------------------------------------------

@dataclass
class Function:
    """A tool the model may call: `parameters` is a JSON schema of its one argument, an object; None: no argument."""
    name: str
    description: str
    parameters: dict | None = None


@dataclass
class Namespace:
    """Tools that are called as `name.function`. A developer's own go into the namespace "functions"."""
    name: str
    description: str | None = None
    functions: list[Function] | tuple[Function, ...] = ()


@dataclass
class SystemContent:
    """The system message: who the model is, how hard it thinks, where it may write. A None leaves the line out."""
    model_identity: str | None = "You are ChatGPT, a large language model trained by OpenAI."
    reasoning_effort: str | None = "medium"  # low, medium or high
    conversation_start_date: str | None = None
    knowledge_cutoff: str | None = "2024-06"
    valid_channels: list[str] | tuple[str, ...] | None = ("analysis", "commentary", "final")
    channel_required: bool = True
    tools: list[Namespace] | tuple[Namespace, ...] = ()  # built-in ones: BROWSER, PYTHON


@dataclass
class DeveloperContent:
    """The developer message: what other formats call the system prompt, and the developer's own tools."""
    instructions: str | None = None
    tools: list[Namespace] | tuple[Namespace, ...] = ()


@dataclass
class Message:
    """One message. `name`: the author's, for role "tool" that of the tool (`functions.weather`)."""
    role: str
    content: str | list[str | SystemContent | DeveloperContent]
    _: KW_ONLY
    name: str | None = None
    channel: str | None = None
    recipient: str | None = None
    content_type: str | None = None


# The tools that gpt-oss was trained with, in the words it was trained on. They are offered in the system message.
BROWSER = Namespace("browser", """Tool for browsing.
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


# ---- Rendering: the texts of the system and developer messages ---------------------------------------------------

def _sections(*sections: str | None) -> str:
    return "\n\n".join(section for section in sections if section is not None)


def _system_text(system: SystemContent, functions_offered: bool) -> str:
    channels = None
    if system.valid_channels:
        channels = f"# Valid channels: {', '.join(system.valid_channels)}."
        if system.channel_required:
            channels += " Channel must be included for every message."
        if functions_offered:
            channels += "\nCalls to these tools must go to the commentary channel: 'functions'."
    lines = [label + value for label, value in [("", system.model_identity),
                                                ("Knowledge cutoff: ", system.knowledge_cutoff),
                                                ("Current date: ", system.conversation_start_date)]
             if value is not None]
    return _sections("\n".join(lines) if lines else None,
                     f"Reasoning: {system.reasoning_effort}" if system.reasoning_effort is not None else None,
                     _tools_text(system.tools), channels)


def _developer_text(developer: DeveloperContent) -> str:
    return _sections("# Instructions" if developer.instructions is not None else None, developer.instructions,
                     _tools_text(developer.tools))


def _tools_text(namespaces) -> str | None:
    """The section `# Tools`: each function as a TypeScript type, which is how the model was shown tools."""
    blocks = []
    for _, namespace in sorted({namespace.name: namespace for namespace in namespaces or ()}.items()):
        name, functions = namespace.name, namespace.functions
        lines = [f"## {name}\n"]
        lines += [("// " if functions else "") + line for line in _lines(namespace.description)]
        if functions:
            lines.append(f"namespace {name} {{\n")
            for function in functions:
                lines += ["// " + line for line in _lines(function.description)]
                argument = "" if function.parameters is None else f"_: {_typescript(_as_json(function.parameters))}"
                lines.append(f"type {function.name} = ({argument}) => any;\n")
            lines.append(f"}} // namespace {name}")
        blocks.append("\n".join(lines))
    return _sections("# Tools", *blocks) if blocks else None


def _lines(text: str | None) -> list[str]:
    """Lines as Rust counts them: str.splitlines would also split at form feeds, U+2028 and lone carriage returns."""
    return text.replace("\r\n", "\n").removesuffix("\n").split("\n") if text else []


# ---- Rendering: a JSON schema as a TypeScript type ---------------------------------------------------------------

def _typescript(schema: Any, indent: str = "") -> str:
    """The type that `schema` describes. What has no rule here (anyOf, $ref, const, pattern ...) is `any`."""
    if not isinstance(schema, dict):
        return "any"
    kind = schema.get("type")
    if isinstance(schema.get("oneOf"), list):
        return "".join(f"\n{indent} | {_nullable(variant, indent + '   ')}{_remark(variant, quoted=True)}"
                       for variant in schema["oneOf"])
    if isinstance(kind, list):
        names = ["number" if name == "integer" else name for name in kind if isinstance(name, str)]
        return " | ".join(names) or "any"
    if kind == "object":
        return _object(schema, indent)
    if kind == "array":
        return f"{_typescript(schema['items'], indent)}[]" if "items" in schema else "Array<any>"
    if kind == "string" and isinstance(schema.get("enum"), list):
        return " | ".join(f'"{value}"' for value in schema["enum"] if isinstance(value, str)) or "string"
    return {"string": "string", "number": "number", "integer": "number", "boolean": "boolean"}.get(kind, "any") \
        if isinstance(kind, str) else "any"


def _object(schema: dict, indent: str) -> str:
    out = f"{indent}// {schema['description']}\n" if isinstance(schema.get("description"), str) else ""
    properties = schema.get("properties")
    required = schema.get("required")
    out += "{\n"
    for key, value in (properties.items() if isinstance(properties, dict) else ()):
        optional = "" if isinstance(required, list) and key in required else "?"
        out += _property(key + optional, value if isinstance(value, dict) else {}, indent)
    return out + indent + "}"


def _property(key: str, schema: dict, indent: str) -> str:
    title, examples, description = (schema.get(name) for name in ("title", "examples", "description"))
    variants = schema.get("oneOf")
    out = f"{indent}// {title}\n{indent}//\n" if isinstance(title, str) else ""
    if isinstance(description, str) and "oneOf" not in schema:
        out += f"{indent}// {description}\n"
    if isinstance(examples, list) and examples:
        out += f"{indent}// Examples:\n"
        out += "".join(f'{indent}// - "{example}"\n' for example in examples if isinstance(example, str))
    if not isinstance(variants, list):
        default = f" // default: {_default(schema)}" if "default" in schema and "oneOf" not in schema else ""
        return f"{out}{indent}{key}: {_nullable(schema, indent + '    ')},{default}\n"

    first = variants[0].get("description") if variants and isinstance(variants[0], dict) else None
    above = isinstance(description, str) and description != first
    if above:
        out += f"{indent}// {description}\n"
    if "default" in schema:
        out += f"{indent}// default: {_default(schema)}\n"
    out += f"{indent}{key}:\n"
    for n, variant in enumerate(variants):
        remark = _remark(variant, skip=(n == 0 and above, description))
        out += f"{indent} | {_nullable(variant, indent + '   ')}{remark}\n"
    return out + f"{indent},\n"


def _nullable(schema: Any, indent: str) -> str:
    type_ = _typescript(schema, indent)
    if isinstance(schema, dict) and schema.get("nullable") is True and "null" not in type_:
        type_ += " | null"
    return type_


def _remark(variant: Any, quoted: bool = False, skip=(False, None)) -> str:
    """The comment behind one variant of a oneOf: its description, unless said before, and its default."""
    if not isinstance(variant, dict):
        return ""
    remarks = []
    description = variant.get("description")
    if isinstance(description, str) and not skip[0] and description != skip[1]:
        remarks.append(description)
    if "default" in variant:
        remarks.append(f"default: {_default(variant, quoted)}")
    return f" // {' '.join(remarks)}" if remarks else ""


def _default(schema: dict, quoted: bool = False) -> str:
    value = schema["default"]
    if isinstance(value, str) and not schema.get("enum"):
        return f'"{value}"'
    if isinstance(value, str) and not quoted:
        return value
    return _json(value)


def _json(value: Any) -> str:
    """Compact JSON as Rust's serde_json writes it: json.dumps, but for floats."""
    if isinstance(value, float):
        mantissa, _, exponent = repr(value).partition("e")
        if exponent == "-05":  # Python begins the exponents here, Rust one decimal place later
            sign, digits = ("-", mantissa[1:]) if mantissa[0] == "-" else ("", mantissa)
            return f"{sign}0.0000{digits.replace('.', '')}"
        return f"{mantissa}e{int(exponent)}" if exponent else mantissa
    if isinstance(value, list):
        return f"[{','.join(map(_json, value))}]"
    if isinstance(value, dict):
        return f"{{{','.join(f'{_json(key)}:{_json(item)}' for key, item in value.items())}}}"
    return json.dumps(value, ensure_ascii=False)


def _as_json(parameters: Any) -> Any:
    """`parameters` after a trip through JSON text, as they reach the library: checked, tuples as lists, and numbers
    as serde_json reads them."""
    try:
        return json.loads(json.dumps(parameters, allow_nan=False), parse_int=_number, parse_float=_number)
    except (TypeError, ValueError, RecursionError) as error:
        raise HarmonyError(f"parameters: expected a JSON schema, found {error}") from None


def _number(text: str) -> int | float:
    """Integers of 64 bits stay whole; all else takes serde_json's short way to a float, which may miss the nearest one
    by a unit or two in the last place: at most 64 bits of digits, times or over one power of ten."""
    mantissa, _, exponent = text.partition("e")
    whole, _, fraction = mantissa.partition(".")
    digits, exponent = abs(int(whole + fraction)), int(exponent or 0) - len(fraction)
    if whole == text and -2**63 <= int(text) < 2**64:
        return int(text)
    while digits >= 2**64:
        digits, exponent = digits // 10, exponent + 1
    value = float(digits)
    if exponent < -308:
        value, exponent = value / 1e308, exponent + 308
    value = value * float(f"1e{exponent}") if exponent >= 0 else value / float(f"1e{-exponent}")
    if value == float("inf"):
        raise ValueError(f"a number beyond 64-bit floats, {text[:20]}")
    return -value if text.startswith("-") else value


# ---- Rendering: messages -----------------------------------------------------------------------------------------

def render(messages: list[Message], tokenizer: Tokenizer, *, next_role: str | None = "assistant",
           drop_analysis: bool = True, training: bool = False) -> list[int]:
    """The token ids of a conversation, up to where the next message, by `next_role`, has to be written.

    next_role=None ends with the last message. training=True does too, and closes a last message on channel final with
    <|return|>, the token by which the model is to hand over. drop_analysis: leave out thoughts that led to an answer
    already given (see `_without_old_analysis`). Raises HarmonyError."""
    messages = list(messages)
    for message in messages:
        _check(message)
    functions_offered = any(namespace.name == "functions" and namespace.functions for message in messages
                            for part in _parts(message) if isinstance(part, DeveloperContent)
                            for namespace in {n.name: n for n in part.tools or ()}.values())
    ids = []
    try:
        for message in _without_old_analysis(messages) if drop_analysis else messages:
            ids += _render_message(message, tokenizer, functions_offered)
        special = tokenizer.special_tokens
        if training:
            if messages and messages[-1].role == "assistant" and messages[-1].channel == "final":
                ids[-1] = special["<|return|>"]
        elif next_role is not None:
            if next_role not in ROLES:
                raise HarmonyError(f"next_role: expected one of {', '.join(ROLES)} or None, found {next_role!r}")
            ids += [special["<|start|>"], *tokenizer.encode(next_role)]
    except TokenizerError as error:
        raise HarmonyError(str(error)) from None
    return ids


def _without_old_analysis(messages: list[Message]) -> list[Message]:
    """Drops what was thought, called and fetched on channel analysis before the first final answer.

    Only once the last word of the assistant is a final answer; while it works on a tool's results, it sees all of its
    thoughts. (OpenAI's guide drops the analysis of every finished turn; this is what the library does.)"""
    last = next((m for m in reversed(messages) if m.role == "assistant"), None)
    if last is None or last.channel != "final":
        return messages
    first_final = next(n for n, m in enumerate(messages) if m.channel == "final")
    return [m for n, m in enumerate(messages) if n >= first_final or m.channel != "analysis"]


def _render_message(message: Message, tokenizer: Tokenizer, functions_offered: bool) -> list[int]:
    special, encode = tokenizer.special_tokens, tokenizer.encode
    ids = [special["<|start|>"]]
    ids += encode(message.name if message.role == "tool" else message.role)
    if message.name is not None and message.role != "tool":
        ids += encode(f":{message.name}")
    if message.recipient is not None and message.recipient != "all":
        ids += encode(f" to={message.recipient}")
    if message.channel is not None:
        ids += [special["<|channel|>"], *encode(message.channel)]
    if message.content_type is not None:
        if message.content_type.startswith("<|constrain|>"):
            ids += [*encode(" "), special["<|constrain|>"], *encode(message.content_type.removeprefix("<|constrain|>"))]
        else:
            ids += encode(f" {message.content_type}")
    ids.append(special["<|message|>"])
    for part in _parts(message):
        if isinstance(part, SystemContent):
            part = _system_text(part, functions_offered)
        elif isinstance(part, DeveloperContent):
            part = _developer_text(part)
        ids += encode(part)
    is_call = message.role == "assistant" and message.recipient is not None
    return [*ids, special["<|call|>" if is_call else "<|end|>"]]


def _parts(message: Message) -> list:
    return [message.content] if isinstance(message.content, str) else list(message.content)


def _check(message: Message) -> None:
    """Refuses with one sentence what cannot be a message."""
    def need(ok: bool, what: str, found: Any) -> None:
        if not ok:
            raise HarmonyError(f"{what}, found {found!r}")

    need(isinstance(message, Message), "messages: expected Message objects", message)
    need(message.role in ROLES, f"role: expected one of {', '.join(ROLES)}", message.role)
    need(message.role != "tool" or message.name is not None, "name: expected a name with role tool", message.name)
    for part in _parts(message):
        need(isinstance(part, str | SystemContent | DeveloperContent),
             "content: expected a str or a list of str, SystemContent and DeveloperContent", part)
        need(not isinstance(part, SystemContent) or message.role == "system",
             "SystemContent: expected in a message of role system", message.role)
        need(not isinstance(part, DeveloperContent) or message.role == "developer",
             "DeveloperContent: expected in a message of role developer", message.role)


# ---- Parsing -----------------------------------------------------------------------------------------------------

_WHITE_SPACE = "\t-\r \x85\xa0\u1680\u2000-\u200a\u2028\u2029\u202f\u205f\u3000"  # Rust's; str.strip takes more


class StreamParser:
    """Messages out of tokens, one token at a time, so that a reply can be shown while it is being written.

                     [start]             [message]
        ExpectStart ---------> Header --------------> Content --+
             ^                   | [end], [return],      |  ^    | any other token:
             |                   | [call]: lenient only  |  +----+ its text
             +-------------------+-----------------------+
                                   [end], [return], [call], or finish()

    role: the first message's, if its header was cut short because the prompt already has "[start]role"; the parser
    then begins in Header. strict=False saves a reply that stops before [message]. After a HarmonyError the parser can
    be fed further. Time and memory are linear in the number of tokens.

    `state`, `messages` (the finished ones), `last_content_delta` (the text the last token completed, None if none),
    and, of the message being read, `current_content`, `current_role`, `current_channel`, `current_recipient`,
    `current_content_type`."""

    def __init__(self, tokenizer: Tokenizer, role: str | None = None, strict: bool = True):
        if role is not None and role not in ROLES:
            raise HarmonyError(f"role: expected one of {', '.join(ROLES)} or None, found {role!r}")
        self._tokenizer, self._strict = tokenizer, strict
        special = tokenizer.special_tokens
        self._start, self._message = special["<|start|>"], special["<|message|>"]
        self._stops = {special["<|return|>"], special["<|end|>"], special["<|call|>"]}
        self.messages: list[Message] = []
        self.last_content_delta: str | None = None
        self._next_role = role  # holds until a header has been read
        self._expect_start() if role is None else self._begin_header()

    # The three states and the ways into them.

    def _expect_start(self) -> None:
        self.state, self._header, self._current, self._content = "ExpectStart", [], None, []

    def _begin_header(self) -> None:
        self._expect_start()
        self.state = "Header"

    def _begin_content(self) -> None:
        header, role = self._header, self._next_role
        self._expect_start()  # for the case that the header is refused
        self._current = _parse_header(self._decode_header(header), role)
        self.state, self._next_role = "Content", None
        self._bytes, self._held, self._blocked = b"", deque(), False

    def feed(self, token: int) -> None:
        """Reads one token. Raises HarmonyError where no message can continue with it."""
        if not isinstance(token, Integral) or not 0 <= token < 2**32:
            raise HarmonyError(f"feed: expected a token id, found {token!r}")
        if self.state == "ExpectStart":
            if token != self._start:
                raise HarmonyError(f"expected the start of a message (token {self._start}), found token {token}")
            self._begin_header()
        elif self.state == "Header":
            if token == self._message:
                self._begin_content()
            elif token in self._stops and not self._strict:
                self._save_header()
            else:
                self._header.append(token)
        elif token in self._stops:
            self._end_message()
        else:
            self._read_content(token)

    def finish(self) -> None:
        """The end of the stream: completes a message that has no stop token. Raises HarmonyError inside a header."""
        if self.state == "Header":
            raise HarmonyError("expected the header of a message to end, found the end of the tokens")
        if self.state == "Content":
            self._end_message()

    def _read_content(self, token: int) -> None:
        """Text appears when its bytes are complete. Of several broken sequences in one token, each waits for one more
        token. A token of no known bytes holds up everything to the end of the message."""
        try:
            data = self._tokenizer.decode_bytes([token])
        except TokenizerError:
            self._blocked = True
        if self._blocked:
            self.last_content_delta = None
            return
        pieces, self._bytes = _decode(self._bytes + data)
        self._held.extend(pieces)
        delta = self._next_text()
        self._content.append(delta)
        self.last_content_delta = delta or None

    def _next_text(self) -> str:
        """Of the text that is held, all up to the first broken sequence, and that as U+FFFD."""
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
        self._expect_start()

    @property
    def current_content(self) -> str:
        return "".join(self._content)

    def _decode_header(self, tokens: list[int]) -> str:
        try:
            return self._tokenizer.decode_bytes(tokens).decode()
        except (TokenizerError, UnicodeDecodeError) as error:
            raise HarmonyError(f"header: expected tokens that form text, found {error}") from None

    def _save_header(self) -> None:
        """A reply that stopped before [message]: all of its header but the channel becomes the content."""
        if self._next_role is not None and self._header:
            header, channel = _take_channel(self._decode_header(self._header))
            words = _words(header)
            if words and words[0] == self._next_role:
                words.pop(0)
            self.messages.append(Message(self._next_role, " ".join(words), channel=channel))
        self._next_role = None
        self._expect_start()

    @property
    def current_role(self) -> str | None:
        return self._current.role if self._current else self._next_role

    @property
    def current_channel(self) -> str | None:
        return self._current and self._current.channel

    @property
    def current_recipient(self) -> str | None:
        return self._current and self._current.recipient

    @property
    def current_content_type(self) -> str | None:
        return self._current and self._current.content_type


def parse(tokens: Iterable[int], tokenizer: Tokenizer, role: str | None = None, strict: bool = True) -> list[Message]:
    """The messages that `tokens` form; see StreamParser, also for role and strict. Raises HarmonyError."""
    parser = StreamParser(tokenizer, role, strict)
    for token in tokens:
        parser.feed(token)
    parser.finish()
    return parser.messages


def _decode(data: bytes) -> tuple[list[str | None], bytes]:
    """Text, a None for each maximal broken sequence, and the bytes at the end that may yet become a character.

    (The incremental decoder of `codecs` would do, but it waits for a third byte after ED A0, where Rust does not.)"""
    pieces = []
    while data:
        try:
            return [*pieces, data.decode()], b""
        except UnicodeDecodeError as error:
            if error.start:
                pieces.append(data[:error.start].decode())
            if error.reason == "unexpected end of data":
                return pieces, data[error.start:]
            pieces.append(None)
            data = data[error.end:]
    return pieces, b""


def _words(text: str) -> list[str]:
    """The words of a header: trimmed of all white space, split at that of ASCII and before <|constrain|>."""
    trimmed = re.sub(rf"^[{_WHITE_SPACE}]+|[{_WHITE_SPACE}]+\Z", "", text)
    return [word for word in re.split("[\t\n\f\r ]", trimmed.replace("<|constrain|>", " <|constrain|>")) if word]


def _take_channel(header: str) -> tuple[str, str | None]:
    """The header without its first channel marker and name, and that name."""
    before, marker, after = header.partition("<|channel|>")
    if not marker:
        return header, None
    channel = re.match(rf"[^<{_WHITE_SPACE}]*", after)[0]
    if not channel:
        raise HarmonyError("header: expected a name behind <|channel|>, found none")
    return before + after[len(channel):], channel


def _parse_header(header: str, role: str | None) -> Message:
    """A message with empty content. What is left of the header, once the channel is out, has at most three words:
    role (or a tool's name), recipient, content type; the recipient's "to=" may be missing."""
    header, channel = _take_channel(header)
    words = _words(header)
    name = None
    if role is None:
        if not words:
            raise HarmonyError("header: expected a role, found none")
        role = words[0]
        if role not in ROLES:
            if len(words) == 1 and not role.startswith("to="):
                raise HarmonyError(f"header: expected one of {', '.join(ROLES)} as role, found {role!r}")
            role = "tool"
            name = words.pop(0)
        elif role == "tool":
            name = role
    if words and words[0] == role:
        words.pop(0)
    content_type = words.pop() if len(words) > 1 and not words[-1].startswith("to=") else None
    recipient = words.pop().removeprefix("to=") if words else None
    if words:
        raise HarmonyError(f"header: expected role, recipient and content type, found more: {' '.join(words)!r}")
    return Message(role, "", name=name, channel=channel, recipient=recipient, content_type=content_type)
