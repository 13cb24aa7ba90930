"""Every rung of bench/ladder.py multiplies right, a wrong one is named, and the chapter shows the ladder as it is."""

import re
import subprocess
import sys

import numpy as np
import pytest
from conftest import ROOT

from bench import ladder
from bench.ladder import KERNEL, LIMIT, RUNGS
from checkpoint import E8M0


def test_e8m0():
    found = np.array([ladder.e8m0(np.uint8(byte)) for byte in range(256)])
    assert np.isnan(found[255]) and np.array_equal(found[:255], 2.0 ** (np.arange(255) - 127))  # 2^-127 is subnormal
    assert np.array_equal(found.astype(np.float32), E8M0, equal_nan=True)


@pytest.mark.parametrize("rung", RUNGS, ids=[rung.name for rung in RUNGS])
def test_rung(rung):
    rng = np.random.default_rng(1)
    odd = [(337, 1), (319, 3)] if rung.prepare is ladder.as_it_is else []  # the others take two blocks at a time
    for M, B in [(323, 2), (331, 6), (307, 8), (341, 10), (329, 18), *odd]:  # few rows may be further off, by chance
        weight = ladder.random_weights(M, 32 * B, rng)
        x = rng.standard_normal((1, 32 * B), dtype=np.float32)
        x[0, :32] *= 1000  # so that blocks whose scales are mixed up show
        y = np.full(M, np.nan, np.float32)
        rung.product(*weight, rung.prepare(x[0]), y)
        ladder.error_of(rung.name, y, ladder.exact_product(weight, x)[0], rung.tolerance(32 * B))


@pytest.mark.parametrize("rung", RUNGS, ids=[rung.name for rung in RUNGS])
def test_rung_of_zeros(rung):
    weight = ladder.random_weights(5, 320, np.random.default_rng(2))
    y = np.full(5, np.nan, np.float32)
    rung.product(*weight, rung.prepare(np.zeros(320, np.float32)), y)
    assert not y.any()


def test_exact_product_is_the_sum_written_out():
    weight = ladder.random_weights(3, 64, np.random.default_rng(3))
    x = np.random.default_rng(4).standard_normal((2, 64), dtype=np.float32)
    size = [0, 0.5, 1, 1.5, 2, 3, 4, 6]
    for t in range(2):
        for m in range(3):
            total = 0.0
            for n in range(64):
                code = int(weight.blocks[m, n // 32, n % 32 // 2]) >> (4 if n % 2 else 0) & 15
                value = -size[code - 8] if code > 7 else size[code]
                total += value * 2.0 ** (int(weight.scales[m, n // 32]) - 127) * float(x[t, n])
            assert abs(ladder.exact_product(weight, x)[t, m] - total) < 1e-12


@pytest.mark.parametrize("prepare", [ladder.as_it_is, ladder.in_int8], ids=["order", "precision"])
def test_a_wrong_rung_is_named(monkeypatch, prepare):
    plain = next(rung for rung in RUNGS if rung.name == ("vectors by hand" if prepare is ladder.as_it_is else KERNEL))
    if prepare is ladder.in_int8:  # the right numbers, but rounded too far for what the rung claims

        def prepare(x):
            n, compensation, scales = ladder.in_int8(x)
            n.reshape(-1, 2, 64)[:, 0] = 0  # the high bytes
            return n, compensation, scales

    monkeypatch.setattr(ladder, "RUNGS", [plain._replace(name="the wrong one", prepare=prepare)])
    with pytest.raises(ValueError, match="rung 'the wrong one': expected a relative error of at most .*, found "):
        ladder.climb(48, 2880)


def test_error_of_nan_is_an_error():
    with pytest.raises(ValueError, match="found nan"):
        ladder.error_of("nan", np.array([1, np.nan]), np.ones(2), 1)


def test_command(tmp_path, monkeypatch, capsys):
    picture = tmp_path / "ladder.svg"
    monkeypatch.setattr(sys, "argv", ["ladder", "--rows", "80", "--columns", "128", "--picture", str(picture)])
    ladder.main()
    printed = capsys.readouterr().out
    for name in [*(rung.name for rung in RUNGS), LIMIT]:
        line = next(line for line in printed.splitlines() if line.startswith(f"{name} "))
        assert re.fullmatch(r".{22}( +[\d.e+-]+ +[\d.e+-]+ +[\d.]+%| +- +- +-)+ +\de-0\d", line), line
    assert "\n64 tokens at once, " in printed
    drawn = picture.read_text(encoding="utf-8")
    assert drawn.startswith("<svg") and all(f">{rung.name}: " in drawn for rung in RUNGS)
    figures, matmul, at_once = ladder.read_report(printed)  # and the picture of a report is that of the run
    assert [*figures] == [*(rung.name for rung in RUNGS), LIMIT] and [*matmul] == [*figures[LIMIT][1]]
    for line in printed.splitlines():
        name, rates = line[:22].strip(), figures.get(line[:22].strip(), (0, {}))[1]
        size = 2 if name == LIMIT else ladder.PACKED
        for rate, cell in zip(rates.values(), line[22:].split()[1::3], strict=False):
            assert f"{2 * rate / size / 1e9:.3g}" == cell
    again = tmp_path / "again.svg"
    ladder.draw(figures, matmul, at_once, again)
    labels = [[words for words in re.findall(r">([^<]+: [^<]+)</text>", path.read_text(encoding="utf-8"))
               if words.split(":")[0] in figures] for path in (picture, again)]
    # (Two rungs that differ in the fourth digit only may come in either order.)
    assert sorted(labels[0]) == sorted(labels[1]) and len(labels[0]) == len(RUNGS)


@pytest.mark.parametrize(("args", "said"), [
    (["--rows", "9"], "found 9 of 2880"), (["--rows", "16", "--columns", "96"], "64 columns, found 16 of 96"),
    (["--rows", "many"], "int value: 'many'"),
])
def test_command_refuses(args, said):
    done = subprocess.run([sys.executable, "-m", "bench.ladder", *args], cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 2 and said in done.stderr.splitlines()[-1] and "Traceback" not in done.stderr


@pytest.mark.parametrize(("failing", "error"), [
    ("climb", ValueError("rung 'x': expected a relative error of at most 1e-7, found 2e-7")),
    ("draw", FileNotFoundError("nowhere/ladder.svg")),
])
def test_command_fails_in_one_line(failing, error, monkeypatch, capsys):
    def fail(*arguments):
        raise error

    for name in ("climb", "report", "draw"):
        monkeypatch.setattr(ladder, name, fail if name == failing else lambda *arguments: ())
    monkeypatch.setattr(sys, "argv", ["ladder", "--picture", "nowhere/ladder.svg"])
    with pytest.raises(SystemExit) as caught:
        ladder.main()
    assert caught.value.code == 2 and capsys.readouterr().err == f"python -m bench.ladder: {error}\n"


def test_the_chapter_shows_this_ladder():
    """Its table was measured once; the rungs, and what an error depends on, must still be those of the code."""
    text = (ROOT / "docs" / "11-the-kernels.md").read_text(encoding="utf-8")
    table = re.search(r"\n```\n(.*?packed; errors.*?)```\n", text, re.S)[1].splitlines()
    first = next(i for i, line in enumerate(table) if line.endswith("error")) + 1
    rows = table[first : first + len(RUNGS) + 1]
    assert [row[:22].strip() for row in rows] == [*(rung.name for rung in RUNGS), LIMIT]
    for row, rung in zip(rows, RUNGS, strict=False):
        assert float(row.split()[-1]) <= rung.tolerance(2880)
