"""Completions: ids or text in, what follows out, no messages. The fields are OpenAI's and, for ids, vLLM's, so that
remote.RemoteEngine finds here what it finds there: one instance can be another one's engine.
"""

import json
import secrets
import time

from checkpoint import expect
from serving import request as asked
from serving.request import Request, get
from serving.turn import End


def read(body, tokenizer):
    """The Request in a body; its history is a list of ids."""
    prompt = body.get("prompt")
    if isinstance(prompt, list) and len(prompt) == 1 and not isinstance(prompt[0], int):
        prompt = prompt[0]  # a batch of one
    if isinstance(prompt, str):
        prompt = tokenizer.encode(prompt, "all")  # whoever writes a whole prompt writes special tokens too
    right = isinstance(prompt, list) and prompt and all(
        type(id) is int and 0 <= id < tokenizer.vocab_size for id in prompt)
    expect(right, ValueError, "prompt", f"a text or ids from 0 to {tokenizer.vocab_size - 1}, one prompt, not empty",
           repr(prompt))
    for name in ("n", "best_of"):
        expect(asked.number(body, name, int, 1, 128) in (None, 1), ValueError, name, "1", repr(body.get(name)))
    for name in ("return_token_ids", "ignore_eos", "skip_special_tokens"):
        get(body, name, bool)
    stop = get(body, "stop_token_ids", list, [])
    expect(all(type(id) is int for id in stop), ValueError, "stop_token_ids", "ids", repr(stop))
    sampling = {"max_tokens": 16} | asked.sampling(body, "max_tokens")  # 16 is what OpenAI's API says
    return Request(body, prompt, sampling=sampling, stop=asked.stops(body), stream=get(body, "stream", bool, False),
                   top=asked.number(body, "logprobs", int, 0, asked.TOP))


class Form:
    """See serving/__init__.py."""
    last = "data: [DONE]\n\n"

    def __init__(self, request, name):
        body = request.body
        self.tells = body.get("return_token_ids") is True
        self.counts = get(body, "stream_options", dict, {}).get("include_usage") is True
        self.top, self.prompt = request.top, request.history
        self.head = {"id": f"cmpl-{secrets.token_hex(16)}", "object": "text_completion", "created": int(time.time()),
                     "model": name}
        self.texts, self.ids, self.logprobs, self.first, self.end = [], [], [], True, None

    def text(self, event):
        return f"data: {json.dumps(event)}\n\n"

    def begin(self):
        yield from ()

    def waiting(self):
        return ": the prompt is being read\n\n"

    def feed(self, piece):
        if isinstance(piece, End):
            self.end, piece = piece, piece.last
        self.texts.append(piece.text)
        self.ids += piece.name
        self.logprobs += piece.logprobs
        yield self._event(piece.text, piece.name, piece.logprobs)
        if self.end and self.counts:
            yield {**self.head, "choices": [], "usage": self._usage()}

    def failed(self, message):
        yield {"error": {"message": message, "type": "server_error", "param": None, "code": "server_error"}}

    def whole(self):
        self.first = True
        return self._event("".join(self.texts), self.ids, self.logprobs) | {"usage": self._usage()}

    def _event(self, text, ids, logprobs):
        end = self.end
        choice = {"index": 0, "text": text, "logprobs": self._logprobs(logprobs),
                  "finish_reason": end and end.reason, "stop_reason": end and end.stopped_by}
        if self.tells:
            choice |= {"token_ids": list(ids), "prompt_token_ids": self.prompt if self.first else None}
        self.first = False
        return {**self.head, "choices": [choice]}

    def _logprobs(self, found):
        """The older form of log probabilities, in columns."""
        if self.top is None:
            return None
        return {"tokens": [one["token"] for one in found], "token_logprobs": [one["logprob"] for one in found],
                "top_logprobs": [{other["token"]: other["logprob"] for other in one["top_logprobs"]} for one in found]}

    def _usage(self):
        return {"prompt_tokens": self.end.prompt, "completion_tokens": self.end.generated,
                "total_tokens": self.end.prompt + self.end.generated}
