"""How the small model is made: its data, its vocabulary, its PyTorch twin, its training and its export."""

import json
import random
import re
import shutil
import signal
import subprocess
import sys
import time
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from conftest import ROOT
from hypothesis import given
from hypothesis import strategies as st
from tokenizers import Tokenizer as HuggingFaceTokenizer
from transformers import GptOssConfig, GptOssForCausalLM

import gptoss
import harmony
from tokenizer import load as load_tokenizer
from train import export, model, pretrain, rows, tasks, vocabulary, words

NANO = ROOT / "nano"
TINY = {"hidden_size": 64, "num_hidden_layers": 2, "head_dim": 16, "num_local_experts": 4, "intermediate_size": 32,
        "sliding_window": 16}


pytestmark = pytest.mark.usefixtures("one_thread")


# ---- The data ------------------------------------------------------------------------------------------------------


def drawn(task, split, n):
    rng = random.Random(f"{task} {split}")
    return [tasks.draw(rng, task, split) for _ in range(n)]


@pytest.mark.parametrize("task", tasks.TASKS)
def test_training_never_sees_a_held_out_problem(task):
    trained, held = ({p.key for p in drawn(task, split, 300)} for split in ("train", "test"))
    if task == "chat":              # greetings are few and in both; what it cannot do is split
        fixed = {f"chat {question}" for _, questions in words.FIXED for question in questions}
        trained, held = trained - fixed, held - fixed
    assert trained and held and not trained & held
    assert not any(tasks.held_out(key) for key in trained) and all(tasks.held_out(key) for key in held)


def test_the_named_examples_are_held_out():
    named = (tasks.Sum(12, 30), tasks.Sum(30, 12), tasks.Compare("9.11", "9.9"), tasks.Compare("9.9", "9.11"),
             tasks.Count("r", "strawberry"), tasks.Reverse("strawberry"), tasks.Sort("strawberry"),
             tasks.Product(41, 23), tasks.Product(58, 5))
    for problem in named:
        assert tasks.held_out(problem.key)


def test_a_conversation_has_no_held_out_problem_in_any_turn(monkeypatch):
    seen = []
    think = tasks.think
    monkeypatch.setattr(tasks, "think", lambda problem, *rest: seen.append(problem) or think(problem, *rest))
    rng = random.Random(3)
    for _ in range(600):
        tasks.conversation(rng, tasks.Setting("medium", None))
    fixed = {q for _, questions in words.FIXED for q in questions}
    assert len(seen) > 600
    assert not any(tasks.held_out(p.key) for p in seen if not (isinstance(p, tasks.Chat) and p.question in fixed))


EQUATION = re.compile(r"(?<![\d.])(\d+(?:[+\-×]\d+)+)=(\x01?\d+\x02?)")    # 5-8-1+10=6, too
DIVISION = re.compile(r"(\d+)÷(\d)=(\x01?\d+\x02?) r(\d)")
REMAINDERS = re.compile(r"(\d+) is ((?:\d ?)+)\.")


def check_equations(thought):
    """How many equations a thought has; all must hold but those whose result is planted."""
    found = 0
    for left, right in EQUATION.findall(thought):
        found += 1
        assert tasks.SLIP in right or eval(left.replace("×", "*")) == int(right), thought
    for n, d, quotient, rest in DIVISION.findall(thought):
        found += 1
        assert tasks.SLIP in quotient or divmod(int(n), int(d)) == (int(quotient), int(rest)), thought
    for n, running in REMAINDERS.findall(thought):
        found += 1
        assert running.split() == [str(sum(map(int, n[:i + 1])) % 9) for i in range(len(n))], thought
    return found


@pytest.mark.parametrize("task", ["sum", "difference", "product", "quotient", "story"])
@pytest.mark.parametrize("effort", ["medium", "high"])
def test_every_step_of_a_calculation_is_right(task, effort):
    rng = random.Random(f"{task} {effort}")
    for problem in drawn(task, "train", 200):
        thought = tasks.think(problem, effort, rng)
        assert check_equations(thought) > 0
        number = problem.value if task != "quotient" else f"{problem.value} r{problem.rest}"
        last = re.findall(r"(?:so |=)(\d+(?: r\d)?)", tasks.plain(thought).rpartition("\nCheck")[0] or thought)[-1]
        assert last == str(number).lstrip("-") and str(problem.value) in problem.answer


@pytest.mark.parametrize("task", [task for task in tasks.TASKS if task != "chat"])
def test_high_effort_checks_and_corrects(task):
    rng = random.Random(task)
    slipped = 0
    for problem in drawn(task, "train", 200):
        clean = tasks.think(problem, "high")
        assert clean.count("\nCheck: ") == 1 and clean.rstrip(".").endswith("yes") and "Again" not in clean
        thought = tasks.think(problem, "high", rng)
        if tasks.SLIP in thought:
            slipped += 1
            first, _, rest = thought.partition("\nCheck: ")
            assert tasks.SLIP in first and tasks.SLIP not in rest           # no mistakes but the planted one
            assert "no.\nAgain: " in rest and rest.endswith("yes.") and rest.count("no.") == 1
            assert tasks.plain(first) != clean.partition("\nCheck: ")[0]
    assert 30 < slipped < 110       # about SLIP_RATE of 200


def test_letters_weekdays_and_decimals():
    for problem in drawn("count", "train", 200):
        walked = re.findall(r"([a-z])(?:\((\d+)\))?", problem.medium().partition('"')[2].rpartition('"')[0])
        assert "".join(letter for letter, _ in walked) == problem.text
        assert [n for _, n in walked if n] == [str(i + 1) for i in range(problem.text.count(problem.letter))]
        first = problem.high(None).partition("\nCheck")[0].removeprefix(f"{problem.letter} in ")
        walked = re.findall(r"(\d+)([a-z])(?:\((\d+)\))?", first.partition(" so ")[0])
        assert [(int(i), letter) for i, letter, _ in walked] == list(enumerate(problem.text, 1))
        assert [n for _, _, n in walked if n] == [str(i + 1) for i in range(problem.text.count(problem.letter))]
        assert [letter for _, letter, n in walked if n] == [problem.letter] * problem.value
        assert first.endswith(f" so {problem.value}")
    for problem in drawn("reverse", "train", 100):
        assert problem.medium() == f'"{problem.text}" back "{problem.text[::-1]}"'
        numbers = "".join(f"{i}{problem.text[i - 1]}" for i in range(len(problem.text), 0, -1))
        assert problem.high(None).partition("\n")[2].startswith(f'{numbers} so "{problem.text[::-1]}"')
    for problem in drawn("sort", "train", 100):
        lists = problem.medium().split(";")[1:]
        assert [sorted(problem.text[:i + 1]) for i in range(len(problem.text))] == [list(x) for x in lists]
        inserted = re.findall(r"\+(.);([^+ ]+)", problem.high(None).partition("\nCheck")[0])
        assert "".join(c for c, _ in inserted) == problem.text and [x for _, x in inserted] == lists
    for problem in drawn("weekday", "train", 100):
        names = re.findall(r"[MTWFS][a-z]+day", problem.medium())
        step = 1 if problem.after else -1
        places = [tasks.DAYS.index(name) for name in names[:-1]]
        assert all((b - a) % 7 == step % 7 for a, b in zip(places, places[1:], strict=False))
        assert names[-1] == problem.value == tasks.DAYS[(tasks.DAYS.index(problem.day) + step * problem.n) % 7]
    for problem in drawn("compare", "train", 200):
        best = (max if problem.larger else min)((problem.a, problem.b), key=float)
        assert problem.value == best and problem.medium().endswith(f"so {best}")


def test_effort_makes_thoughts_longer():
    for task in tasks.TASKS:
        lengths = [sum(len(tasks.think(p, effort)) for p in drawn(task, "test", 50)) for effort in tasks.EFFORTS]
        assert lengths[0] == 0 and lengths[1] > 0 and lengths[2] > 1.5 * lengths[1], task


# ---- Tokens and rows -----------------------------------------------------------------------------------------------


@given(st.text(max_size=60))
def test_any_text_can_be_encoded(text):
    ours = load_tokenizer(NANO)
    assert ours.decode(ours.encode(text)) == text


@given(st.text(alphabet="aenrstAHW 0123456789.,?'\"×÷+-=\n\té日", max_size=40))
def test_the_tokenizers_library_gives_the_same_ids(text):
    theirs = HuggingFaceTokenizer.from_file(str(NANO / "tokenizer.json"))
    assert load_tokenizer(NANO).encode(text) == theirs.encode(text, add_special_tokens=False).ids


def test_digits_and_letters_of_a_word_stay_visible(tokenizer):
    pieces = [tokenizer.decode([i]) for i in tokenizer.encode(" strawberry 2026")]
    assert pieces[-4:] == ["2", "0", "2", "6"] and pieces[1:8] == list("rawberr")
    names = "startoftext endoftext return constrain channel start end message call".split()
    assert set(tokenizer.special_tokens) == {f"<|{name}|>" for name in names}
    assert sorted(tokenizer.special_tokens.values()) == list(range(tokenizer.vocab_size - 9, tokenizer.vocab_size))


def test_training_tokens_are_what_harmony_renders(tokenizer):
    rng = random.Random(5)
    planted = called = 0
    for _ in range(300):
        setting = tasks.setting(rng)
        turns = tasks.conversation(rng, setting)
        ids, learn = rows.conversation_tokens(tokenizer, turns)
        messages = rows.opening(setting)
        given = 0                                       # tokens of the last turn that are not the assistant's own
        for i, turn in enumerate(turns):
            messages.append(harmony.Message("user", turn.question))
            prompt = len(harmony.render(messages, tokenizer))
            last = i == len(turns) - 1
            if turn.thought and last:
                messages.append(harmony.Message("assistant", tasks.plain(turn.thought), channel="analysis"))
            if turn.call and last:
                before = len(harmony.render(messages, tokenizer, next_role=None, drop_analysis=False))
                call, result = rows.call_of(turn)
                assert json.loads(call.content) == {"expression": turn.call} and eval(turn.call) == int(turn.result)
                messages += [call, result]
                own = before + len(harmony.render([call], tokenizer, next_role=None))
                given = len(harmony.render(messages, tokenizer, drop_analysis=False)) - own
                called += 1
            messages.append(harmony.Message("assistant", turn.answer, channel="final"))
        rendered = harmony.render(messages, tokenizer, next_role=None, training=True, drop_analysis=False)
        shared = harmony.render(rows.opening(setting), tokenizer, next_role=None)
        assert shared + ids == rendered
        assert not any(learn[i] for i in range(prompt - len(shared)) if len(turns) == 1)
        start = prompt - len(shared)
        skipped = [tokenizer.decode([id]) for id, counts in zip(ids[start:], learn[start:], strict=True) if not counts]
        inside = re.sub(r"\s", "", "".join(re.findall(f"{tasks.SLIP}(.*?){tasks.END}", turns[-1].thought)))
        if given:
            assert len(skipped) == given                # the tool's message and the start of the answer after it
        else:
            assert re.sub(r"\s", "", "".join(skipped)) == inside    # what was planted and nothing else
        planted += bool(inside)
    assert planted > 10 and called > 5


def test_conversations_in_a_row_are_computed_as_if_alone(tokenizer):
    net = pretrain.new_model(tokenizer.vocab_size, 1, **TINY).eval()
    tokens, positions, groups, learn = pretrain.batch(0, 0, tokenizer, range(2), length=400)
    visible = (groups[:, :, None] == groups[:, None, :]) | (groups[:, None, :] == 0)
    with torch.no_grad():
        plain = net(tokens, positions, visible)
        fused = net(tokens, positions, visible, model.fused_attention)
        packed = net(tokens, positions, visible, pretrain.by_conversation(groups))
        assert (plain - fused).abs().max() < 1e-5 and (plain - packed).abs().max() < 1e-5
        for group in (1, int(groups[0].max())):
            mine = (groups[0] == 0) | (groups[0] == group)
            alone = net(tokens[:1, mine])[0]
            assert (alone - packed[0][mine]).abs().max() < 1e-5     # float32, logits of order 1
    assert learn[groups == 0].sum() == 0 and learn.float().mean() > 0.25


# ---- The PyTorch twin ----------------------------------------------------------------------------------------------


def test_the_twin_equals_transformers():
    """Float32 on both sides; a window of 5 in 33 tokens; every dimension different."""
    shape = dict(hidden_size=96, num_hidden_layers=3, num_attention_heads=6, num_key_value_heads=2, head_dim=20,
                 num_local_experts=5, num_experts_per_tok=3, intermediate_size=64, sliding_window=5, vocab_size=77)
    rope = {"rope_type": "yarn", "factor": 4.0, "beta_fast": 32.0, "beta_slow": 1.0,
            "original_max_position_embeddings": 1024, "truncate": False}
    kinds = ["sliding_attention", "full_attention", "sliding_attention"]
    torch.manual_seed(0)
    theirs = GptOssForCausalLM(GptOssConfig(**shape, layer_types=kinds, rope_parameters=rope | {"rope_theta": 10000.0},
                                            max_position_embeddings=4096, attn_implementation="eager")).eval()
    with torch.no_grad():
        for parameter in theirs.parameters():
            parameter.normal_(0, 0.2)
        ours = model.GptOss(SimpleNamespace(**pretrain.SHAPE | shape, layer_types=kinds)).eval()
        ours.load_state_dict(theirs.state_dict())
        tokens = torch.randint(0, 77, (2, 33))
        expected = theirs(tokens).logits
        assert (ours(tokens) - expected).abs().max() < 1e-5 * expected.abs().max()
        assert (ours(tokens, attend=model.fused_attention) - expected).abs().max() < 1e-5 * expected.abs().max()


# ---- Quantization and export ---------------------------------------------------------------------------------------


def test_mxfp4_keeps_what_it_can_represent():
    torch.manual_seed(0)
    codes = torch.tensor(model.FP4_VALUES)[torch.randint(0, 16, (7, 5, 32))]
    codes[..., 0] = 6.0                                             # the scale can be told from the block
    weights = (codes * torch.exp2(torch.randint(-20, 8, (7, 5, 1)))).flatten(-2)
    assert torch.equal(model.dequantize_mxfp4(*export.quantize_mxfp4(weights)), weights)
    assert torch.equal(model.dequantize_mxfp4(*export.quantize_mxfp4(torch.zeros(3, 64))), torch.zeros(3, 64))


def test_mxfp4_picks_the_best_scale():
    """No other power of two has a smaller squared error (all tried, codes by brute force)."""
    torch.manual_seed(1)
    weights = torch.randn(40, 32) * torch.exp(3 * torch.randn(40, 1))
    values = torch.tensor(model.FP4_VALUES)

    def error(exponent):
        scaled = weights / 2.0 ** exponent
        return ((scaled[..., None] - values).square().amin(-1).sum(-1) * 4.0 ** exponent).double()
    best = torch.stack([error(exponent) for exponent in range(-30, 12)]).amin(0)
    got = (model.dequantize_mxfp4(*export.quantize_mxfp4(weights)) - weights).square().sum(-1).double()
    assert torch.all(got <= best * (1 + 1e-5))


def test_mxfp4_rounds_ties_to_even_codes():
    """Between neighbours in the middle, the one whose mantissa is 0: 0, 1, 2 or 4."""
    ties = torch.tensor([0.25, 0.75, 1.25, 1.75, 2.5, 3.5, 5, 6, *[4.0] * 24])
    expected = torch.tensor([0.0, 1, 1, 2, 2, 4, 4, 6, *[4.0] * 24])
    for sign in (1, -1):
        assert torch.equal(model.dequantize_mxfp4(*export.quantize_mxfp4(sign * ties)), sign * expected)


def test_mxfp4_has_room_for_every_size():
    """From float32's largest to its smallest: finite, and the largest of a block within a quarter, as long as there is
    a code for it. Zeros keep their sign. The codes do not depend on the size."""
    torch.manual_seed(2)
    block = torch.randn(32)
    block[:3] = torch.tensor([block.abs().max() * 1.2, 0.0, -0.0])
    codes, _ = export.quantize_mxfp4(block)
    for exponent in (-120, -60, 0, 60, 120):
        assert torch.equal(export.quantize_mxfp4(torch.ldexp(block, torch.tensor(exponent)))[0], codes)
    most = torch.finfo(torch.float32).max
    for largest in (most, torch.finfo(torch.bfloat16).max, 2.0 ** -126, 2.0 ** -128, 2.0 ** -149):
        weights = block / block[0] * largest
        packed = export.quantize_mxfp4(weights)
        assert [part.dtype for part in packed] == [torch.uint8, torch.uint8]
        back = model.dequantize_mxfp4(*packed)
        assert torch.isfinite(back).all() and (back.signbit() == weights.signbit()).all()
        assert abs(back[0] / weights[0] - 1) <= 0.25 or (largest < 2.0 ** -128 and back[0] == 0)


@pytest.fixture(scope="module")
def exported(tmp_path_factory):
    path = tmp_path_factory.mktemp("exported")
    shutil.copy(NANO / "tokenizer.json", path)
    net = pretrain.new_model(load_tokenizer(NANO).vocab_size, 2, **TINY).eval()
    with torch.no_grad():
        for name, parameter in net.named_parameters():
            parameter.normal_(0, 0.5 if parameter.dim() == 1 else 2 * float(parameter.std()) + 0.01)
            if "norm" in name:
                parameter.add_(1)
    export.write(net, path)
    export.write_original(net, path / "original")
    return net, path


def test_an_export_means_the_same_everywhere(exported):
    """gptoss.py on both layouts, the twin and transformers compute from the file what the rounded weights say."""
    net, path = exported
    tokens = torch.randint(0, net.config.vocab_size, (1, 60))       # longer than the window of 16
    with torch.no_grad():
        twin = model.GptOss(net.config).eval()
        twin.load_state_dict(export.rounded(net))
        expected = twin(tokens)
        assert (model.load(path)(tokens) - expected).abs().max() == 0
        tolerance = 2e-5 * float(expected.abs().max())              # float32 sums in another order, two layers
        theirs = GptOssForCausalLM.from_pretrained(path, dtype=torch.float32)(tokens).logits
        assert (theirs - expected).abs().max() < tolerance
    for layout in (path, path / "original"):
        logits = gptoss.load(layout, backend="numpy")(tokens[0].tolist())
        assert abs(torch.from_numpy(logits) - expected[0]).max() < tolerance


def test_the_shipped_model_in_transformers(tokenizer):
    """MXFP4 unpacked by transformers itself; float32; a prompt longer than the window of 64."""
    question = [*rows.opening(tasks.Setting("high", "2026-06-01")), harmony.Message("user", "What is 12 + 30?")]
    tokens = torch.tensor([harmony.render(question, tokenizer)])
    assert tokens.shape[1] > 64
    with torch.no_grad():
        expected = model.load(NANO)(tokens)
        theirs = GptOssForCausalLM.from_pretrained(NANO, dtype=torch.float32)(tokens).logits
    assert (theirs - expected).abs().max() < 2e-5 * expected.abs().max()
    ours = gptoss.load(NANO, backend="numpy")(tokens[0].tolist())
    assert abs(torch.from_numpy(ours) - expected[0]).max() < 2e-5 * float(expected.abs().max())


def test_the_shipped_model_exported_again_is_the_same(tokenizer, tmp_path):
    """Every weight can be represented, so rounding changes nothing, and both layouts say the same."""
    shutil.copy(NANO / "tokenizer.json", tmp_path)
    net = pretrain.new_model(tokenizer.vocab_size, 0)
    net.load_state_dict(model.load(NANO).state_dict())
    export.write(net, tmp_path)
    export.write_original(net, tmp_path / "original")
    for name in ("config.json", "generation_config.json"):
        assert json.loads((tmp_path / name).read_text()) == json.loads((NANO / name).read_text())
    ids = list(range(100))
    expected = gptoss.load(NANO, backend="numpy")(ids)
    for layout in (tmp_path, tmp_path / "original"):
        assert np.array_equal(gptoss.load(layout, backend="numpy")(ids), expected)


# ---- Training ------------------------------------------------------------------------------------------------------


RUN = dict(tokens=30 * 400, rows=1, length=400, save_every=10, eval_every=0, shape=TINY)


def losses(out):
    return {entry["step"]: entry["loss"] for entry in map(json.loads, (out / "log.jsonl").read_text().splitlines())}


def test_training_resumes_to_the_same_curve_after_a_kill(tmp_path):
    whole, killed = tmp_path / "whole", tmp_path / "killed"
    for out in (whole, killed):
        out.mkdir()
        shutil.copy(NANO / "tokenizer.json", out)
    pretrain.train(whole, **RUN)
    code = f"""if True:
        import torch
        from train import pretrain
        torch.set_num_threads(1)
        pretrain.train({str(killed)!r}, **{RUN})"""
    process = subprocess.Popen([sys.executable, "-c", code], cwd=ROOT, stdout=subprocess.DEVNULL)
    deadline = time.monotonic() + 90
    while not (killed / "checkpoint.pt").exists() and process.poll() is None and time.monotonic() < deadline:
        time.sleep(0.01)
    process.send_signal(signal.SIGKILL)
    process.wait()
    at = torch.load(killed / "checkpoint.pt")["step"]
    assert 10 <= at < 30, "expected the run to be killed after its first checkpoint and before its end"
    net = pretrain.train(killed, **RUN)
    assert losses(killed) == losses(whole) and list(losses(whole)) == [10, 20, 30]
    assert losses(whole)[30] < losses(whole)[10]                    # and it learns
    assert torch.equal(net.lm_head.weight, torch.load(whole / "checkpoint.pt")["model"]["lm_head.weight"])


def test_two_workers_make_the_step_of_one(tmp_path):
    """The loss of the first step, and the sign of nearly every gradient of the unembedding, which is what AdamW's first
    step is (a gradient near 0 may turn; the router's loss, which each worker takes over its own rows, is not in it)."""
    heads = []
    for workers in (1, 2):
        out = tmp_path / str(workers)
        out.mkdir()
        shutil.copy(NANO / "tokenizer.json", out)
        options = dict(tokens=3 * 400, rows=3, length=400, eval_every=0, shape=TINY)
        torch.multiprocessing.spawn(pretrain.work, (workers, out, options), nprocs=workers)
        heads.append(torch.load(out / "checkpoint.pt")["model"]["lm_head.weight"])
    assert losses(tmp_path / "1")[1] == pytest.approx(losses(tmp_path / "2")[1], abs=2e-5)
    before = pretrain.new_model(heads[0].shape[0], 0, **TINY).lm_head.weight
    moved = [(head - before).sign() for head in heads]
    assert (moved[0] != 0).float().mean() > 0.9 and (moved[0] == moved[1]).float().mean() > 0.99


def test_muon_makes_updates_orthogonal():
    torch.manual_seed(0)
    for shape in ((48, 96), (3, 96, 48)):
        singular = torch.linalg.svdvals(pretrain.orthogonal(torch.randn(shape)))
        assert singular.min() > 0.5 and singular.max() < 1.3




# ---- The commands --------------------------------------------------------------------------------------------------


def test_a_run_is_exported_with_its_vocabulary(tokenizer, tmp_path, monkeypatch):
    run, target = tmp_path / "run", tmp_path / "target"
    run.mkdir()
    shutil.copy(NANO / "tokenizer.json", run)
    net = pretrain.new_model(tokenizer.vocab_size, 3)
    torch.save({"model": net.state_dict()}, run / "checkpoint.pt")
    monkeypatch.setattr(sys, "argv", ["pretrain", "--out", str(run), "--export", str(target)])
    pretrain.main()
    assert (target / "tokenizer.json").read_bytes() == (NANO / "tokenizer.json").read_bytes()
    assert torch.equal(model.load(target).lm_head.weight, net.lm_head.weight.bfloat16().float())


@pytest.mark.parametrize(("program", "args", "said"), [
    (pretrain, ["--out", "x", "--tokens", "0"], "--tokens: expected an integer of at least 1, found 0"),
    (pretrain, ["--out", "x", "--workers", "-1"], "--workers: expected an integer of at least 1, found -1"),
    (pretrain, ["--out", "x", "--export", "y"], "tokenizer.json: expected a file that training wrote, found none"),
    (pretrain, ["--out", "file"], "file"),
    (vocabulary, ["file"], "file"),
])
def test_commands_refuse_in_one_line(program, args, said, tmp_path, monkeypatch, capsys):
    (tmp_path / "file").write_text("no directory")
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "argv", ["program", *args])
    with pytest.raises(SystemExit) as caught:
        program.main()
    error = capsys.readouterr().err
    assert caught.value.code == 2 and said in error and error.count("\n") == 1
    assert [path.name for path in tmp_path.iterdir()] == ["file"]


def test_the_vocabulary_is_made_of_the_training_data(tmp_path):
    vocabulary.write(tmp_path)
    assert (tmp_path / "tokenizer.json").read_bytes() == (NANO / "tokenizer.json").read_bytes()
