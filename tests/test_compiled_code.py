"""Compiled code on disk: found again, never stale, and no obstacle when it is damaged or cannot be kept."""

import hashlib
import os
import pickle
import shutil
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest

import compiled
import kernels

ROOT = Path(__file__).resolve().parent.parent
PROGRAM = """
import numpy, kernels, compiled
print(compiled.DIRECTORY)
print(kernels.rms_norm(numpy.full((1, 4), 2, numpy.float32), numpy.ones(4, numpy.float32), 0.0).tolist())
"""


@pytest.fixture
def copy(tmp_path):
    """The kernels' files in a directory of their own."""
    home = tmp_path / "home"
    home.mkdir()
    for name in ("files.py", "checkpoint.py", "compiled.py", "simd.py", "mxfp4.py", "kernels.py"):
        shutil.copy(ROOT / name, home)
    return home


def run(home, program=PROGRAM, **environment):
    """The directory that a process in `home` keeps its code in, None if in none; its result must be right."""
    env = {name: value for name, value in os.environ.items() if name not in ("NUMBA_CACHE_DIR", "PYTHONPATH")}
    env |= {"XDG_CACHE_HOME": str(home / "user"), "PYTHONDONTWRITEBYTECODE": "1"} | environment
    done = subprocess.run([sys.executable, "-c", program], cwd=home, env=env, capture_output=True, text=True)
    assert (done.returncode, done.stderr) == (0, "")
    directory, result = done.stdout.splitlines()
    assert result == "[[1.0, 1.0, 1.0, 1.0]]"
    return None if directory == "None" else Path(directory)


def contents(directory):
    return {file.name: (file.read_bytes(), file.stat().st_mtime_ns) for file in directory.iterdir()}


def test_code_is_found_again(copy):
    directory = run(copy)
    assert directory.parent == copy / "__pycache__"
    before = contents(directory)
    assert {name.split("-")[0] for name in before} == {"kernels.rms_norm"}
    assert run(copy) == directory and contents(directory) == before


def test_importing_compiles_and_deletes_nothing(copy):
    older = run(copy)
    (copy / "mxfp4.py").write_text((copy / "mxfp4.py").read_text() + "\n")
    program = "import compiled, kernels; print(compiled.DIRECTORY); print([[1.0] * 4])"
    directory = run(copy, program)
    assert directory != older and contents(older) and not contents(directory)


@pytest.mark.parametrize("name", ["compiled.py", "simd.py", "mxfp4.py", "kernels.py"])
def test_code_of_a_changed_file_is_not_found(copy, name):
    """Also where another of the three files has changed. What is old goes when all is compiled and a day has passed,
    not before; what belongs to another copy of this project, or to nobody known, stays."""
    older = run(copy, NUMBA_CACHE_DIR=str(copy / "cache"))
    others = [older.parent / "kernels-of-another-copy", older.parent / "kernels-0123456789ab-0123456789ab"]
    for other in others:
        other.mkdir()
    (copy / name).write_text((copy / name).read_text() + "\n# changed\n")
    newer = run(copy, NUMBA_CACHE_DIR=str(copy / "cache"))
    assert newer != older and older.exists()
    mark = PROGRAM + "compiled.mark_all_compiled(*compiled.PUBLISHED)"
    assert run(copy, mark, NUMBA_CACHE_DIR=str(copy / "cache")) == newer and older.exists()
    os.utime(older, (0, 0))
    assert run(copy, mark, NUMBA_CACHE_DIR=str(copy / "cache")) == newer
    assert sorted(newer.parent.iterdir()) == sorted([newer, *others])
    assert "complete-bfloat16-mxfp4" in contents(newer)


def with_digest(code):
    return hashlib.sha256(code).digest() + code


@pytest.mark.parametrize("damage", [
    lambda data: b"", lambda data: data[:20], lambda data: data[:-1], lambda data: data[:40] + b"\xff" + data[41:],
    lambda data: with_digest(b"no pickle"), lambda data: with_digest(pickle.dumps((1, 2, 3)))],
    ids=["empty", "no digest", "cut", "a bit flipped", "no pickle", "another pickle"])
def test_damaged_and_foreign_code_is_compiled_anew(copy, damage):
    directory = run(copy)
    file = next(directory.iterdir())
    whole = file.read_bytes()
    file.write_bytes(damage(whole))
    assert run(copy) == directory
    assert hashlib.sha256(file.read_bytes()[32:]).digest() == file.read_bytes()[:32] and len(file.read_bytes()) > 1000
    assert list(directory.iterdir()) == [file]


@pytest.mark.parametrize("damage", [lambda file: file.unlink(), lambda file: os.truncate(file, 1000)],
                         ids=["missing", "truncated"])
def test_all_is_compiled_only_while_all_is_whole(copy, damage):
    """Else a small model would compile in the middle of its answer, at every start."""
    ask = "compiled.all_compiled(*compiled.PUBLISHED)\n"
    directory = run(copy, f"{PROGRAM}compiled.mark_all_compiled(*compiled.PUBLISHED)\nassert {ask}")
    damage(next(directory.glob("kernels.rms_norm-*")))
    run(copy, f"import compiled\nassert not {ask}{PROGRAM}")


def test_what_could_not_be_written_is_not_marked(copy):
    """The disk is full when the code is kept, and has room again for the mark."""
    full = "import pathlib\nwrite, pathlib.Path.write_bytes = pathlib.Path.write_bytes, lambda *_: open('/nowhere/x')\n"
    mark = "pathlib.Path.write_bytes = write\ncompiled.mark_all_compiled(*compiled.PUBLISHED)\n"
    assert contents(run(copy, full + PROGRAM + mark)) == {}


def test_code_that_others_can_change_is_not_loaded(copy):
    """Whoever can write in the directory could have any code run."""
    directory = run(copy)
    before = contents(directory)
    directory.chmod(0o757)
    assert run(copy).parent == copy / "user" / "gpt-oss" and contents(directory) == before


def test_two_processes_with_a_cold_cache(copy):
    """Both are right, and what they keep is whole."""
    with ThreadPoolExecutor() as pool:
        [directory] = set(pool.map(run, [copy] * 2))
    assert [file.name.count(".") for file in directory.iterdir()] == [1]
    before = contents(directory)
    assert run(copy) == directory and contents(directory) == before


def test_what_a_killed_process_was_writing_is_deleted_after_a_day(copy):
    directory = run(copy)
    old, new = directory / "kernels.exp-0123456789ab.01234567", directory / "kernels.exp-0123456789ab.89abcdef"
    old.touch()
    new.touch()
    os.utime(old, (0, 0))
    run(copy, PROGRAM + "compiled.mark_all_compiled(*compiled.PUBLISHED)")
    assert new.exists() and not old.exists()


def test_numba_cache_dir_comes_first(copy):
    directory = run(copy, NUMBA_CACHE_DIR=str(copy / "chosen" / "by me"))
    assert directory.parent == copy / "chosen" / "by me" and not (copy / "__pycache__").exists()


def test_where_nothing_can_be_written_code_is_kept_elsewhere_or_not_at_all(copy):
    """A file stands where the directory should be: as in a read-only installation, it cannot be made."""
    (copy / "__pycache__").touch()
    assert run(copy).parent == copy / "user" / "gpt-oss"
    assert run(copy, NUMBA_CACHE_DIR=str(copy / "kernels.py" / "x")).parent == copy / "user" / "gpt-oss"
    nowhere = PROGRAM + "p = compiled.PUBLISHED; compiled.mark_all_compiled(*p); assert not compiled.all_compiled(*p)"
    assert run(copy, nowhere, XDG_CACHE_HOME=str(copy / "simd.py")) is None
    reasons = f"{copy}/__pycache__: Not a directory; {copy}/simd.py/gpt-oss: Not a directory"
    run(copy, f"import compiled\nassert compiled.UNKEPT == {reasons!r}, compiled.UNKEPT\n" + PROGRAM,
        XDG_CACHE_HOME=str(copy / "simd.py"))
    limit = "import resource\nresource.setrlimit(resource.RLIMIT_FSIZE, (2**20, 2**20))\n"  # as on a disk that is full
    (copy / "__pycache__").unlink()
    assert run(copy, limit + PROGRAM) is None


def test_a_file_that_changes_while_a_program_runs(copy):
    """Its new code is neither found under the old name nor kept under it."""
    change = "import pathlib, compiled\npathlib.Path('kernels.py').open('a').write('# changed')"
    directory = run(copy, change + PROGRAM)
    assert not contents(directory)


def test_compiled_code_that_is_complete_need_not_be_written(copy, monkeypatch):
    directory = run(copy, PROGRAM + "compiled.mark_all_compiled(*compiled.PUBLISHED)")
    refuse = "import tempfile\ntempfile.TemporaryFile = lambda **kwargs: open('/nowhere/to/write')"
    assert run(copy, refuse + PROGRAM) == directory
    (directory / "complete-bfloat16-mxfp4").unlink()
    assert run(copy, refuse + PROGRAM) is None


def test_a_full_disk(tmp_path, monkeypatch):
    """What cannot be written whole leaves nothing behind."""
    def write_bytes(path, data):
        path.write_text("a beginning")
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(compiled, "DIRECTORY", tmp_path)
    monkeypatch.setattr(Path, "write_bytes", write_bytes)
    anew = compiled.jit(kernels.rms_norm.py_func)
    assert np.array_equal(anew(np.ones((1, 4), np.float32), np.ones(4, np.float32), 0.0), np.ones((1, 4)))
    assert not list(tmp_path.iterdir())
