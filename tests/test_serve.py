"""The service with a scripted engine: what comes for what is asked, in which order, in both forms of the API."""

import asyncio
import base64
import json
import os
import re
import signal
import socket
import subprocess
import sys
import threading
import time

import httpx
import pytest
from conftest import ROOT
from service import ANSWER, THOUGHT, Answering, client, post, running, until
from test_constraint import PERSON, Noise

import gptoss
import serve
from conversation import Conversation, LocalEngine
from harmony import Function, Message
from remote import EngineError, RemoteEngine
from serving import chat, request, responses
from serving.turn import End, Piece, Until

ADD = {"name": "add", "description": "Adds.", "parameters": {
    "type": "object", "properties": {"a": {"type": "number"}, "b": {"type": "number"}}, "required": ["a", "b"]}}
FLAT, NESTED = {"type": "function", **ADD}, {"type": "function", "function": ADD}
CALL = THOUGHT + ' to=functions.add[channel]commentary [constrain]json[message]{"a": 2, "b": 2}[call]'
PREAMBLE = THOUGHT + ("[channel]commentary[message]I add.[end][start]assistant[channel]commentary to=functions.add "
                      "[constrain]json[message]{}[call]")


@pytest.fixture
def ask(tokenizer):
    """Asks a service whose engine says this, and gives what comes, which is no error. `ask.engine`: the engine."""
    def asking(reply, path, body, **options):
        asking.engine = reply if hasattr(reply, "generate") else Answering(tokenizer, reply)
        status, found = post(serve.app(asking.engine, tokenizer, **options), path, body)
        assert status == 200, found
        return found

    return asking


def prompt(ask, n=-1):
    return ask.engine.tokenizer.decode(ask.engine.prompts[n])


# ---- Responses ------------------------------------------------------------------------------------------------------

def deltas(kind, letters, text):
    return [(f"response.{kind}.delta", letter) for letter in letters] + [(f"response.{kind}.done", text)]


def outline(events):
    """The kinds of events and what is in them."""
    said = []
    for event in events:
        what = event.get("delta", event.get("text", event.get("arguments", event.get("code"))))
        what = event.get("item", {}).get("type", what)
        said.append((event["type"], what) if what is not None else event["type"])
    return said


def test_the_events_of_an_answer(ask, tokenizer):
    """All of them, in order; each with its number, its item and its place; and the response is what they build."""
    events = ask(ANSWER, "responses", {"input": "2 + 2?", "stream": True})
    pieces = {text: [tokenizer.decode([id]) for id in tokenizer.encode(text)] for text in ("Hm.", "It is 4.")}
    assert outline(events) == [
        "response.created", "response.in_progress",
        ("response.output_item.added", "reasoning"), "response.content_part.added",
        *deltas("reasoning_text", pieces["Hm."], "Hm."), "response.content_part.done",
        ("response.output_item.done", "reasoning"),
        ("response.output_item.added", "message"), "response.content_part.added",
        *deltas("output_text", pieces["It is 4."], "It is 4."), "response.content_part.done",
        ("response.output_item.done", "message"), "response.completed"]
    assert [event["sequence_number"] for event in events] == list(range(len(events)))
    response = events[-1]["response"]
    assert [item["type"] for item in response["output"]] == ["reasoning", "message"]
    for event in events:
        if "output_index" in event:
            item = response["output"][event["output_index"]]
            assert event.get("item_id", event.get("item", {}).get("id")) == item["id"]
    done = [event["item"] for event in events if event["type"] == "response.output_item.done"]
    assert done == response["output"]
    assert len({event["response"]["id"] for event in events if "response" in event}) == 1
    assert events[0]["response"]["status"] == "in_progress" and response["status"] == "completed"
    assert response["usage"] == {
        "input_tokens": len(ask.engine.prompts[0]), "input_tokens_details": {"cached_tokens": 0},
        "output_tokens": len([*ask.engine.ids(ANSWER)]), "total_tokens": response["usage"]["total_tokens"],
        "output_tokens_details": {"reasoning_tokens": len(pieces["Hm."]) + 1}}

    whole = ask(ANSWER, "responses", {"input": "2 + 2?"})
    assert [item["content"] for item in whole["output"]] == [item["content"] for item in response["output"]]
    assert whole["usage"] == response["usage"] and whole.keys() == response.keys()


def test_the_events_of_a_call(ask):
    events = ask(CALL, "responses", {"input": "2 + 2?", "tools": [FLAT], "stream": True})
    [added] = [event for event in events if event["type"] == "response.output_item.added"
               and event["item"]["type"] == "function_call"]
    assert added["item"] == {"id": added["item"]["id"], "type": "function_call", "arguments": "", "name": "add",
                             "status": "in_progress", "call_id": added["item"]["call_id"]}
    parts = [event["delta"] for event in events if event["type"] == "response.function_call_arguments.delta"]
    assert len(parts) > 1 and "".join(parts) == '{"a": 2, "b": 2}'
    done, item_done, completed = events[-3:]
    assert (done["type"], done["arguments"]) == ("response.function_call_arguments.done", '{"a": 2, "b": 2}')
    assert item_done["item"] == added["item"] | {"arguments": '{"a": 2, "b": 2}', "status": "completed"}
    assert completed["response"]["output"][1] == item_done["item"] and completed["response"]["status"] == "completed"


def test_what_is_said_before_a_call(ask):
    body = {"input": "2 + 2?", "tools": [FLAT]}
    items = ask(PREAMBLE, "responses", body)["output"]
    assert [(item["type"], item.get("phase")) for item in items] == [
        ("reasoning", None), ("message", "commentary"), ("function_call", None)]
    [choice] = ask(PREAMBLE, "chat/completions", {"messages": [{"role": "user", "content": "?"}],
                                                  "tools": [NESTED]})["choices"]
    assert choice["message"]["content"] == "I add." and choice["finish_reason"] == "tool_calls"


def test_a_round_trip_of_items(ask, tokenizer):
    """What came is sent back with the result. The model sees its thought, its call and the result, as they were."""
    first = ask(CALL, "responses", {"input": "2 + 2?", "tools": [FLAT], "instructions": "Be brief."})
    call = first["output"][1]
    result = {"type": "function_call_output", "call_id": call["call_id"], "output": "4"}
    question = {"role": "user", "content": [{"type": "input_text", "text": "2 + 2?"}]}
    wanted = ('<|start|>user<|message|>2 + 2?<|end|><|start|>assistant<|channel|>analysis<|message|>Hm.<|end|>'
              '<|start|>assistant to=functions.add<|channel|>commentary <|constrain|>json<|message|>{"a": 2, "b": 2}'
              '<|call|><|start|>functions.add to=assistant<|channel|>commentary<|message|>4<|end|><|start|>assistant')
    body = {"tools": [FLAT], "instructions": "Be brief."}
    ask(ANSWER, "responses", body | {"input": [question, *first["output"], result]})
    assert prompt(ask).endswith(wanted) and "# Instructions\n\nBe brief.\n\n# Tools" in prompt(ask)

    kept = [{key: value for key, value in item.items() if key != "content"} for item in ask(
        CALL, "responses", body | {"input": "2 + 2?", "include": ["reasoning.encrypted_content"]})["output"]]
    assert base64.b64decode(kept[0]["encrypted_content"].removeprefix("gpt-oss:")) == b"Hm."
    ask(ANSWER, "responses", body | {"input": [question, *kept, result | {"call_id": kept[1]["call_id"]}]})
    assert prompt(ask).endswith(wanted)  # also for a client that sends back no content, as Codex

    app = serve.app(Answering(tokenizer, lambda text: ANSWER if "to=assistant" in text else CALL), tokenizer)
    _, first = post(app, "responses", body | {"input": "2 + 2?"})
    result["call_id"] = first["output"][1]["call_id"]
    status, second = post(app, "responses", body | {"previous_response_id": first["id"], "input": [result]})
    assert second["output"][1]["content"][0]["text"] == "It is 4." and status == 200
    status, third = post(app, "responses", body | {"previous_response_id": second["id"], "input": "And 3 + 3?"})
    assert status == 200
    assert post(app, "responses", body | {"previous_response_id": "resp_0", "input": "?"}) == (404, {"error": {
        "message": "previous_response_id: expected that of a response that is still kept, found 'resp_0'",
        "type": "invalid_request_error", "param": "previous_response_id", "code": "previous_response_not_found"}})
    _, unkept = post(app, "responses", body | {"input": "2 + 2?", "store": False})
    assert post(app, "responses", {"previous_response_id": unkept["id"], "input": "?"})[0] == 404


def test_earlier_responses_are_bounded(tokenizer, monkeypatch):
    monkeypatch.setattr(serve, "KEPT", 3000)
    app = serve.app(Answering(tokenizer), tokenizer)
    ids = [post(app, "responses", {"input": "x" * 500})[1]["id"] for _ in range(9)]
    found = [post(app, "responses", {"input": "?", "store": False, "previous_response_id": id})[0] for id in ids]
    assert found == sorted(found, reverse=True) and {*found} == {404, 200}


def test_a_limit_makes_it_incomplete(ask):
    for n in (3, 12):
        found = ask(ANSWER, "responses", {"input": "?", "max_output_tokens": n})
        assert found["status"] == "incomplete" and found["incomplete_details"] == {"reason": "max_output_tokens"}
        assert found["output"] == [] or found["output"][-1]["status"] == "incomplete"
    events = ask(ANSWER, "responses", {"input": "?", "max_output_tokens": 12, "stream": True})
    assert events[-1]["type"] == "response.incomplete"
    found = ask(ANSWER, "chat/completions", {"messages": [{"role": "user", "content": "?"}], "max_tokens": 12})
    assert found["choices"][0]["finish_reason"] == "length"


# ---- Chat Completions -----------------------------------------------------------------------------------------------

USER = {"messages": [{"role": "user", "content": "2 + 2?"}]}


def test_the_chunks_of_an_answer(ask):
    *chunks, done = ask(ANSWER, "chat/completions", USER | {"stream": True})
    assert done == "[DONE]" and len({chunk["id"] for chunk in chunks}) == 1
    changes = [chunk["choices"][0]["delta"] for chunk in chunks]
    assert changes[0] == {"role": "assistant", "content": ""} and changes[-1] == {}
    assert all(change["reasoning"] == change["reasoning_content"] for change in changes if "reasoning" in change)
    assert "".join(change.get("reasoning", "") for change in changes) == "Hm."
    assert "".join(change.get("content", "") for change in changes) == "It is 4."
    assert [chunk["choices"][0]["finish_reason"] for chunk in chunks] == [None] * (len(chunks) - 1) + ["stop"]

    *chunks, done = ask(ANSWER, "chat/completions", USER | {"stream": True, "stream_options": {"include_usage": True}})
    assert chunks[-1]["choices"] == [] and chunks[-1]["usage"]["completion_tokens"] > 9
    whole = ask(ANSWER, "chat/completions", USER)
    assert whole["usage"] == chunks[-1]["usage"]
    assert whole["choices"] == [{"index": 0, "finish_reason": "stop", "logprobs": None, "message": {
        "role": "assistant", "content": "It is 4.", "refusal": None, "reasoning": "Hm.", "reasoning_content": "Hm."}}]
    [choice] = ask(ANSWER, "chat/completions", USER | {"reasoning": {"effort": "high", "exclude": True}})["choices"]
    assert "reasoning" not in choice["message"] and "Reasoning: high" in prompt(ask)


def test_a_round_trip_of_messages(ask):
    first = ask(CALL, "chat/completions", USER | {"tools": [NESTED]})["choices"][0]
    message = first["message"]
    assert first["finish_reason"] == "tool_calls" and message["content"] is None
    [call] = message["tool_calls"]
    assert (call["type"], call["function"]) == ("function", {"name": "add", "arguments": '{"a": 2, "b": 2}'})
    *chunks, _ = ask(CALL, "chat/completions", USER | {"tools": [NESTED], "stream": True})
    parts = [part for chunk in chunks for part in chunk["choices"][0]["delta"].get("tool_calls", [])]
    assert parts[0]["function"] == {"name": "add", "arguments": ""} and parts[0]["id"].startswith("call_")
    assert "".join(part["function"]["arguments"] for part in parts) == '{"a": 2, "b": 2}'
    assert {part["index"] for part in parts} == {0}

    del message["content"]  # so the Agents SDK for JavaScript sends it back
    system = {"role": "system", "content": "Be brief."}
    result = {"role": "tool", "tool_call_id": call["id"], "content": "4"}
    ask(ANSWER, "chat/completions", {"messages": [system, *USER["messages"], message, result], "tools": [NESTED]})
    assert prompt(ask).endswith(
        '<|start|>assistant<|channel|>analysis<|message|>Hm.<|end|><|start|>assistant to=functions.add<|channel|>'
        'commentary <|constrain|>json<|message|>{"a": 2, "b": 2}<|call|><|start|>functions.add to=assistant<|channel|>'
        'commentary<|message|>4<|end|><|start|>assistant')
    assert "# Instructions\n\nBe brief." in prompt(ask)


def test_thoughts_of_earlier_turns_are_dropped(ask):
    said = {"role": "assistant", "content": "4.", "reasoning": "Easy."}
    ask(ANSWER, "chat/completions", {"messages": [*USER["messages"], said, *USER["messages"]]})
    assert "Easy." not in prompt(ask) and "<|channel|>final<|message|>4.<|end|>" in prompt(ask)


# ---- What both take -------------------------------------------------------------------------------------------------

@pytest.mark.parametrize(("said", "meant"), [
    (None, "medium"), ("none", "low"), ("minimal", "low"), ("low", "low"), ("Medium", "medium"), ("high", "high"),
    ("xhigh", "high"), ("max", "high")])
def test_effort_in_all_its_spellings(ask, said, meant):
    for path, body in (("responses", {"input": "?", "reasoning": {"effort": said}}),
                       ("chat/completions", USER | {"reasoning_effort": said}),
                       ("chat/completions", USER | {"reasoning": {"effort": said}}),
                       ("chat/completions", USER | {"chat_template_kwargs": {"reasoning_effort": said}})):
        ask(ANSWER, path, body)
        assert f"Reasoning: {meant}\n" in prompt(ask)


def test_what_is_not_known_is_ignored(ask):
    strange = [{"type": "custom", "name": "x"}, {"type": "mcp"}, {"type": "local_shell"}, {"type": "web_search"},
               {"type": "namespace", "tools": []}, {}]
    items = [{"type": "item_reference", "id": "x"}, {"type": "compaction"}, {"role": "user", "content": "Hello?"},
             {"type": "web_search_call", "id": "ws_1"}, {"type": "reasoning", "summary": [], "encrypted_content": "x"}]
    body = {"prompt_cache_key": "k", "parallel_tool_calls": True, "model": "gpt-9", "safety_identifier": 5,
            "user": {}, "logit_bias": {}, "store": False, "include": ["x"], "tool_choice": "auto"}
    found = ask(ANSWER, "responses", body | {"input": items, "tools": strange})
    assert found["status"] == "completed" and found["model"] == "gpt-oss" and prompt(ask).count("Hello?") == 1
    ask(ANSWER, "chat/completions", USER | body | {"tools": strange})
    assert "# Tools" not in prompt(ask)


def test_tool_choice(tokenizer):
    """none hides the tools. A call that is required comes, whatever the model would like, after a free thought."""
    engine = Answering(tokenizer)
    body = {"input": "?", "tools": [FLAT], "tool_choice": "none"}
    assert post(serve.app(engine, tokenizer), "responses", body)[0] == 200
    assert "# Tools" not in tokenizer.decode(engine.prompts[0])
    other, completed = FLAT | {"name": "subtract"}, 0
    for wish in (ANSWER, "[channel]final[message]No.[return]", "[return]", "No."):
        for choice, names in (
                ("required", {"add", "subtract"}), ({"type": "function", "name": "subtract"}, {"subtract"}),
                ({"type": "allowed_tools", "mode": "required", "tools": [{"name": "add"}]}, {"add"})):
            noise = Noise(tokenizer, Answering(tokenizer).ids(wish))
            body = {"input": "?", "tools": [FLAT, other], "tool_choice": choice, "seed": 3}
            status, found = post(serve.app(noise, tokenizer), "responses", body)
            calls = [item for item in found["output"] if item["type"] == "function_call"]
            assert status == 200 and not [item for item in found["output"] if item["type"] == "message"]
            if found["status"] == "completed":
                completed += 1
                assert [call["name"] in names for call in calls] == [True]
                assert json.loads(calls[0]["arguments"]).keys() >= {"a", "b"}
    assert completed > 4
    nested = {"type": "function", "function": {"name": "add"}}
    noise = Noise(tokenizer, Answering(tokenizer).ids(ANSWER))
    _, found = post(serve.app(noise, tokenizer), "chat/completions",
                    USER | {"tools": [NESTED], "tool_choice": nested, "seed": 1})
    assert found["choices"][0]["finish_reason"] == "tool_calls"


def test_structured_answers(tokenizer):
    """A model that would write anything writes JSON of the schema, after a thought."""
    form = {"type": "json_schema", "name": "person", "schema": PERSON, "strict": True}
    nested = {"type": "json_schema", "json_schema": {"name": "person", "schema": PERSON}}
    for n in range(3):
        wish = Answering(tokenizer).ids(THOUGHT + "[channel]final[message]Well[return]")
        app = serve.app(Noise(tokenizer, wish), tokenizer)
        _, found = post(app, "responses", {"input": "?", "text": {"format": form}, "seed": n})
        assert found["output"][0]["content"][0]["text"] == "Hm." or found["status"] == "incomplete"
        texts = [(found["status"] == "completed", found["output"][-1]["content"][0]["text"])]
        _, found = post(app, "chat/completions", USER | {"response_format": nested, "seed": n})
        [choice] = found["choices"]
        texts.append((choice["finish_reason"] == "stop", choice["message"]["content"]))
        assert any(ended for ended, _ in texts)
        assert all(json.loads(text).keys() >= {"name", "age", "tags"} for ended, text in texts if ended)
        _, found = post(app, "chat/completions", USER | {"response_format": {"type": "json_object"}, "seed": n})
        [choice] = found["choices"]
        assert choice["finish_reason"] == "length" or isinstance(json.loads(choice["message"]["content"]), dict)


@pytest.mark.parametrize(("stop", "text"), [("is", "It "), (["4", "zebra"], "It is "), ("zebra", "It is 4."),
                                            ("It", ""), (["is 4.!", ". "], "It is 4."), ("4.", "It is ")])
def test_stop_sequences(ask, stop, text):
    found = ask(ANSWER, "chat/completions", USER | {"stop": stop})["choices"][0]
    assert (found["message"]["content"], found["finish_reason"]) == (text, "stop")
    *chunks, _ = ask(ANSWER, "chat/completions", USER | {"stop": stop, "stream": True})
    assert "".join(chunk["choices"][0]["delta"].get("content", "") for chunk in chunks) == text


def test_a_stop_sequence_in_pieces():
    until = Until(["abc", "b!"])
    assert [until.feed(text) for text in ("xa", "b", "ab", "c")] == ["x", "", "ab", ""] and until.found == "abc"


def test_what_might_have_become_a_stop_sequence_is_text(ask):
    """At the end of a completion too, and before a call, not behind it."""
    body = {"stop": ["zebra"], "max_tokens": 50}
    [choice] = ask("It is a z[return]", "completions", body | {"prompt": "?"})["choices"]
    assert (choice["text"], choice["finish_reason"]) == ("It is a z", "stop")
    both = "[channel]final[message]It is a z[end][start]assistant" + CALL.removeprefix(THOUGHT)
    found = ask(both, "responses", body | {"input": "?", "tools": [FLAT]})["output"]
    assert [item["type"] for item in found] == ["message", "function_call"]
    assert found[0]["content"][0]["text"] == "It is a z"


def test_log_probabilities(nano, tokenizer):
    """Of each token of the answer, in both APIs: those of the model, and the likeliest first at temperature 0."""
    app = serve.app(LocalEngine(nano), tokenizer)
    question = {"role": "user", "content": "What is 3 * 14?"}
    _, found = post(app, "chat/completions", {"messages": [question], "logprobs": True, "top_logprobs": 2})
    [choice] = found["choices"]
    content = choice["logprobs"]["content"]
    assert "".join(token["token"] for token in content) == choice["message"]["content"]
    for token in content:
        assert token["logprob"] == token["top_logprobs"][0]["logprob"] > token["top_logprobs"][1]["logprob"]
        assert bytes(token["bytes"]).decode() == token["token"] and -1 < token["logprob"] <= 0
    _, events = post(app, "responses", {"input": [question], "include": ["message.output_text.logprobs"],
                                        "top_logprobs": 2, "stream": True})
    part = events[-1]["response"]["output"][1]["content"][0]
    assert [token["token"] for token in part["logprobs"]] == [token["token"] for token in content]
    told = [event["logprobs"] for event in events if event["type"] == "response.output_text.delta"]
    assert sum(told, []) == part["logprobs"]


def test_a_seed_gives_the_same_answer(nano, tokenizer):
    app = serve.app(LocalEngine(nano), tokenizer)
    texts = [post(app, "responses", {"input": "Hello!", "temperature": 3, "seed": seed, "max_output_tokens": 20})[1]
             ["output"][0]["content"] for seed in (1, 1, 2)]
    assert texts[0] == texts[1] != texts[2]


# ---- What models do -------------------------------------------------------------------------------------------------

def test_a_call_of_what_nobody_offered(ask):
    """With tools the model is told so and tries again; without any, what it wrote is at least a text."""
    wrong = "[channel]commentary to=functions.nothing [constrain]json[message]{\"x\": 1}[call]"
    replies = {0: wrong, 1: CALL}
    found = ask(lambda text: replies[text.count("Unknown function: functions.nothing")], "responses",
                {"input": "?", "tools": [FLAT]})
    assert [item["type"] for item in found["output"]] == ["reasoning", "function_call"]
    for body in ({"input": "?"}, {"input": "?", "tools": [FLAT], "tool_choice": "none"}):
        found = ask(wrong, "responses", body)
        assert [item["content"][0]["text"] for item in found["output"]] == ['{"x": 1}']
        assert found["status"] == "completed"


def test_a_call_without_arguments(ask):
    for header in ("[channel]commentary to=functions.add[call]", "[channel]commentary to=functions.add[message][call]"):
        found = ask(header, "responses", {"input": "?", "tools": [FLAT]})
        assert [(item["name"], item["arguments"]) for item in found["output"]] == [("add", "{}")]


def test_malformed_replies_are_answers(ask):
    """Every reply of test_conversation's table: an answer in both APIs, whole and streamed, and no markup."""
    from test_conversation import REPLIES

    for reply, shown in REPLIES:
        whole = ask(reply, "responses", {"input": "?", "tools": [FLAT]})
        events = ask(reply, "responses", {"input": "?", "tools": [FLAT], "stream": True})
        assert [[item["type"], item["status"]] for item in events[-1]["response"]["output"]] == [
            [item["type"], item["status"]] for item in whole["output"]]
        text = "".join(item["content"][0]["text"] for item in whole["output"] if item["type"] == "message")
        assert "<|" not in json.dumps(whole)
        if "call" not in shown and "N tokens" not in shown.get("note", ""):
            assert text == shown.get("commentary", "") + shown.get("final", "")
        [choice] = ask(reply, "chat/completions", USER)["choices"]
        assert choice["message"]["content"] is not None and choice["finish_reason"] in ("stop", "length")


def test_built_in_tools_run_only_where_they_are_allowed(ask):
    class Fake:
        from harmony import PYTHON as namespace

        def call(self, recipient, content):
            return "4\n"

        def close(self):
            closed.append(self)

    closed = []
    code = "[channel]analysis[message]I compute.[end][start]assistant to=python[channel]analysis code[message]2+2[call]"
    replies = lambda text: ANSWER if "python to=assistant" in text else code  # noqa: E731
    body = {"input": "?", "tools": [{"type": "code_interpreter", "container": {"type": "auto"}}]}
    found = ask(replies, "responses", body, builtin={"python": Fake})
    assert [item["type"] for item in found["output"]] == ["reasoning", "code_interpreter_call", "reasoning", "message"]
    assert found["output"][1] | {"id": 0} == {
        "id": 0, "type": "code_interpreter_call", "code": "2+2", "container_id": "local", "status": "completed",
        "outputs": [{"type": "logs", "logs": "4\n"}]}
    events = ask(replies, "responses", body | {"stream": True}, builtin={"python": Fake})
    kinds = [event["type"].removeprefix("response.code_interpreter_call") for event in events
             if "code_interpreter" in event["type"]]
    assert kinds[0] == ".in_progress" and [*dict.fromkeys(kinds)][1:] == [
        "_code.delta", "_code.done", ".interpreting", ".completed"]
    deadline = time.monotonic() + 10
    while len(closed) < 2 and time.monotonic() < deadline:  # it is closed when the last event has been sent
        time.sleep(0.01)
    assert len(closed) == 2
    ask(ANSWER, "responses", body)  # not allowed: not offered
    assert "python" not in prompt(ask)
    ask(ANSWER, "responses", {"input": "?"}, builtin={"python": Fake})  # allowed, and not asked for
    assert "python" not in prompt(ask) and len(closed) == 2


def test_a_tool_that_cannot_start_leaves_no_other_open(tokenizer):
    class Fake:
        from harmony import BROWSER as namespace
        call, closed = None, 0

        def close(self):
            Fake.closed += 1

    def broken():
        raise ValueError("python: expected a folder, found none")

    app = serve.app(Answering(tokenizer), tokenizer, builtin={"browser": Fake, "python": broken})
    body = {"input": "?", "tools": [{"type": "code_interpreter"}, {"type": "web_search"}]}
    assert post(app, "responses", body)[0] == 400 and Fake.closed == 1


def test_the_browser_cites_what_it_read(ask, tokenizer, tmp_path):
    from tools.browser import Browser, Folder

    (tmp_path / "tea.md").write_text("# Tea\n\nTea is a drink of leaves.\n")
    calls = [' to=browser.search[channel]analysis[message]{"query": "tea"}[call]',
             ' to=browser.open[channel]analysis[message]{"id": 0}[call]',
             "[channel]final[message]A drink of leaves\u30101\u2020L3\u3011.[return]"]
    found = ask(lambda text: calls[text.count("to=assistant")], "responses",
                {"input": "?", "tools": [{"type": "web_search_preview_2025_03_11"}], "stream": True},
                builtin={"browser": lambda: Browser(Folder(tmp_path), tokenizer)})[-1]["response"]["output"]
    assert [item["type"] for item in found] == ["web_search_call", "web_search_call", "message"]
    assert found[0]["action"] == {"type": "search", "query": "tea", "queries": ["tea"]}
    assert "[tea.md](tea.md)" in found[-1]["content"][0]["text"]


# ---- Errors ---------------------------------------------------------------------------------------------------------

@pytest.mark.parametrize(("path", "body", "status", "param", "code"), [
    ("responses", b"{", 400, "body", None), ("responses", b"[]", 400, "body", None),
    ("responses", b'{"input": NaN}', 400, "body", None), ("responses", b'{"input": "", "x": 1e999}', 400, "body", None),
    ("responses", b'{"x":' * 300 + b"1" + b"}" * 300, 400, "body", None),
    ("responses", b'{"input": "?", "x": [' + b"[]," * 400_000 + b"[]]}", 400, "body", None),
    ("responses", '{"input": "?"}'.encode("utf-16"), 400, "body", None),
    ("responses", {"input": "?", "previous_response_id": "x" * 10**6}, 404, "previous_response_id",
     "previous_response_not_found"),
    ("responses", {"input": "?", "tools": [FLAT | {"name": f"f{n}"} for n in range(999)], "tool_choice": {"name": "x"}},
     400, "tool_choice", None),
    ("responses", {}, 400, "input", None), ("responses", {"input": 5}, 400, "input", None),
    ("responses", {"input": []}, 400, "input", None), ("responses", {"input": [5]}, 400, "input[0]", None),
    ("responses", {"input": "?", "temperature": "hot"}, 400, "temperature", None),
    ("responses", {"input": "?", "temperature": -1}, 400, "temperature", None),
    ("responses", {"input": "?", "max_output_tokens": 0}, 400, "max_output_tokens", None),
    ("responses", {"input": "?", "reasoning": {"effort": "huge"}}, 400, "reasoning.effort", None),
    ("responses", {"input": "?", "tools": [{"type": "function", "name": "a b"}]}, 400, "tools[0].name", None),
    ("responses", {"input": "?", "tool_choice": {"type": "function", "name": "x"}}, 400, "tool_choice", None),
    ("responses", {"input": "?", "tool_choice": {"type": []}}, 400, "tool_choice", None),
    ("responses", {"input": "?", "text": {"format": {"type": "xml"}}}, 400, "text.format", None),
    ("responses", {"input": "?", "text": {"format": {"type": "json_schema", "schema": {"not": {}}}}},
     400, "schema", None),
    ("responses", {"input": [{"role": "user", "content": [{"type": "input_image"}]}]},
     400, "input[0].content[0]", None),
    ("responses", {"input": "\ud800"}, 400, "input[0].content", None),
    ("responses", {"input": "a b " * 20_000}, 400, "input", "context_length_exceeded"),
    ("responses", {"input": [{"role": "user", "content": ""}] * 20_000}, 400, "input", "context_length_exceeded"),
    ("chat/completions", {}, 400, "messages", None), ("chat/completions", USER | {"n": 2}, 400, "n", None),
    ("chat/completions", {"messages": [{"role": "king"}]}, 400, "messages[0].role", None),
    ("chat/completions", {"messages": [{"role": "tool", "tool_call_id": "x"}]}, 400, "messages[0].tool_call_id", None),
    ("completions", {"prompt": []}, 400, "prompt", None), ("completions", {"prompt": [10**9]}, 400, "prompt", None),
    ("completions", {"prompt": [["a"]]}, 400, "prompt", None),
    ("completions", {"prompt": [1] * 30_000}, 400, "input", "context_length_exceeded"),
    ("nothing", {}, 404, None, None),
])
def test_errors(tokenizer, path, body, status, param, code):
    found, said = post(serve.app(Answering(tokenizer), tokenizer), path, body)
    assert (found, said["error"]["param"], said["error"]["code"]) == (status, param, code)
    assert 0 < len(said["error"]["message"]) <= 500 and said["error"]["type"] == "invalid_request_error"


def test_an_engine_that_fails(tokenizer):
    class Broken(Answering):
        def slowly(self, ids):
            yield next(ids)
            raise self.error

    engine = Broken(tokenizer)
    app = serve.app(engine, tokenizer)
    for engine.error, status in ((EngineError("http://gpu:8000: expected a reply, found none"), 502),
                                 (ZeroDivisionError("secret"), 500), (SystemExit("secret"), 500)):
        found, said = post(app, "responses", {"input": "?"})
        assert found == status and said["error"]["code"] == "server_error" and "secret" not in str(said)
        _, events = post(app, "responses", {"input": "?", "stream": True})
        assert events[-1]["type"] == "response.failed" and events[-1]["response"]["status"] == "failed"
        _, chunks = post(app, "chat/completions", USER | {"stream": True})
        assert chunks[-1]["error"]["code"] == "server_error"
    engine.slowly = lambda ids: ids
    assert post(app, "responses", {"input": "?"})[0] == 200


@pytest.mark.parametrize(("error", "found"), [
    (MemoryError("Unable to allocate 2 GiB"), "too little memory"),
    (OSError(28, "No space left on device", "/secret"), "No space left on device")])
def test_a_machine_without_room(tokenizer, error, found, caplog, monkeypatch):
    """Whether it is noticed by the engine, by a tool that cannot start, or while a body is read: one sentence."""
    def fail(*_):
        raise error

    engine, body = Answering(tokenizer), {"input": "?", "tools": [{"type": "code_interpreter"}]}
    app = serve.app(engine, tokenizer, builtin={"python": fail})
    message = f"this machine: expected room for the request, found {found}"
    status, said = post(app, "responses", body)
    assert (status, said["error"]["message"], said["error"]["type"]) == (503, message, "server_error")
    app, engine.slowly = serve.app(engine, tokenizer), fail
    assert post(app, "responses", {"input": "?"})[0] == 503
    _, events = post(app, "responses", {"input": "?", "stream": True})
    assert events[-1]["response"]["error"]["message"] == message
    with monkeypatch.context() as patched:
        patched.setattr(serve, "parsed", fail)
        assert post(app, "responses", {"input": "?"})[0] == 503
    engine.slowly = lambda ids: ids
    assert post(app, "responses", {"input": "?"})[0] == 200 and not caplog.records


def test_a_thread_that_cannot_be_started_is_tried_again(tokenizer, monkeypatch):
    class Thread(threading.Thread):
        def start(self):
            raise RuntimeError("can't start new thread")

    app = serve.app(Answering(tokenizer), tokenizer)
    with monkeypatch.context() as patched:
        patched.setattr(serve.threading, "Thread", Thread)
        with pytest.raises(RuntimeError):
            post(app, "responses", {"input": "?"})
    assert post(app, "responses", {"input": "?"})[0] == 200


def test_the_key(tokenizer):
    app = serve.app(Answering(tokenizer), tokenizer, api_key="s\u00e9cret")
    for headers in ({}, {"Authorization": "Bearer x"}, {"Authorization": "Bearer"}):
        status, said = post(app, "responses", {"input": "?"}, **headers)
        assert status == 401 and said["error"]["code"] == "invalid_api_key" and "cret" not in str(said)
    assert post(app, "responses", {"input": "?"}, Authorization="Bearer s\u00e9cret".encode())[0] == 200
    open_to_all = serve.app(Answering(tokenizer), tokenizer)
    assert post(open_to_all, "responses", {"input": "?"}, Authorization="Bearer anything")[0] == 200


def test_a_web_page_may_not_ask(tokenizer):
    """One from elsewhere says so (Origin); one whose name suddenly leads here has the wrong host."""
    app = serve.app(Answering(tokenizer), tokenizer, hosts=serve.LOCAL)
    for headers, status in (({"Host": "evil.example"}, 403), ({"Host": "evil.example:8000"}, 403),
                            ({"Host": "localhost:8000"}, 200), ({"Host": "[::1]:8000"}, 200), ({"Host": "[::"}, 403),
                            ({"Origin": "http://evil.example"}, 403), ({"Origin": "null"}, 403)):
        found, said = post(app, "responses", {"input": "?"}, **headers)
        assert found == status and ("error" in said and said["error"] is not None) == (status == 403)
    allowed = serve.app(Answering(tokenizer), tokenizer, origins=["http://localhost:3000"], api_key="k")

    async def preflight():
        async with client(allowed) as http:
            headers = {"Origin": "http://localhost:3000", "Access-Control-Request-Method": "POST"}
            return await http.options("/v1/responses", headers=headers)

    assert asyncio.run(preflight()).headers["access-control-allow-origin"] == "http://localhost:3000"
    for origin, status in (("http://localhost:3000", 200), ("http://evil.example", 403)):
        assert post(allowed, "responses", {"input": "?"}, Origin=origin, Authorization="Bearer k")[0] == status


def test_a_body_that_is_too_large(tokenizer, monkeypatch):
    monkeypatch.setattr(serve, "LARGEST", 1000)
    assert post(serve.app(Answering(tokenizer), tokenizer), "responses", {"input": "x" * 2000})[0] == 413


# ---- Completions, and one instance as another's engine -------------------------------------------------------------

def test_completions(nano, tokenizer):
    app = serve.app(LocalEngine(nano), tokenizer)
    ids = tokenizer.encode("<|start|>user<|message|>What is 3 * 14?<|end|><|start|>assistant", "all")
    ours = list(gptoss.generate(nano, ids, temperature=0))
    _, found = post(app, "completions", {"prompt": ids, "max_tokens": 500, "return_token_ids": True})
    [choice] = found["choices"]
    assert choice["token_ids"] == ours and choice["prompt_token_ids"] == ids and choice["finish_reason"] == "stop"
    assert "<|" not in choice["text"] and found["usage"]["completion_tokens"] == len(ours)
    body = {"prompt": tokenizer.decode(ids), "max_tokens": 500, "skip_special_tokens": False}
    [choice] = post(app, "completions", body)[1]["choices"]
    assert choice["text"] == tokenizer.decode(ours) and "token_ids" not in choice
    _, found = post(app, "completions", {"prompt": [ids]})
    assert (found["usage"]["completion_tokens"], found["choices"][0]["finish_reason"]) == (16, "length")
    end = tokenizer.special_tokens["<|end|>"]
    [choice] = post(app, "completions", {"prompt": ids, "max_tokens": 99, "stop_token_ids": [end]})[1]["choices"]
    assert (choice["stop_reason"], choice["finish_reason"]) == (end, "stop")
    [choice] = post(app, "completions", {"prompt": ids, "max_tokens": 99, "stop": "so"})[1]["choices"]
    assert choice["stop_reason"] == "so" and choice["text"] and "so" not in choice["text"]
    _, found = post(app, "completions", {"prompt": ids, "max_tokens": 3, "logprobs": 1})
    assert found["choices"][0]["logprobs"]["tokens"] == [tokenizer.decode([id]) for id in ours[:3]]
    assert all(-1 < logprob <= 0 for logprob in found["choices"][0]["logprobs"]["token_logprobs"])


def test_one_instance_is_anothers_engine(nano, tokenizer):
    """The same ids through a service as here; and a service on top of that says what the first one says."""
    stop = [tokenizer.special_tokens[name] for name in ("<|return|>", "<|call|>", "<|endoftext|>")]
    ids = tokenizer.encode("<|start|>user<|message|>What is 3 * 14?<|end|><|start|>assistant", "all")
    first = serve.app(LocalEngine(nano), tokenizer, model_name="nano", api_key="k")
    with running(first) as url:
        with pytest.raises(EngineError, match="an API key that it accepts"):
            RemoteEngine(url, api_key="x", stop=stop)
        engine = RemoteEngine(url, api_key="k", stop=stop)
        assert (engine.model, engine.context) == ("nano", 4096)
        ours = list(gptoss.generate(nano, ids, temperature=0))
        assert list(engine.generate(ids, temperature=0)) == ours
        assert list(engine.generate(ids, temperature=0, max_tokens=3)) == ours[:3]
        drawn = [list(engine.generate(ids, temperature=3, seed=seed, max_tokens=20)) for seed in (1, 1, 2)]
        assert drawn[0] == drawn[1] != drawn[2]
        second = serve.app(engine, tokenizer)
        body = {"input": "What is 3 * 14?", "temperature": 0}
        answers = [post(app, "responses", body, Authorization="Bearer k")[1] for app in (first, second)]
        assert [item["content"] for item in answers[0]["output"]] == [item["content"] for item in answers[1]["output"]]
        for more in ({"tools": [FLAT], "tool_choice": "required"}, {"top_logprobs": 1},
                     {"text": {"format": {"type": "json_object"}}}):
            status, said = post(second, "responses", body | more)  # what a server elsewhere cannot do is said
            assert status == 400 and "server" in said["error"]["message"]


# ---- One model, many clients ----------------------------------------------------------------------------------------

def test_a_full_queue_says_so(tokenizer, monkeypatch):
    monkeypatch.setattr(serve, "WAITING", 2)
    engine = Answering(tokenizer, pause=0.02)
    with running(serve.app(engine, tokenizer)) as url, httpx.Client(base_url=url, timeout=60) as http:
        statuses, threads = [], []
        for _ in range(8):
            threads.append(threading.Thread(
                target=lambda: statuses.append(http.post("/v1/responses", json={"input": "?"}))))
            threads[-1].start()
        for thread in threads:
            thread.join()
    refused = [answer for answer in statuses if answer.status_code == 429]
    assert len(statuses) - len(refused) >= 3 and refused
    assert all(int(answer.headers["retry-after"]) > 0 for answer in refused)
    assert refused[0].json()["error"]["code"] == "rate_limit_exceeded"


@pytest.mark.parametrize("path", ["responses", "chat/completions", "completions"])
def test_a_client_that_leaves(tokenizer, path):
    """After each number of events: its reply ends at once, and the next client gets its answer."""
    endless = THOUGHT + "[channel]final[message]" + "word " * 3000
    engine = Answering(tokenizer, endless, pause=0.001)
    body = {"input": "?", "prompt": "?", "max_tokens": 5000, "stream": True} | USER
    with running(serve.app(engine, tokenizer)) as url:
        for leave_after in (0, 1, 2, 3, 5, 8, 13, 21):
            with httpx.Client(base_url=url) as http, http.stream("POST", f"/v1/{path}", json=body) as answer:
                for n, _ in enumerate(answer.iter_lines()):
                    if n >= leave_after:
                        break
            assert until(lambda: engine.open == 0), leave_after
        assert len(engine.asked) < 3000
        with pytest.raises(httpx.ReadTimeout):
            httpx.post(f"{url}/v1/{path}", json=body | {"stream": False}, timeout=0.5)
        assert until(lambda: engine.open == 0)
        engine.reply = ANSWER
        assert httpx.post(f"{url}/v1/responses", json={"input": "?"}).json()["status"] == "completed"


def test_a_client_that_leaves_while_it_waits(tokenizer):
    """Its request is never begun."""
    engine = Answering(tokenizer, THOUGHT + "[channel]final[message]" + "word " * 3000, pause=0.001)
    with running(serve.app(engine, tokenizer)) as url, httpx.Client(base_url=url) as http:
        with http.stream("POST", "/v1/responses", json={"input": "First?", "stream": True}) as answer:
            lines = answer.iter_lines()  # kept: without it the answer would be closed
            next(lines)
            with pytest.raises(httpx.ReadTimeout):
                httpx.post(f"{url}/v1/responses", json={"input": "Second?"}, timeout=0.3)
            time.sleep(0.5)  # until the service has seen that it left; the first is still being answered
            assert engine.open == 1
        engine.reply = ANSWER
        assert httpx.post(f"{url}/v1/responses", json={"input": "Third?"}).json()["status"] == "completed"
    asked = [tokenizer.decode(ids) for ids in engine.prompts]
    assert len(asked) == 2 and "First?" in asked[0] and "Third?" in asked[1]


def test_a_client_that_leaves_while_its_prompt_is_read(nano, tokenizer):
    """The reading stops between two chunks, and what was read stays read."""
    class Slow(gptoss.Model):
        def __call__(self, *args, **kwargs):
            time.sleep(0.3)
            return super().__call__(*args, **kwargs)

    model = gptoss.load(ROOT / "nano", backend="numpy", model=Slow)
    engine = LocalEngine(model)
    prompt = [5 + n % 900 for n in range(3000)]
    with running(serve.app(engine, tokenizer)) as url:
        with pytest.raises(httpx.ReadTimeout):
            httpx.post(f"{url}/v1/completions", json={"prompt": prompt, "max_tokens": 1}, timeout=0.5)
        time.sleep(1)
        read = engine.cache.length
        time.sleep(1)
        assert engine.cache.length == read < 2999


def test_a_client_that_leaves_while_its_code_runs(tokenizer):
    """The code ends, and the next client gets its answer."""
    from tools.python import Python

    code = THOUGHT + " to=python[channel]analysis code[message]import time; time.sleep(60)[call]"
    engine = Answering(tokenizer, lambda text: code if "Sleep!" in text else ANSWER)
    body = {"input": "Sleep!", "tools": [{"type": "code_interpreter"}]}
    with running(serve.app(engine, tokenizer, builtin={"python": Python})) as url:
        with pytest.raises(httpx.ReadTimeout):
            httpx.post(f"{url}/v1/responses", json=body, timeout=1)
        assert httpx.post(f"{url}/v1/responses", json={"input": "?"}, timeout=20).json()["status"] == "completed"
    assert len(engine.prompts) == 2


def test_a_client_that_waits_hears_that_it_is_not_forgotten(tokenizer, monkeypatch):
    """response.in_progress again and again in Responses, which Codex wants; a comment in Chat."""
    monkeypatch.setattr(serve, "SILENCE", 0.1)

    class Slow(Answering):
        def slowly(self, ids):
            time.sleep(0.5)
            yield from ids

    app = serve.app(Slow(tokenizer), tokenizer)
    _, events = post(app, "responses", {"input": "?", "stream": True})
    kinds = [event["type"] for event in events]
    assert kinds[0] == "response.created" and kinds[1:4] == ["response.in_progress"] * 3
    assert [event["sequence_number"] for event in events] == list(range(len(events)))
    _, chunks = post(app, "chat/completions", USER | {"stream": True})
    assert ": the prompt is being read" in chunks and chunks[-1] == "[DONE]"


def test_a_remote_engine_is_let_go_when_the_client_leaves(tokenizer, serve):
    """Also while it says nothing."""
    from servers import WAIT, vllm

    import serve as service

    server = serve(vllm([WAIT]))
    with running(service.app(server.engine(), tokenizer)) as url:
        with pytest.raises(httpx.ReadTimeout):
            httpx.post(f"{url}/v1/responses", json={"input": "?"}, timeout=0.5)
        assert server.gone.wait(5)


def test_a_client_that_left_before_a_remote_engine_was_reached(tokenizer, serve):
    """Then there was nothing yet that `abort` could end, and the server is not waited for."""
    from servers import WAIT, vllm

    from serving.turn import Gone, Watch

    server = serve(vllm([WAIT]))
    gone = threading.Event()
    ids = Watch(server.engine(), tokenizer, gone).generate([1, 2])
    gone.set()
    with pytest.raises(Gone):
        next(ids)


# ---- Parts ----------------------------------------------------------------------------------------------------------

def test_forms_need_no_server():
    """Pieces in, events out."""
    form = chat.Form(chat.read({"messages": [{"role": "user", "content": "?"}]}), "m")
    pieces = [Piece("commentary", "First "), Piece("commentary", "this."), Piece("text", "Then that."),
              End("stop", 9, 0, 5, 0)]
    told = [event["choices"][0]["delta"].get("content") for piece in pieces for event in form.feed(piece)]
    assert told == ["First ", "this.", "\n\nThen that.", None]
    form = responses.Form(responses.read({"input": "?"}), "m")
    kinds = [event["type"] for piece in pieces for event in form.feed(piece)]
    assert kinds.count("response.output_item.done") == 2 and kinds[-1] == "response.completed"


def test_a_conversation_goes_on_without_a_question(tokenizer):
    """After a call that ended the turn: its caller runs it, and the model sees all of the turn, thoughts too."""
    engine = Answering(tokenizer, lambda text: ANSWER if "to=assistant" in text else CALL)
    conversation = Conversation(engine, tokenizer, tools=[request.Client([Function("add", "Adds.")])])
    pieces = list(conversation.ask("2 + 2?"))
    assert {channel for channel, _ in pieces} == {"analysis", "call"} and conversation.reader.call.content
    assert conversation.history[-1] == conversation.reader.call
    conversation.history.append(Message("tool", "4", name="functions.add", recipient="assistant", channel="commentary"))
    assert "".join(text for channel, text in conversation.ask(None) if channel == "final") == "It is 4."
    first, second = engine.prompts
    assert second[: len(first)] == first and "Hm." in tokenizer.decode(second)
    assert [message.role for message in conversation.messages] == ["user", "assistant", "tool", "assistant"]


# ---- The command ----------------------------------------------------------------------------------------------------

def command(*arguments, env=None):
    words = [sys.executable, "serve.py", *arguments]
    return subprocess.Popen(words, cwd=ROOT, env=env, stderr=subprocess.PIPE, text=True)


def test_the_command(tmp_path):
    """It says where it listens, answers, and leaves when it is told to; the next one finds the prompt on disk."""
    question = {"input": "Hello!", "instructions": "Be brief. " * 120}
    for cached in (0, 300):
        with command("--port", "0", "--api-key", "k", "--prompt-cache", str(tmp_path)) as process:
            try:
                line = next(line for line in process.stderr if line.startswith("http://"))
                url, name = re.match(r"(http://127.0.0.1:\d+/v1)   (\w+), context 4,096 tokens", line).groups()
                answer = httpx.post(f"{url}/responses", json=question, headers={"Authorization": "Bearer k"}).json()
                assert answer["status"] == "completed" and answer["model"] == name == "nano"
                assert answer["usage"]["input_tokens_details"]["cached_tokens"] >= cached
                assert httpx.get(f"{url}/models").status_code == 401
            finally:
                process.send_signal(signal.SIGINT)
        assert process.returncode == 130


def test_the_command_is_stopped_during_a_reply():
    """The client hears it, in an event, and the log has no traceback."""
    body = {"prompt": "?", "max_tokens": 4000, "ignore_eos": True, "stream": True}
    with command("--port", "0", env=os.environ | {"NUMBA_NUM_THREADS": "1"}) as process:
        url = next(line for line in process.stderr if line.startswith("http://")).split()[0]
        with httpx.stream("POST", f"{url}/completions", json=body, timeout=60) as answer:
            lines = answer.iter_lines()
            next(lines)
            process.send_signal(signal.SIGINT)
            *_, last = filter(None, lines)
        said = process.stderr.read()
    assert process.returncode == 130 and "Traceback" not in said
    assert "the service has ended" in last or last == "data: [DONE]"  # on a fast machine the reply is at its end before


def test_what_the_command_cannot_use(tmp_path):
    """One line on standard error, and exit status 2."""
    with socket.create_server(("127.0.0.1", 0)) as taken:
        for arguments in (["--port", str(taken.getsockname()[1])], ["--port", "70000"], ["--caches", "0"],
                          ["--port", "0", "--model", "/nowhere"], ["--port", "0", "--browser", "/nowhere"],
                          ["--port", "0", "--prompt-cache", "README.md"]):
            with command(*arguments) as process:
                said = process.stderr.read()
            assert process.returncode == 2 and said.startswith("serve.py: ") and said.count("\n") == 1, said
    for name in ("starlette", "uvicorn"):
        (tmp_path / f"{name}.py").write_text(f"raise ModuleNotFoundError(name={name!r})")
        with command("--port", "0", env=os.environ | {"PYTHONPATH": str(tmp_path)}) as process:
            said = process.stderr.read()
        assert process.returncode == 2 and f"no {name}" in said and said.count("\n") == 1, said
        (tmp_path / f"{name}.py").unlink()
