"""The remote engine, against servers of this file that send what vLLM 0.32 and llama.cpp's server of 2026-10-06 were
seen to send, and what may go wrong. tests/real_server.py asks the real ones."""

import json
import os
import signal
import socket
import threading
import time
from contextlib import closing

import pytest
from conftest import ROOT
from servers import (
    COMPLETIONS,
    CUT,
    END,
    MODELS,
    SIMPLE,
    STOP,
    WAIT,
    llama,
    llama_end,
    llama_event,
    vllm,
    vllm_card,
    vllm_event,
)

import gptoss
import remote
import tokenizer as tokenizers
from conversation import Conversation, LocalEngine
from harmony import DeveloperContent, Message, SystemContent, render
from remote import EngineError, RemoteEngine

KEY = "sk-secret"


# ---- What is asked, and what comes ----------------------------------------------------------------------------------

def test_vllm_gets_ids_and_gives_ids(serve):
    usage = vllm_event([]) | {"choices": [], "usage": {"prompt_tokens": 3, "completion_tokens": 6, "total_tokens": 9}}
    server = serve(vllm([vllm_event([200005]), vllm_event([]), ": a comment\n\n", vllm_event([17196, 200008, 220]),
                         usage, "data:" + json.dumps(vllm_event([13])) + "\r\n\r\n",
                         vllm_event([200002], "stop", 200002), usage, END]))
    engine = server.engine(api_key=KEY)
    assert (engine.context, engine.model, engine.processes_logits) == (1000, "m", False)
    assert list(engine.generate([1, 2, 3])) == [200005, 17196, 200008, 220, 13, 200002]
    path, headers, body = server.asked[-1]
    assert path == "/v1/completions" and headers["Authorization"] == f"Bearer {KEY}"
    assert body == {"model": "m", "prompt": [1, 2, 3], "stream": True, "max_tokens": 997, "temperature": 1.0,
                    "top_k": 0, "top_p": 1.0, "min_p": 0.0, "return_token_ids": True, "skip_special_tokens": False,
                    "stop_token_ids": sorted(STOP), "ignore_eos": True}
    list(engine.generate(range(20), max_tokens=7, temperature=0, top_k=5, top_p=0.5, min_p=0.1, seed=3, stop=[9]))
    changed = {"prompt": list(range(20)), "max_tokens": 7, "temperature": 0, "top_k": 5, "top_p": 0.5, "min_p": 0.1,
               "seed": 3, "stop_token_ids": [9]}
    assert server.body() == body | changed


def test_llama_cpp_gets_ids_and_gives_ids(serve):
    server = serve(llama([": ping\n\n", llama_event(1, [200005], "<|channel|>"), llama_event(2, [17196], "final"),
                          llama_event(3, [200012]), llama_end(3, "eos")]))
    engine = server.engine("other")
    assert (engine.context, engine.model) == (1000, "m")
    assert list(engine.generate([1, 2, 3], seed=7, min_p=0.1)) == [200005, 17196, 200012]
    assert server.asked[-1][0] == "/completion" and "Authorization" not in server.asked[-1][1]
    assert server.body() == {"model": "m", "prompt": [1, 2, 3], "stream": True, "n_predict": 997, "temperature": 1.0,
                             "top_k": 0, "top_p": 1.0, "min_p": 0.1, "seed": 7, "return_tokens": True,
                             "cache_prompt": True, "samplers": ["temperature", "top_k", "top_p", "min_p"]}


def test_a_reply_ends_at_its_stop_whatever_else_comes(serve):
    for answers in (vllm([vllm_event([5]), vllm_event([200012, 7]), vllm_event([8]), WAIT]),
                    llama([llama_event(1, [5]), llama_event(2, [200012]), llama_event(3, [8]), WAIT])):
        server = serve(answers)
        assert list(server.engine().generate([1])) == [5, 200012]
        assert server.gone.wait(10)  # nothing more is wanted, and the server sees that


def test_a_stop_id_that_is_only_named_is_given(serve):
    for ids in ([], [5]):
        engine = serve(vllm([vllm_event([4]), vllm_event(ids, "stop", 200002), END])).engine()
        assert list(engine.generate([1])) == [4, *ids, 200002]
    assert list(serve(vllm([vllm_event([4], "stop", "text"), END])).engine().generate([1])) == [4]


def test_the_limit_ends_a_reply(serve):
    assert list(serve(vllm([event | {"error": None} for event in SIMPLE[:2]])).engine().generate([1])) == [5, 6]
    assert list(serve(llama([llama_event(1, [5]), llama_end(1, "limit")])).engine().generate([1])) == [5]


def test_a_character_in_pieces(serve):
    """llama.cpp sends no event for a token that ends within a character, and counts it."""
    events = [llama_event(1, [7], "a"), llama_event(4, [9], " 👋"), llama_event(5, [10], "b"), llama_end(7, "limit")]
    server = serve(llama(events, [30, 31, 9]))
    assert list(server.engine().generate([1])) == [7, 30, 31, 9, 10]
    assert server.asked[-1][0] == "/tokenize" and server.body() == {"model": "m", "content": " 👋"}
    for tokens in ([30, 9], [30, 31, 32, 9], [30, 31, 32]):  # not those ids, then
        with pytest.raises(EngineError, match="expected all token ids, found 2 too few, for ' 👋'"):
            list(serve(llama(events, tokens)).engine().generate([1]))
    with pytest.raises(EngineError, match="all token ids, found 1 too few"):
        list(serve(llama([llama_event(1, [7], "a"), llama_end(2, "eos")])).engine().generate([1]))


@pytest.mark.parametrize("ending", ["", "/", "/v1", "/v1/"])
@pytest.mark.parametrize("prefix", ["", "/behind/a/proxy"])
def test_an_address_with_and_without_v1(prefix, ending, serve):
    server = serve({prefix + path: answer for path, answer in vllm(SIMPLE).items()})
    engine = RemoteEngine(server.url + prefix + ending, stop=STOP)
    assert list(engine.generate([1])) == [5, 6]


def test_which_model(serve):
    cards = [vllm_card("big"), vllm_card("adapter", parent="big", max_model_len=None)]
    server = serve(vllm(SIMPLE) | {"/v1/models": (200, {"data": cards})})
    assert server.engine().model == server.engine("big").model == "big"
    adapter = server.engine("adapter")
    assert list(adapter.generate([1])) == [5, 6] and server.body()["model"] == "adapter"
    assert adapter.context == 1000
    with pytest.raises(EngineError, match="model: expected one of big, adapter, found 'small'$"):
        server.engine("small")


# ---- What goes wrong ------------------------------------------------------------------------------------------------

def ask(server, **options):
    return list(server.engine(**options).generate([1, 2]))


VLLM_ERROR = {"error": {"message": "top_k must be less", "type": "BadRequestError", "param": "top_k", "code": 400}}


@pytest.mark.parametrize(("answers", "message"), [
    (vllm([]) | {COMPLETIONS: (400, VLLM_ERROR)}, "expected an answer, found 400: top_k must be less$"),
    (vllm([]) | {COMPLETIONS: (404, {"object": "error", "message": "The model `m` does not exist."})},
     "found 404: The model `m` does not exist.$"),
    (vllm([]) | {COMPLETIONS: (401, {"error": "Unauthorized"})}, "expected an API key that it accepts, found none$"),
    (vllm([]) | {COMPLETIONS: (500, "<html>Bad\x1b[2J\nGateway</html>")}, r"500: <html>Bad\[2J Gateway</html>$"),
    (vllm([]) | {COMPLETIONS: (503, "long " * 1000)}, "503: (long ){30,39}.{0,5}$"),
    (vllm([]), "expected a reply with an end, found one that breaks off$"),
    (vllm([vllm_event([5]), END]), "expected a reply with an end, found one that breaks off$"),
    (vllm([vllm_event([5]), CUT]), "expected a reply with an end, found one that breaks off$"),
    (vllm([vllm_event([5]), VLLM_ERROR, END]), "expected a reply, found top_k must be less$"),
    (vllm([vllm_event([5], "abort"), END]), "expected a reply, found abort$"),
    (vllm([vllm_event(None)]), r"expected token ids \(vLLM has them since 0.10.2\), found none$"),
    (vllm(["data: {5\n\n"]), r"expected a JSON object, found \{5$"),
    (vllm([f"data: {'[' * 100_000}\n\n"]), r"expected a JSON object, found \[{160,200}$"),
    (vllm([]) | {COMPLETIONS: (500, "[" * 90_000)}, r"expected an answer, found 500: \[{160,200}$"),
    (vllm(["data: [5]\n\n"]), r"expected a JSON object, found \[5\]$"),
    (vllm([{"choices": 5}]), "expected events with token ids, found others"),
    (vllm([{}]), r"expected events with token ids, found others \(KeyError\('choices'\)\)$"),
    (vllm([vllm_event(["five"])]), "expected token ids, found 'five'$"),
    (vllm([vllm_event([-1])]), "expected token ids, found -1$"),
    (vllm(['data: {"choices": [{"token_ids": [1e999], "finish_reason": null}]}\n\n']), "token ids, found inf$"),
    (vllm([], max_model_len="4096"), "context: expected a number of tokens, found '4096'$"),
    (llama([{"content": "text"}]), r"expected events with token ids, found others \(KeyError\('tokens'\)\)$"),
    (llama([]) | {"/completion": (400, {"error": {"message": "exceeds the available context size"}})},
     "found 400: exceeds the available context size$"),
    (llama([]) | {"/props?model=m": (200, {})}, "expected the context, found others"),
    ({}, "expected an answer, found 404: .*Not Found"),
    (vllm([]) | {MODELS: (503, {"error": {"code": 503, "message": "Loading model"}})}, "found 503: Loading model$"),
    (vllm([]) | {MODELS: (200, "<html>")}, "expected a JSON object, found <html>$"),
    (vllm([]) | {MODELS: (200, {"data": []})}, "model: expected one of , found None$"),
    (vllm([]) | {MODELS: (200, {"models": []})}, "expected a list of models, found others"),
    (vllm([]) | {MODELS: (200, {"data": [{"id": "m", "owned_by": "library"}]})},
     "expected vLLM's server or llama.cpp's, found one of library$"),
])
def test_a_server_that_does_not_do_it_is_said_in_one_sentence(answers, message, serve):
    server = serve(answers)
    with pytest.raises(EngineError, match=message) as raised:
        ask(server)
    said = str(raised.value)
    assert said.startswith(server.url) and said.isprintable() and len(said) < 300


def test_what_came_before_an_error_is_given(serve):
    reply = serve(vllm([vllm_event([5, 6]), CUT])).engine().generate([1])
    assert [next(reply), next(reply)] == [5, 6]
    with pytest.raises(EngineError):
        next(reply)


def test_a_server_that_is_not_there(serve):
    with socket.create_server(("127.0.0.1", 0)) as unused:
        port = unused.getsockname()[1]
    for url, message in ((f"http://127.0.0.1:{port}", "expected an answer, found .*refused"),
                         ("http://no.such.host.invalid:8000", "expected an answer, found .*(n[ao]me|known|resol)"),
                         (f"http://{'a' * 70}:8000", "expected an answer, found .*")):
        with pytest.raises(EngineError, match=message):
            RemoteEngine(url, stop=STOP)
    with pytest.raises(EngineError, match="expected an answer, found .*(SSL|record)"):  # it speaks no TLS
        RemoteEngine(serve(vllm([])).url.replace("http", "https"), stop=STOP)


@pytest.mark.parametrize("url", ["", "127.0.0.1:8000", "localhost:8000", "ftp://host", "http://", "http://host:port",
                                 "http://[::1", "http://user:secret@host"])
def test_what_is_no_address(url):
    with pytest.raises(ValueError, match="the server's address: expected one like http://host:8000, found") as raised:
        RemoteEngine(url, stop=STOP)
    assert "secret" not in str(raised.value)


def test_a_server_that_is_silent(serve, monkeypatch):
    server = serve(vllm([vllm_event([5]), WAIT]))
    reply = server.engine().generate([1])
    monkeypatch.setattr(remote, "SILENCE", 0.3)
    assert next(reply) == 5
    began = time.monotonic()
    with pytest.raises(EngineError, match="expected an answer within 0.3 s, found none"):
        next(reply)
    assert time.monotonic() - began < remote.CONNECT / 2
    assert server.gone.wait(10)


@pytest.mark.parametrize("answers", [
    vllm([" " * 1200]), vllm([vllm_event([5]), "data: " + "5" * 1200]),  # lines without an end
    vllm([]) | {MODELS: (200, "[" + " " * 1200)},
])
def test_a_server_that_sends_without_end(answers, serve, monkeypatch):
    monkeypatch.setattr(remote, "MOST", 1000)
    with pytest.raises(EngineError, match="expected fewer than 1,000 bytes at once, found more$"):
        ask(serve(answers))


def test_the_key(serve):
    for answers in (llama([]), vllm([])):
        server = serve(answers, KEY)
        for key, found in ((None, "none"), ("sk-other", "another")):
            with pytest.raises(EngineError, match=f"expected an API key that it accepts, found {found}$") as raised:
                server.engine(api_key=key)
            assert "sk-other" not in str(raised.value)
        assert server.engine(api_key=KEY).context == 1000
    for key in ("sk-öther", "sk-other\n"):
        with pytest.raises(ValueError, match="the API key: expected printable ASCII characters, found others$"):
            server.engine(api_key=key)


@pytest.mark.parametrize("answers", [
    vllm([]) | {COMPLETIONS: (400, {"error": {"message": f"your key {KEY} is too old"}})},
    vllm([]) | {COMPLETIONS: (500, f"Authorization: Bearer {KEY}")},
    vllm([{"error": KEY}]), vllm([vllm_event([5], KEY)]), vllm([f"data: {KEY}\n\n"]), vllm([vllm_event([KEY])]),
    vllm([], max_model_len=None, owned_by=KEY), llama([llama_event(3, [5], KEY)]),
    vllm([]) | {MODELS: (200, f"{KEY} {KEY}")},
])
def test_a_server_that_repeats_the_key(answers, serve):
    with pytest.raises(EngineError) as raised:
        ask(serve(answers), api_key=KEY)
    assert "[key]" in str(raised.value) and KEY not in str(raised.value)


@pytest.mark.parametrize(("tokens", "sampling", "message"), [
    ([], {}, "tokens: expected ids, at least one"),
    ([1.5], {}, "tokens: expected ids"),
    ([-1], {}, "tokens: expected ids"),
    (["a"], {}, "tokens: expected ids"),
    ([1] * 1000, {}, "tokens: expected fewer than 1000, the context, found 1000"),
    ([1], {"temperature": -1}, "temperature: expected a number of at least 0"),
    ([1], {"max_tokens": 0}, "max_tokens: expected an integer of at least 1"),
    ([1], {"logits_processor": lambda ids, logits: logits}, "a server chooses tokens itself; "),
])
def test_what_cannot_be_asked_is_said_before_the_server_hears_of_it(tokens, sampling, message, serve):
    server = serve(vllm(SIMPLE))
    engine = server.engine()
    with pytest.raises(ValueError, match=message):
        engine.generate(tokens, **sampling)
    assert [path for path, _, _ in server.asked] == [MODELS]


# ---- Stopping -------------------------------------------------------------------------------------------------------

def test_closing_a_reply_closes_the_connection(serve):
    server = serve(vllm([vllm_event([5]), vllm_event([6]), WAIT]))
    with closing(server.engine().generate([1])) as reply:
        assert next(reply) == 5 and not server.gone.is_set()
    assert server.gone.wait(10)


def test_an_interrupt_closes_the_connection(serve):
    server = serve(vllm([vllm_event([5]), WAIT]))
    reply = server.engine().generate([1])
    assert next(reply) == 5
    main = threading.main_thread().ident
    interrupt = signal.pthread_kill if hasattr(signal, "pthread_kill") else lambda _, s: os.kill(os.getpid(), s)
    threading.Timer(0.3, interrupt, (main, signal.SIGINT)).start()
    with pytest.raises(KeyboardInterrupt):  # while it waits for the next id
        next(reply)
    assert server.gone.wait(10)


# ---- A conversation -------------------------------------------------------------------------------------------------

@pytest.mark.parametrize("kind", ["vllm", "llama.cpp"])
def test_a_conversation_is_the_same_with_either_engine(kind, serve):
    """The server of this test runs nano/. What it gets is what harmony renders, and what comes is shown the same."""
    tokenizer, nano = tokenizers.load(ROOT / "nano"), gptoss.load(ROOT / "nano", backend="numpy")

    def continued(body):
        ids = list(gptoss.generate(nano, body["prompt"], temperature=body["temperature"]))
        if kind == "vllm":
            return 200, [*(vllm_event([id]) for id in ids[:-1]), vllm_event(ids[-1:], "stop", ids[-1]), END]
        text = [tokenizer.decode([id]) if id not in tokenizer.special_tokens.values() else "" for id in ids]
        return 200, [*(llama_event(n + 1, [id], text[n]) for n, id in enumerate(ids)), llama_end(len(ids), "eos")]

    path = COMPLETIONS if kind == "vllm" else "/completion"
    server = serve((vllm([]) if kind == "vllm" else llama([])) | {path: continued})
    stop = [tokenizer.special_tokens[name] for name in ("<|return|>", "<|call|>", "<|endoftext|>")]
    questions, turns = ("What is 3 * 14?", "Hello!", "Which is larger, 9.9 or 9.11?"), []
    for engine in (LocalEngine(nano), server.engine(stop=stop)):
        conversation = Conversation(engine, tokenizer, instructions="Be brief.", date="2025-08-05")
        turns.append([list(conversation.ask(question, temperature=0)) for question in questions])
        assert all("final" in dict(pieces) for pieces in turns[-1])
    assert turns[0] == turns[1]

    messages = [Message("system", [SystemContent(conversation_start_date="2025-08-05")]),
                Message("developer", [DeveloperContent("Be brief.")])]
    prompts = [body["prompt"] for asked, _, body in server.asked if asked == path]
    for question, answer, prompt in zip(questions, conversation.messages[1::2], prompts, strict=True):
        messages.append(Message("user", question))
        assert prompt == render(messages, tokenizer)
        messages.append(answer)


def test_a_server_that_fails_leaves_the_conversation_as_it_was_said(serve):
    tokenizer = tokenizers.load(ROOT / "nano")
    ids = tokenizer.encode("<|channel|>final<|message|>Half", "all")
    server = serve(vllm([vllm_event(ids), CUT]))
    conversation = Conversation(server.engine(), tokenizer)
    with pytest.raises(EngineError):
        list(conversation.ask("Hello!"))
    assert conversation.messages == [Message("user", "Hello!"), Message("assistant", "Half", channel="final")]
