"""What README.md and the chapters show is what the source says and what a run prints."""

import re
import subprocess
import sys

import pytest
from conftest import ROOT

MARKED = re.compile(r"<!-- (code|output|terminal|run)\b")  # what docs/build.py fills; other texts are written by hand
CHAPTERS = [str(path.relative_to(ROOT)) for path in sorted([*ROOT.glob("*.md"), *ROOT.glob("[!.]*/*.md")])
            if MARKED.search(path.read_text(encoding="utf-8"))]


@pytest.mark.parametrize("chapter", CHAPTERS)
def test_chapter_shows_what_a_run_gives(chapter):
    check = [sys.executable, "docs/build.py", "--check", chapter]
    done = subprocess.run(check, cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr


def test_a_stale_block_is_found(tmp_path):
    chapter = tmp_path / "chapter.md"
    text = "<!-- code: gptoss.py:swiglu -->\n```python\n```\n\n<!-- run -->\n```python\nx = 20\nprint(x + 1)\n```\n"
    text += "\n<!-- output: python -c \"\nprint('two\\nlines')\n\" -->\n```\none\n```\n"
    chapter.write_text(text)
    build = [sys.executable, "docs/build.py"]
    check = subprocess.run([*build, "--check", chapter], cwd=ROOT, capture_output=True, text=True)
    assert check.returncode == 1 and "+def swiglu(gate_up, limit):" in check.stdout
    assert chapter.read_text() == text
    assert subprocess.run([*build, chapter], cwd=ROOT).returncode == 0
    filled = chapter.read_text()
    assert "\n```\n21\n```\n" in filled and "```\ntwo\nlines\n```\n" in filled and "def swiglu" in filled
    assert subprocess.run([*build, "--check", chapter], cwd=ROOT).returncode == 0
