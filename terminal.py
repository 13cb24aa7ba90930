"""The screen of a chat: how what the model thinks, says, calls and is told looks, and where the user types.

    Screen      prints as it comes: to a terminal all, the thoughts dim; to a pipe or a file the answer alone
    Terminal    a Screen on which one types while the model writes:

        what was said before, scrolling away
        ┊ thought for 3 s, 61 tokens            finished messages are printed once, the answer as Markdown
        the message that the model is writing   these lines are drawn anew as it grows
        > what the user types
        nano  effort high  context 212/4096     the status line

The keyboard has a thread of its own. The model computes in the main thread, where Ctrl-C can stop it at once.
Nothing that a model, a tool or a page says can move the cursor or colour the screen: see `clean`.
"""

import os
import queue
import signal
import sys
import threading
import time
from contextlib import ExitStack, contextmanager, nullcontext, redirect_stderr, redirect_stdout, suppress
from pathlib import Path
from unicodedata import category

from rich.console import Console
from rich.live import Live
from rich.markdown import Markdown
from rich.panel import Panel
from rich.text import Text

from models import ask
from program import deliver

STYLES = {"analysis": "dim", "commentary": "cyan", "call": "magenta", "result": "dim", "final": "bold",
          "note": "yellow", "raw": ""}
SHOWN = 2000  # characters of a tool's result on the screen; the model is told all


def clean(text):
    """text without control characters, which would move the cursor or worse: only line breaks and tabs go through. All
    kinds of blanks become the one that isprintable knows."""
    text = "".join(" " if category(c) == "Zs" else c for c in text)
    return "".join(c for c in text if c.isprintable() or c in "\n\t")


def revealed(text):
    """text with escapes for what `clean` leaves out. For what is shown to be approved: nothing may hide in it."""
    return "".join(c if c.isprintable() or c in "\n\t" else c.encode("unicode_escape").decode() for c in text)


def markdown(text):
    """An answer as rich shows Markdown, but no text is lost: HTML, images and references are text, and so are &#8238;
    and the like. A line break is one. An address is shown as it is."""
    from markdown_it import MarkdownIt

    shown = Markdown("", hyperlinks=False)
    rules = ["html_block", "html_inline", "image", "reference", "entity"]
    shown.parsed = MarkdownIt("commonmark").enable(["table", "strikethrough"]).disable(rules).parse(text)
    for token in (child for block in shown.parsed for child in block.children or ()):
        if token.type == "softbreak":
            token.type = "hardbreak"
    return shown


class Screen:
    """Prints replies as they come. waiting: what to say while there is nothing to print, a function; "" is nothing."""

    def __init__(self, waiting=lambda: ""):
        self.console = Console(highlight=False, soft_wrap=True)  # the terminal breaks lines, so copies have none
        self.errors = Console(stderr=True, highlight=False, soft_wrap=True)
        self.terminal, self.waiting = sys.stdout.isatty(), waiting
        self.busy, self.thoughts, self.markdown = False, True, True  # see Terminal
        self.patience = None  # what shows `waiting`, while it does

    def show(self, pieces, history=()):
        """Prints pieces (channel, text), each as soon as it is there. history: the conversation's."""
        shown, pieces = None, iter(pieces)
        while True:
            with self._patience() if shown in (None, "call", "result") else nullcontext():
                channel, text = next(pieces, (None, ""))
            if channel is None:
                break
            if not self.terminal:
                if channel == "note":
                    print(f"chat.py: {clean(text)}", file=sys.stderr)
                elif channel in ("final", "raw"):
                    print(text, end="", flush=True)
                    shown = channel
                continue
            if channel != shown:
                self.console.print("" if shown is None else "\n")
            shown = channel
            if channel == "result":
                text = f"[{history[-2].recipient}] {shortened(text)}"
            self.console.print(Text(clean(text)), style=STYLES[channel], end="")
        if shown is not None:
            self.console.print("\n" if self.terminal else "")

    @contextmanager
    def _patience(self):
        """Says what `waiting` says, where there is no piece within a second."""
        def begin():
            self.patience = Live(get_renderable=lambda: Text(clean(self.waiting()), style="dim"), console=self.errors,
                                 transient=True, redirect_stdout=False, redirect_stderr=False)
            self.patience.start()

        timer = threading.Timer(1, begin)
        if self.terminal and self.errors.is_terminal:
            timer.start()
        self.timer = timer
        try:
            yield
        finally:
            self._end_patience()

    def _end_patience(self):
        self.timer.cancel()
        if self.timer.ident:
            self.timer.join()
        if self.patience:
            self.patience.stop()
            self.patience = None

    def note(self, text):
        self.errors.print(Text(clean(text)), style="yellow" if self.terminal else "")

    def put(self, text):
        """Gives the user a text to change and send."""
        self.note(f"There is no line to change it in. It was: {text}")

    def confirm(self, text, question):
        """Whether the user says yes to `question` about `text`. Raises EOFError where nobody can be asked."""
        if not (sys.stdin.isatty() and self.errors.is_terminal):
            raise EOFError("nobody can be asked here; --yes runs it without asking")
        self._end_patience()
        if text:
            self.errors.print(Panel(Text(revealed(text)), border_style="magenta"))
        return ask(question)


def shortened(text):
    return text if len(text) <= SHOWN else f"{text[:SHOWN]} ..."


class Terminal(Screen):
    """A Screen to type on. status: the line at the bottom, a function. words: {command: what may follow it}, which Tab
    completes; Path stands for files. history: the file that keeps what was typed. `busy`: whether something is going on
    that Ctrl-C is to stop. `thoughts`: whether they stay on the screen. `markdown`: whether answers are Markdown."""

    def __init__(self, waiting, status, words, history):
        from prompt_toolkit import PromptSession
        from prompt_toolkit.history import FileHistory, InMemoryHistory

        super().__init__(waiting)
        self.console.soft_wrap = self.errors.soft_wrap = False  # lines are broken between words
        self.lines, self.answers, self.question = queue.Queue(), queue.SimpleQueue(), ""
        self.live = "final", ""  # channel and text of the message that is being written
        self.emptied = lambda: None  # is called when the user gives up a line
        try:
            history.parent.mkdir(parents=True, exist_ok=True)
            os.close(os.open(history, os.O_CREAT | os.O_APPEND, 0o600))  # questions are nobody else's business
            history = FileHistory(history)
        except OSError:
            history = InMemoryHistory()
        self.session = PromptSession(
            self._prompt, multiline=True, prompt_continuation="  ", bottom_toolbar=status, history=history,
            completer=completer(words), complete_while_typing=False, reserve_space_for_menu=0, erase_when_done=True,
            key_bindings=self._keys(), refresh_interval=0.25, enable_open_in_editor=True, tempfile_suffix=".md")
        self.session.default_buffer.accept_handler = self._accept
        self.session.app.input.cooked_mode = nullcontext  # in which it prints: there, what is typed would be echoed

    def __enter__(self):
        from prompt_toolkit.patch_stdout import StdoutProxy

        self.stack = ExitStack()
        proxy = self.stack.enter_context(StdoutProxy(raw=True, sleep_between_writes=0.02))
        self.stack.enter_context(redirect_stdout(proxy))
        self.stack.enter_context(redirect_stderr(proxy))
        self.thread = threading.Thread(target=self._type, daemon=True)
        self.thread.start()
        return self

    def __exit__(self, *_):
        time.sleep(0.1)  # for what has been printed
        with suppress(Exception):
            self.session.app.loop.call_soon_threadsafe(self.session.app.exit)
        self.thread.join(timeout=2)
        self.stack.close()

    def _type(self):
        try:
            self.session.prompt(handle_sigint=False)
        finally:  # whatever ends it, nobody is to wait for another line
            self.lines.put(None)
            self.answers.put("")

    def _keys(self):
        """Enter sends, Alt-Enter begins a new line, and so does Enter after a backslash or within \"\"\"."""
        from prompt_toolkit.filters import Condition, is_searching
        from prompt_toolkit.key_binding import KeyBindings

        keys = KeyBindings()

        @keys.add("enter")
        def _(event):
            buffer = event.current_buffer
            if buffer.document.text_before_cursor.endswith("\\"):
                buffer.delete_before_cursor()
                buffer.insert_text("\n")
            elif buffer.text.startswith('"""') and buffer.text.count('"""') == 1:
                buffer.insert_text("\n")
            else:
                buffer.validate_and_handle()

        @keys.add("escape", "enter")
        def _(event):
            event.current_buffer.insert_text("\n")

        @keys.add("c-c", filter=~is_searching)
        def _(event):
            if self.busy:
                self.lines.queue.clear()  # what was to come after it is not asked either
                deliver(signal.SIGINT)
            elif event.current_buffer.text:
                event.current_buffer.reset()
                self.emptied()
            else:
                self.note("(Ctrl-D or /exit leaves)")

        @keys.add("c-d", filter=Condition(lambda: not self.session.default_buffer.text))
        def _(event):
            self.lines.queue.clear()
            self.lines.put(None)
            if self.busy:
                deliver(signal.SIGINT)

        return keys

    def _accept(self, buffer):
        text = buffer.text.strip()
        if self.question:
            self.answers.put(text)
            buffer.text = ""  # not to be kept in the history
        elif text.startswith('"""'):
            self.lines.put(" " + text.removeprefix('"""').removesuffix('"""').strip())  # the blank: it is no command
        elif text:
            self.lines.put(text)
        return False  # the line is emptied

    def _prompt(self):
        """What stands before the cursor: the end of the message being written, what waits to be asked, and the sign to
        type."""
        channel, text = self.live
        size, shown = self.session.app.output.get_size(), []
        for line in text.splitlines()[-size.rows :]:
            shown += [str(part) for part in Text(line).wrap(self.console, size.columns - 1)] or [""]
        shown = shown[-max(3, size.rows - 8) :]
        if self.busy and not self.question and (not text or channel == "call"):
            shown.append(self.waiting())
        color = {"analysis": "ansibrightblack", "call": "ansimagenta", "commentary": "ansicyan"}.get(channel, "")
        waiting = [("ansibrightblack", f"then: {line[:60]!r}\n") for line in list(self.lines.queue) if line]
        return [*((color, f"{line}\n") for line in shown), *waiting, ("bold", self.question or "> ")]

    def read(self):
        """The next line that the user types. Raises EOFError when there is none."""
        line = self.lines.get()
        if line is None:
            raise EOFError
        self.console.print(Text(f"\n> {clean(line).strip()}", style="bold"))
        return line

    def put(self, text):
        def replace():
            self.session.default_buffer.text = text
            self.session.default_buffer.cursor_position = len(text)

        self.session.app.loop.call_soon_threadsafe(replace)

    def show(self, pieces, history=()):
        shown, text, count, drawn, began = None, "", 0, 0.0, time.monotonic()

        def finish(following):
            if text and not (shown == "call" and following == "result"):  # call and result are shown together
                self._print(shown, text, count, time.monotonic() - began)

        try:
            for channel, piece in pieces:
                if channel != shown or channel in ("note", "result"):
                    finish(channel)
                    shown, text, count, began = channel, "", 0, time.monotonic()
                if channel == "result":
                    self._frame(history[-2], piece)
                    continue
                text, count = text + clean(piece), count + 1
                folded = channel == "analysis" and not self.thoughts
                self.live = channel, f"thinking, {count} tokens" if folded else text
                if time.monotonic() - drawn > 0.05:  # to draw takes longer than a small model takes for a token
                    self.session.app.invalidate()
                    drawn = time.monotonic()
        finally:  # also what was said until Ctrl-C
            self.live = "final", ""
            finish(None)

    def _print(self, channel, text, count, seconds):
        """A message that is complete."""
        if channel == "analysis" and not self.thoughts:
            text = f"thought for {seconds:.0f} s, {count} tokens"
        self.console.print()
        if channel == "final" and self.markdown:
            with self.console.capture() as shown:
                self.console.print(markdown(text))
            if shown.get().strip():  # else it consists of marks alone
                self.console.file.write(shown.get())
                return
        self.console.print(Text(text), style=STYLES[channel])

    def _frame(self, call, result):
        """A call, a harmony.Message, and its result."""
        body = Text.assemble(clean(call.content), "\n" + "\u2500" * 8 + "\n", (shortened(clean(result)), "dim"))
        self.live = "final", ""
        self.console.print()
        self.console.print(Panel(body, title=Text(clean(call.recipient)), title_align="left", border_style="magenta"))

    def confirm(self, text, question):
        if text:
            self.console.print(Panel(Text(revealed(text)), border_style="magenta"))
        buffer, begun, answers = self.session.default_buffer, [], queue.SimpleQueue()

        def ask():
            begun.append(buffer.text)  # what is being typed is no answer: it comes back later
            buffer.text = ""
            self.question, self.answers, self.live = f"{question} (y/N) ", answers, ("final", "")

        self.session.app.loop.call_soon_threadsafe(ask)
        try:
            return answers.get().lower() in ("y", "yes")
        finally:
            self.question = ""
            self.put("".join(begun))


def completer(words):
    """What Tab completes: commands, and what may follow them."""
    from prompt_toolkit.completion import Completer, Completion, PathCompleter
    from prompt_toolkit.document import Document

    class Commands(Completer):
        def get_completions(self, document, event):
            name, space, rest = document.text_before_cursor.removeprefix("/").partition(" ")
            if not document.text.startswith("/"):
                return
            follow = words.get(name, ()) if space else words
            if follow is Path:
                yield from PathCompleter(expanduser=True).get_completions(Document(rest), event)
                return
            for word in follow:
                if word.startswith(rest if space else name):
                    yield Completion(word, -len(rest if space else name))

    return Commands()


# ---- Other ways to show pieces --------------------------------------------------------------------------------------

def cited(pieces, browser):
    """The citations in answers become links. Half a citation waits for its other half."""
    held = ""
    for channel, text in pieces:
        if held and channel != "final":
            yield "final", held
            held = ""
        if channel == "final":
            text = held + text
            whole = browser.unfinished(text)
            text, held = browser.citations(text[:whole])[0], text[whole:]
        if text or channel != "final":
            yield channel, text
    if held:
        yield "final", held


def raw(pieces, meter, tokenizer):
    """What the model has read and written, tokens as they are, and the notes."""
    for channel, text in pieces:
        if unseen := meter.unseen():
            yield "raw", tokenizer.decode(unseen)
        if channel == "note":
            yield channel, text
    if unseen := meter.unseen():
        yield "raw", tokenizer.decode(unseen)
