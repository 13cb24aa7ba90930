"""A conversation as JSON: the messages in the form of OpenAI's Chat Completions, which most programs read and write.

    history (harmony.Message)                      messages (JSON)
    user                                           {"role": "user", "content": "What is 6 * 7?"}
    assistant, analysis                            {"role": "assistant", "reasoning": "They want a product.",
    assistant, commentary                           "content": "I'll compute that.",
    assistant, commentary, to=functions.multiply    "tool_calls": [{"id": "call_1", "type": "function",
                                                        "function": {"name": "multiply", "arguments": "{...}"}}]}
    functions.multiply, to=assistant               {"role": "tool", "tool_call_id": "call_1", "content": "42"}
    assistant, final                               {"role": "assistant", "content": "6 * 7 = 42"}

A saved conversation is the body of such a request: {"reasoning_effort": "medium", "messages": [...]}. What was thought
is under "reasoning", where the other servers of gpt-oss have it too. This file knows no engine and no model.
Source: https://platform.openai.com/docs/api-reference/chat/create and OpenAI's guide "How to handle the raw chain of
thought in gpt-oss".
"""

import errno
import json
import os
import re
from contextlib import suppress
from pathlib import Path
from reprlib import repr as brief  # of a large or deep value the beginning

from checkpoint import expect
from harmony import BROWSER, EFFORTS, PYTHON, ROLES, Message, SystemContent

CHANNELS = SystemContent.valid_channels
# What a call can be addressed to: one word that is no role and no channel. A header that has it has no other recipient,
# no other role and no markup in it. (harmony.render takes any text there, as OpenAI's library does.)
RECIPIENT = rf"(?!(?:{'|'.join((*ROLES, *CHANNELS, 'all'))})(?![\w.-]))[\w.-]+"
PARTS = ("reasoning", "content", "tool_calls")  # of an assistant's message, in the order in which they are said
THOUGHT = ("reasoning", "reasoning_content", "thinking")  # as ours, DeepSeek's and Hugging Face's programs call it
LARGEST = 256 * 2**20  # bytes of a file that is read


def to_openai(history):
    """Messages of harmony.Message as a list of JSON objects."""
    out, said, calls = [], None, 0
    for message in history:
        if message.role != "assistant":
            out.append({"role": message.role, "content": message.content})
            if message.role == "tool":
                out[-1] = {"role": "tool", "tool_call_id": f"call_{calls}", "content": message.content}
            said = None
            continue
        part = PARTS[2 if message.recipient else 0 if message.channel == "analysis" else 1]
        answered = said and said["content"] and "channel" not in said
        if said is None or answered or any(said.get(name) for name in PARTS[PARTS.index(part) :]):
            said = {"role": "assistant", "content": None}
            out.append(said)
        if message.recipient:
            calls += 1
            said.pop("channel", None)  # what is said before a call is commentary: it goes without saying
            function = {"name": message.recipient.removeprefix("functions."), "arguments": message.content}
            call = {"id": f"call_{calls}", "type": "function", "function": function}
            if addressed(function["name"]) != (message.recipient, message.channel):
                call |= {"recipient": message.recipient, "channel": message.channel}
            said["tool_calls"] = [call]
        else:
            said[part] = message.content
            if message.channel == "commentary":
                said["channel"] = "commentary"
    return out


def addressed(name):
    """(recipient, channel) of the call of a function that is called `name` there."""
    builtin = name == PYTHON.name or name.startswith(f"{BROWSER.name}.")
    return (name, "analysis") if builtin else (f"functions.{name}", "commentary")


def from_openai(messages, where="messages"):
    """(instructions, history) of a list of JSON objects. Instructions, or None: what system and developer say.

    Takes what other programs write too: texts in parts, other names of the thought, arguments that are objects, several
    calls at once. Each call is followed by its result. Keys that it does not know are ignored. Whatever history comes
    out can be rendered. Raises ValueError for what it cannot read, a sentence that begins with `where`."""
    instructions, history, calls = [], [], set()
    results = {}  # of each id in order: some programs use one again in every turn
    for message in _expect(messages, list, where):
        if isinstance(message, dict) and isinstance(message.get("tool_call_id"), str):
            results.setdefault(message["tool_call_id"], []).append(message.get("content"))
    for n, message in enumerate(messages):
        at = f"{where}[{n}]"
        role = _expect(message, dict, at).get("role")
        text = _text(message.get("content"), f"{at}.content")
        if role in ("system", "developer"):
            instructions.append(text)
        elif role == "user":
            history.append(Message("user", text))
        elif role == "tool":
            id = message.get("tool_call_id")
            known = isinstance(id, str) and id in calls
            expect(known, ValueError, f"{at}.tool_call_id", "the id of a call before it", brief(id))
        else:
            expect(role == "assistant", ValueError, f"{at}.role", "user, assistant, tool, developer or system",
                   brief(role))
            history += _assistant(message, text, calls, results, at)
    return "\n\n".join(instructions) if instructions else None, history


def _assistant(message, text, calls, results, at):
    """The messages of one JSON object, and the results of its calls. Adds the ids of these to `calls`."""
    thought = next((message[key] for key in THOUGHT if message.get(key)), None)
    tool_calls = _expect(message.get("tool_calls") or [], list, f"{at}.tool_calls")
    channel = "commentary" if tool_calls or message.get("channel") == "commentary" else "final"
    said = [Message("assistant", _text(thought, f"{at}.reasoning"), channel="analysis")] if thought else []
    said += [Message("assistant", text, channel=channel)] if text else []
    for k, call in enumerate(tool_calls):
        where = f"{at}.tool_calls[{k}]"
        function = _expect(_expect(call, dict, where).get("function"), dict, f"{where}.function")
        recipient, channel = addressed(_expect(function.get("name"), str, f"{where}.function.name"))
        if "recipient" in call:
            recipient, channel = _expect(call["recipient"], str, f"{where}.recipient"), call.get("channel")
            expect(channel in CHANNELS, ValueError, f"{where}.channel", f"one of {', '.join(CHANNELS)}", brief(channel))
        expect(re.fullmatch(RECIPIENT, recipient), ValueError, where, "the name of a tool", brief(recipient))
        arguments = function.get("arguments")
        arguments = json.dumps(arguments) if isinstance(arguments, dict) else arguments
        id = _expect(call.get("id"), str, f"{where}.id")
        calls.add(id)
        result = results[id].pop(0) if results.get(id) else "(no result)"
        said += [Message("assistant", _text(arguments, f"{where}.function.arguments"), channel=channel,
                         recipient=recipient, content_type="<|constrain|>json" if channel == "commentary" else None),
                 Message("tool", _text(result, f"{where}: its result"), name=recipient, recipient="assistant",
                         channel=channel)]
    return said


def _text(content, where):
    """A text, or the parts of one."""
    content = [{"text": content or ""}] if content is None or isinstance(content, str) else content
    expect(isinstance(content, list), ValueError, where, "a text or a list of parts", brief(content))
    for n, part in enumerate(content):
        readable = isinstance(part, dict) and isinstance(part.get("text"), str)
        expect(readable, ValueError, f"{where}[{n}]", "a part with a text", brief(part))
    text = "".join(part["text"] for part in content)
    expect(not re.search("[\ud800-\udfff]", text), ValueError, where, "whole characters", "half a surrogate pair")
    return text


def _expect(value, kind, where):
    names = {dict: "an object", list: "a list", str: "a text"}
    expect(isinstance(value, kind), ValueError, where, names[kind], brief(value))
    return value


# ---- Files ----------------------------------------------------------------------------------------------------------

def save(path, history, *, instructions=None, effort="medium"):
    """Writes a conversation, whole or not at all. Raises OSError."""
    messages = to_openai(history)
    if instructions is not None:
        messages.insert(0, {"role": "developer", "content": instructions})
    text = json.dumps({"reasoning_effort": effort, "messages": messages}, ensure_ascii=False, indent=2)
    write(Path(path), text.encode(errors="surrogatepass") + b"\n")


def write(path, data):
    """Writes a file, whole or not at all. A link stays, and what it leads to is written. Raises OSError."""
    target = Path(os.path.realpath(path))
    beside = target.with_name(f".{target.name}.{os.getpid()}")
    if path.exists() and not path.is_file():
        raise OSError(errno.EEXIST, "expected a name for a file, found a directory or a device", str(path))
    try:
        beside.unlink(missing_ok=True)  # of a program that was killed and had the same number
        with open(beside, "xb") as file:
            file.write(data)
            file.flush()
            os.fsync(file.fileno())  # before the name changes: else a crash could leave an empty file under it
        os.replace(beside, target)
    except OSError as error:
        raise OSError(error.errno, error.strerror, str(path)) from None  # and not the name beside it
    finally:
        with suppress(OSError):
            beside.unlink()


def load(path):
    """(instructions, effort, history) of a saved conversation; effort is None where the file names none.

    Also a list of messages alone. Raises ValueError, a sentence with the file, or OSError."""
    path = Path(path)
    expect(path.is_file(), ValueError, path, "a saved conversation",
           "a directory or a device" if path.exists() else "no such file")
    with open(path, "rb") as file:
        data = file.read(LARGEST + 1)
    expect(len(data) <= LARGEST, ValueError, path, f"at most {LARGEST:,} bytes", "more")
    try:
        body = json.loads(data)
        json.dumps(body)  # what is nested too deep to be read or written again is found here, and not somewhere
    except (ValueError, RecursionError) as error:
        raise ValueError(f"{path}: expected JSON, found {str(error)[:200]}") from None
    body = {"messages": body} if isinstance(body, list) else _expect(body, dict, path)
    effort = body.get("reasoning_effort")
    expect(effort in (None, *EFFORTS), ValueError, f"{path}: reasoning_effort", f"one of {', '.join(EFFORTS)}",
           brief(effort))
    instructions, history = from_openai(body.get("messages"), f"{path}: messages")
    return instructions, effort, history
