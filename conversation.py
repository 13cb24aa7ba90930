"""A conversation with a model: what was said, what is asked next, and what the model makes of it. Without a screen.

    question -> messages -> ids -> engine -> ids -> Reader -> pieces (channel, text), and messages again

An engine is anything that continues ids: an object with

    generate(tokens, *, max_tokens=None, temperature=1.0, top_k=0, top_p=1.0, min_p=0.0, seed=None, stop=None,
             logits_processor=None)     the ids that follow a whole prompt, as they come, a stop token last
    context                             the most tokens, prompt and reply together

LocalEngine is one that runs gptoss.py. Models do not always keep to the format that they were taught. Reader guesses
what they meant. (harmony.StreamParser takes what openai-harmony takes, and refuses the rest.)
"""

import codecs
import re
from datetime import date as today
from os.path import commonprefix

import gptoss
from harmony import ROLES, DeveloperContent, Message, SystemContent, render

CHANNELS = SystemContent.valid_channels  # analysis, commentary, final
NOBODY = "|".join((*ROLES, *CHANNELS, "all"))  # recipients that are no tool
SPEAKER = rf"\s*(?:(?:{'|'.join(ROLES)})\b|\w+\.[a-z]\w*)"  # a role, or a tool
HEADER = re.compile(rf"(?:{SPEAKER})?(?:\s*to=[^\s<]*|\s*<\|(?:channel|constrain)\|>\s*[^\s<]*)*")
STOPS = ("<|end|>", "<|return|>", "<|call|>", "<|endoftext|>")  # the first: more follows; the others: this was all


class LocalEngine:
    """A model on this machine, with a cache. Of a prompt it reads only what differs from what the cache holds."""

    def __init__(self, model):
        self.model, self.context = model, model.config.max_position_embeddings
        self.cache, self.held = model.new_cache(), []  # held: ids, the first cache.length of which have been read

    def generate(self, tokens, **sampling):
        """See above. Raises ValueError, at once, for arguments that gptoss.generate refuses. What an earlier call gave
        ends here, because the cache is this call's now."""
        tokens = list(tokens)
        known = commonprefix([self.held[: self.cache.length], tokens[:-1]])  # the last id is read for its logits
        ids = gptoss.generate(self.model, tokens[self.cache.rewind(len(known)) :], cache=self.cache, **sampling)
        self.held = tokens
        return self._steps(ids, tokens)

    def _steps(self, ids, held):
        while self.held is held and (id := next(ids, None)) is not None:
            held.append(id)
            yield id


class Conversation:
    """Questions and answers. effort: how hard to think, "low", "medium" or "high". instructions: what a developer wants
    of the model. date: that of the conversation, as "2025-08-05"; None: today's. `messages`: what later turns are
    rendered from, without the thoughts, which OpenAI's guide drops once an answer is given."""

    def __init__(self, engine, tokenizer, *, effort="medium", instructions=None, date=None):
        self.engine, self.tokenizer, self.messages = engine, tokenizer, []
        self.effort, self.instructions, self.date = effort, instructions, date

    def prompt(self, text):
        """The ids that ask `text` after all that was said. Raises ValueError for what cannot be asked."""
        date = self.date or today.today().isoformat()
        messages = [Message("system", [SystemContent(reasoning_effort=self.effort, conversation_start_date=date)])]
        if self.instructions is not None:
            messages.append(Message("developer", [DeveloperContent(self.instructions)]))
        return render([*messages, *self.messages, Message("user", text)], self.tokenizer)

    def ask(self, text, **sampling):
        """Yield the reply as it comes, in pieces (channel, text). The channels are the model's "analysis", "commentary"
        and "final"; "call", what it tells a tool; and "note", in which this program says how the reply ended.

        Raises ValueError, before anything is changed, if the question cannot be asked. However the reply ends, also by
        an exception or by closing this generator, the question and what was answered until then are kept."""
        tokens = self.engine.generate(self.prompt(text), **sampling)
        self.messages.append(Message("user", text))
        reader, count = Reader(self.tokenizer), 0
        try:
            for id in tokens:
                count += 1
                yield from reader.feed(id)
                if reader.over:
                    break
            yield from reader.finish()
        finally:
            self.messages += reader.answers()
        if not reader.over:
            yield "note", f"stopped after {count} tokens"
        elif call := next((message for message in reader.messages if message.recipient), None):
            yield "note", f"the model called {call.recipient}, but no tools are offered here"
        elif not reader.answers():
            yield "note", "the model ended its reply without an answer"


class Reader:
    """Messages out of the ids of a reply, whatever form they have, and pieces (channel, text) to show on the way.

    A special token is markup, which is never shown. <|start|> begins a new message wherever it stands, <|channel|> too.
    A message is for a tool if its header says `to=`, and only then. If the header names no channel, the message is
    shown when it is clear what it was: a thought if the assistant goes on after it, else the answer. Where a message
    stops in its header, what is no header in it is its content. The reply ends where somebody else speaks.

    `messages`: those read. `over`: whether the assistant has said that this was all, or somebody else speaks."""

    def __init__(self, tokenizer):
        self.tokenizer, self.over = tokenizer, False
        self.special = {id: name for name, id in tokenizer.special_tokens.items()}
        self.messages, self.unclear = [], None  # unclear: the last message, as long as it is not clear what it was
        self._begin()

    def _begin(self, started=False):
        self.started, self.header = started, b""  # started: by <|start|>, and not only by the end of what was before
        self.message, self.decoder = None, codecs.getincrementaldecoder("utf-8")("replace")  # None: in the header

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

    def finish(self):
        """The end of the ids: yields what has become clear by that."""
        yield from self._end(whole=False)
        yield from self._settle("final")

    def answers(self):
        """The messages to keep: what was said to the user, finished or not."""
        return [Message("assistant", read.content, channel=read.channel or "final")
                for read in filter(None, (*self.messages, self.message))
                if read.content and read.channel != "analysis" and read.recipient is None]

    def _open(self, header):
        """The header is complete, and says for whom the message is."""
        if self.started and re.match(rf"\s*(?!assistant){SPEAKER}|.*\bto=assistant\b", header):
            self.over, self.header = True, b""
            return
        channel = re.search(rf"<\|channel\|>\s*({'|'.join(CHANNELS)})\b", header)
        tool = re.search(rf"\bto=(?!(?:{NOBODY})(?:[\s<]|$))([^\s<]+)", header)
        self.message = Message("assistant", "", channel=channel and channel[1], recipient=tool and tool[1])
        yield from self._settle("analysis")

    def _settle(self, channel):
        """It is clear now what the message without a channel was."""
        if self.unclear:
            self.unclear.channel = channel
            yield channel, self.unclear.content
            self.unclear = None

    def _add(self, text):
        self.message.content += text
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
            if len(text.split()) > (0 if whole else 1) or whole and "to=" in head:
                yield from self._open(head)
        if self.message:
            yield from self._add(text)
            self.messages.append(self.message)
            self.unclear = None if self.message.channel or self.message.recipient else self.message
        self._begin()
