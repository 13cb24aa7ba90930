"""One request, answered: a Conversation in the thread that owns the engine, and its pieces as the Forms want them."""

import codecs
import threading
from contextlib import ExitStack, closing, suppress
from typing import NamedTuple

import numpy as np

from checkpoint import expect
from conversation import Conversation
from serving.request import Client, Refused

STOPS = ("<|return|>", "<|call|>", "<|endoftext|>")  # what ends a reply


class Piece(NamedTuple):
    """A piece of the reply. kind: "reasoning", "commentary", "text", "call", "python", "browser" or "result"; pieces of
    one kind and name that follow each other belong together. name: of the function, in a call and in its result."""
    kind: str
    text: str = ""
    name: str | None = None
    logprobs: list = []


class End(NamedTuple):
    """How it ended: "stop", "length" or "tool_calls"; and the tokens."""
    reason: str
    prompt: int
    cached: int
    generated: int
    reasoning: int
    stopped_by: object = None  # of a completion: the id or the text that ended it
    last: Piece | None = None  # of a completion: what came with the end


class Gone(Exception):
    """The client has left."""


class Watch:
    """An engine that counts what another one reads and writes, keeps log probabilities, and stops when `gone` is set.
    top: how many likely ids are kept beside each that is written; None: no log probabilities."""

    def __init__(self, engine, tokenizer, gone, top=None):
        self.engine, self.tokenizer, self.gone, self.top = engine, tokenizer, gone, top
        self.context, self.processes_logits = engine.context, getattr(engine, "processes_logits", True)
        self.markup = set(tokenizer.special_tokens.values())
        self.prompt = self.cached = self.generated = self.reasoning = 0
        self.thinking = lambda: False
        self.logprobs = []  # of the ids since they were last taken; markup takes away those before it
        expect(top is None or self.processes_logits, ValueError, "logprobs", "an engine of this machine",
               "a server, which keeps them to itself")

    def check(self):
        if self.gone.is_set():
            raise Gone

    def generate(self, tokens, *, logits_processor=None, **sampling):
        self.check()
        with suppress(AttributeError):  # an engine may refuse attributes that it does not know
            self.engine.progress = self.check
        if self.top is not None:
            before = logits_processor

            def logits_processor(ids, logits):
                self.logits = logits
                return before(ids, logits) if before else logits

        if self.processes_logits:
            sampling["logits_processor"] = logits_processor
        ids = self.engine.generate(tokens, **sampling)
        if not self.prompt:
            cache = getattr(self.engine, "cache", None)
            self.prompt, self.cached = len(tokens), cache.length if cache else 0
        return self._count(ids)

    def _count(self, ids):
        try:
            for id in ids:
                self.check()
                self.generated += 1
                if id in self.markup:
                    self.logprobs = []
                elif self.top is not None:
                    self.logprobs.append(likely(self.tokenizer, self.logits, id, self.top))
                yield id
                self.reasoning += self.thinking()
        finally:
            getattr(ids, "close", int)()
            with suppress(AttributeError):
                del self.engine.progress

    def taken(self):
        taken, self.logprobs = self.logprobs, []
        return taken

    def end(self, *how):
        reason, *more = how
        return End(reason, self.prompt, self.cached, self.generated, self.reasoning, *more)


def likely(tokenizer, logits, id, top):
    """What the APIs tell of a token: its log probability and those of the likeliest, before temperature."""
    top_ids = np.argpartition(-logits, top)[:top]
    top_ids = top_ids[np.argsort(-logits[top_ids], kind="stable")]
    total = logits.max() + np.log(np.exp(logits - logits.max(), dtype=np.float64).sum())

    def about(id):
        data = tokenizer.decode_bytes([id]) if id < tokenizer.vocab_size else b""
        return {"token": data.decode(errors="replace"), "logprob": max(float(logits[id] - total), -9999.0),
                "bytes": list(data)}

    return about(id) | {"top_logprobs": [about(int(other)) for other in top_ids]}


class Until:
    """Text up to the first of some stop sequences. What may be the beginning of one waits."""

    def __init__(self, stop):
        self.stop, self.held, self.found = stop, "", None

    def feed(self, text):
        """What can be shown. `found`: the stop sequence, once it is there."""
        text = self.held + text
        places = [(at, stop) for stop in self.stop if (at := text.find(stop)) >= 0]
        if places:
            at, self.found = min(places)
            self.held = ""
            return text[:at]
        begun = max((n for stop in self.stop for n in range(1, min(len(stop), len(text) + 1))
                     if text.endswith(stop[:n])), default=0)
        self.held = text[len(text) - begun :]
        return text[: len(text) - begun]


# ---- A conversation -------------------------------------------------------------------------------------------------

def conversation(request, engine, tokenizer, tools=()):
    """Raises ValueError for what cannot be answered, before an engine is asked."""
    expect(engine.processes_logits or not request.must, ValueError, "tool_choice", "auto or none",
           "a call that must be, which an engine on a server cannot promise")
    tools = [Client(request.functions)] * bool(request.functions) + [*tools]
    chat = Conversation(engine, tokenizer, effort=request.effort, instructions=request.instructions, tools=tools,
                        schema=request.schema, must=[f"functions.{name}" for name in request.must])
    chat.history += request.history
    return chat


def check(request, engine, tokenizer):
    """Raises ValueError for a request that cannot be answered, before it waits for its turn."""
    fits(len(request.history), engine)  # a message is a token at least: of a million it costs too much to count them
    watch = Watch(engine, tokenizer, threading.Event(), request.top)
    fits(len(conversation(request, watch, tokenizer).prompt(None)), engine)


def fits(n, engine):
    if n >= engine.context:
        raise Refused(f"input: expected fewer than {engine.context} tokens, the context of this model, found {n}",
                      code="context_length_exceeded")


def answer(request, engine, tokenizer, builtin, gone):
    """Yields Pieces and an End. builtin: {"python" or "browser": a function that makes the tool}. gone: an Event."""
    watch = Watch(engine, tokenizer, gone, request.top)
    with ExitStack() as stack:
        tools = [stack.enter_context(closing(builtin[name]())) for name in sorted(request.builtin & builtin.keys())]
        for tool in tools:
            tool.progress = watch.check  # code may run for minutes, for nobody
        chat = conversation(request, watch, tokenizer, tools)
        watch.thinking = lambda: bool(chat.reader.message) and chat.reader.message.channel == "analysis"
        reply = stack.enter_context(closing(chat.ask(None, **request.sampling)))
        if browser := next((tool for tool in tools if tool.namespace.name == "browser"), None):
            from terminal import cited

            reply = cited(reply, browser)
        until, shown, called = Until(request.stop), False, None
        for channel, text in reply:
            if until.held and channel != "final":  # it has not become a stop sequence
                yield Piece("text", until.held)
                until.held = ""
            if channel == "final":
                logprobs, text = watch.taken(), until.feed(text)
                if text or logprobs:
                    shown = True
                    yield Piece("text", text, None, logprobs)
                if until.found is not None:
                    yield watch.end("stop", until.found)
                    return
            elif channel == "call":
                recipient = chat.reader.message.recipient
                if (tool := chat.tool(recipient)) is not None:
                    kind, name, called = kind_of(tool, recipient), name_of(recipient), chat.reader.message
                    yield Piece(kind, text, name)
            elif channel == "result":
                if chat.tool(chat.history[-2].recipient) is not None:
                    yield Piece("result", text, name_of(chat.history[-2].recipient))
            elif channel != "note":
                yield Piece({"analysis": "reasoning"}.get(channel, channel), text)
        if until.held:
            yield Piece("text", until.held)
        call = chat.reader.call
        if call and (tool := chat.tool(call.recipient)) and tool.call is None:
            if call is not called or not call.content.strip():  # a call without arguments is one with an empty object
                yield Piece("call", "{}", name_of(call.recipient))
            yield watch.end("tool_calls")
        elif call and not chat.tools:  # nobody offered what was called: it is at least a text
            if not shown:
                yield Piece("text", call.content)
            yield watch.end("stop")
        else:
            yield watch.end("stop" if chat.reader.over and not call else "length")


def kind_of(tool, recipient):
    return "call" if tool.call is None else tool.namespace.name


def name_of(recipient):
    return recipient.removeprefix("functions.")


# ---- A completion ---------------------------------------------------------------------------------------------------

def complete(request, engine, tokenizer, gone):
    """Yields Pieces of kind "ids", whose name is a list of them, and an End. The prompt is continued as it is."""
    watch, body = Watch(engine, tokenizer, gone, request.top), request.body
    stop = {tokenizer.special_tokens[name] for name in STOPS} if not body.get("ignore_eos") else set()
    wanted = set(body.get("stop_token_ids") or [])
    hidden = watch.markup if body.get("skip_special_tokens", True) else set()
    watch.markup = set()  # here it is an id like any other
    until, decoder = Until(request.stop), codecs.getincrementaldecoder("utf-8")("replace")
    with closing(watch.generate(request.history, stop=stop | wanted, **request.sampling)) as ids:
        for id in ids:
            data = tokenizer.decode_bytes([id]) if id < tokenizer.vocab_size else b"\xff"
            piece = Piece("ids", until.feed(decoder.decode(b"" if id in hidden else data)), [id], watch.taken())
            if until.found is not None or id in stop | wanted:
                rest = "" if until.found is not None else until.held + decoder.decode(b"", final=True)
                yield watch.end("stop", id if id in wanted else until.found, piece._replace(text=piece.text + rest))
                return
            yield piece
    yield watch.end("length", None, Piece("ids", until.held + decoder.decode(b"", final=True), []))
