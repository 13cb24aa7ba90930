"""xray.py: what it says of a run is what happened. Against the plain model, computed here a second time, and against
transformers."""

import json
import os
import re
import shutil
import subprocess
import sys
from dataclasses import replace

import numpy as np
import pytest
import torch
from conftest import ROOT
from rich.cells import cell_len
from rich.console import Console
from shapes import SMALL
from transformers import GptOssForCausalLM

import gptoss
import harmony
import xray
from bench.random_checkpoint import write_random
from checkpoint import float32_to_bf16
from tokenizer import load as load_tokenizer

NANO, DAY, QUESTION = ROOT / "nano", "2026-11-24", "What is 23 * 41?"


def recorder(path=NANO, backend="numpy"):
    return gptoss.load(path, backend=backend, model=xray.Recorder)


@pytest.fixture(scope="module", params=harmony.EFFORTS)
def trace(request, tokenizer):
    return xray.run(recorder(), tokenizer, QUESTION, name="nano", effort=request.param, day=DAY)


@pytest.fixture(scope="module")
def ids(tokenizer):
    """Prompt and reply of one run, without the last token."""
    found = xray.run(recorder(), tokenizer, QUESTION, effort="medium", day=DAY)
    return [entry["id"] for entry in found["tokens"]][:-1]


@pytest.fixture(scope="module")
def random_checkpoint(tmp_path_factory):
    """No two dimensions are equal, the window is 5, and the vocabulary is nano's."""
    path = tmp_path_factory.mktemp("random")
    write_random(path, replace(SMALL, vocab_size=992, eos_token_id=(985,)), seed=3)
    shutil.copy(NANO / "tokenizer.json", path)
    return path


# ---- The run --------------------------------------------------------------------------------------------------------

def test_the_reply_is_that_of_the_plain_model(trace, tokenizer):
    system = harmony.SystemContent(reasoning_effort=trace["effort"], conversation_start_date=DAY)
    messages = [harmony.Message("system", [system]), harmony.Message("user", QUESTION)]
    prompt = harmony.render(messages, tokenizer)
    reply = list(gptoss.generate(gptoss.load(NANO, backend="numpy"), prompt, temperature=0))
    assert [entry["id"] for entry in trace["tokens"]] == prompt + reply
    assert [entry["given"] for entry in trace["tokens"]] == [True] * len(prompt) + [False] * len(reply)
    messages += harmony.parse(reply, tokenizer, role="assistant")
    for number, message in enumerate(messages):
        of_it = [entry for entry in trace["tokens"] if entry["message"] == number]
        assert {(entry["role"], entry["channel"]) for entry in of_it} == {(message.role, message.channel)}
        if message.role != "system":
            content = tokenizer.decode([entry["id"] for entry in of_it if entry["part"] == "content"])
            assert content == message.content
        assert of_it[-1]["part"] == "stop" and of_it[0]["text"] == "<|start|>"
        assert [entry["part"] for entry in of_it].count("stop") == 1
    assert trace["tokens"][-1]["layers"] is None and trace["tokens"][0]["probability"] is None


def test_prompt_and_reply_are_those_of_the_chat():
    """Today, as neither is told another day."""
    command = [sys.executable, "chat.py", "--temperature", "0", "--effort", "medium", "--raw", "--prompt", QUESTION]
    said = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=True).stdout
    trace = xray.run(recorder(), load_tokenizer(NANO), QUESTION, effort="medium")
    assert "".join(entry["text"] for entry in trace["tokens"]) == said.removesuffix("\n")


def test_attention_weights_are_those_of_attention():
    rng = np.random.default_rng(0)
    for T, S, window in (6, 6, 100), (6, 11, 4), (1, 9, 5), (7, 7, 3):
        q, k, v = (rng.standard_normal(shape).astype(np.float32) for shape in ((T, 6, 10), (2, S, 10), (2, S, 10)))
        sinks = float32_to_bf16(rng.standard_normal(6))
        for keys in k, float32_to_bf16(k):
            weights = xray.attention_weights(q, keys, sinks, window)
            np.testing.assert_allclose(weights.sum(axis=-1), 1, atol=1e-6)
            found = np.stack([weights[h, :, :-1] @ v[h // 3] for h in range(6)], axis=1)
            np.testing.assert_allclose(found, gptoss.attention(q, keys, v, sinks, window), atol=1e-6)


def test_heads_sum_to_one_and_see_what_they_may(trace):
    for n, entry in enumerate(xray.plain(trace)["tokens"][:-1]):
        for kind, layer in zip(trace["model"]["layer_types"], entry["layers"], strict=True):
            for head in layer["heads"]:
                first = max(0, n - trace["model"]["window"] + 1) if kind == "sliding_attention" else 0
                assert (head["first"], head["first"] + len(head["weights"])) == (first, n + 1)
                assert head["sink"] + sum(head["weights"]) == pytest.approx(1, abs=1e-4)


def test_experts_lens_and_surprise_are_the_plain_models(ids):
    class Inputs(gptoss.Model):
        def mlp(self, i, x):
            self.inputs = [*getattr(self, "inputs", ()), x]
            return super().mlp(i, x)

    plain, watching = gptoss.load(NANO, backend="numpy", model=Inputs), recorder()
    logits = plain(ids)
    np.testing.assert_array_equal(watching(ids), logits)  # to be watched changes nothing
    for i, (layer, x) in enumerate(zip(plain.layers, plain.inputs, strict=True)):
        x = x / np.sqrt((x**2).mean(axis=1, keepdims=True) + plain.config.rms_norm_eps) * layer.mlp_norm
        scores = x @ gptoss.bf16_to_float32(layer.router_weight).T + gptoss.bf16_to_float32(layer.router_bias)
        chosen, weights = gptoss.route(scores, plain.config.num_experts_per_tok)
        pairs = np.array([record["layers"][i]["experts"] for record in watching.read])
        np.testing.assert_array_equal(pairs[..., 0], chosen)
        np.testing.assert_allclose(pairs[..., 1], weights, atol=1e-4)
    p = gptoss.softmax(logits.astype(np.float64))
    for record, row in zip(watching.read, p, strict=True):
        best = np.argsort(-row)[:3]
        assert record["best"] == record["layers"][-1]["lens"]
        assert [id for id, _ in record["best"]] == best.tolist()
        np.testing.assert_allclose([p for _, p in record["best"]], row[best], atol=1e-5)
    assert watching.surprises[0] is None
    np.testing.assert_allclose(watching.surprises[1:], -np.log(p[np.arange(len(ids) - 1), ids[1:]]), atol=1e-3)


def test_streams_lens_and_heads_equal_transformers(ids):
    reference = GptOssForCausalLM.from_pretrained(NANO, dtype=torch.float32, attn_implementation="eager").eval()
    after, watching = [], recorder()
    for layer in reference.model.layers:  # output_hidden_states has the last layer's after the norm
        layer.register_forward_hook(lambda _, __, out: after.append(out[0] if isinstance(out, tuple) else out))
    with torch.no_grad():
        out = reference(torch.tensor(ids)[None], output_hidden_states=True, output_attentions=True)
        streams = [out.hidden_states[0][0], *(stream.reshape(len(ids), -1) for stream in after)]
        lenses = [torch.softmax(reference.lm_head(reference.model.norm(stream)), -1) for stream in streams[1:]]
    sizes = np.array([(stream**2).mean(-1).sqrt().numpy() for stream in streams])
    watching(ids)
    for n, record in enumerate(watching.read):
        for i, layer in enumerate(record["layers"]):
            assert (layer["size_before"], layer["size"]) == pytest.approx(tuple(sizes[i : i + 2, n]), rel=1e-4)
            assert [p for _, p in layer["lens"]] == pytest.approx(lenses[i][n].topk(3).values.tolist(), abs=1e-4)
            for head, theirs in zip(layer["heads"], out.attentions[i][0, :, n].numpy(), strict=True):
                assert np.abs(head["weights"] - theirs[head["first"] : n + 1]).max() < 1e-4
                assert head["sink"] == pytest.approx(1 - theirs[: n + 1].sum(), abs=1e-4)


def numbers(value):
    """All numbers of a record, in order."""
    if isinstance(value, dict):
        value = list(value.values())
    if isinstance(value, list | tuple | np.ndarray):
        return [number for item in value for number in numbers(item)]
    return [value]


@pytest.mark.parametrize("backend", ["numpy", "numba"])
def test_both_backends_and_all_ways_to_feed_give_the_same_records(random_checkpoint, backend, monkeypatch):
    """At once, in chunks, and token by token, with a window of 5 and 23 tokens."""
    ids = np.random.default_rng(4).integers(0, 992, 23)
    expected = recorder(random_checkpoint)
    expected(ids)
    for chunk, T in (512, 23), (7, 23), (512, 1):
        monkeypatch.setattr(gptoss, "CHUNK", chunk)
        found = recorder(random_checkpoint, backend)
        cache = found.new_cache("float32")
        for n in range(0, len(ids), T):
            found(ids[n : n + T], cache)
        np.testing.assert_allclose(numbers(found.read), numbers(expected.read), atol=2e-3)
        np.testing.assert_allclose(found.surprises[1:], expected.surprises[1:], atol=2e-3)


def test_decided():
    def lens(*ids):
        return [{"lens": [[id, "", 0.5]]} for id in ids]

    tokens = [{"id": 1, "layers": lens(7, 5, 7, 7)}, {"id": 7, "layers": lens(7, 7, 7, 7)},
              {"id": 7, "layers": lens(7, 7, 7, 5)}, {"id": 7, "layers": None}]
    assert [xray.decided({"tokens": tokens}, n) for n in (1, 2, 3)] == [2, 0, None]


# ---- What is written ------------------------------------------------------------------------------------------------

def shown(trace, width, token=None):
    console = Console(width=width, file=open(os.devnull, "w"), record=True, highlight=False)
    xray.View(trace, load_tokenizer(NANO), console).show(token)
    return console.export_text().splitlines()


@pytest.mark.parametrize("width", [80, 120, 50])
def test_the_terminal_shows_each_token_on_a_line(trace, width):
    lines = shown(trace, width)
    assert max(map(cell_len, lines)) <= width
    reply = [(n, entry) for n, entry in enumerate(trace["tokens"]) if not entry["given"]]
    rows = [re.match(r" *(\d+) (\S.*?)  +█?.*?(\d+)%", line) for line in lines]
    rows = {int(row[1]): row for row in rows if row and not re.search("all|64   ", row[0])}
    for n, entry in reply:
        assert rows[n][2] == xray.shown(entry["text"]) and int(rows[n][3]) == round(100 * entry["probability"])
        assert width == 120 or not rows[n].string.endswith("…")  # a column that has no room is left out, not cut
    if width >= 80:
        n, entry = reply[3]
        experts = ["+".join(str(e) for e, _ in layer["experts"]) for layer in trace["tokens"][n - 1]["layers"]]
        assert " ".join(experts) in rows[n].string
    least = max(reply, key=lambda pair: pair[1]["surprise"])
    assert any(line.startswith(f"Token {least[0]} ") for line in lines)


def test_the_details_of_one_token(trace, random_checkpoint):
    """Of the small model all four heads of each layer, of the random one those four of six that look most."""
    six = xray.run(recorder(random_checkpoint), load_tokenizer(random_checkpoint), "Why?", max_tokens=2, day=DAY)
    for run in trace, six:
        lines = shown(run, 80, token=90)
        [at] = [at for at, line in enumerate(lines) if line.startswith("Token ")]
        assert lines[at].startswith("Token 90 ") and "while token 89 " in lines[at]
        rows = iter([line for line in lines[at:] if line.startswith("  head ")])
        for layer in run["tokens"][89]["layers"]:
            strongest = sorted(layer["heads"], key=lambda head: -head["weights"].max())[:4]
            for h, head in enumerate(layer["heads"]):
                if any(head is other for other in strongest):
                    most = int(head["weights"].argmax())
                    name = run["tokens"][head["first"] + most]["text"][:2].strip()
                    row, p = next(rows), f"{head['weights'][most]:.0%}"
                    looks = rf"  head {h} +sink +{head['sink']:.0%} +{head['first'] + most} .*{p}"
                    assert re.match(looks, row) and (name in row or not name.isprintable())
        assert next(rows, None) is None


def test_a_character_of_several_tokens_is_shown_whole(trace, tokenizer):
    ids = tokenizer.encode("日本")
    entries = [dict(entry) for entry in trace["tokens"]]
    content = [entry for entry in entries if not entry["given"] and entry["part"] == "content"]
    for entry, id in zip(content, ids, strict=False):
        entry["id"] = id
    assert len(ids) > 2 and any("日本" in line for line in shown(trace | {"tokens": entries}, 80))


def test_bars_are_as_wide_as_they_say():
    assert [xray.bar(share, 4) for share in (0, 1 / 32, 0.5, 1)] == ["    ", "▏   ", "██  ", "████"]
    assert xray.fit("日本語", 4) == "日 …" and xray.shown("a\n\x1b") == '"a\\n\\x1b"'


def test_through_a_pipe_there_is_plain_text_and_a_file_that_reads_back(random_checkpoint, tmp_path):
    """A model that talks nonsense, in which hardly a message is whole."""
    file = tmp_path / "trace.json"
    command = [sys.executable, "xray.py", "Why?", "--model", random_checkpoint, "--max-tokens", "12", "--date", DAY]
    done = subprocess.run([*command, "--json", file], cwd=ROOT, capture_output=True, text=True, check=True,
                          env=os.environ | {"COLUMNS": "80"})
    assert done.stderr == "" and "\x1b" not in done.stdout and max(map(cell_len, done.stdout.splitlines())) <= 80
    assert [path.name for path in tmp_path.iterdir()] == ["trace.json"]
    expected = xray.run(recorder(random_checkpoint), load_tokenizer(random_checkpoint), "Why?", max_tokens=12, day=DAY,
                        name=random_checkpoint.name)
    assert json.loads(file.read_text(encoding="utf-8")) == xray.plain(expected)
    assert [entry["given"] for entry in expected["tokens"]].count(False) == 12


def test_a_number_in_a_file_has_five_digits(trace):
    assert xray.plain({"a": [1 / 3, (2, 1e-9 / 3)], "w": np.float32([0.25, 1e-9, 1 / 3])}) == {
        "a": [0.33333, [2, 3.3333e-10]], "w": [0.25, 0, 0.333333]}
    assert json.loads(xray.in_json(xray.plain(trace))) == xray.plain(trace)


def test_a_file_is_written_whole_or_not_at_all(tmp_path, monkeypatch):
    file = tmp_path / "trace.json"
    xray.write(file, "old")

    def full(*_):
        raise OSError(28, "No space left on device", "elsewhere")

    monkeypatch.setattr(os, "replace", full)
    with pytest.raises(OSError, match="No space left") as raised:
        xray.write(file, "new")
    assert raised.value.filename == str(file) and file.read_text() == "old" and list(tmp_path.iterdir()) == [file]


# ---- The page -------------------------------------------------------------------------------------------------------

def filled(html, name):
    return json.loads(re.search(rf'<script type="application/json" id="{name}">(.*?)</script>', html, re.S)[1])


def test_the_page_of_a_run(tmp_path):
    """Made of parts of a test's own, with a text that tries to be markup and to be filled in."""
    (tmp_path / "index.html").write_text(
        '<style>/*STYLE*/</style><!-- scripts: b.js a.js --><script type="application/json" id="trace">null</script>'
        '<script type="application/json" id="checkpoint">null</script><script>/*SCRIPTS*/</script>')
    for name, text in ("style.css", "p {}"), ("a.js", r"'\1'"), ("b.js", "b"):
        (tmp_path / name).write_text(text)
    evil = {"question": "</script><!--<script>/*SCRIPTS*/ é \\ \u2028"}
    html = xray.page(evil, source=tmp_path)
    assert filled(html, "trace") == evil and filled(html, "checkpoint") is None
    assert "<style>p {}</style>" in html and "<script>b\n'\\1'</script>" in html
    assert html.count("</script>") == 3 and html.count("<!--") == 1
    (tmp_path / "index.html").write_text("<!-- scripts: a.js -->")
    with pytest.raises(ValueError, match="index.html: expected /\\*STYLE\\*/ once, found 0"):
        xray.page(evil, source=tmp_path)


def test_the_two_pages_from_the_command_line(tmp_path, capsys):
    assert not xray.main(["--page", str(tmp_path / "page.html")]) and capsys.readouterr().out == ""
    xray.main([QUESTION, "--effort", "high", "--date", DAY, "--html", str(tmp_path / "run.html")])
    for name in "page", "run":
        assert (tmp_path / f"{name}.html").stat().st_size < 4e6
    checkpoint = filled((tmp_path / "page.html").read_text(encoding="utf-8"), "checkpoint")
    assert checkpoint["config"] == json.loads((NANO / "config.json").read_bytes())
    assert filled((tmp_path / "run.html").read_text(encoding="utf-8"), "trace")["question"] == QUESTION


# ---- Bad input ------------------------------------------------------------------------------------------------------

@pytest.mark.parametrize("arguments, message", [
    ([], 'expected a question, as in: python xray.py "What is 23 * 41?", found none'),
    (["  "], "expected a question"),
    (["Hi", "--effort", "extreme"], "--effort: invalid choice"),
    (["Hi", "--max-tokens", "0"], "max_tokens: expected an integer of at least 1, found 0"),
    (["Hi", "--max-tokens", "x"], "--max-tokens: invalid int"),
    (["Hi", "--date", "tomorrow"], "--date: invalid day value"),
    (["Hi", "--token", "0"], "--token: expected an integer from 1 to"),
    (["Hi", "--token", "9999"], "--token: expected an integer from 1 to"),
    (["Hi", "--model", "nowhere"], "nowhere: expected a checkpoint directory, found no such directory"),
    (["Hi", "--json", "nowhere/x.json"], "nowhere/x.json: expected a file in a directory that exists"),
    (["Hi", "--html", "."], "expected a name for a file, found a directory or a device"),
    (["Hi", "--page", "x.html"], "--page: expected no question, found one"),
    (["--page", "x.html", "--json", "x.json"], "--page: expected no --json, found one"),
    (["Hi", "--json", "x", "--html", "./x"], "--html: expected another file than --json, found ./x, the same"),
    (["Hi", "--json", ""], "expected a name for a file, found a directory or a device"),
    (["--page", ""], "expected a name for a file, found a directory or a device"),
    (["--page", "/dev/null"], "/dev/null: expected a name for a file"),
    (["x " * 9000], "the prompt: expected fewer than 4096 tokens, the context"),
])
def test_bad_input_gets_one_sentence_and_status_2(arguments, message, capsys, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    try:
        status = xray.main(arguments)
    except SystemExit as exit:
        status = exit.code
    out, said = capsys.readouterr()
    assert status == 2 and message in said and said.startswith("xray.py: ") and said.count("\n") == 1 and out == ""
    assert list(tmp_path.iterdir()) == []


def test_a_checkpoint_too_large_for_a_page(tmp_path, capsys):
    write_random(tmp_path / "two", replace(SMALL, vocab_size=992), seed=1, shards=2)
    with pytest.raises(SystemExit, match="^2$"):
        xray.main(["--model", str(tmp_path / "two"), "--page", str(tmp_path / "x.html")])
    assert "expected one .safetensors file of less than 2,500,000 bytes" in capsys.readouterr().err


def test_ctrl_c_ends_it_quietly(monkeypatch, capsys):
    def interrupted(*_, **__):
        raise KeyboardInterrupt

    monkeypatch.setattr(xray, "run", interrupted)
    with pytest.raises(SystemExit, match="^130$"):
        xray.main(["Hi"])
    assert capsys.readouterr().err == ""


def test_where_the_screen_is_a_full_disk():
    with open("/dev/full", "w") as full:
        done = subprocess.run([sys.executable, "xray.py", "Hello!", "--effort", "low"], cwd=ROOT, stdout=full,
                              stderr=subprocess.PIPE, text=True)
    assert (done.returncode, done.stderr) == (2, "xray.py: standard output: No space left on device\n")


def test_a_reader_that_leaves_does_no_harm():
    done = subprocess.run(f"{sys.executable} xray.py Hello! | head -1", shell=True, cwd=ROOT, capture_output=True,
                          text=True)
    assert done.stdout.startswith("nano: 4 layers") and done.stderr == ""
