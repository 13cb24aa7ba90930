"""A conversation with a model: what was said, what is asked next, what the model makes of it, and the tools it calls.
Without a screen.

    question -> messages -> ids -> engine -> ids -> Reader -> pieces (channel, text), and messages again
                            ^                          |
                            +---- result <--- tool <---+      for as long as the model calls one

An engine is anything that continues ids: an object with

    generate(tokens, *, max_tokens=None, temperature=1.0, top_k=0, top_p=1.0, min_p=0.0, seed=None, stop=None,
             logits_processor=None)     the ids that follow a whole prompt, as they come, a stop token last
    context                             the most tokens, prompt and reply together
    processes_logits                    False where it has no use for a logits_processor (can be left out: True)

LocalEngine (engine.py) runs gptoss.py; RemoteEngine (remote.py) asks a server. A tool is an object with

    namespace                   what the model is shown of it, a harmony.Namespace
    call(recipient, content)    what the model is told, as text; in bounded time. What it raises is told, too. None: a
                                call ends the turn, because somebody else runs it

Models do not always keep to the format that they were taught. Reader guesses what they meant, and Constraint keeps them
to it. (harmony.StreamParser takes what openai-harmony takes, and refuses the rest.)
"""

import codecs
import json
import re
from dataclasses import replace
from datetime import date as today
from functools import lru_cache
from itertools import product

import numpy as np

import gptoss
from checkpoint import expect
from engine import LocalEngine  # noqa: F401  (the two engines are to be found here)
from grammar import Grammar, GrammarError
from harmony import BROWSER, PYTHON, ROLES, DeveloperContent, Message, Namespace, SystemContent, render
from remote import RemoteEngine  # noqa: F401
from transcript import RECIPIENT

CHANNELS = SystemContent.valid_channels  # analysis, commentary, final
SPEAKER = rf"\s*(?:(?:{'|'.join(ROLES)})\b|\w+\.[a-z]\w*)"  # a role, or a tool
HEADER = re.compile(rf"(?:{SPEAKER})?(?:\s*to=[^\s<]*|\s*<\|(?:channel|constrain)\|>\s*[^\s<]*)*")
CHANNEL = rf"<\|channel\|>\s*({'|'.join(CHANNELS)})\b"  # in a header: the channel
STOPS = ("<|end|>", "<|return|>", "<|call|>", "<|endoftext|>")  # the first: more follows; the others: this was all
CALLS = 100  # of tools, in one turn: gpt-oss may search dozens of times, and a model that goes round comes to an end
LIKELY = 64  # ids that Constraint asks about before it takes another way
RESULT = 16_000  # characters of a tool's result that the model is told
BREAKS = re.compile("\r\n?|[\n\v\f\x1c-\x1e\x85\u2028\u2029]")  # whatever a reader may take for the end of a line


class Conversation:
    """Questions and answers. effort: how hard to think, "low", "medium" or "high". instructions: what a developer wants
    of the model. tools: see above; those of one namespace are shown as one. schema: a JSON schema to which the answers
    are held; GrammarError if it cannot be. must: recipients, as functions.NAME, one of which is to be called before
    there is an answer. date: that of the conversation, as "2025-08-05"; None: today's.

    `history`: all messages, in order. `messages`: what later turns are rendered from. That is the history without
    channel analysis: without thoughts, and without calls and results made in thought. OpenAI's guide drops these once
    an answer is given. (Here they go with any turn that has ended, also if it was interrupted.)
    `reader`: the Reader of the reply that comes, or of the last one."""

    def __init__(self, engine, tokenizer, *, effort="medium", instructions=None, tools=(), schema=None, must=(),
                 date=None):
        self.engine, self.tokenizer, self.history = engine, tokenizer, []
        self.effort, self.instructions, self.date = effort, instructions, date
        self.tools, self.schema, self.must = tools, schema, must
        self.calling, self.reader = None, None  # calling: the recipient, while a tool runs
        for name, wanted in (("schema", schema is not None), ("must", must)):
            held = not wanted or getattr(engine, "processes_logits", True)
            expect(held, GrammarError, name, "an engine of this machine", "a server, which chooses tokens by itself")
        self.grammar = None if schema is None else Grammar(schema)

    @property
    def messages(self):
        return [message for message in self.history if message.channel != "analysis"]

    def prompt(self, text):
        """The ids that ask `text` after all that was said. None: those with which the turn goes on, with its thoughts.
        Raises ValueError for what cannot be asked."""
        date, spaces = self.date or today.today().isoformat(), {}
        for space in (tool.namespace for tool in self.tools):
            functions = spaces[space.name].functions if space.name in spaces else ()
            spaces[space.name] = Namespace(space.name, space.description, (*functions, *map(shown, space.functions)))
            expect(re.fullmatch(RECIPIENT, space.name), ValueError, "a tool", "a name", repr(space.name))
        builtin = [spaces.pop(space.name) for space in (BROWSER, PYTHON) if space.name in spaces]
        system = SystemContent(reasoning_effort=self.effort, conversation_start_date=date, tools=builtin)
        messages, developer = [Message("system", [system])], []
        if self.instructions is not None or spaces:
            developer.append(DeveloperContent(self.instructions, list(spaces.values())))
        if self.schema is not None:
            developer.append(("\n\n" if developer else "") + response_format(self.schema))
        if developer:
            messages.append(Message("developer", developer))
        if text is not None:
            return render([*messages, *self.messages, Message("user", text)], self.tokenizer)
        asked = max((n for n, message in enumerate(self.history) if message.role == "user"), default=-1)
        messages += [message for n, message in enumerate(self.history) if n > asked or message.channel != "analysis"]
        return render(messages, self.tokenizer)

    def ask(self, text, **sampling):
        """Yield the reply as it comes, in pieces (channel, text). The channels are the model's "analysis", "commentary"
        and "final"; "call", what it tells a tool, and "result", what it is told; and "note", in which this program says
        how the reply goes and ends.

        text None: no new question, but the turn goes on from the history as it is. So after a call that ended it, once
        the result is in the history.

        Raises ValueError, before anything is changed, if the question cannot be asked. However the reply ends, also by
        an exception or by closing this generator, the question and what was answered until then are kept."""
        ids = self.prompt(text)
        reply = self._generate(ids, **sampling)
        self.history += [] if text is None else [Message("user", text)]
        return self._turn(ids, reply, sampling)

    def undo(self):
        """Takes back the last question and all that followed. Returns its text, or None if there is none."""
        n = max((n for n, message in enumerate(self.history) if message.role == "user"), default=None)
        if n is None:
            return None
        text = self.history[n].content
        del self.history[n:]
        return text

    def _generate(self, ids, **sampling):
        context = self.engine.context
        expect(len(ids) < context, ValueError, "the prompt", f"fewer than {context} tokens, the context", str(len(ids)))
        if getattr(self.engine, "processes_logits", True):
            arguments = {}
            for space in (tool.namespace for tool in self.tools):
                for function in space.functions:
                    held = space.name == "functions" and (function.parameters or {}).get("type") == "object"
                    arguments[f"{space.name}.{function.name}"] = grammar_of(function.parameters) if held else None
                if not space.functions:
                    arguments[space.name] = None
            if self.grammar or self.must or any(arguments.values()):
                constraint = Constraint(self.tokenizer, self.grammar, arguments, must=self.must, **sampling)
                sampling["logits_processor"] = constraint
        return self.engine.generate(ids, **sampling)

    def _turn(self, ids, reply, sampling):
        """Reads replies until one calls no tool. In between the model sees its own ids again, as they were: its
        thoughts too, and nothing has to be read twice."""
        total, limit = 0, sampling.get("max_tokens")
        for calls in range(CALLS + 1):
            self.reader = reader = Reader(self.tokenizer)
            generated, repeats = [], False
            try:
                for id in reply:
                    generated.append(id)
                    yield from reader.feed(id)
                    if reader.over:
                        break
                    if not repeats and len(generated) % 32 == 0 and (repeats := repeats_itself(generated)):
                        yield "note", "the reply repeats itself"
                yield from reader.finish()
            finally:
                self.history += reader.said()
                getattr(reply, "close", int)()  # a server would go on, for nobody
            total += len(generated)
            if reader.call and (tool := self.tool(reader.call.recipient)) and tool.call is None:
                self.history.append(reader.call)
                return
            if not (reader.call and self.tools) or calls == CALLS or total == limit:
                break
            yield from self._call(reader.call, self.engine.context - len(ids) - len(generated))
            ids = [*ids, *generated[:-1], self.tokenizer.special_tokens["<|call|>"],
                   *render(self.history[-1:], self.tokenizer)]
            rest = dict(sampling)
            if limit is not None:
                rest["max_tokens"] = limit - total
            if sampling.get("seed") is not None:
                rest["seed"] = sampling["seed"] + calls + 1
            try:
                reply = self._generate(ids, **rest)
            except ValueError as error:  # what the tool gave leaves no room
                yield "note", f"stopped: {error}"
                return
        yield from self._ending(reader, total, calls, len(ids) + len(generated) >= self.engine.context)

    def _ending(self, reader, total, calls, full):
        """What there is to say when a turn has ended otherwise than by an answer."""
        if reader.call and not self.tools:
            yield "note", f"the model called {reader.call.recipient}, but no tools are offered here"
        elif reader.call:
            yield "note", f"stopped after {total} tokens and {calls} call{'s' if calls != 1 else ''} of tools"
        elif not reader.over:
            free = max(self.engine.context - len(self.prompt("")), 0)  # thoughts, and half a call, are left out there
            yield "note", (f"stopped: the context of {self.engine.context} tokens is full; {free} are free for a next "
                           "question, more if this one is taken back" if full else f"stopped after {total} tokens")
        elif not any(message.channel != "analysis" for message in reader.said()):
            yield "note", "the model ended its reply without an answer"

    def _call(self, call, room):
        """Runs the tool, and keeps call and result together: never one without the other."""
        result, self.calling = "The call failed.", call.recipient
        try:
            result = self._shorten(self._result(call), room)
        except KeyboardInterrupt:
            result = "The user interrupted this call."
            raise
        finally:
            self.calling = None
            self.history += [call, Message("tool", result, name=call.recipient, channel=call.channel,
                                           recipient="assistant")]
        yield "result", result

    def _result(self, call):
        tool = self.tool(call.recipient)
        if tool is None:
            return f"Unknown function: {call.recipient}"
        try:
            return str(tool.call(call.recipient, call.content))
        except Exception as error:  # whatever it is: the model is told, and can try something else
            return f"Error: {str(error) or type(error).__name__}"

    def tool(self, recipient):
        """The tool that is meant by `namespace.function`, or None. Models also write functions.python for python, and
        sometimes the function alone."""
        first, _, second = recipient.partition(".")
        for space, name in ((first, second), (second, ""), ("functions", recipient)):
            for tool in self.tools:
                known = [function.name for function in tool.namespace.functions]
                if tool.namespace.name == space and (space != "functions" or name in known):
                    return tool  # one with a namespace of its own says itself what it does not have
        return None

    def _shorten(self, text, room):
        """At most RESULT characters, a quarter of the context, half of the room left; of more, beginning and end."""
        text, limit = text.encode(errors="replace").decode(), RESULT
        while True:
            short, head, tail = text, limit * 3 // 4, limit // 4
            if len(text) > limit:
                left = len(text) - head - tail
                short = f"{text[:head]}\n[{left} characters left out]\n{text[len(text) - tail :]}"
            if len(self.tokenizer.encode(short)) <= max(min(self.engine.context // 4, room // 2), 100):
                return short
            limit = min(limit, len(text)) // 2


def response_format(schema):
    """How a developer message, at its end, says in which form the answer is wanted ("# Response Formats")."""
    about = on_one_line(schema) if isinstance(schema, dict) else {}
    description = f"// {about['description']}\n" if "description" in about else ""
    text = json.dumps(schema, ensure_ascii=False, separators=(",", ":"))
    return f"# Response Formats\n\n## {about.get('title', 'answer')}\n\n{description}{text}"


def shown(function):
    """A function as the model is shown it, with a name that is one, or ValueError. Nothing in it begins a line of the
    developer message: of the description each line is a comment, and texts in the parameters have one line. (OpenAI's
    library, and harmony.render, would let a parameter's description end the namespace and go on as instructions.)"""
    expect(re.fullmatch(r"[\w.-]+", function.name), ValueError, "a function", "a name", repr(function.name))
    return replace(function, description=BREAKS.sub("\n", function.description),
                   parameters=on_one_line(function.parameters))


def on_one_line(value):
    """What JSON can hold, with blanks for line breaks in its texts, and quotes where a key looks like a heading."""
    try:
        return json.loads(json.dumps(value), object_pairs_hook=lambda pairs: {
            json.dumps(key) if key[:1] in ("#", "}") else flat(key): flat(item) for key, item in pairs})
    except (TypeError, ValueError, RecursionError):
        return value  # `render` says what is wrong with it


def flat(value):
    if isinstance(value, list):
        return [flat(item) for item in value]
    return BREAKS.sub(" ", value) if isinstance(value, str) else value


def grammar_of(parameters):
    """The grammar of a function's arguments; None if it cannot be held: then it is the function that looks at them."""
    return _grammar(json.dumps(parameters))


@lru_cache(maxsize=64)
def _grammar(schema):
    try:
        return Grammar(json.loads(schema))
    except GrammarError:
        return None


def repeats_itself(ids, longest=64, least=96):
    """Whether the last `least` ids or more are the same few, at most `longest`, three times or more."""
    def same(period):
        n = max(least, 3 * period) - period
        return len(ids) >= n + period and ids[-n:] == ids[-n - period : -period]

    return any(same(period) for period in range(1, longest + 1))


class Reader:
    """Messages out of the ids of a reply, whatever form they have, and pieces (channel, text) to show on the way.

    A special token is markup, which is never shown. <|start|> begins a new message wherever it stands, and so does
    <|channel|> inside a content. A message is for a tool if its header says `to=`, and only then. If the header names
    no channel, the message is shown when it is clear what it was: a thought if the assistant goes on after it, else
    the answer. If a message ends before <|message|>, what follows the part that looks like a header is its content.
    The reply ends with a call, or where somebody else speaks.

    `messages`: those read. `over`: whether the assistant has said that this was all, or somebody else speaks. `call`:
    the complete call that ended it, or None."""

    def __init__(self, tokenizer):
        self.tokenizer, self.over, self.call = tokenizer, False, None
        self.special = {id: name for name, id in tokenizer.special_tokens.items()}
        self.messages, self.unclear = [], None  # unclear: the last message, as long as it is not clear what it was
        self._begin()

    def _begin(self, started=False):
        self.started, self.header = started, b""  # started: by <|start|>, and not only by the end of what was before
        self.message, self.pieces = None, []  # None: in the header. pieces: of the content
        self.decoder = codecs.getincrementaldecoder("utf-8")("replace")

    def feed(self, id):
        """Yields what the next id makes clear."""
        name = self.special.get(id)
        data = self.tokenizer.decode_bytes([id]) if id < self.tokenizer.vocab_size else b"\xff"
        if name == "<|start|>" or name == "<|channel|>" and self.message:
            yield from self._end(whole=not self.messages and not self.started)  # between messages, strays are dropped
            self._begin(started=name == "<|start|>")
        if name in STOPS:
            yield from self._end(whole=True)
            self.over = self.over or name != "<|end|>"
        elif self.message is None and name == "<|message|>":
            yield from self._open(self.header.decode(errors="replace"))
        elif self.message is None and name != "<|start|>":
            self.header += data
        elif name is None:
            yield from self._add(self.decoder.decode(data))
        if self.messages and self.messages[-1].recipient:
            self.over, self.call = True, self.messages[-1]

    def finish(self):
        """The end of the ids: yields what has become clear by that."""
        yield from self._end(whole=False)
        yield from self._settle("final")

    def said(self):
        """The messages to keep: all that is no call, finished or not."""
        ended = self.message is None or any(message is self.message for message in self.messages)
        unfinished = [] if ended else [replace(self.message, content="".join(self.pieces))]
        return [replace(message, channel=message.channel or "final") for message in (*self.messages, *unfinished)
                if message.content and message.recipient is None]

    def _open(self, header):
        """The header is complete: it says who speaks, on which channel, and for whom."""
        header = header.lstrip()
        other = re.match(SPEAKER, header) or re.search(r"\bto=assistant\b", header)  # by name, or as a result
        if self.started and other and not header.startswith("assistant"):
            self.over, self.header = True, b""
            return
        channel, kind = re.search(CHANNEL, header), re.search(r"<\|constrain\|>\s*(\w+)", header)
        tool = re.search(rf"\bto=({RECIPIENT})", header)
        self.message = Message("assistant", "", channel=channel and channel[1])
        if tool:
            self.message = Message("assistant", "", channel=channel[1] if channel else "commentary", recipient=tool[1],
                                   content_type=kind and f"<|constrain|>{kind[1]}")
        yield from self._settle("analysis")

    def _settle(self, channel):
        """It is clear now what the message without a channel was."""
        if self.unclear:
            self.unclear.channel = channel
            if self.unclear.content:
                yield channel, self.unclear.content
            self.unclear = None

    def _add(self, text):
        self.pieces.append(text)
        if text and (self.message.recipient or self.message.channel):
            yield "call" if self.message.recipient else self.message.channel, text

    def _end(self, whole):
        """The message is complete. If it stops in its header: whole, by a token that says so; else a word alone may be
        half a header."""
        text = self.decoder.decode(b"", final=True)
        if self.message is None:
            header = self.header.decode(errors="replace")
            head = HEADER.match(header)[0] if self.started or re.match(r"\s*(<\||to=)", header) else ""
            text = re.sub(r"<\|\w+\|>", "", header[len(head) :]).strip()
            says_something = len(text.split()) > (0 if whole else 1)
            if says_something or whole and "to=" in head:
                yield from self._open(head)
        if self.message:
            yield from self._add(text)
            self.message.content = "".join(self.pieces)
            self.messages.append(self.message)
            self.unclear = None if self.message.channel or self.message.recipient else self.message
        self._begin()


class Constraint:
    """A logits_processor by which answers keep to the grammar `answer`, and the arguments of a function to its grammar
    in `arguments`, {recipient: grammar or None}. must: recipients, one of which the turn has to call. The other
    parameters are those of gptoss.generate; a logits_processor among them comes before this one.

    Thoughts are free: the model reasons as it was trained to. But with an `answer` it has to write whole headers, with
    a channel and no recipient but those in `arguments`, and only a complete answer ends the turn. If it `must` call,
    its headers are those of thoughts and of these calls.

    Of 200,000 ids hardly any need to be asked about. The largest of logits plus Gumbel noise is a draw from their
    softmax (the Gumbel-max trick, arXiv 2110.01515). So the first id in that order that the grammar takes is a draw
    from all that it takes, as if the others had been masked. (top_k, top_p and min_p come before the grammar. If they
    leave nothing that it takes, the likeliest id that it takes is written.)"""

    def __init__(self, tokenizer, answer, arguments, *, must=(), temperature=1.0, top_k=0, top_p=1.0, min_p=0.0,
                 seed=None, logits_processor=None, **_):
        self.before, self.free = logits_processor, answer is None and not must  # free: any header
        self.tokenizer, self.answer, self.arguments = tokenizer, answer, arguments
        self.temperature, self.filters = temperature, (top_k, top_p, min_p)
        self.rng = np.random.default_rng(None if seed is None else [seed, 1])  # not the numbers that `sample` gets, too
        self.reader, self.count = Reader(tokenizer), 0  # count: of the ids that have been read
        self.grammar = self.state = None  # of the content being written, if it is held to one
        answers = [*(f"<|channel|>{channel}" for channel in CHANNELS), "<|channel|>final <|constrain|>json"]
        headers, kinds = answers[:1] if must else answers, ("", " json", " <|constrain|>json", " code")
        for recipient, channel, kind in product(must or arguments, CHANNELS[:2], kinds):
            headers += [f" to={recipient}<|channel|>{channel}{kind}", f"<|channel|>{channel} to={recipient}{kind}"]
        self.headers = [f"{header}<|message|>".encode() for header in headers]

    def __call__(self, ids, logits):
        for id in ids[self.count :]:
            self._follow(id)
        self.count = len(ids)
        logits = self.before(ids, logits) if self.before else logits
        reader, special = self.reader, self.tokenizer.special_tokens
        if self.grammar:
            stop = special["<|call|>" if reader.message.recipient else "<|return|>"]
            return self._hold(logits, lambda data: self.grammar.advance(self.state, data) is not None,
                              [stop] if self.grammar.complete(self.state) else [])
        if self.free:
            return logits
        if reader.message:  # a thought, a word in between, or a call: it may end, and that is all
            end = special["<|call|>" if reader.message.recipient else "<|end|>"]
            logits = logits.copy()
            logits[[id for id in reader.special if id != end and id < len(logits)]] = -np.inf
            return logits
        if reader.messages and not reader.started:
            return self._hold(logits, lambda data: False, [special["<|start|>"]])
        role, begun = b"assistant" if reader.started else b"", reader.header
        rest = [(role + header)[len(begun) :] for header in self.headers if (role + header).startswith(begun)]
        texts = {text.partition(b"<|")[0] for text in rest}  # up to the next special token
        return self._hold(logits, lambda data: any(text.startswith(data) for text in texts),
                          [id for name, id in special.items() if any(text.startswith(name.encode()) for text in rest)])

    def _follow(self, id):
        """The id was written."""
        before = self.reader.message
        if self.grammar and id not in self.reader.special:
            self.state = self.grammar.advance(self.state, self.tokenizer.decode_bytes([id]))
        for _ in self.reader.feed(id):
            pass
        if (message := self.reader.message) is not before:
            self.grammar = None
            if message and message.recipient:
                self.grammar = self.arguments.get(message.recipient)
            elif message and message.channel == "final":
                self.grammar = self.answer
            self.state = self.grammar and self.grammar.start

    def _hold(self, logits, takes, specials):
        """logits [V] with one id above -inf: the one drawn among the `specials` and those whose bytes are taken."""
        expect(np.isfinite(logits.max()), ValueError, "logits", "numbers", str(logits.max()))
        scores = logits
        if self.temperature:
            # In float64: one float32 in 8 million is 0, and its infinite noise would choose an id that nobody wants.
            noise = -np.log(self.rng.standard_exponential(len(logits)))  # Gumbel
            scores = gptoss.filter_logits(logits, self.temperature, *self.filters) + noise

        def allowed(id):
            if id in self.reader.special or id >= self.tokenizer.vocab_size:
                return id in specials
            data = self.tokenizer.decode_bytes([id])
            return bool(data) and takes(data)

        n = min(LIKELY, len(scores))
        best = np.argpartition(scores, -n)[-n:]
        best = best[np.lexsort((best, -scores[best]))]  # of equal ones the first, as argmax does it
        chosen = next((id for id in best if scores[id] > -np.inf and allowed(id)), None)
        if chosen is None:  # none of the likely ones: now it pays to look at first bytes, before any id is asked about
            first = np.array([*(takes(bytes([byte])) for byte in range(256)), False])[first_bytes(self.tokenizer)]
            rest = np.append(np.flatnonzero(first[: len(logits)]), specials).astype(int)
            rest = rest[np.lexsort((logits[rest], scores[rest]))[::-1]]  # those that filters rule out come last
            chosen = next(id for id in rest if allowed(id))
        held = np.full_like(logits, -np.inf)
        held[chosen] = 0
        return held


@lru_cache(maxsize=4)
def first_bytes(tokenizer):
    """The first byte of every id [vocab_size]; 256 for special tokens, and for those without bytes."""
    special = set(tokenizer.special_tokens.values())
    return np.array([256 if id in special else (*tokenizer.decode_bytes([id]), 256)[0]
                     for id in range(tokenizer.vocab_size)])
