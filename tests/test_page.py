"""The page in which the small model runs, in Chromium: the same logits, tokens and traces as gptoss.py's, also when
the model is changed; and what a reader does with it. Chromium: apt-get install chromium."""

import json
import re
import subprocess
import sys

import numpy as np
import pytest
from conftest import ROOT

import gptoss
from conversation import Conversation, LocalEngine
from page.chromium import Chromium, ChromiumError
from page.switches import BestOnly, NoSink, NoYarn, SoftmaxAll, Window8, expert_off

DATE = "2026-11-24"
QUESTIONS = ("What is 23 * 41?", "How many r's are in strawberry?", "Which is larger, 9.9 or 9.11?",
             "Reverse the word lettuce.", "Hello!")
NEAR = 1e-3  # in every logit


@pytest.fixture(scope="module")
def files(tmp_path_factory):
    """The page with the model, and the page of a recorded run with its trace."""
    folder = tmp_path_factory.mktemp("page")
    for options in (["--page", folder / "page.html"],
                    [QUESTIONS[2], "--html", folder / "run.html", "--json", folder / "run.json"]):
        done = subprocess.run([sys.executable, ROOT / "xray.py", *options], capture_output=True, text=True)
        assert done.returncode == 0, done.stderr
    return folder


@pytest.fixture(scope="module")
def browser():
    with Chromium() as chromium:  # if there is none, it says so in a sentence
        yield chromium


@pytest.fixture(scope="module")
def page(browser, files):
    """The page, loaded; its first run is over."""
    browser.open(files / "page.html", motion=False)
    browser.wait("!state.running && state.runs.length && state.kept")
    return browser


def prompt(tokenizer, question, effort):
    return Conversation(None, tokenizer, effort=effort, date=DATE).prompt(question)


def js(function, *arguments):
    return f"{function}({', '.join(json.dumps(argument) for argument in arguments)})"


# ---- The model ------------------------------------------------------------------------------------------------------

def sequences(tokenizer):
    rng = np.random.default_rng(0)
    thought = "<|channel|>analysis<|message|>41×23\n×3: 1×3=3 4×3=12 so 123\n×20: 1×2=2 4×2=8 so 820"
    return {"one": [7], "random": rng.integers(0, 992, 150).tolist(), "again": [5, 6, 7, 8] * 40,
            "thought": prompt(tokenizer, "What is 23 * 41?", "high") + tokenizer.encode(thought, "all")}


@pytest.mark.parametrize("name", ["one", "random", "again", "thought"])
def test_logits_are_those_of_gptoss(page, tokenizer, name):
    ids = sequences(tokenizer)[name]
    model = gptoss.load(ROOT / "nano", backend="numpy")
    logits = page.evaluate(f"[...{js('gptoss.logits', ids)}]")
    np.testing.assert_allclose(logits, model(ids, logits_to_keep=1)[-1], rtol=0, atol=NEAR)


def test_tokens_are_those_of_the_chat(page, tokenizer):
    """What chat.py runs: a conversation, an engine with its kernels and its cache of bf16."""
    engine = LocalEngine(gptoss.load(ROOT / "nano"))
    for question in QUESTIONS:
        for effort in ("low", "medium", "high"):
            expected = list(engine.generate(prompt(tokenizer, question, effort), temperature=0))
            options = js("gptoss.trace", question, effort, {"date": DATE})
            tokens = page.evaluate(f"{options}.tokens.map(({{id, given}}) => [id, given])")
            assert [id for id, given in tokens if given] == prompt(tokenizer, question, effort), (question, effort)
            assert [id for id, given in tokens if not given] == expected, (question, effort)


# ---- The model, changed ---------------------------------------------------------------------------------------------

@pytest.mark.parametrize(("changes", "backend", "model"), [
    ({"noSink": True}, NoSink, gptoss.Model),
    ({"window": 8}, "numpy", Window8),
    ({"bestOnly": True}, BestOnly, gptoss.Model),
    ({"expertOff": [1, 5]}, "numpy", expert_off(1, 5)),
    ({"noYarn": True}, "numpy", NoYarn),
    ({"softmaxAll": True}, SoftmaxAll, gptoss.Model),
    ({"softmaxAll": True, "window": 8}, SoftmaxAll, Window8),
], ids=lambda value: "+".join(value) if isinstance(value, dict) else "")
def test_a_change_is_the_same_change_in_gptoss(page, tokenizer, changes, backend, model):
    changed = gptoss.load(ROOT / "nano", backend=backend, model=model)
    intact = gptoss.load(ROOT / "nano", backend="numpy")
    ids = sequences(tokenizer)["thought"]
    expected = changed(ids, logits_to_keep=1)[-1]
    logits = page.evaluate(f"[...{js('gptoss.logits', ids, changes)}]")
    np.testing.assert_allclose(logits, expected, rtol=0, atol=NEAR)
    assert np.abs(expected - intact(ids, logits_to_keep=1)[-1]).max() > 10 * NEAR  # it is a change

    start = prompt(tokenizer, "What is 23 * 41?", "high")
    reply = list(gptoss.generate(changed, start, temperature=0, max_tokens=120))
    options = {"date": DATE, "maxTokens": 120, "changes": changes}
    trace = page.evaluate(f"{js('gptoss.trace', 'What is 23 * 41?', 'high', options)}.tokens.map(({{id}}) => id)")
    assert trace == start + reply


# ---- Text -----------------------------------------------------------------------------------------------------------

def test_ids_of_text_are_those_of_the_tokenizer(page, tokenizer):
    rng = np.random.default_rng(1)
    alphabet = list("aZſK \n\t\r\u0085\u00a0\u2028\ufeff'sS'LL'ſ09½٣.,/<|>ÄßǅʰՀ中́🙂×÷€−")
    texts = ["", " ", "It's 9.9, isn't IT'S?\n\n  So:  12\u00a0345", "<|start|>system<|message|>", "wörd 日本語 🙂",
             *QUESTIONS, *("".join(rng.choice(alphabet, 30)) for _ in range(300))]
    ids = page.evaluate(f"{json.dumps(texts)}.map(gptoss.encode)")
    assert ids == [tokenizer.encode(text) for text in texts]
    assert page.evaluate(f"{json.dumps(ids)}.map(gptoss.decode)") == texts


# ---- The trace ------------------------------------------------------------------------------------------------------

def flat(value, path=""):
    """What is in a trace: {path: a value, or a list of numbers}."""
    numbers = isinstance(value, list) and all(isinstance(item, float | int) for item in value)
    if isinstance(value, dict) or isinstance(value, list) and not numbers:
        items = value.items() if isinstance(value, dict) else enumerate(value)
        return {leaf: deep for key, item in items for leaf, deep in flat(item, f"{path}/{key}").items()}
    return {path: value}


def test_the_trace_is_the_one_that_xray_writes(page, files):
    recorded = json.loads((files / "run.json").read_text(encoding="utf-8"))
    given = "".join(token["text"] for token in recorded["tokens"] if token["given"])
    options = {"date": given.partition("Current date: ")[2][:10]}
    plain = "(key, value) => ArrayBuffer.isView(value) ? [...value] : value"
    trace = js("gptoss.trace", recorded["question"], recorded["effort"], options)
    ours = flat(json.loads(page.evaluate(f"JSON.stringify({trace}, {plain})")))
    theirs = flat(recorded)
    assert ours.keys() == theirs.keys()
    different = []
    for path, other in theirs.items():
        mine = ours[path]
        if isinstance(other, list | float) and mine is not None:  # one may round a key otherwise than the other
            same = np.shape(mine) == np.shape(other) and np.allclose(mine, other, rtol=0.01, atol=2e-3)
        else:
            same = mine == other or re.search("/(lens|best)/", path)  # the third best may be nearly the fourth
        different += [] if same else [(path, mine, other)]
    assert different == []
    heads = [head for token in recorded["tokens"][:-1] for layer in token["layers"] for head in layer["heads"]]
    assert max(abs(sum(head["weights"]) + head["sink"] - 1) for head in heads) < 1e-3


# ---- The page -------------------------------------------------------------------------------------------------------

DONE = "!state.running && state.kept"


@pytest.fixture
def fresh(browser, files):
    """The page, opened anew, and its first run over."""
    browser.open(files / "page.html", motion=False)
    browser.wait(DONE)
    yield browser
    assert browser.errors == []


def shown(browser):
    """Of each run on the page: its name, and the text that it wrote last."""
    return browser.evaluate("state.shown.map((run) => [nameOf(run), answerOf(run)])")


def test_without_chromium_it_says_what_to_install(monkeypatch):
    monkeypatch.setenv("PATH", "")
    with pytest.raises(ChromiumError, match="^PATH: expected chromium .Debian: apt-get install chromium., found none$"):
        Chromium()


def test_it_is_small_and_asks_for_nothing(fresh, files):
    assert (files / "page.html").stat().st_size < 4e6
    assert fresh.requests == [(files / "page.html").as_uri()]
    assert fresh.evaluate("document.querySelector('meta[http-equiv]').content").startswith("default-src 'none'")


def test_a_question_is_typed_and_answered(fresh):
    assert shown(fresh) == [["high effort", "23 × 41 = 943"]]
    fresh.evaluate("document.getElementById('question').select()")
    for key in "Reverse lettuce.":
        fresh.press(key)
    fresh.press("Enter")
    fresh.wait(f"state.runs.length === 2 && {DONE}")
    assert shown(fresh) == [["high effort", '"lettuce" backwards is "ecuttel".']]
    blocks = "[...document.querySelectorAll('.message')].map((block) => block.getAttribute('aria-label'))"
    assert fresh.evaluate(blocks) == ["system", "user", "assistant, analysis", "assistant, final"]


def test_keys_go_from_token_to_token(fresh):
    fresh.evaluate("document.querySelector('.text').focus()")
    fresh.press("Home")
    assert fresh.evaluate("document.querySelector('#panel .which').textContent") == "[start]"
    fresh.press("ArrowRight")
    second = fresh.evaluate("state.shown[0].trace.tokens[1].text")
    assert fresh.evaluate("document.querySelector('#panel .which').textContent") == second != "[start]"
    active = "document.getElementById(document.activeElement.getAttribute('aria-activedescendant')).dataset.t"
    assert fresh.evaluate(active) == "1"
    for _ in range(8):
        fresh.press("ArrowDown")
    assert fresh.evaluate(f"state.shown[0].trace.tokens[{active}].channel") == "analysis"
    before = fresh.evaluate("[state.layer, state.head]")
    fresh.press("]")
    assert fresh.evaluate("[state.layer, state.head]") != before
    fresh.press("ArrowLeft")
    fresh.press("End")
    assert fresh.evaluate("document.querySelector('#panel .which').textContent") == "[return]"


def test_the_shades_are_the_attention_of_the_head(fresh):
    fresh.evaluate("keep(state.shown[0], 130), lookWith(1, 2)")
    shades = "state.shown[0].column.spans.map((span) => Number(span.style.getPropertyValue('--seen')) ** 2)"
    weights = "[...state.shown[0].trace.tokens[130].layers[1].heads[2].weights]"
    expected = np.array(fresh.evaluate(weights))
    assert len(expected) == 131
    found = np.array(fresh.evaluate(shades))
    np.testing.assert_allclose(found[:131], np.where(expected > 0.005, expected, 0), atol=2e-3)
    assert not found[131:].any()
    assert fresh.evaluate("[...document.querySelectorAll('#panel .looks .number')].length") >= 2


def test_every_mark_opens_its_sentence(fresh):
    marks = fresh.evaluate("document.querySelectorAll('#panel [aria-controls]').length")
    assert marks >= 8
    for n in range(marks):
        fresh.evaluate(f"document.querySelectorAll('#panel [aria-controls]')[{n}].click()")
    assert fresh.evaluate("[...document.querySelectorAll('#panel .why')].every((p) => !p.hidden && p.textContent)")


def test_low_and_high_stand_side_by_side(fresh):
    fresh.evaluate("document.getElementById('both').click()")
    fresh.wait(f"state.shown.length === 2 && {DONE}")
    assert shown(fresh) == [["low effort", "23 × 41 = 903"], ["high effort", "23 × 41 = 943"]]
    verdict = fresh.evaluate("document.getElementById('verdict').textContent")
    assert verdict == ("high effort: another answer, “23 × 41 = 943”, where low effort has “23 × 41 = 903”. "
                       "The replies part at token 2: final and analysis.")


def test_a_changed_model_runs_beside_the_intact_one(fresh):
    fresh.evaluate("document.getElementById('switch-bestOnly').click()")
    fresh.wait(f"state.shown.length === 2 && {DONE}")
    assert [name for name, _ in shown(fresh)] == ["high effort", "high effort, best expert only"]
    assert fresh.evaluate("state.shown[1].trace.tokens[5].layers[0].experts.map(([, weight]) => weight)") == [1, 0]
    fresh.evaluate("document.getElementById('switch-bestOnly').click()")
    fresh.wait(f"state.shown.length === 1 && {DONE}")
    assert shown(fresh) == [["high effort", "23 × 41 = 943"]]


def test_an_address_can_hold_a_question(browser, files):
    browser.open(f"{files / 'page.html'}#question=Reverse+lettuce.&effort=low", motion=False)
    browser.wait(DONE)
    assert shown(browser) == [["low effort", '"lettuce" backwards is "ecuttel".']]
    browser.evaluate("location.hash = 'question=What+is+12+%2B+30%3F&effort=low'")  # another, in the same tab
    browser.wait(f"state.runs.length === 2 && {DONE}")
    assert shown(browser) == [["low effort", "12 + 30 = 42"]]
    browser.evaluate(f"location.hash = 'question={'1' * 3000}'")  # longer than what can be typed
    browser.wait(f"state.runs.length === 3 && {DONE}")
    assert browser.evaluate("state.shown[0].question.length") == 300 and browser.errors == []


def test_the_expert_that_is_off_is_the_one_that_is_chosen(fresh):
    ask = """((question) => {
        document.getElementById('question').value = question;
        document.getElementById('ask').requestSubmit();
    })"""
    fresh.evaluate("document.getElementById('switch-expertOff').click()")
    for question in QUESTIONS:
        fresh.evaluate(f"{ask}({json.dumps(question)})")
        fresh.wait(f"state.shown.length === 2 && state.shown[1].question === {json.dumps(question)} && {DONE}")
        off = fresh.evaluate("['layer', 'expert'].map((name) => Number(document.getElementById(`off-${name}`).value))")
        assert fresh.evaluate("state.shown[1].changes.expertOff") == off


def test_a_run_can_be_stopped(browser, files):
    browser.open(files / "page.html")  # at the pace at which one can watch
    browser.wait("state.running && state.running.trace && !state.running.trace.tokens.at(-1).given")
    assert browser.evaluate("document.getElementById('run').textContent") == "Stop"
    browser.evaluate("document.getElementById('run').click()")
    browser.wait(DONE, 5)
    assert browser.evaluate("state.runs[0].note") == "stopped"
    assert browser.evaluate("state.runs[0].trace.tokens.length") < 250
    assert browser.evaluate("document.getElementById('run').textContent") == "Run"
    browser.evaluate("document.getElementById('slow').click(), ask()")
    browser.wait(f"state.runs.length === 2 && {DONE}")  # high effort is there now
    browser.evaluate("document.getElementById('slow').click(), document.getElementById('both').click()")
    browser.wait("state.running && state.running.trace && !state.running.trace.tokens.at(-1).given")
    browser.evaluate("document.getElementById('run').click()")
    browser.wait(DONE, 5)
    assert browser.evaluate("[state.shown.length, state.shown[0].effort, state.shown[0].note]") == [1, "low", "stopped"]


def test_a_reply_that_does_not_end_is_compared_too(fresh):
    fresh.evaluate("state.config.max_position_embeddings = 100, document.querySelector('[value=low]').click()")
    fresh.wait(f"state.shown[0].effort === 'low' && {DONE}")
    fresh.evaluate("document.getElementById('switch-noSink').click()")
    fresh.wait(f"state.shown.length === 2 && {DONE}")
    notes = fresh.evaluate("state.runs.map((run) => run.note)")
    assert len(notes) == 3 and all(note.startswith("stopped after ") for note in notes[1:])


@pytest.mark.parametrize("dark", [False, True], ids=["light", "dark"])
@pytest.mark.parametrize("size", [(390, 844), (1280, 800)], ids=["phone", "desktop"])
def test_it_fits_the_screen(fresh, size, dark):
    fresh.look(*size, dark=dark)
    fresh.evaluate("document.getElementById('change').open = true, keep(state.shown[0], 150)")
    assert fresh.evaluate("document.documentElement.scrollWidth") <= size[0]
    chosen, panel = (fresh.evaluate(f"document.querySelector('{element}').getBoundingClientRect().toJSON()")
                     for element in (".chosen", "#panel"))
    assert 0 <= chosen["top"] and chosen["bottom"] <= (panel["top"] if size[0] < 600 else size[1])  # it is in sight
    ground = fresh.evaluate("getComputedStyle(document.body).backgroundColor")
    assert (sum(map(int, re.findall(r"\d+", ground))) < 100) == dark


def test_a_recorded_run_is_shown_without_a_model(browser, files):
    recorded = json.loads((files / "run.json").read_text(encoding="utf-8"))
    browser.open(files / "run.html")
    browser.wait(DONE)
    assert browser.errors == []
    assert browser.evaluate("document.getElementById('ask').hidden")
    assert browser.evaluate("document.querySelectorAll('.token').length") == len(recorded["tokens"])
    assert QUESTIONS[2] in browser.evaluate("document.getElementById('about').textContent")
    browser.evaluate("keep(state.shown[0], 3)")
    first = browser.evaluate("document.querySelector('#panel .lens span').firstChild.textContent")
    assert first == recorded["tokens"][3]["layers"][0]["lens"][0][1].replace(" ", "␣").replace("\n", "↵")
