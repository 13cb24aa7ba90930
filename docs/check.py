"""What a page must keep beside its blocks: links that lead somewhere, names that exist, and a chapter's form.

`complaints(path)` gives one sentence for each fault, with file and line; `python docs/build.py --check` prints them.
"""

import ast
import builtins
import functools
import os
import re
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
CHAPTER = re.compile(r"\d\d-.*\.md")
SECTIONS = ("By hand", "The code", "Try it", "The trap", "Exercises", "What you know now")  # of every chapter
HISTORY = {"log.md"}  # tells of what was tried; its names were true on their day

FENCE = re.compile(r"^( *)(```+|~~~+)(.*?)^ *\2`*~*[ \t]*$", re.S | re.M)
SPAN = re.compile(r"(?<!`)(`+)(?!`)((?:(?!\n\n).)+?)(?<!`)\1(?!`)", re.S)
COMMENT = re.compile(r"<!--.*?-->", re.S)
HEADING = re.compile(r"^(#{1,6}) +(.*?) *#*$", re.M)
TARGET = re.compile(r"""\]\(\s*<?([^)\s>]+)>?(?:\s+["'][^)]*)?\)|^\[[^]]+\]:\s+(\S+)"""
                    r"""|\b(?:src|srcset|href)="([^"]+)\"""", re.M)
IMAGE = re.compile(r"""!\[(?P<a>[^]]*)\]\(|<img\b(?:[^>]*?\balt="(?P<b>[^"]*)")?[^>]*>""")

NAME = re.compile(r"[A-Za-z_]\w*(\.[A-Za-z_]\w*)*(\(.*\))?", re.S)  # word, snake_case, Camel.method, function(x), CAPS
FILE = re.compile(r"[\w./-]*\w(\.(py|md|svg|png|json|jsonl|txt|safetensors|toml|yml)|/)")
ALLOWED = {
    "FILE.py", "original/", "metal/",  # what a reader puts in its place; folders of the official checkpoints
    "torch/model.py", "torch/weights.py", "triton/model.py",  # files of github.com/openai/gpt-oss
    "tokenizer_config.json", "special_tokens_map.json",  # files of the Hub's models that the project does not read
    "settings.yml",  # SearXNG's
    "config.toml", "opencode.json", "compatibility-test/",  # other programs', which talk to serve.py
    "frequency_penalty", "presence_penalty", "logit_bias", "background",  # fields of OpenAI's API that it ignores
    "adapter_config.json", "adapter_model.safetensors", "base_model.model.model.layers.N.",  # PEFT's adapters, and
    "lora_alpha", "target_modules", "target_parameters",  # the keys of their configuration
    "norm_topk_prob",  # a key of Qwen's
    "vpdpbusd", "vpmaddwd", "vpmaddubsw", "vpshufb", "vpmovsxbw", "sdot", "usdot", "tbl",  # machine instructions
    "transformers", "tiktoken", "vllm", "llvm",  # other people's programs
}


def pages(root):
    """What a person reads here, in order."""
    every = [root / "README.md", *sorted(root.glob("docs/*.md")), *sorted(root.glob("exercises/*.md"))]
    return [path for path in [*every, root / "nano" / "README.md"] if path.is_file()]


def complaints(path, root=ROOT):
    text = path.read_text(encoding="utf-8")
    where = os.path.relpath(path, root)
    found = [*figures(text), *links(text, path), *([] if path.name in HISTORY else names(text, path, root))]
    if path.parent.name == "docs":
        found += form(text, path) if CHAPTER.fullmatch(path.name) else []
        found += table(text, path) if path.name == "README.md" else []
    return [f"{where}:{line}: {said}" for line, said in sorted(found)]


def blank(pattern, text, put=" "):
    """The text with what matches replaced, so that lines and columns stay where they are."""
    return pattern.sub(lambda match: re.sub(r"[^\n]", put, match[0]), text)


def figures(text):
    """GitHub reads a line that begins with a comment as HTML: what else is in it would lose its form."""
    for match in re.finditer(r"^ {0,3}<!-- is:", blank(FENCE, text), re.M):
        yield line_of(text, match), "expected a figure within a line, found it at the beginning"


def prose(text):
    return blank(COMMENT, blank(FENCE, text))


def line_of(text, match):
    return text.count("\n", 0, match.start()) + 1


# ---- Links ----------------------------------------------------------------------------------------------------------

def slug(heading):
    """The anchor that GitHub gives a heading."""
    heading = re.sub(r"!?\[([^]]*)\]\([^)]*\)", r"\1", heading)
    return re.sub(r"[^\w\- ]", "", heading.strip().lower()).replace(" ", "-")


@functools.cache
def anchors(path):
    """All that may stand after a # behind this file."""
    text = path.read_text(encoding="utf-8") if path.is_file() else ""
    if path.suffix != ".md":
        return {f"L{n}" for n in range(1, text.count("\n") + 2)}
    found, counts = set(re.findall(r'\b(?:id|name)="([^"]+)"', prose(text))), {}
    for match in HEADING.finditer(prose(text)):
        name = slug(match[2])
        counts[name] = counts.get(name, -1) + 1
        found.add(f"{name}-{counts[name]}" if counts[name] else name)
    return found


def links(text, path):
    text = prose(text)
    text = blank(SPAN, text, "x")
    for match in TARGET.finditer(text):
        target = match[1] or match[2] or match[3]
        if re.match(r"[a-z]+:", target):
            continue
        name, _, anchor = target.partition("#")
        file = path.parent / name if name else path
        if not file.exists():
            yield line_of(text, match), f"{target}: no such file"
        elif anchor and (anchor if file.suffix == ".md" else anchor.split("-")[0]) not in anchors(file):
            yield line_of(text, match), f"{target}: no such anchor"
    for match in IMAGE.finditer(text):
        described = (match["a"] or match["b"] or "").split()
        if len(" ".join(described)) < 20:
            yield line_of(text, match), "an image: expected alternative text of at least 20 characters"


# ---- Names ----------------------------------------------------------------------------------------------------------

def words_of(tree):
    """The names in a file's code, and the words of its strings. Comments and docstrings do not count: an old name may
    survive in them."""
    names, words = set(), set()
    documentation = {id(node.value) for node in ast.walk(tree) if isinstance(node, ast.Expr)}
    for node in ast.walk(tree):
        for _, value in ast.iter_fields(node):
            texts = [text for text in (value if isinstance(value, list) else [value]) if isinstance(text, str)]
            if isinstance(node, ast.Constant):
                texts = [] if id(node) in documentation else texts
                words.update(word for text in texts for word in re.findall(r"--[a-z][\w-]*|\w+", text))
            else:
                names.update(part for text in texts for part in text.split("."))
    return names, words


def members(node):
    """What stands after the dot: the names that a module or a class defines, or sets on `self`."""
    found = set()
    for part in ast.walk(node):
        if isinstance(part, (ast.FunctionDef, ast.ClassDef)):
            found.add(part.name)
        elif isinstance(part, (ast.Name, ast.Attribute)) and isinstance(part.ctx, ast.Store):
            found.add(part.id if isinstance(part, ast.Name) else part.attr)
        elif isinstance(part, ast.alias):
            found.add(part.asname or part.name)
    return found


@functools.cache
def repository(root):
    """Of all Python files but the tests: names, words of strings, {module or class: members}. And all files' names."""
    names, words, owners = set(dir(builtins)) | set(dir(str)), set(), {}
    for path in [*root.glob("*.py"), *root.glob("[!.]*/*.py")]:
        if path.parent.name != "tests":
            tree = ast.parse(path.read_text(encoding="utf-8"))
            new = words_of(tree)
            names |= new[0]
            words |= new[1]
            owners.setdefault(path.stem, set()).update(members(tree))
            for node in ast.walk(tree):
                if isinstance(node, ast.ClassDef):
                    owners.setdefault(node.name, set()).update(members(node), ["*"] * len(node.bases))
    files = {path.name for pattern in ("*", "[!.]*/*", "[!.]*/*/*") for path in root.glob(pattern)}
    return names, words | {word for file in files for word in re.findall(r"\w+", file)}, owners, files


def known(name, page_words, root):
    """A call `name(...)` and what stands after a module or a class of the project must be names of the code; other
    words may stand in its strings too, as the keys of config.json do. "*": a class that inherits others' members."""
    names, words, owners, _ = repository(root)
    parts = name.partition("(")[0].split(".")
    if parts[0] in ("np", "numpy", "functions"):  # NumPy's names are not ours, functions.NAME is a tool of the reader
        return True
    for owner, member in zip(parts, parts[1:], strict=False):
        if owner in owners and "*" not in owners[owner] and member not in owners[owner] | page_words:
            return False
    allowed = names | page_words | (set() if "(" in name else words)
    return all(len(part) < 3 or part in allowed for part in parts)


def exists(file, path, root):
    *_, files = repository(root)
    return (root / file).exists() or (path.parent / file).exists() or "/" not in file and file in files


def names(text, path, root):
    """Names in backticks that are neither in the repository nor in the page's own code."""
    code = "\n".join(match[0] for match in FENCE.finditer(text))
    page_words = set(re.findall(r"\w+", code))
    text = prose(text)
    for match in SPAN.finditer(text):
        span = " ".join(match[2].split())
        where = line_of(text, match)
        if span.partition("(")[0] in ALLOWED:
            continue
        if span.startswith("python "):
            for file in re.findall(r"[\w./-]+\.py\b", span):
                if not exists(file, path, root) and file not in ALLOWED:
                    yield where, f"`{file}`: no such file"
            for option in re.findall(r"--[a-z][\w-]*", span):
                if option not in repository(root)[1]:
                    yield where, f"`{option}`: no such option in the sources"
        elif FILE.fullmatch(span):
            if not exists(span, path, root) and span not in code:
                yield where, f"`{span}`: no such file"
        elif NAME.fullmatch(span) and not known(span, page_words, root):
            yield where, f"`{span}`: no such name in the sources or in the code of this page"


# ---- The form of a chapter ------------------------------------------------------------------------------------------

def form(text, path):
    """The parts that each chapter has, in this order; what else it has is its own."""
    text = prose(text)
    headings = [(line_of(text, match), match[2]) for match in HEADING.finditer(text) if len(match[1]) == 2]
    titles = [title for _, title in headings]
    last = text.count("\n")
    for title in SECTIONS:
        if titles.count(title) != 1:
            yield last, f"expected one section ## {title}, found {titles.count(title)}"
    ordered = [title for title in titles if title in SECTIONS]
    if sorted(ordered, key=SECTIONS.index) != ordered:
        yield last, f"expected the sections in the order {', '.join(SECTIONS)}"
    opening = "\n".join(text.splitlines()[: headings[0][0] - 1 if headings else None])
    if not re.search(r"^\*\*The question\.\*\*", opening, re.M):
        yield 1, "expected a line that begins with **The question.** before the first section"
    if not re.search(r"!\[[^]]*\]\(pictures/|<img\b[^>]*src=\"pictures/", text):
        yield 1, "expected an image of pictures/"
    exercises = re.search(r"^## Exercises$(.*?)(?=^## |\Z)", text, re.S | re.M)
    if exercises:
        folded = re.sub(r"<details>.*?</details>", "<details>", exercises[1], flags=re.S)
        parts = re.split(r"^(\d+)\. ", folded, flags=re.M)
        counts = [(int(number), part.count("<details>")) for number, part in zip(parts[1::2], parts[2::2], strict=True)]
        if counts != [(1, 1), (2, 1), (3, 1)]:
            said = ", ".join(f"{number}. with {count}" for number, count in counts) or "none"
            yield line_of(text, exercises), f"expected the exercises 1., 2., 3. with a <details> each, found {said}"
    chapters = sorted(file.name for file in path.parent.glob("*.md") if CHAPTER.fullmatch(file.name))
    following = [name for name in chapters if name > path.name]
    then = following[0] if following else "README.md"
    if f"]({then}" not in text.rstrip().rpartition("\n\n")[2]:
        yield last, f"expected a link to {then} in the last paragraph"


def table(text, path):
    rows = [line for line in prose(text).splitlines() if line.startswith("|")]
    listed = [name for row in rows for name in re.findall(r"\]\((\d\d-[^)#]*\.md)", row)]
    chapters = sorted(file.name for file in path.parent.glob("*.md") if CHAPTER.fullmatch(file.name))
    if listed != chapters:
        first = next(name for name in [*chapters, *listed] if chapters.count(name) != listed.count(name)
                     or chapters.index(name) != listed.index(name))
        yield 1, f"expected every chapter once and in order in the table, found {first} missing or out of place"
