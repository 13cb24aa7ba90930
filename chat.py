"""A chat in the terminal: `python chat.py` talks to the small model in nano/, `--model DIR` to any gpt-oss checkpoint.

It ties the other files together: messages to ids (harmony.py), ids to more ids (gptoss.py), those to messages again, as
they come. The thoughts of the model (channel "analysis") are shown dim, the answer (channel "final") bright.
"""

import argparse
import re
import sys
import time
from contextlib import closing, suppress
from datetime import date
from pathlib import Path

from rich.console import Console
from rich.text import Text

import gptoss
import tokenizer as tokenizers
from checkpoint import read_json
from harmony import EFFORTS, HarmonyError, Message, StreamParser, SystemContent, render

CHANNELS = SystemContent.valid_channels  # analysis, commentary, final
HERE = Path(__file__).resolve().parent
HELP = """\
/effort low|medium|high   how long to think before answering (now: {effort})
/reset                    forget the conversation
/stats                    show or hide tokens and tokens per second
/help, /exit              this text; leave (also Ctrl-D)
Ctrl-C stops a reply and keeps the conversation."""


def channel_of(message):
    """The channel a message is meant for: models write things like "commentary?", and some leave it out."""
    name = re.match("[a-z]*", message.channel or "")[0]
    return name if name in CHANNELS else "final"


def called(message):
    """The tool that a message calls, or None: "to=assistant" and a bare content type are slips, not calls."""
    name = (message.recipient or "").partition("<|")[0]
    return None if name in ("", "assistant", "user", "all", *CHANNELS) else name


class Conversation:
    """What was said so far, and the cache that holds as much of it as the model has already read."""

    def __init__(self, model, tokenizer, effort="medium"):
        self.model, self.tokenizer, self.effort = model, tokenizer, effort
        self.reset()

    def reset(self):
        self.history = []  # user messages and answers; a finished turn's analysis is dropped, as OpenAI's guide says
        self.cache, self.held = self.model.new_cache(), []  # held: the ids in the cache

    def prompt(self, text):
        """The ids that ask `text` after all that was said: system message, history, question, start of the answer."""
        system = SystemContent(reasoning_effort=self.effort, conversation_start_date=date.today().isoformat())
        messages = [Message("system", [system]), *self.history, Message("user", text)]
        return render(messages, self.tokenizer)

    def ask(self, text, **sampling):
        """Yield the reply as it comes, in pieces (channel, text); channel "note" is this program speaking.

        Raises ValueError, before anything is changed, if the question cannot be asked. Whatever ends the reply, what
        was answered until then stays in the history.
        """
        ids = self.prompt(text)
        known = next((n for n, (a, b) in enumerate(zip(ids[:-1], self.held, strict=False)) if a != b),
                     min(len(ids) - 1, len(self.held)))
        start = self.cache.rewind(known)
        self.held = self.held[:start]
        tokens = gptoss.generate(self.model, ids[start:], cache=self.cache, **sampling)
        self.history.append(Message("user", text))
        parser = StreamParser(self.tokenizer, role="assistant", strict=False)
        said, began, prefilled = [], time.perf_counter(), None
        try:
            for token in tokens:
                prefilled = prefilled or time.perf_counter()
                said.append(token)
                yield from self._read(parser, token)
                message = parser.messages[-1] if parser.messages else None
                if message and (called(message) or channel_of(message) == "final" or message.role != "assistant"):
                    break
            else:
                if said[-1] not in self.model.config.eos_token_id:
                    yield "note", f"stopped after {len(said)} tokens"
        finally:
            self.held = (ids + said)[: self.cache.length]
            self._keep(parser)
        if parser.messages and called(parser.messages[-1]):
            yield "note", f"the model called {called(parser.messages[-1])}, but no tools are offered here"
        self.stats = (f"{len(ids)} tokens of prompt, {start} of them known, read in {prefilled - began:.2f} s; "
                      f"{len(said)} generated, {len(said) / (time.perf_counter() - prefilled):.1f} tokens/s")

    def _read(self, parser, token):
        before = len(parser.messages), parser.state
        try:
            parser.feed(token)
        except HarmonyError:
            if parser.state == "Header":  # it stopped in a header that is not text: nothing to show
                return
            # a header the model got wrong; what follows is most likely meant for the user
            special, encode = self.tokenizer.special_tokens, self.tokenizer.encode
            for repair in (special["<|start|>"], *encode("assistant"), special["<|channel|>"], *encode("final"),
                           special["<|message|>"]):
                parser.feed(repair)
            if token != special["<|message|>"]:
                parser.feed(token)
        if before == (len(parser.messages) - 1, "Header"):  # stopped in its header: the parser saved it
            yield channel_of(parser.messages[-1]), parser.messages[-1].content
        elif parser.state == "Content" and parser.last_content_delta:
            yield channel_of(Message("assistant", "", channel=parser.current_channel)), parser.last_content_delta

    def _keep(self, parser):
        """Add what the model said to the user to the history, finished or not."""
        if parser.state == "Content":
            parser.finish()
        for message in parser.messages:
            channel = channel_of(message)
            if message.content and message.role == "assistant" and channel != "analysis" and not called(message):
                self.history.append(Message("assistant", message.content, channel=channel))


class Screen:
    """Prints a reply: to a terminal all of it, thoughts dim; to a pipe or a file the answer alone."""

    STYLES = {"analysis": "dim", "commentary": "cyan", "final": "bold", "note": "yellow"}

    def __init__(self):
        self.console = Console(highlight=False, soft_wrap=True)
        self.errors = Console(stderr=True, highlight=False, soft_wrap=True)
        self.terminal = sys.stdout.isatty()

    def show(self, pieces):
        shown = None
        for channel, text in pieces:
            if not self.terminal:
                if channel == "note":
                    print(f"chat.py: {text}", file=sys.stderr)
                elif channel != "analysis":
                    print(text, end="", flush=True)
                    shown = channel
                continue
            if channel != shown:
                self.console.print("" if shown is None else "\n")
            shown = channel
            # control characters would move the cursor or worse: only line breaks and tabs go through
            text = "".join(c for c in text if c.isprintable() or c in "\n\t")
            self.console.print(Text(text), style=self.STYLES.get(channel, ""), end="")
        if shown is not None:
            self.console.print("\n" if self.terminal else "")

    def note(self, text):
        self.errors.print(Text(text), style="yellow" if self.terminal else "")


def converse(chat, screen, sampling, stats):
    """Ask what the user types, until the input ends. Without a terminal each line of the input is a question."""
    interactive = sys.stdin.isatty()
    if interactive:
        with suppress(ImportError):  # Windows has none
            import readline  # noqa: F401  (line editing in input())

        screen.note("Type a question, or /help. The model thinks as hard as you say: /effort low, medium or high.")
    while True:
        try:
            line = input("\n> " if interactive else "").strip()
        except EOFError:
            return
        except KeyboardInterrupt:
            screen.note("\n(Ctrl-D or /exit leaves)")
            continue
        command, _, argument = line.partition(" ")
        if command in ("/exit", "/quit"):
            return
        if command == "/help":
            screen.note(HELP.format(effort=chat.effort))
        elif command == "/reset":
            chat.reset()
            screen.note("The conversation is forgotten.")
        elif command == "/stats":
            stats = not stats
            screen.note(f"stats {'on' if stats else 'off'}")
        elif command == "/effort":
            if argument.strip() in EFFORTS:
                chat.effort = argument.strip()
                screen.note(f"effort {chat.effort}")
            else:
                screen.note(f"/effort: expected {', '.join(EFFORTS)}, found {argument.strip()!r}")
        elif line.startswith("/"):
            screen.note(f"{command}: no such command, /help lists them")
        elif line:
            try:
                answer(chat, screen, line, sampling, stats)
            except KeyboardInterrupt:
                screen.note("\n(stopped)")
            except ValueError as error:  # this question cannot be asked; the conversation goes on
                screen.note(str(error))


def answer(chat, screen, text, sampling, stats):
    with closing(chat.ask(text, **sampling)) as pieces:
        screen.show(pieces)
    if stats:
        screen.note(chat.stats)


def default_temperature(directory):
    """1, as OpenAI recommends, unless the checkpoint's generation_config.json says do_sample false: then 0, greedy."""
    path = directory / "generation_config.json"
    return 0.0 if path.exists() and read_json(path).get("do_sample") is False else 1.0


class Arguments(argparse.ArgumentParser):
    def error(self, message):
        self.exit(2, f"chat.py: {message}\n")


def parse_arguments(argv):
    def at_least(low, kind, noun):
        def parse(text):
            try:
                value = kind(text)
            except ValueError:
                value = None
            if value is None or not low <= value < float("inf"):
                raise argparse.ArgumentTypeError(f"expected {noun} of at least {low}, found {text!r}")
            return value

        return parse

    whole = "an integer"
    parser = Arguments(description="Chat with a gpt-oss model.")
    parser.add_argument("--model", metavar="DIR", default=HERE / "nano", type=Path,
                        help="a checkpoint, HF or original/ layout (default: the small model in nano/)")
    parser.add_argument("--prompt", metavar="TEXT", help="answer this and exit")
    parser.add_argument("--effort", choices=EFFORTS, default="medium", help="how hard to think (default: medium)")
    parser.add_argument("--temperature", type=at_least(0, float, "a number"),
                        help="randomness; 0: always the likeliest token (default: as the checkpoint says, or 1)")
    parser.add_argument("--seed", type=at_least(0, int, whole), help="the same seed gives the same reply")
    parser.add_argument("--max-tokens", type=at_least(1, int, whole), help="longest reply, thoughts included")
    parser.add_argument("--stats", action="store_true", help="show tokens and tokens per second after each reply")
    args = parser.parse_args(argv)
    if args.prompt is not None and not args.prompt.strip():
        parser.error("--prompt: expected a text, found nothing")
    return args


def main(argv=None):
    args = parse_arguments(argv)
    for stream in (sys.stdin, sys.stdout, sys.stderr):
        stream.reconfigure(errors="surrogateescape" if stream is sys.stdin else "replace")
    screen = Screen()
    try:
        if screen.terminal and not list((HERE / "__pycache__").glob("kernels.*.nbi")):
            screen.note("The first run compiles the kernels: half a minute or less.")
        model, tokenizer = gptoss.load(args.model), tokenizers.load(args.model)
        chat = Conversation(model, tokenizer, args.effort)
        temperature = default_temperature(args.model) if args.temperature is None else args.temperature
        sampling = {"temperature": temperature, "seed": args.seed, "max_tokens": args.max_tokens}
        if args.prompt is None:
            converse(chat, screen, sampling, args.stats)
        else:
            answer(chat, screen, args.prompt, sampling, args.stats)
    except (ValueError, OSError) as error:
        if isinstance(error, BrokenPipeError):
            sys.stderr.close()  # whoever read our output has left
            return 0
        print(f"chat.py: {error}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        return 130
    return 0


if __name__ == "__main__":
    sys.exit(main())
