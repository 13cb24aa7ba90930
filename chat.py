"""A chat in the terminal: `python chat.py` talks to the small model in nano/, `--model` to any gpt-oss, and `--server`
to one elsewhere.

What is said, and to whom, is conversation.py's; how it looks, terminal.py's. This file is what a user can ask for: the
options, and the commands that begin with a slash. A command is a method `do_...` of Chat. Its docstring is its help.
"""

if __name__ == "__main__":
    import program

    program.begin()

import argparse
import json
import math
import os
import re
import stat
import sys
from contextlib import ExitStack, closing, suppress
from functools import partial
from pathlib import Path

import models
import program
import tokenizer as tokenizers
import transcript
from checkpoint import expect_number
from conversation import Conversation, LocalEngine
from harmony import BROWSER, EFFORTS
from program import sentence
from remote import EngineError, RemoteEngine
from terminal import Screen, Terminal, cited, clean, raw

STATE = Path(os.environ.get("XDG_STATE_HOME", ""))  # where what was typed is kept
STATE = (STATE if STATE.is_absolute() else Path("~/.local/state").expanduser()) / "gpt-oss"
COMMAND = re.compile(r"/(\w+|\?)(?:\s+(.*))?", re.S)  # and not "/usr/bin is what?"
KEY = "GPTOSS_API_KEY"  # the environment variable with the key of --server
SAMPLING = {"temperature": (float, 0, math.inf), "top_p": (float, 1e-9, 1), "top_k": (int, 0, math.inf),
            "min_p": (float, 0, 1), "seed": (int, 0, math.inf), "max_tokens": (int, 1, math.inf)}
ALIASES = {"clear": "reset", "new": "reset", "bye": "exit", "quit": "exit", "q": "exit", "?": "help", "regen": "retry",
           "regenerate": "retry", "think": "effort"}
NEARLY = 0.8  # of the context: when to say that it fills


class Chat:
    """A conversation and what its user wants of it."""

    def __init__(self, conversation, name, screen, sampling):
        self.conversation, self.name, self.screen = conversation, name, screen
        self.sampling, self.default = dict(sampling), sampling  # as it is now, as it was at first
        self.browser, self.adapter, self.stats, self.raw = None, None, False, False
        self.reading, self.editing = [], False  # files that go with the next question; whether it replaces the last

    @property
    def meter(self):
        return self.conversation.engine

    def words(self):
        """{command: what may follow it}, for Tab; Path: a file."""
        follow = {"effort": EFFORTS, "set": SAMPLING, "analysis": ("show", "hide"), "system": ("off",), "save": Path,
                  "load": Path, "read": Path}
        names = [name.removeprefix("do_") for name in dir(self) if name.startswith("do_")]
        return {name: follow.get(name, ()) for name in [*names, "exit"]}

    def status(self):
        rate = f"   {self.meter.rate:.1f} tokens/s" if self.meter.generated > 1 else ""
        return (f"{self.name}   effort {self.conversation.effort}   context {self.meter.used:,} of "
                f"{self.meter.context:,}{rate}   /help")

    def converse(self, lines):
        """Answers lines until there are no more."""
        while True:
            try:
                line = lines()
            except EOFError:
                return
            except KeyboardInterrupt:
                self.screen.note("\n(Ctrl-D or /exit leaves)")
                continue
            self.screen.busy = True
            try:
                if command := COMMAND.fullmatch(line):
                    name, argument = ALIASES.get(command[1], command[1]), (command[2] or "").strip()
                    if name == "exit":
                        return
                    self.command(name, argument)
                elif line.strip():
                    self.answer(line.strip())
            except KeyboardInterrupt:
                self.screen.note("(stopped)")
            except ValueError as error:  # this cannot be asked or done; the conversation goes on
                full = "the context" in str(error)
                too_long = "; ask something shorter, or make room with /undo or /reset" if full else ""
                self.screen.note(f"{error}{too_long}")
            except EngineError as error:
                self.screen.note(f"{error}; /retry asks again")
            except (OSError, MemoryError) as error:
                self.screen.note(sentence(error))
            finally:
                self.screen.busy = False

    def command(self, name, argument):
        method = getattr(self, f"do_{name}", None)
        if method is None:
            raise ValueError(f"/{name}: no such command, /help lists them")
        if argument and method.__doc__.startswith(" "):
            raise ValueError(f"/{name}: expected nothing after it, found {argument!r}")
        method(argument)

    def waiting(self):
        """What goes on while nothing is written."""
        if self.conversation.calling:
            return f"{self.conversation.calling} is running"
        return self.meter.waiting()

    def ask(self, text):
        """The pieces of the reply to `text`, which goes after the files that were read."""
        history, text = list(self.conversation.history), "\n\n".join([*self.reading, text])
        self.meter.begin()
        self.reading.clear()  # also if they are too long: then they would be in the way of any other question
        try:
            if self.editing:
                self.conversation.undo()
            pieces = self.conversation.ask(text, **self.sampling)
        except ValueError:
            self.conversation.history[:] = history
            raise
        finally:
            self.editing = False
        return cited(pieces, self.browser) if self.browser else pieces

    def answer(self, text):
        """Asks, and shows the reply."""
        pieces = self.ask(text)
        try:
            with closing(raw(pieces, self.meter, self.conversation.tokenizer) if self.raw else pieces) as pieces:
                self.screen.show(pieces, self.conversation.history)
        finally:
            if self.stats:
                self.screen.note(self.meter.stats)
            if self.meter.used > NEARLY * self.meter.context:
                self.screen.note(f"the context is {self.meter.used / self.meter.context:.0%} full; when it is full no "
                                 "more can be said: /undo takes back the last question, /reset all, /save keeps it")

    def answer_in_json(self, text):
        """Asks, and prints the reply as a JSON object: a message of the assistant in OpenAI's form, and how it came."""
        before = len(self.conversation.history) + 1  # the question
        with closing(self.ask(text)) as pieces:
            pieces = list(pieces)
        said = transcript.to_openai(self.conversation.history[before:])
        reply = said[-1] if said and said[-1]["role"] == "assistant" else {"role": "assistant", "content": None}
        if self.browser and reply["content"]:
            reply = reply | {"content": self.browser.citations(reply["content"])[0]}
        usage = {"prompt_tokens": self.meter.prompt, "completion_tokens": self.meter.generated}
        notes = [text for channel, text in pieces if channel == "note"]
        print(json.dumps(reply | {"messages": said, "notes": notes, "usage": usage}, ensure_ascii=False), flush=True)

    # ---- Commands

    def _changed(self):
        """What was said has changed: so much of the context it takes. Raises ValueError if it cannot be rendered."""
        self.editing = False
        self.meter.used = len(self.conversation.prompt("")) if self.conversation.history else 0

    def do_effort(self, argument):
        """low|medium|high   how long to think before answering"""
        self.conversation.effort = choice(argument, EFFORTS, "/effort", self.conversation.effort)
        self.screen.note(f"effort {self.conversation.effort}")

    def do_system(self, argument):
        """TEXT   instructions for the model; /system off takes them back"""
        if argument:
            self.conversation.instructions = None if argument == "off" else argument
        self.screen.note(f"system: {self.conversation.instructions or '(no instructions)'}")

    def do_set(self, argument):
        """NAME VALUE   temperature, top_p, top_k, min_p, seed or max_tokens; VALUE none: as at first"""
        name, _, value = argument.partition(" ")
        name = name.replace("-", "_")
        if name:
            choice(name, SAMPLING, "/set")
            value = self.default.get(name) if value.strip() == "none" else number(*SAMPLING[name])(value.strip(), name)
            self.sampling = {key: value for key, value in (self.sampling | {name: value}).items() if value is not None}
        self.screen.note("   ".join(f"{name} {value}" for name, value in self.sampling.items()) or "(nothing is set)")

    def do_reset(self, argument):
        """   forget the conversation, and files that wait to be sent (also /clear)"""
        self.conversation.history.clear()
        self.reading.clear()
        self._changed()
        self.screen.note("The conversation is forgotten.")

    def do_undo(self, argument):
        """   take back the last question and its answer"""
        text = self.conversation.undo()
        self._changed()
        self.screen.note("There is nothing to take back." if text is None else f"Taken back: {text[:200]}")

    def do_retry(self, argument):
        """   ask the last question again; with another seed, if one is set (also /regen)"""
        history, seed = list(self.conversation.history), self.sampling.get("seed")
        text = self.conversation.undo()
        if text is None:
            raise ValueError("There is no question yet.")
        if self.sampling["temperature"] == 0:
            self.screen.note("(At temperature 0 the answer will be the same: /set temperature 1)")
        if seed is not None:
            self.sampling["seed"] += 1
        try:
            self.answer(text)
        except ValueError:  # it cannot be asked: all is as before
            self.conversation.history[:] = history
            raise

    def do_edit(self, argument):
        """   change the last question and ask it again (Ctrl-X Ctrl-E: in an editor)"""
        questions = [message.content for message in self.conversation.history if message.role == "user"]
        if not questions:
            raise ValueError("There is no question yet.")
        self.editing = True
        self.screen.note("(The next question takes the place of the last one.)")
        self.screen.put(questions[-1])

    def do_save(self, argument):
        """FILE   keep the conversation as JSON, in OpenAI's message form with the thoughts"""
        transcript.save(file(argument, "/save"), self.conversation.history,
                        instructions=self.conversation.instructions, effort=self.conversation.effort)
        self.screen.note(f"saved to {argument}")

    def do_load(self, argument):
        """FILE   go on with a saved conversation"""
        chat, path = self.conversation, file(argument, "/load")
        before = chat.instructions, chat.effort, list(chat.history)
        instructions, effort, history = transcript.load(path)
        chat.instructions, chat.effort, chat.history[:] = instructions, effort or chat.effort, history
        try:
            self._changed()
        except ValueError as error:
            chat.instructions, chat.effort, chat.history[:] = before
            raise ValueError(f"{path}: {error}") from None
        asked = sum(message.role == "user" for message in history)
        self.screen.note(f"{argument}: {asked} question{'s' * (asked != 1)}, effort {self.conversation.effort}")

    def do_read(self, argument):
        """FILE   send a text file with the next question"""
        path = file(argument, "/read")
        data = path.read_bytes()
        if b"\0" in data:
            raise ValueError(f"{path}: expected a text, found binary data")
        text = data.decode(errors="replace")
        self.reading.append(f"{path.name}:\n\n{text}")
        count = len(self.conversation.tokenizer.encode(text))
        self.screen.note(f"{argument}: {count:,} tokens, which go with the next question")

    def do_analysis(self, argument):
        """show|hide   whether thoughts stay on the screen, or become one line"""
        shown = choice(argument, ("show", "hide"), "/analysis", "show" if self.screen.thoughts else "hide")
        self.screen.thoughts = shown == "show"
        self.screen.note(f"analysis: {shown}")

    def do_stats(self, argument):
        """   show or hide tokens and tokens per second"""
        self.stats = not self.stats
        self.screen.note(f"stats {'on' if self.stats else 'off'}")

    def do_raw(self, argument):
        """   show or hide the tokens as the model reads and writes them"""
        self.raw = not self.raw
        self.screen.note(f"raw {'on' if self.raw else 'off'}")

    def do_tools(self, argument):
        """   what the model may call"""
        for tool in self.conversation.tools:
            for function in tool.namespace.functions or [tool.namespace]:
                about = (function.description or "").partition("\n")[0][:80]
                name = function.name if function is tool.namespace else f"{tool.namespace.name}.{function.name}"
                self.screen.note(f"{name}   {about}")
        if not self.conversation.tools:
            self.screen.note("No tools: start with --tools FILE.py, --python or --browser DIR.")

    def do_model(self, argument):
        """NAME   talk to another model, as it is; without a name, what is there"""
        if argument:
            engine, tokenizer, self.name = local_engine(argument, self.screen, partial(self.screen.confirm, ""))
            self.conversation.engine, self.conversation.tokenizer = models.Meter(engine), tokenizer
            if self.browser:
                self.browser.tokenizer = tokenizer
            if self.sampling["temperature"] == self.default["temperature"]:  # the user has not chosen another
                self.sampling["temperature"] = temperature_of(engine)
            self.default["temperature"] = temperature_of(engine)
            self._changed()
            without = " without the adapter" if self.adapter is not None else ""
            self.screen.note(f"model {self.name}{without}; the conversation goes on")
            self.adapter = None
            return
        for name, directory, size, about in models.available():
            self.screen.note(f"{name}   {size / 1e9:.1f} GB   {about}   {directory}")

    def do_help(self, argument):
        """   this text"""
        for name in [name for name in self.words() if name != "exit"]:
            argument, _, text = getattr(self, f"do_{name}").__doc__.partition("   ")
            self.screen.note(f"/{name} {argument:<{25 - len(name)}} {text}")
        self.screen.note("/exit                       leave (also /bye, Ctrl-D)\n"
                         "Ctrl-C stops a reply and keeps what was said. Alt-Enter begins a new line, and so does a\n"
                         'backslash before Enter. """ opens and closes a text of several lines.')


def file(argument, command):
    """The file that a command names."""
    if not argument:
        raise ValueError(f"{command}: expected a file, found nothing")
    return Path(os.path.expanduser(argument))


def choice(value, choices, where, default=None):
    """value, if it is one of the choices; the default for none."""
    value = value or default
    if value not in choices:
        raise ValueError(f"{where}: expected {', '.join(choices)}, found {value!r}")
    return value


# ---- The command ----------------------------------------------------------------------------------------------------

def number(kind, low, high, error=ValueError):
    """A function that reads an int or a float from low to high. Raises `error`, in a sentence about `where`."""
    def parse(text, where=""):
        value = None
        with suppress(ValueError):
            value = kind(text)
        return expect_number(value, kind, low, high, lambda said: error(said.removeprefix(": ")), where, repr(text))

    return parse


def option(name):  # argparse does not pass on what a ValueError says
    return number(*SAMPLING[name], argparse.ArgumentTypeError)


def parse_arguments(argv):
    parser = program.parser("chat.py", "Chat with a gpt-oss model.")
    add = parser.add_argument
    add("--model", metavar="NAME", help="a directory with a checkpoint, or a name on Hugging Face like "
        "openai/gpt-oss-20b (default: the small model in nano/)")
    add("--adapter", metavar="DIR", help="a LoRA adapter for the model, as PEFT saves it")
    add("--server", metavar="URL", help="a server that takes token ids: vLLM, or llama.cpp's (its key: $" + KEY + ")")
    add("--server-model", metavar="NAME", help="which of the server's models (default: its first)")
    add("--prompt", metavar="TEXT", help="answer this and exit; what comes through a pipe is put after it")
    add("--system", metavar="TEXT", help="instructions for the model, as its developer gives them")
    add("--effort", choices=EFFORTS, default=None, help="how hard to think (default: medium)")
    add("--temperature", type=option("temperature"),
        help="randomness; 0: always the likeliest token (default: as the checkpoint says, or 1)")
    add("--top-p", type=option("top_p"),
        help="draw from the likeliest tokens whose probabilities reach this (default: 1, all tokens)")
    add("--seed", type=option("seed"), help="the same seed gives the same reply")
    add("--max-tokens", type=option("max_tokens"), help="longest reply, thoughts and calls included")
    add("--tools", metavar="FILE.py", help="functions that the model may call")
    add("--python", action="store_true", help="the model may run Python here, each time after a yes")
    add("--browser", metavar="SOURCE", help="the model may search and read: a directory of texts, the address of a "
        'SearXNG server, or "web" to fetch pages only')
    add("--apply-patch", metavar="DIR", help="the model may change the files in this directory, after a yes")
    add("--yes", action="store_true", help="answer yes to all questions")
    add("--schema", metavar="FILE.json", help="a JSON schema: answers are JSON that it describes")
    add("--load", metavar="FILE", help="go on with a conversation that was saved with /save")
    add("--json", action="store_true", help="print the reply as a JSON object, thoughts and calls included")
    add("--raw", action="store_true", help="show the tokens as the model reads and writes them")
    add("--stats", action="store_true", help="show tokens and tokens per second after each reply")
    args = parser.parse_args(argv)
    if args.prompt is not None and not args.prompt.strip():
        parser.error("--prompt: expected a text, found nothing")
    if args.adapter is not None and args.server:
        parser.error("--adapter: expected a model on this machine, found --server")
    if args.server_model and not args.server:
        parser.error("--server-model: expected --server with it, found none")
    return args


def local_engine(name, screen, confirm=models.ask, adapter=None):
    """(engine, tokenizer, its name on the screen) of a model on this machine, with or without an adapter."""
    model, tokenizer, directory = models.load(name, screen.note, confirm, adapter)
    return LocalEngine(model), tokenizer, models.label(name, directory, adapter)


def temperature_of(engine):
    """1 if the checkpoint says that it is to be sampled from, else 0. (A server's says nothing.)"""
    return float(not isinstance(engine, LocalEngine) or engine.model.config.do_sample)


@program.ends("chat.py")
def main(argv=None):
    args = parse_arguments(argv)
    with ExitStack() as stack:
        run(args, Screen(), stack)


def run(args, screen, stack):
    """Opens what the options name, and talks. What is to be closed at the end goes on the stack."""
    instructions, effort, history = transcript.load(args.load) if args.load else (None, None, [])
    schema = read_schema(args.schema) if args.schema else None  # what is wrong is said before a model is loaded
    tools = open_tools(args, stack, lambda *asked: args.yes or chat.screen.confirm(*asked), screen.note)
    agree = (lambda question: True) if args.yes else models.ask  # to a download
    if args.server:
        engine = RemoteEngine(args.server, args.server_model, api_key=os.environ.get(KEY, "").strip() or None, stop=())
        tokenizer = tokenizers.load(models.find(args.model, screen.note, agree) if args.model else None)
        engine.stop = {tokenizer.special_tokens[name] for name in ("<|return|>", "<|call|>", "<|endoftext|>")}
        name = " ".join(clean(engine.model).split())
    else:
        engine, tokenizer, name = local_engine(args.model or models.NANO, screen, agree, args.adapter)
    conversation = Conversation(models.Meter(engine), tokenizer, effort=args.effort or effort or "medium",
                                instructions=instructions if args.system is None else args.system,
                                tools=tools, schema=schema)
    conversation.history += history
    sampling = {"temperature": temperature_of(engine) if args.temperature is None else args.temperature,
                "top_p": args.top_p, "seed": args.seed, "max_tokens": args.max_tokens}
    chat = Chat(conversation, name, screen, {name: value for name, value in sampling.items() if value is not None})
    screen.waiting, chat.stats, chat.raw, chat.adapter = chat.waiting, args.stats, args.raw, args.adapter
    if args.browser:
        chat.browser = next(tool for tool in tools if tool.namespace is BROWSER)
        chat.browser.tokenizer = tokenizer
    if args.json:
        chat.answer = chat.answer_in_json
    if args.prompt is not None:
        chat.answer("\n\n".join(filter(None, [args.prompt, read_pipe()])))
    elif not (sys.stdin.isatty() and screen.terminal):
        chat.converse(lambda: input().strip())
    elif os.environ.get("TERM") == "dumb":  # it cannot move the cursor
        chat.converse(lambda: input("\n> ").strip())
    else:
        chat.screen = stack.enter_context(Terminal(screen.waiting, chat.status, chat.words(), STATE / "history"))
        chat.screen.markdown, chat.screen.emptied = schema is None, lambda: setattr(chat, "editing", False)
        chat.screen.note("Type a question, or /help. The model thinks as hard as you say: /effort low, medium or high.")
        chat.converse(chat.screen.read)


def read_pipe():
    """What comes through a pipe or from a file; nothing from a terminal, or where standard input is no such thing."""
    with suppress(OSError, ValueError):  # it may be closed
        mode = os.fstat(sys.stdin.fileno()).st_mode
        if stat.S_ISFIFO(mode) or stat.S_ISREG(mode):
            return sys.stdin.buffer.read().decode(errors="replace").strip()
    return ""


def read_schema(path):
    try:
        return json.loads(Path(path).read_bytes())
    except (ValueError, RecursionError) as error:
        raise ValueError(f"{path}: expected a JSON schema, found {str(error)[:200]}") from None


def open_tools(args, stack, confirm, note):
    """The tools that the options name. confirm(text, question): whether a person agrees. A Browser's tokenizer is None
    until there is one."""
    found = []

    def offer(tool):
        stack.callback(tool.close)
        found.append(tool)

    if args.tools:
        from tools import functions

        offer(functions.load(args.tools))
    if args.python:
        from tools.python import Python

        python = Python(lambda code: confirm(code, f"Run this Python code (lines: {len(code.splitlines())})?"))
        offer(python)
        if not python.offline:
            note("python: this system cannot take the network away from what the model runs.")
    if args.browser:
        from tools.browser import Browser, source_of

        offer(Browser(source_of(args.browser), None))
    if args.apply_patch:
        from tools.apply_patch import ApplyPatch

        offer(ApplyPatch(args.apply_patch, lambda patch: confirm(patch, "Apply this patch?")))
    return tuple(found)


if __name__ == "__main__":
    sys.exit(main())
