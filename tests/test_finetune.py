"""Fine-tuning: what is learned of a conversation, LoRA as PEFT has it, rounding that is trained through, resuming."""

import json
import random
import re
import shutil
import signal
import subprocess
import sys
import time

import pytest
import torch
from conftest import ROOT
from openai_harmony import Conversation
from peft import PeftModel
from test_harmony import TOKENIZER, their_render, theirs
from test_train import TINY
from transformers import GptOssConfig, GptOssForCausalLM

import gptoss
import harmony
import tokenizer as tokenizers
from serving import chat as openai
from train import conversations, examples, export, finetune, lora, model, pretrain, tasks

NANO = ROOT / "nano"
CALL = {"id": "c1", "type": "function", "function": {"name": "calculator", "arguments": '{"expression": "6*7"}'}}
TOOLS = [{"type": "function", "function": {"name": "calculator", "description": "Computes.", "parameters": {
    "type": "object", "properties": {"expression": {"type": "string"}}}}}]
ONE = {"reasoning_effort": "high", "messages": [
    {"role": "system", "content": "Be brief."}, {"role": "user", "content": "What is 6 * 7?"},
    {"role": "assistant", "thinking": "6×7=42", "content": "6 × 7 = 42"}]}
TWO = {"messages": [*ONE["messages"], {"role": "user", "content": "and plus 1?"},
                    {"role": "assistant", "reasoning": "42+1: 2+1=3", "content": "42 + 1 = 43"}]}
CALLED = {"tools": TOOLS, "messages": [
    {"role": "user", "content": "What is 6 * 7?"}, {"role": "assistant", "thinking": "I call.", "tool_calls": [CALL]},
    {"role": "tool", "tool_call_id": "c1", "content": "42"}, {"role": "assistant", "content": "6 × 7 = 42"}]}


pytestmark = pytest.mark.usefixtures("one_thread")


def found(body, tokenizer):
    return conversations.examples(openai.read(json.loads(json.dumps(body))), tokenizer, {})


def learned(example, tokenizer):
    return tokenizer.decode([id for id, counts in zip(example.tokens, example.learn, strict=True) if counts])


# ---- What is learned ------------------------------------------------------------------------------------------------


def test_learned_is_what_the_assistant_says_and_nothing_else(tokenizer):
    [one] = found(ONE, tokenizer)
    assert learned(one, tokenizer) == (
        "<|channel|>analysis<|message|>6×7=42<|end|><|start|>assistant<|channel|>final<|message|>6 × 7 = 42<|return|>")
    assert (one.effort, one.thought, one.answer) == ("high", "6×7=42", "6 × 7 = 42")
    prompt = tokenizer.decode(one.openings[0] + one.tokens[: one.learn.index(True)])
    assert prompt.endswith("<|start|>user<|message|>What is 6 * 7?<|end|><|start|>assistant")
    assert "Reasoning: high" in prompt and "# Instructions\n\nBe brief.<|end|>" in prompt


def test_each_turn_is_an_example_and_does_not_see_earlier_thoughts(tokenizer):
    first, second = found(TWO, tokenizer)
    assert "6×7=42" in learned(first, tokenizer)
    assert learned(second, tokenizer).startswith("<|channel|>analysis<|message|>42+1: 2+1=3<|end|>")
    assert "6×7=42" not in tokenizer.decode(second.tokens) and "6 × 7 = 42<|end|>" in tokenizer.decode(second.tokens)


def test_a_call_is_learned_and_its_result_is_not(tokenizer):
    [one] = found(CALLED, tokenizer)
    assert learned(one, tokenizer) == (
        "<|channel|>analysis<|message|>I call.<|end|><|start|>assistant to=functions.calculator<|channel|>commentary "
        '<|constrain|>json<|message|>{"expression": "6*7"}<|call|><|channel|>final<|message|>6 × 7 = 42<|return|>')
    assert one.answer is None  # one reply does not show whether it is right
    [cut] = found(CALLED | {"messages": CALLED["messages"][:2]}, tokenizer)
    assert learned(cut, tokenizer).endswith("<|call|>") and "no result" not in tokenizer.decode(cut.tokens)


@pytest.mark.parametrize("body", [ONE, TWO, CALLED])
def test_tokens_are_those_of_openai_harmony_in_training(body):
    request = openai.read(json.loads(json.dumps(body)))
    system = harmony.SystemContent(reasoning_effort=request.effort, conversation_start_date=conversations.ASKED)
    spaces = [harmony.Namespace("functions", None, request.functions)] if request.functions else []
    developer = harmony.DeveloperContent(request.instructions, spaces)
    last = max(n for n, message in enumerate(request.history) if message.role == "user")
    history = [message for n, message in enumerate(request.history) if n > last or message.channel != "analysis"]
    messages = [harmony.Message("system", [system]), harmony.Message("developer", [developer]), *history]
    example = found(body, TOKENIZER)[-1]
    expected = their_render(Conversation(messages=[theirs(message) for message in messages]), None, False, True)
    assert example.openings[0] + example.tokens == expected


def test_a_file_is_read_or_refused_with_its_line(tokenizer, tmp_path):
    path = tmp_path / "data.jsonl"
    path.write_text(json.dumps(ONE) + "\n\n" + json.dumps(TWO) + "\n")
    assert [len(some) for some in conversations.read(path, tokenizer)] == [1, 2]


@pytest.mark.parametrize(("line", "said"), [
    ("{", "expected JSON, found Expecting property name"),
    ("[1]", "expected an object with messages, found [1]"),
    ("{}", "messages: expected a list of messages, at least one, found None"),
    ('{"messages": [{"role": "user", "content": 5}]}', "messages[0].content: expected a text or a list of parts"),
    ('{"messages": [{"role": "bot", "content": "a"}]}', "messages[0].role: expected user, assistant, tool, developer"),
    ('{"messages": [{"role": "user", "content": "a"}]}', "messages: expected a user's and then an assistant's message"),
    ('{"messages": [{"role": "user", "content": "a"}, {"role": "assistant", "thinking": 1}]}',
     "messages[1].reasoning: expected a text or a list of parts, found 1"),
    ('{"reasoning_effort": "huge", "messages": [{"role": "user", "content": "a"}]}', "reasoning_effort: expected one"),
])
def test_a_bad_line_is_named(line, said, tokenizer, tmp_path):
    path = tmp_path / "data.jsonl"
    path.write_text(json.dumps(ONE) + "\n" + line + "\n")
    with pytest.raises(ValueError, match=re.escape(f"{path}, line 2: {said}")):
        conversations.read(path, tokenizer)


# ---- Rows -----------------------------------------------------------------------------------------------------------


def data(tmp_path, name="digits", new=40, old=40):
    path = tmp_path / f"{name}.jsonl"
    examples.write(name, path, new, old, test=20)
    return path


def read(path, tokenizer):
    return [example for some in conversations.read(path, tokenizer) for example in some]


def test_rows_hold_each_example_once_and_compute_it_as_if_alone(tokenizer, tmp_path):
    examples_ = read(data(tmp_path), tokenizer)
    epoch = conversations.batches(examples_, random.Random(0), 500)
    assert sorted(id(e) for batch in epoch for _, members in batch for e in members) == sorted(map(id, examples_))
    assert max(conversations.row_length(row) for batch in epoch for row in batch) <= 500
    net = pretrain.new_model(tokenizer.vocab_size, 1, **TINY).eval()
    rows = next(batch for batch in epoch if len(batch) > 1 and len(batch[1][1]) > 1)
    tokens, positions, groups, learn = conversations.tensors(rows)
    visible = (groups[:, :, None] == groups[:, None, :]) | (groups[:, None, :] == 0)
    with torch.no_grad():
        packed = net(tokens, positions, visible, pretrain.by_conversation(groups))
        date, members = rows[1]
        alone = net(torch.tensor([members[0].openings[date] + members[1].tokens]))[0]
    mine = (groups[1] == 0) | (groups[1] == 2)
    assert (alone - packed[1][mine]).abs().max() < 1e-5  # float32, logits of order 1
    assert learn[1][groups[1] == 2].tolist() == members[1].learn and not learn[groups <= 0].any()


def test_labels_for_other_programs(tokenizer, tmp_path):
    [example] = found(ONE, tokenizer)
    conversations.write_tokens(tmp_path / "tokens", [example])
    row = json.loads((tmp_path / "tokens").read_text())
    assert row["input_ids"] == example.openings[0] + example.tokens
    assert tokenizer.decode([label for label in row["labels"] if label != -100]) == learned(example, tokenizer)


# ---- Training -------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def tiny(tmp_path_factory):
    """A small random checkpoint with the small model's vocabulary."""
    path = tmp_path_factory.mktemp("tiny")
    shutil.copy(NANO / "tokenizer.json", path)
    export.write(pretrain.new_model(tokenizers.load(NANO).vocab_size, 0, **TINY), path)
    return path


def part(tmp_path, name):
    (tmp_path / name).mkdir()
    return tmp_path / name


def losses(directory):
    return [json.loads(line)["loss"] for line in (directory / "log.jsonl").read_text().splitlines()]


def test_what_is_stored_is_what_was_trained(tiny, tokenizer, tmp_path, monkeypatch):
    """The loss falls, though the forward pass sees rounded weights only, and gptoss.py computes from the stored ones
    the logits that training computed last."""
    monkeypatch.setattr(conversations, "TOKENS", 1200)
    here = part(tmp_path, "run")
    net, _ = finetune.train(here, read(data(tmp_path), tokenizer), tiny, epochs=4)
    assert losses(here)[-1] < 0.95 * losses(here)[0]
    finetune.write(net, None, tiny, here / "model")
    twin = model.load(tiny)
    twin.load_state_dict(export.rounded(net))
    ids = tokenizer.encode("What is 45 in binary? ") * 3
    with torch.no_grad():
        expected = twin(torch.tensor([ids]))[0].numpy()
    logits = gptoss.load(here / "model", backend="numpy")(ids)
    assert abs(logits - expected).max() < 1e-4 * abs(expected).max()
    assert any((a != b).any() for a, b in zip(export.tensors(net).values(), export.tensors(model.load(tiny)).values(),
                                              strict=True) if a.dtype == torch.uint8)  # codes have moved


@pytest.mark.parametrize("low_rank", [False, True])
def test_a_run_that_was_stopped_ends_in_the_same_weights(low_rank, tiny, tokenizer, tmp_path, monkeypatch):
    monkeypatch.setattr(conversations, "TOKENS", 1200)
    examples_, runs = read(data(tmp_path), tokenizer), []
    for name, stops in ("whole", [None]), ("stopped", [2, 5, None]):
        here = part(tmp_path, name)
        for stop in stops:
            net, _ = finetune.train(here, examples_, tiny, low_rank, save_every=3, stop_after=stop)
        runs.append((losses(here), [p.detach() for p in net.parameters()]))
    assert runs[0][0] == runs[1][0] and len(runs[0][0]) > 6
    assert all(torch.equal(a, b) for a, b in zip(runs[0][1], runs[1][1], strict=True))


# ---- LoRA -----------------------------------------------------------------------------------------------------------


def test_an_adapter_is_peft_s(tmp_path):
    """PEFT loads it onto transformers' model, with equal logits in float32; no two dimensions are equal."""
    shape = dict(hidden_size=96, num_hidden_layers=2, num_attention_heads=6, num_key_value_heads=2, head_dim=20,
                 num_local_experts=5, num_experts_per_tok=3, intermediate_size=64, sliding_window=5, vocab_size=77)
    rope = pretrain.SHAPE["rope_scaling"] | {"rope_theta": 10000.0}
    config = GptOssConfig(**shape, layer_types=["sliding_attention", "full_attention"], rope_parameters=rope,
                          max_position_embeddings=4096, attn_implementation="eager", experts_implementation="eager")
    net = pretrain.new_model(shape["vocab_size"], 3, **{k: v for k, v in shape.items() if k != "vocab_size"}).eval()
    theirs_ = GptOssForCausalLM(config).eval()
    theirs_.load_state_dict(net.state_dict())
    torch.manual_seed(4)
    ids = torch.randint(0, 77, (2, 23))
    with torch.no_grad():
        base = net(ids)
        adapters = lora.adapt(net)
        assert (net(ids) - base).abs().max() == 0  # B begins with zeros
        for low in adapters.values():
            low.B.normal_(0, 0.1)
        expected = net(ids)
        lora.write(adapters, "somewhere", tmp_path)
        logits = PeftModel.from_pretrained(theirs_, tmp_path)(ids).logits
    assert (logits - expected).abs().max() < 1e-4 * expected.abs().max() < 1e-3 * (expected - base).abs().max()


def test_gptoss_reads_the_adapter(tiny, tokenizer, tmp_path):
    net, ids = model.load(tiny), tokenizer.encode("What is the digit sum of 45?") * 2
    adapters = lora.adapt(net)
    with torch.no_grad():
        for low in adapters.values():
            low.B.normal_(0, 0.1)
        expected = net(torch.tensor([ids]))[0].numpy()
    finetune.write(net, adapters, tiny, tmp_path / "adapter")
    logits = gptoss.load(tiny, backend="numpy", adapter=tmp_path / "adapter")(ids)
    assert abs(logits - expected).max() < 1e-4 * abs(expected).max()
    assert abs(logits - gptoss.load(tiny, backend="numpy")(ids)).max() > 0.1 * abs(expected).max()


# ---- Evaluation -----------------------------------------------------------------------------------------------------


def test_answers_are_compared_by_effort(tokenizer, tmp_path):
    path = data(tmp_path, "german").with_suffix(".test.jsonl")
    path.write_text("".join(path.read_text().splitlines(True)[:4]))
    asked = finetune.questions(read(path, tokenizer), tokenizer, 1)
    found = finetune.measure(asked, NANO)
    assert sum(n for n, *_ in found.values()) == len(asked) == 4 + 3 * len(tasks.TASKS)
    for group, (n, right, thoughts, length) in found.items():
        assert (length > 0) == (group != "old, low") and (right > n / 2 or group == "old, low")
        assert thoughts > n / 2 if group.startswith("old") else thoughts == 0  # it does not think in German
    assert "| old, high | 11 | " in finetune.table(found, found)


# ---- The program ----------------------------------------------------------------------------------------------------


def test_the_program_trains_evaluates_and_goes_on_after_a_kill(tiny, tmp_path, monkeypatch, capsys):
    path, out, test = data(tmp_path, new=200, old=40), tmp_path / "out", tmp_path / "two.jsonl"
    test.write_text("".join(path.with_suffix(".test.jsonl").read_text().splitlines(True)[:2]))
    args = ["finetune", *map(str, ["--data", path, "--test", test, "--model", tiny, "--out", out, "--each", 0,
                                   "--epochs", 3])]
    begun = subprocess.Popen([sys.executable, "-m", "train.finetune", *args[1:]], cwd=ROOT, stdout=subprocess.DEVNULL)
    state, deadline = tmp_path / "out.part" / "state.pt", time.monotonic() + 90
    while not state.exists() and begun.poll() is None and time.monotonic() < deadline:
        time.sleep(0.01)
    begun.send_signal(signal.SIGKILL)
    begun.wait()
    assert state.exists() and not out.exists()

    def refused(args):
        monkeypatch.setattr(sys, "argv", args)
        with pytest.raises(SystemExit) as caught:
            finetune.main()
        assert caught.value.code == 2
        return capsys.readouterr().err

    assert "expected the run that was begun there, found another one" in refused([*args, "--seed", "1"])
    monkeypatch.setattr(sys, "argv", args)
    finetune.main()
    said = capsys.readouterr().out
    assert "«<|channel|>" in said and "\n| new, " in said and not (tmp_path / "out.part").exists()
    files = {"config.json", "generation_config.json", "model.safetensors", "tokenizer.json", "log.jsonl"}
    assert {file.name for file in out.iterdir()} == files | {"evaluation.md"}
    gptoss.load(out)
    assert len(losses(out)) > 20
    assert refused(args).endswith("out: expected a new directory, found one that is there\n")


@pytest.mark.parametrize(("args", "said"), [
    (["--out", "x"], "data.jsonl"), (["--out", "x", "--epochs", "0"], "--epochs: expected an integer of at least 1"),
    (["--tokens", "x", "--length", "5"], "examples of at most 5 tokens to train on (--length), found none"),
])
def test_the_program_refuses_in_one_line(args, said, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    if "--length" in args:
        data(tmp_path).rename("data.jsonl")
    monkeypatch.setattr(sys, "argv", ["finetune", "--data", "data.jsonl", *args])
    with pytest.raises(SystemExit) as caught:
        finetune.main()
    error = capsys.readouterr().err
    assert caught.value.code == 2 and said in error and error.count("\n") == 1 and not (tmp_path / "x").exists()


# ---- The examples ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", examples.EXAMPLES)
def test_no_question_of_the_test_is_in_the_training(name, tokenizer, tmp_path):
    path = data(tmp_path, name, 400, 400)
    asked = [{message["content"] for line in file.read_text().splitlines() for message in json.loads(line)["messages"]
              if message["role"] == "user"} for file in (path, path.with_suffix(".test.jsonl"))]
    assert asked[0] and asked[1] and not asked[0] & asked[1]


def test_digit_sums_are_right():
    for n in (10, 5874, 999999):
        thought = examples.DigitSum(n).high(None)
        steps = re.findall(r"(\d+)\+(\d)=(\d+)", thought)
        assert len(steps) == 2 * (len(str(n)) - 1) and all(int(a) + int(b) == int(c) for a, b, c in steps)
        assert [b for _, b, _ in steps[: len(str(n)) - 1]] == [*str(n)[1:]]
        assert examples.DigitSum(n).answer.replace(" ", "") == f"{'+'.join(str(n))}={sum(map(int, str(n)))}"


def test_thoughts_in_german():
    assert examples.in_german(tasks.Sum(95, 684).medium()) == (
        "95 plus 684: 5 plus 4 ist 9, 9 plus 8 ist 17, 0 plus 6 plus 1 ist 7 also 779")
    rng = random.Random(0)
    for task in examples.LEARNED:
        for _ in range(50):
            thought = examples.in_german(tasks.draw(rng, task).medium())
            assert not re.search(r"\b(so|left|r\d|is|than|\w+day)\b|[-+×÷=]", thought), thought


def test_thoughts_at_low_effort():
    """And no old conversation says that there is none."""
    rng = random.Random(0)
    for _ in range(50):
        body = examples.think(rng, "train")
        assert body["reasoning_effort"] == "low" and body["messages"][-1]["reasoning"]
        assert examples.old(rng, examples.think)["reasoning_effort"] != "low"
