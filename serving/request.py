"""What both APIs ask for, in one form. Whatever a body has in it, reading it gives a Request or a ValueError whose text
is "NAME: expected X, found Y". Fields that this file does not know are ignored: clients send many.
"""

import math
import re
from dataclasses import dataclass, field

from checkpoint import expect, expect_number
from harmony import Function, Namespace

EFFORTS = {"none": "low", "minimal": "low", "low": "low", "medium": "medium", "high": "high", "xhigh": "high",
           "max": "high"}  # gpt-oss knows three
SAMPLING = {"temperature": (float, 0, 100), "top_p": (float, 0, 1), "top_k": (int, -1, 2**31), "min_p":
            (float, 0, 1), "seed": (int, -2**63, 2**64)}
BUILTIN = {"code_interpreter": "python", "web_search": "browser", "web_search_preview": "browser",
           "browser_search": "browser"}  # as clients call them (the last is Groq's)
NAME = re.compile(r"[A-Za-z0-9_.-]{1,128}")
STOPS, TOP = 16, 20  # stop sequences; likely tokens beside each


class Refused(ValueError):
    """A request that is refused with another status than 400, or with a code."""

    def __init__(self, message, status=400, code=None):
        super().__init__(message)
        self.status, self.code = status, code


@dataclass
class Request:
    """What is to be answered. `history`: harmony.Message. `must`: names of functions, one of which is to be called.
    `builtin`: those of "python" and "browser" that are asked for. `top`: how many likely tokens are told beside each;
    None: no log probabilities. `body`: what was sent."""
    body: dict
    history: list
    instructions: str | None = None
    effort: str = "medium"
    functions: list = field(default_factory=list)
    builtin: set = field(default_factory=set)
    must: list = field(default_factory=list)
    schema: dict | None = None
    sampling: dict = field(default_factory=dict)
    stop: list = field(default_factory=list)
    top: int | None = None
    stream: bool = False


class Client:
    """A tool (see conversation.py) whose functions run at the client's."""
    call = None

    def __init__(self, functions):
        self.namespace = Namespace("functions", None, functions)


# ---- Fields of a body -----------------------------------------------------------------------------------------------

KINDS = {dict: "an object", list: "a list", str: "a text", bool: "true or false"}


def get(body, name, kind, default=None):
    """body[name], which is to be of a kind; null is as left out. name: as in "text.format"."""
    value = body
    for part in name.split("."):
        value = value.get(part) if isinstance(value, dict) else None
    expect(value is None or isinstance(value, kind), ValueError, name, KINDS[kind], repr(value))
    return default if value is None else value


def number(body, name, kind, low, high):
    """body[name] as a number in a range, or None. Programs write 5.0 where an integer is meant."""
    value = body.get(name)
    value = int(value) if kind is int and isinstance(value, float) and value.is_integer() else value
    return None if value is None else expect_number(value, kind, low, high, ValueError, name)


def sampling(body, *limits):
    """The arguments of an engine. limits: the names that the longest reply has, the first that is there counts."""
    found = {name: number(body, name, *bounds) for name, bounds in SAMPLING.items()}
    found["max_tokens"] = next((n for name in limits if (n := number(body, name, int, 1, math.inf))), None)
    found = {name: value for name, value in found.items() if value is not None}
    found["top_p"] = max(found.get("top_p", 1.0), 1e-9)  # 0 is meant as: the likeliest
    found["top_k"] = max(found.get("top_k", 0), 0)  # -1 is how vLLM spells all
    if "seed" in found:
        found["seed"] %= 2**63
    return found


def effort(where, *found):
    """The first effort that is named, in whatever way."""
    said = next((value for value in found if value is not None), "medium")
    known = EFFORTS.get(said.lower() if isinstance(said, str) else None)
    expect(known, ValueError, where, f"one of {', '.join(EFFORTS)}", repr(said))
    return known


def stops(body):
    found = body.get("stop")
    found = [found] if isinstance(found, str) else found or []
    right = isinstance(found, list) and len(found) <= STOPS and all(isinstance(text, str) for text in found)
    expect(right, ValueError, "stop", f"a text, or a list of at most {STOPS}", repr(found))
    return [text for text in found if text]


def tools(body, nested):
    """(functions, built-in tools) of body["tools"]. nested: whether a function is described under "function", as in
    Chat Completions. Tools of other kinds are skipped."""
    functions, builtin = {}, set()
    for n, tool in enumerate(get(body, "tools", list, [])):
        where = f"tools[{n}]"
        expect(isinstance(tool, dict), ValueError, where, "an object", repr(tool))
        kind = tool.get("type")
        if kind == "function":
            about = tool.get("function") if nested or "function" in tool else tool
            expect(isinstance(about, dict), ValueError, f"{where}.function", "an object", repr(about))
            name, text, schema = (about.get(key) for key in ("name", "description", "parameters"))
            fits = isinstance(name, str) and NAME.fullmatch(name)
            expect(fits, ValueError, f"{where}.name", "a name of letters, digits, _, - and .", repr(name))
            expect(isinstance(text, str | None), ValueError, f"{where}.description", "a text", repr(text))
            expect(isinstance(schema, dict | None), ValueError, f"{where}.parameters", "a JSON schema", repr(schema))
            functions[name] = Function(name, text or "", schema)
        elif isinstance(kind, str):  # web_search_preview_2025_03_11
            builtin |= {BUILTIN[name] for name in BUILTIN if re.fullmatch(rf"{name}(_\d{{4}}_\d\d_\d\d)?", kind)}
    return [*functions.values()], builtin


def choice(body, functions, builtin):
    """(functions, built-in tools, names of which one must be called) after body["tool_choice"]."""
    said = body.get("tool_choice")
    names = [function.name for function in functions]
    if isinstance(said, dict):
        about = said.get("function") if isinstance(said.get("function"), dict) else said
        if said.get("type") == "allowed_tools":
            about = said.get("allowed_tools") if isinstance(said.get("allowed_tools"), dict) else said
            allowed = [get(tool.get("function", tool) if isinstance(tool, dict) else {}, "name", str)
                       for tool in get(about, "tools", list, [])]
            functions = [function for function in functions if function.name in allowed]
            return functions, builtin, [f.name for f in functions] if about.get("mode") == "required" else []
        if said.get("type") in [*BUILTIN]:  # a list, because what is said may have no hash
            return functions, builtin, []
        name = about.get("name")
        expect(name in names, ValueError, "tool_choice", f"one of the functions, {', '.join(names)[:200]}", repr(name))
        return functions, builtin, [name]
    expect(said in (None, "auto", "none", "required", "any"), ValueError, "tool_choice",
           "auto, none, required or a function", repr(said))
    if said == "none":
        return [], set(), []
    if said in ("required", "any"):
        return functions, builtin, names
    return functions, builtin, []


def schema(body, where):
    """The JSON schema of an answer, or None: of `text.format` in Responses, flat, or of `response_format` in Chat."""
    form = get(body, where, dict, {})
    kind = form.get("type", "text")
    expect(kind in ("text", "json_object", "json_schema"), ValueError, where,
           "text, json_object or json_schema", repr(kind))
    if kind == "json_object":
        return {"type": "object"}
    if kind == "json_schema":
        about = form.get("json_schema") if isinstance(form.get("json_schema"), dict) else form
        found = about.get("schema")
        expect(isinstance(found, dict), ValueError, f"{where}.schema", "an object", repr(found))
        title = {key: about[name] for key, name in (("title", "name"), ("description", "description"))
                 if isinstance(about.get(name), str)}
        return title | found
    return None
