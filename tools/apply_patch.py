"""The tool `functions.apply_patch`: changes the files in a folder, by patches in the form that OpenAI's models write
(DESCRIPTION says it). Nothing outside the folder is touched, and a patch is applied whole or not at all.

Lines are matched as in gpt_oss.chat's apply_patch, which writes wherever a patch says.
"""

import json
import os
import re
import shutil
import tempfile
from contextlib import suppress
from pathlib import Path

from checkpoint import expect
from harmony import Function, Namespace

DESCRIPTION = """\
Changes files. The argument is the patch, as plain text. It has a section for each file:
*** Add File: PATH (then the lines of the new file, each with + before it)
*** Delete File: PATH (nothing follows)
*** Update File: PATH (then changes; before them may stand *** Move to: NEW_PATH)
Paths are relative. A change is a few lines, each with a character before it: a space if the line stays, - if it goes,
+ if it is new. Three lines that stay, above and below, say where. Before a second change, and where those lines alone
could be meant elsewhere, write @@ LINE, where LINE stands above in the file, like the head of the function. After a
change at the end of a file *** End of File can be written. Example:
*** Begin Patch
*** Update File: src/greet.py
@@ def greet(name):
     greeting = "Hello"
-    print(greeting)
+    print(greeting, name)
*** End Patch"""
SECTION = re.compile(r"\*\*\* (Add|Delete|Update) File: (.*\S)\s*")
MOVE = "*** Move to: "
LARGEST = 16 * 2**20  # bytes of a file that is read


class ApplyPatch:
    """root: the folder to which it is confined, also when all links are followed. confirm: a function that is asked
    with a patch that fits, and says whether it may be applied; None: it may."""

    namespace = Namespace("functions", None, [
        Function("apply_patch", DESCRIPTION, {"type": "string", "description": "the patch"})])

    def __init__(self, root, confirm=None):
        self.root, self.confirm = Path(root).resolve(), confirm
        expect(self.root.is_dir(), ValueError, root, "a folder", "none")

    def call(self, recipient, content):
        """Applies a patch, or raises ValueError, in a sentence, and changes nothing."""
        patch = patch_in(content)
        changes = self.changes(patch)
        if self.confirm and not self.confirm(patch):
            return "The user did not allow this patch."
        try:
            write(changes, self.root)
        except OSError as error:
            raise ValueError(f"patch: expected a folder that can be written, found {error.strerror or error}") from None
        return "Done!"

    def close(self):
        pass  # nothing was started

    def changes(self, patch):
        """{path: the text that the file is to have, or None: it is to go}."""
        lines, changed = patch.replace("\r\n", "\n").strip().split("\n"), {}
        expect(lines[0].strip() == "*** Begin Patch", ValueError, "patch, first line", "*** Begin Patch", lines[0])
        expect(lines[-1].strip() == "*** End Patch", ValueError, "patch, last line", "*** End Patch", lines[-1])
        starts = [n for n, line in enumerate(lines) if SECTION.fullmatch(line)]
        expect(starts[:1] == [1], ValueError, "patch, second line", "*** Add, Delete or Update File: PATH", lines[1])
        for start, stop in zip(starts, [*starts[1:], -1], strict=True):
            kind, name = SECTION.fullmatch(lines[start]).groups()
            body = lines[start + 1 : stop]
            while body and not body[-1]:  # an empty line between sections
                body.pop()
            path, text = self.look(name, changed, kind != "Add")
            changed[path] = None
            if kind == "Update" and body and body[0].startswith(MOVE):
                path, _ = self.look(body.pop(0).removeprefix(MOVE).rstrip(), changed, False)
            if kind == "Delete":
                expect(not body, ValueError, name, "nothing after *** Delete File", body[:1])
            else:
                changed[path] = updated(text or "", body, name)
        files = {path for path, text in changed.items() if text is not None}
        expect(not any(files & {*path.parents} for path in files), ValueError, "patch", "files", "a file in a file")
        return changed

    def look(self, name, changed, there):
        """A file's path, and its text after what is `changed`. there: whether there has to be such a file."""
        wanted = "patch", "relative paths that stay inside the folder"
        expect(name.isprintable(), ValueError, *wanted, repr(name))
        try:
            path = (self.root / name).resolve()
            inside = not Path(name).is_absolute() and ".." not in Path(name).parts and self.root in path.parents
            expect(inside, ValueError, *wanted, name)
            expect(path.is_file() or not path.exists(), ValueError, name, "a file", "something else")
            text = changed[path] if path in changed else read(path) if path.exists() else None
        except (OSError, RuntimeError, UnicodeError) as error:  # (RuntimeError: a loop of links, before Python 3.13)
            found = getattr(error, "strerror", None) or type(error).__name__
            raise ValueError(f"{name[:200]}: expected a text that can be read, found {found}") from None
        expect((text is not None) == there, ValueError, name, *("a file", "none") if there else ("no such file", "one"))
        return path, text


def read(path):
    expect(path.stat().st_size <= LARGEST, ValueError, path.name, f"at most {LARGEST:,} bytes", "more")
    return path.read_bytes().decode()


def patch_in(content):
    """The patch in a call: as it is, or in JSON, as a text or as the one value of an object."""
    with suppress(ValueError, RecursionError):
        value = json.loads(content)
        [value] = value.values() if isinstance(value, dict) else [value]
        return value if isinstance(value, str) else content
    return content


def updated(text, body, name):
    """A text after the changes in a section. (To an empty text, if it is a new file.)"""
    lines = text.removesuffix("\n").split("\n") if text else []
    ending = "\r" if lines and lines[0].endswith("\r") else ""
    result, at, change = [], 0, []
    for line in [*body, "@@"]:
        if not line.startswith("@@") and line.rstrip() != "*** End of File":
            expect(line[:1] in ("", " ", "+", "-"), ValueError, name, "changes: lines with a space, + or -", line)
            change.append(line or " ")
            continue
        start = find(lines, [old[1:] for old in change if old[0] != "+"], at, line[0] == "*", name)
        result += lines[at:start]
        for new in change:
            result += [new[1:] + ending] if new[0] == "+" else lines[start : start + 1] if new[0] == " " else []
            start += new[0] != "+"
        at, change = start, []
        if line[2:].strip() and line[0] == "@":
            at = find(lines, [line[2:]], at, False, name) + 1
            result += lines[start:at]
    result += lines[at:]
    return "\n".join(result) + "\n" * (bool(result) and (text.endswith("\n") or not text))


def find(lines, wanted, at, from_end, name):
    """Where the wanted lines stand, from line `at` on: exactly so, or but for white space behind them, or around."""
    for seen in (str, str.rstrip, str.strip):
        here, there = list(map(seen, lines)), list(map(seen, wanted))
        places = [n for n in range(at, len(here) - len(there) + 1) if here[n : n + len(there)] == there]
        if places:
            return places[-1] if from_end else places[0]
    raise ValueError(f"{name}: expected, after line {at}, the lines that the patch says, found no {wanted}"[:500])


def write(changed, root):
    """Changes all files, or none. The new ones are written, and the old ones copied, in a folder beside them before the
    first is changed. Then each change is one move, so that it is seen which were made, and these can be undone."""
    beside, moves, made = Path(tempfile.mkdtemp(prefix=".patch-", dir=root)), [], []
    try:
        for n, (path, text) in enumerate(changed.items()):
            new, old = beside / f"{n}.new", beside / f"{n}.old"
            if text is not None:
                new.write_bytes(text.encode())
                if path.exists():
                    shutil.copy2(path, old)
                    shutil.copymode(path, new)
                moves.append((new, path, old))
            elif path.exists():
                moves.append((path, old, old))
        for source, target, _ in moves:
            made += [folder for folder in target.parents if not folder.exists()]
            target.parent.mkdir(parents=True, exist_ok=True)
            os.replace(source, target)
    except BaseException:
        for source, target, old in reversed(moves):
            if not source.exists():  # it was moved
                os.replace(old, source if target == old else target) if old.exists() else target.unlink()
            for folder in made:
                with suppress(OSError):  # there is something in it, or it was not made after all
                    folder.rmdir()
        shutil.rmtree(beside)  # if anything could not be undone, it is still there, with the old files
        raise
    shutil.rmtree(beside, ignore_errors=True)
