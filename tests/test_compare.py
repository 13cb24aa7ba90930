"""tests/compare.py: whatever is wrong with a tensor is found at that tensor, and called by its name."""

import io
import re
import subprocess
import sys
from dataclasses import replace
from types import SimpleNamespace

import compare
import numpy as np
import pytest
from conftest import ROOT
from differences import MORE, mistakes_in
from shapes import SHAPES, SMALL

import gptoss
from bench.random_checkpoint import write_random
from checkpoint import bf16_to_float32, float32_to_bf16
from exercises.mistakes import broken

NANO = ROOT / "nano"
ALL = [mistake for half in (0, 1) for mistake in mistakes_in({half})]
NAMED = {mistake.name: mistake for mistake in ALL}


def run(*arguments):
    command = [sys.executable, "tests/compare.py", *map(str, arguments)]
    return subprocess.run(command, cwd=ROOT, capture_output=True, text=True)


@pytest.fixture(scope="module")
def small(tmp_path_factory):
    """With a limit of SwiGLU that random numbers reach, so that a mistake with it shows."""
    path = tmp_path_factory.mktemp("small")
    write_random(path, replace(SMALL, swiglu_limit=0.7), seed=4)
    model = compare.load(path)
    return SimpleNamespace(path=path, model=model, ours=compare.ours(model, compare.default_tokens(SMALL)))


@pytest.fixture(scope="module")
def nano():
    model = compare.load(NANO)
    return SimpleNamespace(path=NANO, model=model, ours=compare.ours(model, compare.default_tokens(model.config)))


def report(case, theirs):
    """What is printed, in one text, and the exit status."""
    lines = []
    status = compare.Comparison(case.model, theirs, lines.append).run()
    return "\n".join(lines), status


def first(text):
    return re.search(r"^(\S+) .*DIFFERS$", text, re.M)[1]


# ---- All agree ------------------------------------------------------------------------------------------------------

@pytest.mark.parametrize("name", SHAPES)
def test_transformers_agrees_in_every_tensor(name, tmp_path):
    config, _ = SHAPES[name]
    write_random(tmp_path, config, seed=5)
    case = SimpleNamespace(model=compare.load(tmp_path))
    theirs = compare.from_transformers(tmp_path, config, compare.default_tokens(config))
    assert list(sorted(theirs)) == sorted(["tokens", *compare.shapes_of(config, 1)])
    text, status = report(case, theirs)
    assert status == 0 and text.count("  equal") == len(theirs) - 1, text
    assert f"All {len(theirs) - 1} tensors agree." in text


def test_the_program_compares_the_bundled_model_with_transformers_and_with_its_own_export(tmp_path):
    done = run(NANO)
    assert done.returncode == 0 and "All 63 tensors agree." in done.stdout, done.stdout + done.stderr
    assert run(NANO, "--export", tmp_path / "ours.npz", "--layers", 2).stdout.endswith("96 tokens, 2 layers\n")
    done = run(NANO, "--theirs", tmp_path / "ours.npz", "--layers", 2)
    assert done.returncode == 0 and "All 33 tensors agree." in done.stdout
    assert "2 layers, 96 tokens" in done.stdout


def test_the_export_is_what_the_model_computes(nano):
    """And the watcher changes nothing: its logits are those of gptoss.py, its choices those of `route`."""
    logits = gptoss.load(NANO, backend="numpy")(nano.ours["tokens"])
    np.testing.assert_allclose(nano.ours["logits"], logits, atol=1e-5)
    config = nano.model.config
    assert {name: array.shape for name, array in nano.ours.items() if name != "tokens"} == compare.shapes_of(config, 96)
    x = nano.ours
    np.testing.assert_array_equal(x["layer2.stream"], x["layer2.stream_mid"] + x["layer2.experts_out"])
    np.testing.assert_array_equal(gptoss.route(x["layer2.router_logits"], 2)[0], x["layer2.chosen"])


def test_any_tensors_will_do(nano):
    for names in (["logits"], ["layer1.q"], ["layer0.stream", "layer2.chosen"]):
        text, status = report(nano, {"tokens": nano.ours["tokens"]} | {name: nano.ours[name] for name in names})
        assert status == 0 and text.count("  equal") == len(names)


# ---- Operations that are really broken ------------------------------------------------------------------------------

WHERE = {"no bias": "layer0.q", "window one too long": "layer0.attention", "no sink": "layer0.attention",
         "no +1": "layer0.experts_out", "softmax before the choice": "layer0.weights", "worst experts": "layer0.chosen",
         "RoPE on neighbours": "layer0.k_rotated", "positions from 1": "layer0.k_rotated",
         "keys turned, queries not": "layer0.q_rotated", "mean subtracted": "layer0.attn_norm"}


def made_with(case, mistake):
    module, m = broken(mistake), case.model
    model = compare.watched(module)(m.config, m.embedding, m.layers, m.norm, m.unembedding,
                                    module.operations_of("numpy"))
    with np.errstate(all="ignore"):
        return compare.ours(model, case.ours["tokens"])


def other_numbers(a, b):
    """Whether any tensor of two runs differs, by more than roundings. Chosen experts may come in any order."""
    names = [name for name in a if not name.endswith((".chosen", ".weights"))]
    return any(np.abs(a[name] - b[name]).max() > 1e-4 * np.abs(a[name]).max() for name in names)


@pytest.mark.parametrize("name", NAMED)
def test_a_mistake_is_named(small, name):
    """Those that change nothing on these tokens are not to be found."""
    theirs = made_with(small, NAMED[name])
    if any(theirs[key].shape != value.shape for key, value in small.ours.items()):
        assert name == "best expert only"  # a file with such tensors is refused
        return
    text, status = report(small, theirs)
    if not all(np.isfinite(value).all() for value in theirs.values()):
        assert status == 1 and ", no number" in text
    else:
        assert status == other_numbers(small.ours, theirs), text
        assert not status or f"looks like: {name}." in text, text
    if name in WHERE:
        assert first(text) == WHERE[name]


@pytest.mark.parametrize("name", ["window too long in attention", "no +1", "softmax before the choice", "no sink"])
def test_a_mistake_is_named_though_few_tensors_are_known(small, name):
    """Of each layer the stream only; and with all numbers rounded to bf16 on the way out."""
    theirs = made_with(small, NAMED[name])
    streams = {key: value for key, value in theirs.items() if key == "tokens" or key.endswith(".stream")}
    text, status = report(small, streams)
    assert status == 1 and first(text) == "layer0.stream" and f"looks like: {name}." in text, text
    rounded = {key: value if value.dtype.kind == "i" else bf16(value) for key, value in theirs.items()}
    text, status = report(small, rounded)
    assert status == 1 and re.search(rf"looks like: {re.escape(name)}\..*rounded to bf16", text), text


def test_an_eps_that_the_bundled_model_feels(nano):
    """Its stream is small in the beginning."""
    text, _ = report(nano, made_with(nano, NAMED["no eps"]))
    assert first(text) == "layer0.attn_norm" and "looks like: no eps." in text


def test_a_window_that_is_off_by_one_shows_from_the_window_on(nano):
    text, _ = report(nano, made_with(nano, NAMED["window one too long"]))
    assert "tokens that differ: 64-95 (of 0-95)" in text
    text, _ = report(nano, made_with(nano, NAMED["window one too short"]))
    assert "tokens that differ: 63-95 (of 0-95)" in text


def test_each_step_is_compared_by_itself(nano):
    """RoPE is wrong in all layers, so all layers' rotated keys differ, and nothing that is made of them."""
    text, _ = report(nano, made_with(nano, NAMED["no YaRN"]))
    assert "8 of 63 tensors differ" in text and "layer1.k_rotated" in text and "attention" not in text.split("\n\n")[-1]


def test_a_backend_with_an_operation_of_its_own(nano):
    """Halved queries, in a backend as anybody would write one."""
    mine = SimpleNamespace(attention=lambda q, *rest: gptoss.attention(q / 2, *rest))
    model = compare.load(NANO, backend=mine)
    text, status = report(nano, compare.ours(model, nano.ours["tokens"]))
    assert status == 1 and first(text) == "layer0.attention" and "no pattern recognized" in text


# ---- Patterns in a tensor -------------------------------------------------------------------------------------------

def bf16(x):
    return bf16_to_float32(float32_to_bf16(x))


def heads(x, *order):
    return x.reshape(len(x), *order).swapaxes(1, 2).reshape(x.shape)


@pytest.mark.parametrize(("name", "change", "said"), [
    ("layer1.q", lambda x: x / np.sqrt(10), r"scaled by a constant, 0\.31623: 1/sqrt\(D\)"),
    ("embedding", lambda x: x * np.sqrt(96), r"scaled by a constant, 9\.798: sqrt\(N\)"),
    ("layer0.k_rotated", lambda x: x / 1.3466, r"scaled by a constant, 0\.7426\d: 1/YaRN's 0\.1 ln"),
    ("logits", lambda x: x * 0.7, r"scaled by a constant, 0\.7\n"),
    ("layer2.v", lambda x: -x, "sign: theirs is ours times -1"),
    ("layer2.experts_out", lambda x: x * 0, "zero: nothing is left of ours"),
    ("layer1.q", lambda x: x.reshape(32, 6, 2, 5).swapaxes(2, 3).reshape(x.shape), "neighbours for halves"),
    ("layer1.k", lambda x: x.reshape(32, 2, 5, 2).swapaxes(2, 3).reshape(x.shape), "halves for neighbours"),
    ("layer1.q", lambda x: x.reshape(32, 2, 3, 10).swapaxes(1, 2).reshape(x.shape), r"heads in the order of \[3, 2\]"),
    ("layer1.q", lambda x: x[:, [1, 0, 2, 3, 5, 4]], r"heads in another order, \[1, 0, 2, 3, 5, 4\]"),
    ("layer0.attn_norm", lambda x: np.roll(x, 3, axis=1), r"columns in another order, which begins \[93, 94, 95, 0"),
    ("layer0.attn_norm", lambda x: x.reshape(32, 2, 48).swapaxes(1, 2).reshape(x.shape), "the halves of a token inter"),
    ("layer0.v", lambda x: x[:, :, ::-1], "a head backwards"),
    ("layer1.v", lambda x: x.transpose(1, 0, 2).reshape(x.shape), r"transposed: \[2, 32, 10\] in memory"),
    ("layer1.attention", lambda x: x.reshape(6, 32, 10).transpose(1, 0, 2), r"transposed: \[32, 6, 10\] in memory"),
    ("layer1.attention", lambda x: x.transpose(0, 2, 1).reshape(x.shape), r"transposed: \[32, 10, 6\] in memory"),
    ("layer0.attn_out", lambda x: x.T.reshape(x.shape), r"transposed: \[96, 32\] in memory"),
    ("layer0.attention", lambda x: np.roll(x, 1, axis=0), "shifted by one position, late"),
    ("layer0.q_rotated", lambda x: np.roll(x, -1, axis=0), "shifted by one position, early"),
    ("layer1.attn_out", lambda x: x + np.arange(96, dtype="f") / 96, "the same vector added to every token"),
    ("layer1.attention", lambda x: x * np.linspace(1.1, 2, 192, dtype="f").reshape(32, 6, 1), "each head scaled by a"),
    ("layer1.mlp_norm", lambda x: x * np.linspace(1, 2, 96, dtype="f"), "each column scaled by a factor of its own"),
    ("layer1.attn_out", lambda x: x * (1 + np.sin(np.arange(x.size)).reshape(x.shape) / 500), "of the size of bf16's"),
    ("layer1.attn_out", lambda x: x + np.sin(np.arange(x.size, dtype="f")).reshape(x.shape), "no pattern recognized"),
    ("layer1.attn_out", lambda x: np.where(np.arange(32)[:, None] == 5, np.nan, x), r"attn_out\[5, 0\] is nan"),
    ("layer1.stream_mid", lambda x: x * 0 + 1, "no pattern recognized"),
])
def test_a_pattern_is_named(small, name, change, said):
    with np.errstate(all="ignore"):
        text, status = report(small, small.ours | {name: change(small.ours[name]).astype(np.float32)})
    assert status == 1 and first(text) == name and re.search(said, text + "\n"), text


def test_a_lost_residual_connection_is_named(small):
    x = small.ours
    for name, tensor, said in (("stream_mid", "attn_out", "the stream before attention is not added"),
                               ("stream", "experts_out", "the stream before the experts is not added")):
        text, _ = report(small, x | {f"layer1.{name}": x[f"layer1.{tensor}"]})
        assert first(text) == f"layer1.{name}" and said in text
    lost = x["layer0.stream"] + x["layer1.experts_out"]
    assert "what attention added to the stream is lost" in report(small, x | {"layer1.stream": lost})[0]
    beside = gptoss.rms_norm(x["layer0.stream"], small.model.layers[1].mlp_norm, SMALL.rms_norm_eps)
    assert "experts beside attention" in report(small, x | {"layer1.mlp_norm": beside})[0]


def test_the_first_difference_is_shown_with_its_numbers(small):
    changed = small.ours["layer1.q"].copy()
    changed[7, 2, 3] = 5.5
    text, _ = report(small, small.ours | {"layer1.q": changed})
    expected = small.ours["layer1.q"][7, 2, 3]
    assert f"first: layer1.q[7, 2, 3], expected {expected:.6g}, found 5.5" in text
    assert "tokens that differ: 7 (of 0-31)" in text


# ---- Roundings, order and ties: what is no mistake ------------------------------------------------------------------

def test_rounded_tensors_are_told_from_wrong_ones(small):
    """They are no mistake, and no agreement."""
    for round_, kind in (bf16, "bf16"), (lambda x: x.astype(np.float16).astype(np.float32), "float16"):
        rounded = {key: value if value.dtype.kind == "i" else round_(value) for key, value in small.ours.items()}
        text, status = report(small, rounded)
        assert status == 1 and "DIFFERS" not in text and f"tensors are rounded to {kind}; none differs by more" in text


def test_the_order_of_the_chosen_experts_is_free(small):
    """Sorted by number, and their weights with them; but weights that stay behind are wrong."""
    x, order = small.ours, np.argsort(small.ours["layer1.chosen"])
    theirs = x | {f"layer1.{key}": np.take_along_axis(x[f"layer1.{key}"], order, 1) for key in ("chosen", "weights")}
    text, status = report(small, theirs)
    assert status == 0 and "equal, in another order" in text
    text, status = report(small, theirs | {"layer1.weights": x["layer1.weights"]})
    assert status == 1 and first(text) == "layer1.weights"


def test_a_tie_may_be_decided_either_way(small):
    x = {key: value.copy() for key, value in small.ours.items()}
    best = np.argsort(-x["layer1.router_logits"][3])
    x["layer1.chosen"][3, -1] = best[4]
    theirs = {key: x[key] for key in ("tokens", "layer1.router_logits", "layer1.chosen")}
    text, status = report(small, theirs)
    assert status == 1 and first(text) == "layer1.chosen" and "chosen[3], expected" in text
    theirs["layer1.router_logits"][3, best[4]] = theirs["layer1.router_logits"][3, best[3]] * (1 - 1e-6)
    comparison = compare.Comparison(small.model, theirs, str)
    comparison.run()
    assert comparison.verdicts["layer1.chosen"] == "equal but for ties"


# ---- Bad use --------------------------------------------------------------------------------------------------------

def npz(**arrays):
    file = io.BytesIO()
    np.savez(file, **arrays)
    return file.getvalue()


TOKENS, ONE = np.arange(8), np.zeros((8, 128), np.float32)


@pytest.mark.parametrize(("content", "said"), [
    (b"no archive", "expected an .npz file, found another kind, or a part of one"),
    (npz(tokens=TOKENS, embedding=ONE)[:-40], "expected an .npz file, found another kind, or a part of one"),
    (npz(embedding=ONE), r"expected an array tokens \[T\], the ids that were read, found none"),
    (npz(tokens=TOKENS), "expected one tensor beside tokens, found none"),
    (npz(tokens=TOKENS, embedding=np.array([{}])), "expected arrays of numbers, found Object arrays cannot be loaded"),
    (npz(tokens=TOKENS[None], embedding=ONE), r"tokens: expected a shape \[T\], found \[1, 8\]"),
    (npz(tokens=TOKENS[:0], embedding=ONE), r"tokens: expected a shape \[T\], found \[0\]"),
    (npz(tokens=TOKENS + 990, embedding=ONE), r"tokens: expected 0 to 991, found \[992\]"),
    (npz(tokens=TOKENS / 2, embedding=ONE), "tokens: expected integers, found float64"),
    (npz(tokens=np.zeros(5000, int), embedding=ONE), "tokens: expected at most 4096, the context, found 5000"),
    (npz(tokens=TOKENS, embedding=ONE[None]), r"embedding: expected shape \[8, 128\], found \[1, 8, 128\]"),
    (npz(tokens=TOKENS, **{"layer0.q": ONE}), r"layer0.q: expected shape \[8, 4, 32\], found \[8, 128\]"),
    (npz(tokens=TOKENS, embedding=TOKENS), "embedding: expected float numbers, found int64"),
    (npz(tokens=TOKENS, **{"layer4.q": ONE}), "expected names such as embedding, layer0.attn_norm, .* 'layer4.q'"),
    (npz(tokens=TOKENS, **{"layer0.chosen": np.full((8, 2), 8)}), r"layer0.chosen: expected 0 to 7, found \[8\]"),
])
def test_a_bad_file_is_one_sentence(nano, content, said, tmp_path):
    path = tmp_path / "theirs.npz"
    path.write_bytes(content)
    with pytest.raises(ValueError, match=said) as caught:
        compare.from_file(path, nano.model.config)
    assert "\n" not in str(caught.value) and str(path) in str(caught.value)


def test_numbers_beyond_float32_are_infinite(nano, tmp_path, recwarn):
    (tmp_path / "theirs.npz").write_bytes(npz(tokens=TOKENS, embedding=ONE.astype(np.float64) + 1e300))
    assert np.isinf(compare.from_file(tmp_path / "theirs.npz", nano.model.config)["embedding"]).all()
    assert not recwarn.list


def test_bad_use_is_one_sentence(tmp_path):
    write_random(tmp_path / "original", SMALL, "original")
    for arguments, said in ((["nowhere"], "nowhere"), ([NANO, "--layers", 9], "--layers: expected 1 to 4, found 9"),
                            ([NANO, "--theirs", tmp_path / "none.npz"], "No such file"),
                            ([NANO, "--theirs", tmp_path], "directory"),
                            ([tmp_path / "original"], "compare with --theirs"),
                            ([NANO, "--export", tmp_path / "no" / "ours.npz"], "no/ours.npz: No such file")):
        done = run(*arguments)
        assert done.returncode == 2 and done.stdout == "" and said in done.stderr, done.stderr
        assert len(done.stderr.splitlines()) == 1


def test_a_model_that_does_not_fit_is_refused(monkeypatch):
    from bench.random_checkpoint import named_config

    monkeypatch.setattr(compare, "available_memory", lambda: 24e9)
    with pytest.raises(ValueError, match=r"24 layers in transformers: expected 9\d GB of memory, found 24 GB "
                                         r"\(--layers 2 would fit\)"):
        compare.check_memory(named_config("20b"))
    compare.check_memory(named_config("20b", 2))


def test_an_export_is_written_whole_or_not_at_all(tmp_path, monkeypatch):
    def savez(file, **arrays):
        file.write(b"half")
        raise OSError("no space left")

    monkeypatch.setattr(np, "savez", savez)
    monkeypatch.setattr(sys, "argv", ["compare.py", str(NANO), "--export", str(tmp_path / "ours.npz")])
    with pytest.raises(SystemExit) as caught:
        compare.main()
    assert caught.value.code == 2 and list(tmp_path.iterdir()) == []


# ---- The page -------------------------------------------------------------------------------------------------------

def test_the_exporter_on_the_page_exports_what_is_compared(tmp_path):
    page = (ROOT / "docs" / "compare.md").read_text(encoding="utf-8")
    [code] = re.findall(r"```python\n(import numpy.*?)```", page, re.S)
    code = code.replace('"theirs.npz"', repr(str(tmp_path / "theirs.npz")))
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    done = run(NANO, "--theirs", tmp_path / "theirs.npz")
    assert done.returncode == 0 and "All 50 tensors agree." in done.stdout, done.stdout + done.stderr


def test_every_name_of_the_format_is_on_the_page():
    page = (ROOT / "docs" / "compare.md").read_text(encoding="utf-8")
    for name in compare.shapes_of(SMALL, 3):
        assert f"`{re.sub('layer[0-9]', 'layer0', name)}`" in page


def test_known_mistakes_are_edits_of_the_source():
    for mistake in MORE:
        broken(mistake)
