"""Chat Completions: messages in, one message out, and the chunks in which it comes.

    delta {"role": "assistant", "content": ""}
    delta {"reasoning": text, "reasoning_content": text} ...       two names for one thing: clients look for either
    delta {"content": text} ...
    delta {"tool_calls": [{"index", "id", "type", "function": {"name", "arguments": ""}}]}, then pieces of the arguments
    delta {}, finish_reason
    choices [], usage                                              if it was asked for
    [DONE]

Source: https://platform.openai.com/docs/api-reference/chat and OpenAI's article "Verifying gpt-oss implementations",
which names `reasoning`.
"""

import json
import secrets
import time

from checkpoint import expect
from serving import request as asked
from serving.request import Request, get
from serving.turn import End
from transcript import from_openai


def read(body):
    """The Request in a body."""
    messages = body.get("messages")
    expect(isinstance(messages, list) and messages, ValueError, "messages", "a list of messages, at least one",
           repr(messages))
    for message in messages:
        calls = message.get("tool_calls") if isinstance(message, dict) else None
        for call in calls if isinstance(calls, list) else []:
            function = call.get("function") if isinstance(call, dict) else None
            if isinstance(function, dict) and isinstance(function.get("name"), str):
                call |= {"recipient": f"functions.{function['name']}", "channel": "commentary"}
    instructions, history = from_openai(messages)
    expect(asked.number(body, "n", int, 1, 128) in (None, 1), ValueError, "n", "1", repr(body.get("n")))
    functions, builtin = asked.tools(body, nested=True)
    functions, builtin, must = asked.choice(body, functions, builtin)
    thinking = get(body, "reasoning", dict, {})
    effort = asked.effort("reasoning_effort", body.get("reasoning_effort"), thinking.get("effort"),
                          get(body, "chat_template_kwargs", dict, {}).get("reasoning_effort"))
    top = asked.number(body, "top_logprobs", int, 0, asked.TOP)
    return Request(body, history, instructions or None, effort, functions, builtin, must,
                   asked.schema(body, "response_format"),
                   asked.sampling(body, "max_completion_tokens", "max_tokens"), asked.stops(body),
                   top or 0 if get(body, "logprobs", bool, False) or top else None, get(body, "stream", bool, False))


class Form:
    """See serving/__init__.py."""
    last = "data: [DONE]\n\n"

    def __init__(self, request, name):
        body = request.body
        self.shows = get(body, "reasoning", dict, {}).get("exclude") is not True
        self.counts = get(body, "stream_options", dict, {}).get("include_usage") is True
        self.top, self.head = request.top, {"id": f"chatcmpl-{secrets.token_hex(16)}", "created": int(time.time()),
                                            "model": name}
        self.thoughts, self.content, self.logprobs, self.calls = [], [], [], []
        self.kind, self.end = None, None

    def text(self, event):
        return f"data: {json.dumps(event)}\n\n"

    def begin(self):
        yield self._chunk({"role": "assistant", "content": ""})

    def waiting(self):
        return ": the prompt is being read\n\n"

    def feed(self, piece):
        if isinstance(piece, End):
            self.end = piece
            yield self._chunk({}, reason=piece.reason)
            if self.counts:
                yield self._object("chat.completion.chunk", []) | {"usage": self._usage()}
        elif piece.kind == "reasoning":
            self.thoughts.append(piece.text)
            if self.shows:
                yield self._chunk({"reasoning": piece.text, "reasoning_content": piece.text})
        elif piece.kind in ("commentary", "text"):
            between = "\n\n" if self.content and self.kind not in (None, piece.kind) else ""  # a preamble, an answer
            self.kind = piece.kind
            self.content.append(between + piece.text)
            self.logprobs += piece.logprobs
            yield self._chunk({"content": between + piece.text}, piece.logprobs)
        elif piece.kind == "call":
            if not self.calls:  # one in a reply: it ends the turn
                function = {"name": piece.name, "arguments": ""}
                self.calls.append({"id": f"call_{secrets.token_hex(12)}", "type": "function", "function": function})
                yield self._chunk({"tool_calls": [{"index": 0, **self.calls[0], "function": dict(function)}]})
            self.calls[0]["function"]["arguments"] += piece.text
            yield self._chunk({"tool_calls": [{"index": 0, "function": {"arguments": piece.text}}]})

    def failed(self, message):
        yield {"error": {"message": message, "type": "server_error", "param": None, "code": "server_error"}}

    def whole(self):
        content, thoughts = "".join(self.content), "".join(self.thoughts)
        message = {"role": "assistant", "content": content or (None if self.calls else ""), "refusal": None}
        if thoughts and self.shows:
            message |= {"reasoning": thoughts, "reasoning_content": thoughts}
        if self.calls:
            message["tool_calls"] = self.calls
        choice = {"index": 0, "message": message, "logprobs": self._logprobs(self.logprobs),
                  "finish_reason": self.end.reason}
        return self._object("chat.completion", [choice]) | {"usage": self._usage()}

    def _object(self, kind, choices):
        return {**self.head, "object": kind, "system_fingerprint": None, "choices": choices}

    def _chunk(self, delta, logprobs=(), reason=None):
        choice = {"index": 0, "delta": delta, "logprobs": self._logprobs(logprobs) if logprobs else None,
                  "finish_reason": reason}
        return self._object("chat.completion.chunk", [choice])

    def _logprobs(self, logprobs):
        return None if self.top is None else {"content": list(logprobs), "refusal": None}

    def _usage(self):
        end = self.end
        return {"prompt_tokens": end.prompt, "completion_tokens": end.generated,
                "total_tokens": end.prompt + end.generated, "prompt_tokens_details": {"cached_tokens": end.cached},
                "completion_tokens_details": {"reasoning_tokens": end.reasoning}}
