"""The Responses API: items in, items out, and the events by which the items come about.

    response.created, response.in_progress
    for each item of the output:
        response.output_item.added           the item, empty
        ... what comes of it ...             reasoning_text, output_text, function_call_arguments: .delta, and .done
        response.output_item.done            the item, whole
    response.completed                       the response, whole (or .incomplete, or .failed)

Every event has a number, and what is about an item has its id and its place in the output. openai-python's helper
builds the response from these, and checks that they fit.
Source: https://platform.openai.com/docs/api-reference/responses and the types of openai-python 3.
"""

import base64
import json
import secrets
import time

from checkpoint import expect
from serving import request as asked
from serving.request import Refused, Request, get
from serving.turn import End
from transcript import from_openai

THOUGHT = "gpt-oss:"  # before a thought in "encrypted_content", which is not encrypted: it is the client's to keep


def read(body, store=None):
    """The Request in a body. store: a function from the id of an earlier response to its items, input and output."""
    items = body.get("input")
    expect(isinstance(items, str | list), ValueError, "input", "a text or a list of items", repr(items))
    items = [{"role": "user", "content": items}] if isinstance(items, str) else items
    if (previous := get(body, "previous_response_id", str)) is not None:
        known = store(previous) if store else None
        if known is None:
            raise Refused("previous_response_id: expected that of a response that is still kept, found "
                          f"{previous[:200]!r}", 404, "previous_response_not_found")
        items = known + items
    body["input"] = items
    instructions, history = from_openai(messages(items), "input")
    expect(history or instructions, ValueError, "input", "a message, at least one", "none")
    instructions = [text for text in (get(body, "instructions", str), instructions) if text]
    functions, builtin = asked.tools(body, nested=False)
    functions, builtin, must = asked.choice(body, functions, builtin)
    wanted = "message.output_text.logprobs" in get(body, "include", list, [])
    top = asked.number(body, "top_logprobs", int, 0, asked.TOP)
    return Request(
        body, history, "\n\n".join(instructions) or None,
        asked.effort("reasoning.effort", get(body, "reasoning", dict, {}).get("effort")),
        functions, builtin, must, asked.schema(body, "text.format"),
        asked.sampling(body, "max_output_tokens"), asked.stops(body), top or 0 if wanted or top else None,
        get(body, "stream", bool, False))


def messages(items):
    """Items of an input as messages of Chat Completions, which transcript.py reads. Unknown kinds are skipped."""
    out = []
    for n, item in enumerate(items):
        expect(isinstance(item, dict), ValueError, f"input[{n}]", "an object", repr(item))
        kind = item.get("type", "message" if "role" in item else None)
        if kind == "message":
            message = {"role": item.get("role"), "content": item.get("content")}
            out.append(message | ({"channel": "commentary"} if item.get("phase") == "commentary" else {}))
        elif kind == "reasoning" and (text := thought(item)):
            out.append({"role": "assistant", "reasoning": text})
        elif kind == "function_call":
            function = {"name": item.get("name"), "arguments": item.get("arguments")}
            out.append({"role": "assistant", "tool_calls": [
                {"id": item.get("call_id"), "function": function, "channel": "commentary",
                 "recipient": f"functions.{item.get('name')}"}]})
        elif kind == "function_call_output":
            output = item.get("output")
            output = output if isinstance(output, str | list | None) else json.dumps(output)
            out.append({"role": "tool", "tool_call_id": item.get("call_id"), "content": output})
    return out


def thought(item):
    """The text of a reasoning item. Clients that send no content back (Codex) send what they were told to keep."""
    parts = item.get("content") or item.get("summary") or []
    texts = [part.get("text") for part in parts if isinstance(part, dict)] if isinstance(parts, list) else []
    kept = item.get("encrypted_content")
    if not texts and isinstance(kept, str) and kept.startswith(THOUGHT):
        try:
            texts = [base64.b64decode(kept.removeprefix(THOUGHT)).decode()]
        except ValueError:
            texts = []
    return "".join(text for text in texts if isinstance(text, str))


class Form:
    """See serving/__init__.py."""
    last = ""

    def __init__(self, request, name):
        body = self.body = request.body
        self.keeps = "reasoning.encrypted_content" in get(body, "include", list, [])
        self.count, self.items, self.piece = 0, [], None  # piece: the first of the item that is being written
        form = get(body, "text.format", dict, {"type": "text"})
        self.response = {
            "id": f"resp_{secrets.token_hex(16)}", "object": "response", "created_at": int(time.time()),
            "status": "in_progress", "model": name, "output": self.items, "error": None, "incomplete_details": None,
            "instructions": body.get("instructions"), "metadata": get(body, "metadata", dict, {}),
            "temperature": request.sampling.get("temperature", 1.0), "top_p": request.sampling["top_p"],
            "max_output_tokens": request.sampling.get("max_tokens"), "top_logprobs": request.top or 0,
            "parallel_tool_calls": False, "tool_choice": body.get("tool_choice") or "auto",
            "tools": body.get("tools") or [], "previous_response_id": body.get("previous_response_id"),
            "reasoning": {"effort": request.effort, "summary": None}, "text": {"format": form},
            "store": body.get("store") is not False, "truncation": "disabled", "usage": None}

    def text(self, event):
        return f"event: {event['type']}\ndata: {json.dumps(event)}\n\n"

    def whole(self):
        return self.response

    def begin(self):
        yield self._event("response.created", response=dict(self.response, output=[]))
        yield self._event("response.in_progress", response=dict(self.response, output=[]))

    def waiting(self):
        """Codex counts events as signs of life, and no comments."""
        return self.text(self._event("response.in_progress", response=dict(self.response, output=[])))

    def feed(self, piece):
        if isinstance(piece, End):
            yield from self._close("incomplete" if piece.reason == "length" else "completed")
            yield from self._end(piece)
            return
        if piece.kind == "result":
            yield from self._close(result=piece.text)
            return
        if self.piece is None or (piece.kind, piece.name) != (self.piece.kind, self.piece.name):
            yield from self._close()
            yield from self._open(piece)
        yield from self._add(piece)

    def failed(self, message):
        self.response |= {"status": "failed", "error": {"code": "server_error", "message": message}}
        yield self._event("response.failed", response=self.response)

    def _event(self, kind, **fields):
        self.count += 1
        return {"type": kind, "sequence_number": self.count - 1, **fields}

    def _about(self, kind, **fields):
        """An event about the item that is being written."""
        return self._event(kind, item_id=self.items[-1]["id"], output_index=len(self.items) - 1, **fields)

    # ---- Items ------------------------------------------------------------------------------------------------------

    def _open(self, piece):
        self.piece, self.parts, self.logprobs = piece, [], []
        letters, item = EMPTY[piece.kind]
        item = {"id": f"{letters}_{secrets.token_hex(16)}", **item}
        if piece.kind == "call":
            item |= {"call_id": f"call_{secrets.token_hex(12)}", "name": piece.name}
        elif piece.kind in PHASES:
            item["phase"] = PHASES[piece.kind]
        self.items.append(item)
        yield self._event("response.output_item.added", output_index=len(self.items) - 1, item=json_copy(item))
        if part := PARTS.get(piece.kind):
            yield self._about("response.content_part.added", content_index=0, part=dict(part))
        elif piece.kind in RUNS:
            yield self._about(f"response.{item['type']}.in_progress")

    def _add(self, piece):
        self.parts.append(piece.text)
        if piece.kind == "reasoning":
            yield self._about("response.reasoning_text.delta", content_index=0, delta=piece.text)
        elif piece.kind in PHASES:
            self.logprobs += piece.logprobs
            yield self._about("response.output_text.delta", content_index=0, delta=piece.text,
                              logprobs=piece.logprobs)
        elif piece.kind == "call":
            yield self._about("response.function_call_arguments.delta", delta=piece.text)
        elif piece.kind == "python":
            yield self._about("response.code_interpreter_call_code.delta", delta=piece.text)

    def _close(self, status="completed", result=None):
        """The item is at its end. result: what a tool that runs here has said."""
        if self.piece is None:
            return
        piece, item, text = self.piece, self.items[-1], "".join(self.parts)
        item["status"] = status
        if piece.kind == "reasoning":
            item["content"] = [PARTS["reasoning"] | {"text": text}]
            if self.keeps:
                item["encrypted_content"] = THOUGHT + base64.b64encode(text.encode()).decode()
            yield self._about("response.reasoning_text.done", content_index=0, text=text)
            yield self._about("response.content_part.done", content_index=0, part=item["content"][0])
        elif piece.kind in PHASES:
            item["content"] = [PARTS["text"] | {"text": text, "logprobs": self.logprobs}]
            yield self._about("response.output_text.done", content_index=0, text=text, logprobs=self.logprobs)
            yield self._about("response.content_part.done", content_index=0, part=item["content"][0])
        elif piece.kind == "call":
            item["arguments"] = text
            yield self._about("response.function_call_arguments.done", name=item["name"], arguments=text)
        elif piece.kind == "python":
            item |= {"code": text, "outputs": [{"type": "logs", "logs": result or ""}]}
            yield self._about("response.code_interpreter_call_code.done", code=text)
            yield self._about("response.code_interpreter_call.interpreting")
            yield self._about("response.code_interpreter_call.completed")
        else:
            item["action"] = action(piece.name, text)
            yield self._about("response.web_search_call.searching")
            yield self._about("response.web_search_call.completed")
        yield self._event("response.output_item.done", output_index=len(self.items) - 1, item=json_copy(item))
        self.piece = None

    def _end(self, end):
        status = "incomplete" if end.reason == "length" else "completed"
        if status == "incomplete":
            self.response["incomplete_details"] = {"reason": "max_output_tokens"}
        self.response |= {"status": status, "usage": {
            "input_tokens": end.prompt, "input_tokens_details": {"cached_tokens": end.cached},
            "output_tokens": end.generated, "output_tokens_details": {"reasoning_tokens": end.reasoning},
            "total_tokens": end.prompt + end.generated}}
        yield self._event(f"response.{status}", response=self.response)


PHASES = {"commentary": "commentary", "text": "final_answer"}
PARTS = {"reasoning": {"type": "reasoning_text", "text": ""},
         **dict.fromkeys(PHASES, {"type": "output_text", "text": "", "annotations": [], "logprobs": []})}
RUNS = ("python", "browser")
MESSAGE = {"type": "message", "role": "assistant", "status": "in_progress", "content": []}
EMPTY = {"reasoning": ("rs", {"type": "reasoning", "summary": [], "content": [], "status": "in_progress"}),
         "commentary": ("msg", MESSAGE), "text": ("msg", MESSAGE),
         "call": ("fc", {"type": "function_call", "arguments": "", "status": "in_progress"}),
         "python": ("ci", {"type": "code_interpreter_call", "code": "", "container_id": "local", "outputs": [],
                           "status": "in_progress"}),
         "browser": ("ws", {"type": "web_search_call", "status": "in_progress", "action": {"type": "search",
                                                                                           "query": ""}})}


def action(name, text):
    """What the browser was asked for, as the API names it."""
    try:
        said = json.loads(text)
    except (ValueError, RecursionError):
        said = None
    said = said if isinstance(said, dict) else {}
    if name == "browser.open":
        return {"type": "open_page", "url": str(said.get("id", ""))}
    if name == "browser.find":
        return {"type": "find_in_page", "pattern": str(said.get("pattern", "")), "url": ""}
    return {"type": "search", "query": str(said.get("query", "")), "queries": [str(said.get("query", ""))]}


def json_copy(item):
    return json.loads(json.dumps(item))
