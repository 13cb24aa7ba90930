"""What the pages show is what the source says and what a run prints; where they point, something is."""

import importlib.util
import re
import runpy
import subprocess
import sys

import pytest
from conftest import ROOT

spec = importlib.util.spec_from_file_location("docs_check", ROOT / "docs" / "check.py")
check = importlib.util.module_from_spec(spec)
spec.loader.exec_module(check)

MARKED = re.compile(r"<!-- (code|output|terminal|run|is)\b")  # what docs/build.py fills
PAGES = [str(path.relative_to(ROOT)) for path in check.pages(ROOT)]


def build(*arguments):
    command = [sys.executable, "docs/build.py", *map(str, arguments)]
    return subprocess.run(command, cwd=ROOT, capture_output=True, text=True)


@pytest.mark.parametrize("page", PAGES)
def test_page_is_as_a_run_gives_it_and_keeps_its_form(page):
    done = build("--check", page)
    assert done.returncode == 0, done.stdout + done.stderr


def test_no_page_with_markers_is_left_out():
    marked = {str(path.relative_to(ROOT)) for path in [*ROOT.glob("*.md"), *ROOT.glob("[!.]*/*.md")]
              if MARKED.search(path.read_text(encoding="utf-8"))}
    assert marked <= set(PAGES)


# ---- Pictures -------------------------------------------------------------------------------------------------------

def test_pictures_are_what_a_run_draws():
    done = subprocess.run([sys.executable, "docs/pictures", "--check"], cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr


@pytest.mark.parametrize(("old", "new", "same"), [
    ('<circle cx="10.2"/>', '<circle cx="10.25"/>', True),
    ('<circle cx="10.2"/>', '<circle cx="10.4"/>', False),
    ('<circle class="blue"/>', '<circle class="green"/>', False),
    ("<text>0.18</text>", "<text>0.19</text>", True),  # another processor's last digit
    ("<text>0.18</text>", "<text>0.21</text>", False),
    ("<text>12</text>", "<text>13</text>", False),
])
def test_a_picture_that_is_out_of_date_is_found(old, new, same):
    assert runpy.run_path(str(ROOT / "docs" / "pictures" / "__main__.py"))["same"](old, new) == same


# ---- What is filled -------------------------------------------------------------------------------------------------

def test_a_stale_block_is_found(tmp_path):
    chapter = tmp_path / "chapter.md"
    text = "<!-- code: gptoss.py:swiglu -->\n```python\n```\n\n<!-- run -->\n```python\nx = 20\nprint(x + 1)\n```\n"
    text += "\n<!-- output: python -c \"\nprint('two\\nlines')\n\" -->\n```\none\n```\n"
    chapter.write_text(text)
    done = build("--check", chapter)
    assert done.returncode == 1 and "+def swiglu(gate_up, limit):" in done.stdout
    assert chapter.read_text() == text
    assert build(chapter).returncode == 0
    filled = chapter.read_text()
    assert "\n```\n21\n```\n" in filled and "```\ntwo\nlines\n```\n" in filled and "def swiglu" in filled
    assert build("--check", chapter).returncode == 0


def test_figures_in_prose_come_from_the_session_at_their_place(tmp_path):
    chapter = tmp_path / "chapter.md"
    cell = "<!-- run -->\n```python\nx = {}\n```\n"
    is_two = "It is <!-- is: x:.2f -->?<!-- end --> of <!-- is: {'a:b': 'k:v'}['a:b'] --><!-- end -->, "
    is_two += "\"<!-- is: \"n:d\"[0:2] + str(x)[:1] -->?<!-- end -->\".\n\n"
    chapter.write_text(cell.format(2) + is_two + cell.format(30) + is_two)
    assert build("--check", chapter).returncode == 1
    assert build(chapter).returncode == 0
    text = re.sub(r"<!-- is: .*? -->|<!-- end -->", "", chapter.read_text())
    assert 'It is 2.00 of k:v, "n:2".' in text and 'It is 30.00 of k:v, "n:3".' in text
    assert build("--check", chapter).returncode == 0


@pytest.mark.parametrize(("text", "said"), [
    ("<!-- code: gptoss2.py:swiglu -->\n```python\n```\n", "docs/build.py: gptoss2.py:swiglu: no such file"),
    ("<!-- code: gptoss.py:swig -->\n```python\n```\n", "docs/build.py: gptoss.py:swig: no such name in the file"),
    ("<!-- run -->\n```python\n\nx = 1 / 0\ny = 2\n```\n", "chapter.md: `x = 1 / 0`: ZeroDivisionError: division by"),
    ("<!-- run -->\n```python\nexit()\n```\n", "chapter.md: `exit()`: "),
    ("It is <!-- is: x -->3<!-- end -->.\n", "chapter.md: `x`: NameError: name 'x' is not defined"),
    ("It is <!-- is: 3 + -->3<!-- end -->.\n", "chapter.md: `3 +`: SyntaxError: "),
    ("It is <!-- is: 3 -->3.\n", "chapter.md: `<!-- is: 3 -->3.`: expected a marker as"),
    ("<!-- run -->\n\n```python\nx = 1\n```\n", "chapter.md: `<!-- run -->`: expected a marker as"),
])
def test_a_marker_that_cannot_be_filled_is_one_sentence(text, said, tmp_path):
    chapter = tmp_path / "chapter.md"
    chapter.write_text(text)
    done = build(chapter)
    [line] = done.stderr.splitlines()
    assert said in line and done.returncode == 1
    assert chapter.read_text() == text


def test_a_page_that_is_not_there_is_one_sentence(tmp_path):
    assert build(tmp_path / "none.md").stderr.endswith("none.md: no such file\n")


# ---- Links and names ------------------------------------------------------------------------------------------------

@pytest.fixture
def project(tmp_path):
    """A small project with a page."""
    (tmp_path / "tools").mkdir()
    (tmp_path / "docs").mkdir()
    source = '"""Once called turn."""\nimport json\nCHUNK = 3  # turn\n\n\ndef rotate_halves(x):\n'
    source += '    return "top_k --fast"\n\n\nclass Cache:\n'
    (tmp_path / "model.py").write_text(source + "    def rewind(self):\n        self.length = json\n")
    (tmp_path / "docs" / "a.svg").write_text("<svg/>")
    (tmp_path / "docs" / "other.md").write_text("# The `rms_norm`, twice\n\n## Why?\n\n## Why?\n\n```\n## Code\n```\n")

    def complaints(text, name="page.md"):
        (tmp_path / "docs" / name).write_text(text)
        return check.complaints(tmp_path / "docs" / name, tmp_path)

    return complaints


@pytest.mark.parametrize("text", [
    "[a](other.md) [b](other.md#the-rms_norm-twice) [c](other.md#why) [d](other.md#why-1) [e](#here)\n\n## Here\n",
    "[a](../model.py#L7) [b](../model.py#L1-L3) [c](../tools/) [d](https://nowhere.invalid) [`e[0]`](other.md)\n",
    "![A picture that is described well](a.svg) <img src=\"a.svg\" alt=\"A picture that is described\nwell\">\n",
    "```\n[a](none.md)\n```\n\n<!-- [a](none.md) --> `[a](none.md)` <a id=\"x\"></a> [a](#x)\n",
    "`rotate_halves` `model.py` `tools/` `Cache.rewind` `Cache.length` `CHUNK` `top_k` `model.CHUNK`\n",
    "`rotate_halves(x)` `x` `0x3A` `--fast` `a + none_such` `<|none_such|>`\n",
    "`python model.py --fast` `functions.any` `np.any` `len(x)`\n",
    "`mine`\n\n```python\nmine = 1\n```\n",
])
def test_links_and_names_that_exist(text, project):
    assert project(text) == []


@pytest.mark.parametrize(("text", "said"), [
    ("\n[a](none.md)\n", "docs/page.md:2: none.md: no such file"),
    ("[a\nb](other.md#code)\n", "docs/page.md:2: other.md#code: no such anchor"),
    ("[a](other.md#why-2)\n", "docs/page.md:1: other.md#why-2: no such anchor"),
    ("[a](#here)\n", "docs/page.md:1: #here: no such anchor"),
    ("[a](../model.py#L99)\n", "docs/page.md:1: ../model.py#L99: no such anchor"),
    ("[a][b]\n\n[b]: none.md\n", "docs/page.md:3: none.md: no such file"),
    ("![A picture that is described well](b.svg)\n", "docs/page.md:1: b.svg: no such file"),
    ("![A picture](a.svg)\n", "docs/page.md:1: an image: expected alternative text of at least 20 characters"),
    ('<img src="a.svg">\n', "docs/page.md:1: an image: expected alternative text of at least 20 characters"),
    ("It\n<!-- is: 1 + 1 -->2<!-- end --> is.\n", "docs/page.md:2: expected a figure within a line, found it at the "),
    ("In `rotate_pairs` and\n`model.py`\n", "docs/page.md:1: `rotate_pairs`: no such name in the sources or in the "),
    ("\nFirst `turn` it\n", "docs/page.md:2: `turn`: no such name"),
    ("`turn(x)`", "docs/page.md:1: `turn(x)`: no such name"),
    ("`top_k(x)`", "docs/page.md:1: `top_k(x)`: no such name"),  # a word of a string is not a function
    ("`Cache.extend`", "docs/page.md:1: `Cache.extend`: no such name"),
    ("`model.json_`", "docs/page.md:1: `model.json_`: no such name"),
    ("`MANY`", "docs/page.md:1: `MANY`: no such name"),
    ("`engine.py`", "docs/page.md:1: `engine.py`: no such file"),
    ("`evals/`", "docs/page.md:1: `evals/`: no such file"),
    ("`python engine.py`", "docs/page.md:1: `engine.py`: no such file"),
    ("`python model.py --slow`", "docs/page.md:1: `--slow`: no such option in the sources"),
])
def test_a_link_or_a_name_without_its_object_is_found(text, said, project):
    [found] = project(text)
    assert found.startswith(said)


@pytest.mark.parametrize("name", ["rms_norm", "linear", "rotate", "store_kv", "attention", "route", "swiglu", "experts",
                                  "dequantize", "Model.attend", "KVCache.rewind", "filter_logits"])
def test_a_function_that_was_renamed_is_found(name, tmp_path):
    """In the project itself: each word that the function is called by becomes another one in all sources."""
    last = name.rpartition(".")[2]
    for path in [*ROOT.glob("*.py"), *ROOT.glob("train/*.py")]:
        target = tmp_path / path.relative_to(ROOT)
        target.parent.mkdir(exist_ok=True)
        target.write_text(re.sub(rf"\b{last}\b(?!\.|\" *:)", "renamed", path.read_text(encoding="utf-8")))
    (tmp_path / "page.md").write_text(f"`{name}(x)`\n")
    assert len(check.complaints(tmp_path / "page.md", tmp_path)) == 1


# ---- The form of a chapter ------------------------------------------------------------------------------------------

EXERCISE = "{}. How?\n\n<details><summary>Answer</summary>\n\n1. So.\n\n</details>\n\n"
CHAPTER = """# Attention

**The question.** Who looks at whom?

![A map of what each token looks at](pictures/map.svg)

## By hand
## More
## The code
## Try it
## The trap
## Exercises

""" + "".join(EXERCISE.format(n) for n in (1, 2, 3)) + """## What you know now

Much.

Next: [position](02-position.md).
"""


@pytest.fixture
def book(project, tmp_path):
    (tmp_path / "docs" / "pictures").mkdir()
    (tmp_path / "docs" / "pictures" / "map.svg").write_text("<svg/>")
    (tmp_path / "docs" / "README.md").write_text("")
    (tmp_path / "docs" / "02-position.md").write_text("")
    return project


def test_a_chapter_in_form(book):
    assert book(CHAPTER, "01-attention.md") == []
    assert book(CHAPTER.replace("02-position.md", "README.md"), "03-last.md") == []


@pytest.mark.parametrize(("old", "new", "said"), [
    ("## The trap", "## A trap", "expected one section ## The trap, found 0"),
    ("## Try it", "### Try it", "expected one section ## Try it, found 0"),
    ("## More", "## The code", "expected one section ## The code, found 2"),
    ("## The code\n## Try it", "## Try it\n## The code", "expected the sections in the order By hand, The code,"),
    ("**The question.**", "The question:", "expected a line that begins with **The question.**"),
    ("![A map of what each token looks at](pictures/map.svg)", "", "expected an image of pictures/"),
    ("3. How?", "How?", "expected the exercises 1., 2., 3. with a <details> each, found 1. with 1, 2. with"),
    ("</details>\n\n3.", "</details>\n\n4.", "expected the exercises 1., 2., 3. with a <details> each, found"),
    ("Next: [position](02-position.md).", "", "expected a link to 02-position.md in the last paragraph"),
])
def test_a_chapter_out_of_form_is_found(old, new, said, book):
    assert old in CHAPTER
    [found] = book(CHAPTER.replace(old, new), "01-attention.md")
    assert said in found and found.startswith("docs/01-attention.md:")


@pytest.mark.parametrize(("rows", "fault"), [
    (["01-a.md", "02-position.md"], None),
    (["02-position.md", "01-a.md"], "01-a.md"),
    (["01-a.md"], "02-position.md"),
    (["01-a.md", "01-a.md", "02-position.md"], "01-a.md"),
])
def test_the_table_of_chapters(rows, fault, book, tmp_path):
    (tmp_path / "docs" / "01-a.md").write_text("")
    found = book("| chapter |\n|---|\n" + "".join(f"| [x]({row}) |\n" for row in rows), "README.md")
    said = "docs/README.md:1: expected every chapter once and in order in the table, found "
    assert found == ([f"{said}{fault} missing or out of place"] if fault else [])
