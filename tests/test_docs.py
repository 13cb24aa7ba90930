"""What README.md and the chapters show is what the source says and what a run prints."""

import ast
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent
CHAPTERS = ["README.md", "nano/README.md", *sorted(str(p.relative_to(ROOT)) for p in (ROOT / "docs").glob("*.md"))]


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


def test_imports_run_downwards_only():
    allowed = {"simd": [], "mxfp4": ["simd"], "kernels": ["mxfp4", "simd"], "schema": [], "checkpoint": [],
               "gptoss": ["checkpoint", "kernels"], "tokenizer": [], "harmony": ["schema", "tokenizer"],
               "bench": ["checkpoint", "gptoss", "kernels"],
               "chat": ["checkpoint", "gptoss", "harmony", "tokenizer"]}
    for name, lower in allowed.items():
        imported = set()
        for node in ast.walk(ast.parse((ROOT / f"{name}.py").read_text(encoding="utf-8"))):
            if isinstance(node, ast.Import):
                imported |= {alias.name for alias in node.names}
            elif isinstance(node, ast.ImportFrom):
                imported.add(node.module)
        assert imported & set(allowed) <= set(lower), name
