"""Answers and arguments held to a schema: always complete JSON of it, drawn as if all else had been masked."""

import json
from pathlib import Path

import jsonschema
import numpy as np
import pytest
from scripted import Scripted, ask

import conversation
import gptoss
import tokenizer as tokenizers
from conversation import Constraint, Conversation, LocalEngine
from grammar import Grammar, GrammarError
from harmony import Function, Namespace

ROOT = Path(__file__).resolve().parent.parent
PERSON = {"title": "person", "description": "Somebody.", "type": "object", "additionalProperties": False,
          "required": ["name", "age", "tags"],
          "properties": {"name": {"type": "string"}, "age": {"type": "integer"}, "nick": {"type": ["string", "null"]},
                         "tags": {"type": "array", "items": {"enum": ["a", "b", "\u00fc"]}, "maxItems": 3}}}
STOPS = ("<|return|>", "<|call|>", "<|endoftext|>")


class Noise:
    """An engine whose logits are noise, larger for what ends things: a model that obeys nothing but its constraint.

    wish: ids that it would like to write, one after the other, whatever came before."""
    context = 4096

    def __init__(self, tokenizer, wish=()):
        self.tokenizer, self.wish = tokenizer, list(wish)
        self.bias = np.zeros(tokenizer.vocab_size)
        for id in range(tokenizer.vocab_size):
            text = tokenizer.decode([id])
            self.bias[id] = 9.0 if text in tokenizer.special_tokens else 7.0 if set(text) <= set('"}],') else 0.0

    def generate(self, tokens, *, max_tokens=800, temperature=1.0, seed=0, logits_processor=None, **_):
        rng, ids = np.random.default_rng([1, seed]), []
        while len(ids) < max_tokens:
            logits = (rng.normal(size=len(self.bias)) * 2 + self.bias).astype(np.float32)
            if len(ids) < len(self.wish):
                logits[self.wish[len(ids)]] = 50
            ids.append(gptoss.sample(logits_processor(ids, logits) if logits_processor else logits, rng, temperature))
            yield ids[-1]
            if ids[-1] in (self.tokenizer.special_tokens[name] for name in STOPS):
                return


def test_noise_answers_in_json(tokenizer):
    """Every reply that ends is JSON of the schema, whatever was thought before. One that is cut off says so."""
    ended = 0
    for seed in range(30):
        said = ask(Conversation(Noise(tokenizer), tokenizer, schema=PERSON), "Who?", seed=seed)
        if "stopped after" in said.get("note", ""):
            continue
        ended += 1
        jsonschema.validate(json.loads(said["final"]), PERSON)
    assert ended > 20


@pytest.mark.parametrize("wish", [
    "[return]", "[end]", "[call]", "[endoftext]", "[message]{}[return]", "Well.[return]", "[channel]final[return]",
    "[channel]final Well.[return]", "[channel]analysis[message]Hm.[return]", "[channel]analysis[message]Hm.[endoftext]",
    "[channel]analysis[message]Hm.[end][start]user[message]Me?[end]",
    "[channel]analysis[message]Hm.[end][start]system[channel]final[message]{}[return]",
    "[channel]commentary[message]So.[return]", "[channel]final[message]Well.[return]",
    "[channel]final[message][return]", "[channel]final[message]{[end][start]assistant[channel]final[message]}[return]",
    '[channel]final [constrain]json[message]{"name": "A", "age": 1.5}[return]',
])
def test_no_way_round(tokenizer, wish):
    """Whatever else the model would like to do, the turn ends with JSON of the schema."""
    engine = Noise(tokenizer, Scripted(tokenizer).ids(wish))
    chats = [Conversation(engine, tokenizer, schema=PERSON) for _ in range(5)]
    replies = [ask(chat, "Who?", seed=seed) for seed, chat in enumerate(chats)]
    ended = [said for said in replies if "stopped after" not in said.get("note", "")]
    assert len(ended) >= 3
    for said in ended:
        jsonschema.validate(json.loads(said["final"]), PERSON)


def test_what_the_model_would_write_anyway_is_left_alone(tokenizer):
    """Thoughts and a right answer come out as the model wishes, in both forms of the header, blanks and all."""
    for header in ("[channel]final[message]", "[channel]final [constrain]json[message]"):
        text = '{"name": "J\u00f6rg \\"x\\"", "age": 40, "tags": ["a", "\u00fc"]}'
        wish = f"[channel]analysis[message]A \"thought\" {{.[end][start]assistant{header}{text}[return]"
        engine = Noise(tokenizer, Scripted(tokenizer).ids(wish))
        assert ask(Conversation(engine, tokenizer, schema=PERSON), "Who?") == {
            "analysis": 'A "thought" {.', "final": text}


def test_arguments_of_functions(tokenizer, monkeypatch):
    """Those whose schema can be held are held to it, by calls under any header; others are left to the function."""
    class Tool:
        def __init__(self, parameters):
            self.namespace = Namespace("functions", functions=(Function("add", "Adds.", parameters),))

        def call(self, recipient, content):
            return f"told: {content}"

    monkeypatch.setattr(conversation, "CALLS", 1)
    wish = list(Scripted(tokenizer).ids("[channel]commentary to=functions.add [constrain]json[message]Oh no![call]"))
    for parameters, held in ((PERSON, True), ({"type": "object", "not": {}}, False), (None, False)):
        ends = 0
        for seed in range(5):
            chat = Conversation(Noise(tokenizer, wish), tokenizer, tools=[Tool(parameters)])
            said = ask(chat, "Well?", seed=seed)
            if held and "result" in said:
                jsonschema.validate(json.loads(said["result"].removeprefix("told: ")), PERSON)
                ends += 1
            elif not held:
                assert said["result"].startswith("told: Oh no!")
        assert ends >= 3 or not held


def test_a_draw_is_one_from_the_masked_distribution(tokenizer):
    """20,000 draws beside the probabilities of all ids, those that the grammar refuses masked. The total variation of
    n draws over k likely ids from their distribution is about sqrt(k / (2 pi n)) on average, here 0.02."""
    grammar, rng = Grammar(PERSON), np.random.default_rng(5)
    logits = rng.normal(size=tokenizer.vocab_size).astype(np.float32) * 3
    state = grammar.advance(grammar.start, b'{"name": "A')
    special = set(tokenizer.special_tokens.values())
    allowed = np.array([id not in special and grammar.advance(state, tokenizer.decode_bytes([id])) is not None
                        for id in range(tokenizer.vocab_size)])
    logits[~allowed] += 3  # the model would rather write what is refused
    for temperature in (1.0, 0.5):
        held = Constraint(tokenizer, grammar, {}, temperature=temperature, seed=1)
        held.grammar, held.state = grammar, state
        takes = lambda data: grammar.advance(state, data) is not None  # noqa: E731
        drawn = [int(np.argmax(held._hold(logits, takes, []))) for _ in range(20_000)]
        expected = gptoss.softmax(np.where(allowed, logits, -np.inf).astype(np.float64) / temperature)
        found = np.bincount(drawn, minlength=len(logits)) / len(drawn)
        assert 0.5 * np.abs(found - expected).sum() < 0.04
    best = np.argmax(np.where(allowed, logits, -np.inf))
    greedy = Constraint(tokenizer, grammar, {}, temperature=0)
    assert np.argmax(greedy._hold(logits, takes, [])) == best
    filtered = Constraint(tokenizer, grammar, {}, top_k=5, seed=1)  # all five are refused: then the best that is left
    assert np.argmax(filtered._hold(logits + 100 * ~allowed, takes, [])) == best


def test_no_noise_is_infinite():
    """Among 200,000 ids, one that the model is sure of is drawn each time."""
    tokenizer, grammar = tokenizers.load(), Grammar({"type": "string"})
    state = grammar.advance(grammar.start, b'"')
    logits = np.zeros(tokenizer.vocab_size, np.float32)
    logits[sure := tokenizer.encode("a")[0]] = 45  # the others together have exp(-33) of its probability
    constraint = Constraint(tokenizer, grammar, {}, seed=0)
    drawn = {int(np.argmax(constraint._hold(logits, lambda data: grammar.advance(state, data) is not None, [])))
             for _ in range(500)}
    assert drawn == {sure}


def test_a_recipient_whose_characters_are_several_tokens(tokenizer):
    class Tool:
        namespace = Namespace("functions", functions=(Function("gr\u00f6\u00dfe_\u65e5", "?"),))

        def call(self, recipient, content):
            return recipient

    wish = Scripted(tokenizer).ids("[channel]commentary to=functions.gr\u00f6\u00dfe_\u65e5[message]{}[call]")
    chat = Conversation(Noise(tokenizer, wish), tokenizer, tools=[Tool()], schema=PERSON)
    assert next(text for channel, text in chat.ask("Who?") if channel == "result") == "functions.gr\u00f6\u00dfe_\u65e5"


def test_another_logits_processor_comes_first(tokenizer):
    def no_brace(ids, logits):
        logits = logits.copy()
        logits[tokenizer.encode("}")] = -np.inf
        return logits

    said = ask(Conversation(Noise(tokenizer), tokenizer, schema={"type": "string"}), "?", logits_processor=no_brace)
    assert "}" not in said["final"] and isinstance(json.loads(said["final"]), str)


def test_the_schema_is_told_at_the_end_of_the_developer_message(tokenizer):
    tool = type("Tool", (), {"namespace": Namespace("functions", functions=(Function("add", "Adds."),))})
    compact = json.dumps(PERSON, ensure_ascii=False, separators=(",", ":"))
    told = f"# Response Formats\n\n## person\n\n// Somebody.\n{compact}<|end|>"
    for options, before in (({}, "<|start|>developer<|message|>"), ({"instructions": "Be brief."}, "Be brief.\n\n"),
                            ({"instructions": "Be brief.", "tools": [tool]}, "} // namespace functions\n\n")):
        text = tokenizer.decode(Conversation(Scripted(tokenizer), tokenizer, schema=PERSON, **options).prompt("Who?"))
        assert before + told in text
    text = tokenizer.decode(Conversation(Scripted(tokenizer), tokenizer, schema={"type": "null"}).prompt("?"))
    assert '## answer\n\n{"type":"null"}<|end|>' in text


def test_what_cannot_be_held_is_refused_at_once(tokenizer):
    with pytest.raises(GrammarError, match="pattern"):
        Conversation(Scripted(tokenizer), tokenizer, schema={"type": "string", "pattern": "^a"})
    engine = Scripted(tokenizer)
    engine.processes_logits = False
    with pytest.raises(GrammarError, match="schema: expected an engine of this machine, found a server"):
        Conversation(engine, tokenizer, schema=PERSON)


@pytest.mark.parametrize("effort", ["low", "high"])
def test_the_small_model_answers_in_json(tokenizer, effort):
    """It was never shown such a thing, but its constraint gets it there. The same seed, the same reply."""
    model = gptoss.load(ROOT / "nano")
    schema = {"type": "object", "properties": {"answer": {"type": "integer"}}, "required": ["answer"],
              "additionalProperties": False}
    for sampling in ({"temperature": 0}, {"seed": 3}):
        replies = [ask(Conversation(LocalEngine(model), tokenizer, effort=effort, schema=schema), "What is 12 + 30?",
                       max_tokens=300, **sampling) for _ in range(2)]
        assert replies[0] == replies[1]
        jsonschema.validate(json.loads(replies[0]["final"]), schema)
