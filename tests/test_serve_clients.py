"""The service under real clients and under load: openai-python with its streaming helpers, hostile bodies, 200 requests
of 20 clients of whom some leave. Cases of the kind of openai/gpt-oss's compatibility test, in our own words."""

import asyncio
import gc
import json
import os
import random
import threading
import time
import tracemalloc
from concurrent.futures import ThreadPoolExecutor

import httpx
import hypothesis
import hypothesis.strategies as st
import jsonschema
import openai
import pydantic
import pytest
from service import ANSWER, THOUGHT, Answering, client, events, running, until

import serve
from conversation import LocalEngine
from serving import request, responses

LONG = os.environ.get("HYPOTHESIS_PROFILE") == "long"


def function(name, about, **properties):
    return {"name": name, "description": about, "parameters": {
        "type": "object", "properties": properties, "required": list(properties)[:2], "additionalProperties": False}}


TEXT, NUMBER = {"type": "string"}, {"type": "number"}
FUNCTIONS = [
    function("disk_space", "Tells how full the disk is."),
    function("to_roman", "Writes a number in Roman numerals.", number={"type": "integer", "minimum": 1}),
    function("count_words", "Counts the words of a text.", text=TEXT),
    function("draw", "Draws points.", points={"type": "array", "items": {"type": "array", "items": NUMBER}},
             style={"type": "string", "enum": ["line", "bars", "dots"]}, caption=TEXT),
    function("find_books", "Looks for books.", author=TEXT, fields={"type": "array", "items": TEXT},
             most={"type": "integer", "minimum": 1, "maximum": 100}),
    function("tide", "Tells when the water is high.", harbour=TEXT)]
CASES = [  # a question, the function that answers it, its arguments, what the model makes of the result
    ("Is there room on the disk?", "disk_space", {}, "There is: 61% is free."),
    ("Disk?", "disk_space", {}, "61% is free."),
    ("How did the Romans write 1987?", "to_roman", {"number": 1987}, "MCMLXXXVII"),
    ("Count: 'one two\nthree \"four\"'", "count_words", {"text": "one two\nthree \"four\""}, "Four words."),
    ("Wie viele W\u00f6rter hat 'Gr\u00fc\u00df Gott \U0001f600'?", "count_words",
     {"text": "Gr\u00fc\u00df Gott \U0001f600"}, "Drei."),
    ("Draw (0, 1.5) and (2, -3e-2) as bars.", "draw", {"points": [[0, 1.5], [2, -3e-2]], "style": "bars"}, "Drawn."),
    ("A line through (1, 1), called 'Up'.", "draw", {"points": [[1, 1]], "style": "line", "caption": "Up"}, "Drawn."),
    ("Two books by Le Guin, titles only.", "find_books", {"author": "Le Guin", "fields": ["title"], "most": 2},
     "The Dispossessed, The Telling."),
    ("When is the water high in \u6a2a\u6d5c?", "tide", {"harbour": "\u6a2a\u6d5c"}, "At 4:12."),
    ("High water at Cork?", "tide", {"harbour": "Cork"}, "At noon.")]


def knows(text):
    """What a model that knows the cases says to a prompt."""
    question, _, rest = text.rpartition("<|start|>user<|message|>")[2].partition("<|end|>")
    [(_, name, arguments, answer)] = [case for case in CASES if case[0] == question]
    if "to=assistant" in rest:
        return f"{THOUGHT}[channel]final[message]{answer}[return]"
    # as tokens: what is in brackets would be read as special
    return f"{THOUGHT} to=functions.{name}[channel]commentary [constrain]json[message]{plain(arguments)}[call]"


def plain(arguments):
    text = json.dumps(arguments, ensure_ascii=False)
    return text.replace("[", "\u27e6")  # see Knowing


class Knowing(Answering):
    """A double bracket stands for a bracket, which a reply's text cannot have."""

    def ids(self, reply):
        for n, part in enumerate(reply.split("\u27e6")):
            if n:
                yield from self.tokenizer.encode("[")
            yield from super().ids(part)


def sdk(url, key="x"):
    return openai.OpenAI(base_url=f"{url}/v1", api_key=key, max_retries=0, timeout=60)


# ---- openai-python --------------------------------------------------------------------------------------------------

def by_responses(api, question, stream):
    """The round trip of a call: (name, arguments, answer)."""
    tools = [{"type": "function", "strict": False, **function} for function in FUNCTIONS]
    items, called = [{"role": "user", "content": question}], None
    for _ in range(10):
        if stream:
            with api.responses.stream(model="m", input=items, tools=tools) as events:
                response = events.until_done().get_final_response()
        else:
            response = api.responses.create(model="m", input=items, tools=tools)
        [thought] = [item for item in response.output if item.type == "reasoning"]
        assert thought.content[0].type == "reasoning_text" and thought.content[0].text
        calls = [item for item in response.output if item.type == "function_call"]
        items += [item.model_dump(exclude_none=True) for item in response.output]
        if not calls:
            return *called, response.output_text
        called = calls[0].name, json.loads(calls[0].arguments)
        items.append({"type": "function_call_output", "call_id": calls[0].call_id, "output": "done"})


def by_chat(api, question, stream):
    tools = [{"type": "function", "function": function} for function in FUNCTIONS]
    messages, called = [{"role": "user", "content": question}], None
    for _ in range(10):
        if stream:
            with api.chat.completions.stream(model="m", messages=messages, tools=tools) as events:
                for _ in events:
                    pass
                message = events.get_final_completion().choices[0].message
        else:
            message = api.chat.completions.create(model="m", messages=messages, tools=tools).choices[0].message
        assert message.reasoning
        messages.append(message.model_dump(exclude_none=True))
        if not message.tool_calls:
            return *called, message.content
        [call] = message.tool_calls
        called = call.function.name, json.loads(call.function.arguments)
        messages.append({"role": "tool", "tool_call_id": call.id, "content": "done"})


@pytest.mark.parametrize("stream", [False, True], ids=["whole", "streamed"])
@pytest.mark.parametrize("way", [by_responses, by_chat])
def test_calls_of_tools_five_at_once(tokenizer, way, stream):
    """Each case's function is called with its arguments, which fit its schema, and its answer comes."""
    with running(serve.app(Knowing(tokenizer, knows), tokenizer)) as url, ThreadPoolExecutor(5) as pool:
        found = list(pool.map(lambda case: way(sdk(url), case[0], stream), CASES))
    schemas = {function["name"]: function["parameters"] for function in FUNCTIONS}
    for case, (name, arguments, answer) in zip(CASES, found, strict=True):
        jsonschema.validate(arguments, schemas[name])
        assert (name, arguments, answer) == case[1:]


def test_openai_pythons_helpers(tokenizer):
    """They build the reply from the events and check types, order and places on the way."""
    class Sum(pydantic.BaseModel):
        total: int

    form = {"type": "json_schema", "name": "sum", "schema": Sum.model_json_schema()}
    engine = Answering(tokenizer, THOUGHT + '[channel]final[message]{"total": 4}[return]')
    with running(serve.app(engine, tokenizer)) as url:
        api = sdk(url)
        with api.responses.stream(model="m", input="2 + 2?", text_format=Sum) as stream:
            kinds = [event.type for event in stream]
            assert stream.get_final_response().output_parsed == Sum(total=4)
        assert kinds[0] == "response.created" and kinds[-1] == "response.completed"
        assert api.responses.parse(model="m", input="2 + 2?", text_format=Sum).output_parsed == Sum(total=4)
        assert api.responses.create(model="m", input="2 + 2?", text={"format": form}).output_text == '{"total": 4}'
        messages = [{"role": "user", "content": "2 + 2?"}]
        with api.chat.completions.stream(model="m", messages=messages, response_format=Sum) as stream:
            kinds = {event.type for event in stream}
            assert stream.get_final_completion().choices[0].message.parsed == Sum(total=4)
        assert {"content.delta", "content.done", "chunk"} <= kinds
        engine.reply = ANSWER
        first = api.responses.create(model="m", input="2 + 2?")
        again = api.responses.create(model="m", input="And again?", previous_response_id=first.id)
        assert again.output_text == "It is 4." and "2 + 2?" in tokenizer.decode(engine.prompts[-1])
        with api.responses.stream(model="m", input="?", max_output_tokens=3) as stream:
            assert [event.type for event in stream][-1] == "response.incomplete"
        assert [model.id for model in api.models.list()] == [api.models.retrieve("gpt-oss").id] == ["gpt-oss"]
        with pytest.raises(openai.NotFoundError, match="previous_response_id"):
            api.responses.create(model="m", input="?", previous_response_id="resp_1")
        with pytest.raises(openai.BadRequestError) as error:
            api.responses.create(model="m", input="a b " * 20_000)
        assert error.value.code == "context_length_exceeded"
    with running(serve.app(engine, tokenizer, api_key="k")) as url:
        with pytest.raises(openai.AuthenticationError):
            sdk(url).models.list()
        assert sdk(url, "k").completions.create(model="m", prompt="?").choices[0].text


def test_nano_from_end_to_end(nano, tokenizer):
    """The small model, asked through openai-python, says what it says in a conversation here; its calculator too."""
    calculator = {"type": "function", "name": "calculator", "description": "Computes an expression.", "parameters": {
        "type": "object", "properties": {"expression": {"type": "string"}}, "required": ["expression"]}}
    with running(serve.app(LocalEngine(nano, 2), tokenizer)) as url:
        api = sdk(url)
        with api.responses.stream(model="nano", input="What is 3 * 14?") as stream:
            response = stream.until_done().get_final_response()
        assert "42" in response.output_text and response.usage.output_tokens_details.reasoning_tokens > 5
        items = [{"role": "user", "content": "What is 23 * 41?"}]
        first = api.responses.create(model="nano", input=items, tools=[calculator], reasoning={"effort": "low"})
        call = first.output[-1]
        assert call.name == "calculator" and json.loads(call.arguments) == {"expression": "23*41"}
        items += [*first.output, {"type": "function_call_output", "call_id": call.call_id, "output": "943"}]
        second = api.responses.create(model="nano", input=items, tools=[calculator], reasoning={"effort": "low"})
        assert "943" in second.output_text
        assert second.usage.input_tokens - second.usage.input_tokens_details.cached_tokens < 40  # the result


def test_the_second_request_with_the_same_opening_begins_ten_times_as_fast(nano, tokenizer):
    """2,000 tokens of instructions. Time to the first token, in a conversation of each client's own."""
    opening = "".join(f"Rule {n}: be brief and kind. " for n in range(1000))
    opening = tokenizer.decode(tokenizer.encode(opening)[:2000])
    seconds, opening = [], "<|start|>developer<|message|># Instructions\n\n" + opening + "<|end|>"
    with running(serve.app(LocalEngine(nano, 2), tokenizer)) as url:
        api = sdk(url)
        api.completions.create(model="nano", prompt="Hello!", max_tokens=1)
        for question in ("Hello!", "Who are you?"):
            prompt = f"{opening}<|start|>user<|message|>{question}<|end|><|start|>assistant"
            begun = time.perf_counter()
            with api.completions.create(model="nano", prompt=prompt, stream=True) as stream:
                next(iter(stream))
            seconds.append(time.perf_counter() - begun)
    print(f"first tokens after {seconds[0]:.2f} and {seconds[1]:.2f} s")
    assert seconds[1] < seconds[0] / 10


# ---- Load -----------------------------------------------------------------------------------------------------------

def test_two_hundred_requests_of_twenty_clients(tokenizer, caplog, monkeypatch):
    """A third of them leave at some point. Whoever stays gets the answer to the own question; then nothing is left."""
    def reply(text):
        question = text.rpartition("<|start|>user<|message|>")[2].partition("<|end|>")[0]
        return f"{THOUGHT}[channel]final[message]" + f"You said {question}. " * 5 + "[return]"

    monkeypatch.setattr(serve, "IDLE", 0.5)
    before = threading.enumerate()

    def engines():
        return [thread for thread in threading.enumerate() if thread.name == "engine" and thread not in before]

    engine = Answering(tokenizer, reply, pause=0.0002)
    app = serve.app(engine, tokenizer)

    async def one(http, n, rng):
        question, path = f"number {n}", rng.choice(["responses", "chat/completions"])
        body = {"stream": rng.random() < 0.5, "store": False, "input": question,
                "messages": [{"role": "user", "content": question}]}
        patience = rng.uniform(0, 0.3) if rng.random() < 1 / 3 else None

        async def read():
            async with http.stream("POST", f"/v1/{path}", json=body) as answer:
                return "".join([part async for part in answer.aiter_text()])

        try:
            text = await asyncio.wait_for(read(), patience)
        except asyncio.TimeoutError:
            return None
        if body["stream"]:
            found = events(text)
            text = "".join(event.get("delta", "") for event in found
                           if isinstance(event, dict) and event.get("type") == "response.output_text.delta")
            text = text or "".join(event["choices"][0]["delta"].get("content", "") for event in found
                                   if isinstance(event, dict) and "choices" in event)
        else:
            found = json.loads(text)
            text = (found["output"][1]["content"][0]["text"] if "output" in found else
                    found["choices"][0]["message"]["content"])
        return n, text

    async def everyone(url, clients=20):
        async def each(k):
            rng = random.Random(k)
            async with httpx.AsyncClient(base_url=url, timeout=60) as http:
                return [await one(http, 10 * k + n, rng) for n in range(10)]

        return sum(await asyncio.gather(*map(each, range(clients))), [])

    with running(app) as url:
        asyncio.run(everyone(url, 4))  # once, so that all is imported and every buffer is there
        engine.prompts.clear(), engine.asked.clear(), gc.collect()
        tracemalloc.start()
        begun = time.perf_counter()
        found = asyncio.run(everyone(url))
        seconds = time.perf_counter() - begun
        engine.prompts.clear(), engine.asked.clear(), gc.collect()
        grown, _ = tracemalloc.get_traced_memory()
        tracemalloc.stop()
        until(lambda: engine.open == 0 and not engines())
    answered = [answer for answer in found if answer]
    print(f"{len(answered)} answers and {len(found) - len(answered)} clients that left in {seconds:.1f} s; "
          f"{grown / 1000:.0f} kB more than before")
    assert len(found) == 200 and 120 < len(answered) < 190 and seconds < 60
    assert all(text == f"You said number {n}. " * 5 for n, text in answered)
    assert grown < 2e6
    assert engine.open == 0 and not engines()
    assert not [record for record in caplog.records if record.levelname == "ERROR"]


# ---- Hostile bodies -------------------------------------------------------------------------------------------------

words = st.sampled_from(["", "user", "assistant", "system", "tool", "function", "message", "reasoning", "text", "auto",
                         "function_call", "function_call_output", "c1", "add", "low", "json_schema", "json_object",
                         "required", "input_text", "\ud800", "<|end|><|start|>system", "\x00", "a" * 1000, "\u202e"])
scalars = st.one_of(st.none(), st.booleans(), st.integers(-3, 3), st.sampled_from([10**400, -10**30, 1e300, 0.5]),
                    words, st.text(max_size=5))
keys = st.sampled_from(sorted({
    "role", "content", "type", "text", "input", "name", "arguments", "call_id", "id", "output", "tool_calls",
    "function", "parameters", "properties", "effort", "format", "schema", "json_schema", "summary", "recipient",
    "encrypted_content", "tool_call_id", "reasoning_content", "phase", "mode", "tools", "items", "anyOf", "$ref"}))
values = st.recursive(scalars, lambda inner: st.one_of(st.lists(inner, max_size=3),
                                                       st.dictionaries(keys, inner, max_size=4)), max_leaves=12)
messages = st.lists(st.fixed_dictionaries({"role": words}, optional={
    "content": values, "tool_calls": st.lists(st.fixed_dictionaries({}, optional={
        "id": words, "function": values, "type": words}), max_size=2), "tool_call_id": words, "reasoning": values}),
    max_size=4)
items = st.lists(st.one_of(values, st.fixed_dictionaries({"type": words}, optional={
    "role": words, "content": values, "call_id": words, "name": words, "arguments": values, "output": values,
    "summary": values, "encrypted_content": words})), max_size=4)
fields = {name: values for name in (
    "model", "instructions", "tools", "tool_choice", "reasoning", "reasoning_effort", "text", "response_format", "stop",
    "temperature", "top_p", "top_k", "seed", "n", "max_tokens", "max_output_tokens", "stream", "stream_options",
    "logprobs", "top_logprobs", "include", "store", "previous_response_id", "metadata", "prompt", "stop_token_ids",
    "chat_template_kwargs", "return_token_ids", "ignore_eos")}
good = {"tools": st.just([{"type": "function", "name": "add", "parameters": {"type": "object"}}]),
        "tool_choice": st.sampled_from(["auto", "none", "required", {"type": "function", "name": "add"}]),
        "stream": st.booleans(), "temperature": st.floats(0, 2), "max_tokens": st.integers(1, 30)}
bodies = st.one_of(
    st.binary(max_size=30),
    st.tuples(st.fixed_dictionaries({}, optional={"messages": st.one_of(values, messages), "input":
                                                  st.one_of(values, items, words), **fields}),
              st.fixed_dictionaries({}, optional=good)).map(lambda both: both[0] | both[1]),
    st.fixed_dictionaries({"messages": messages, "input": items, "prompt": st.lists(st.integers(-1, 1000), max_size=5)},
                          optional=good | {"reasoning": values, "metadata": values}))


@hypothesis.settings(max_examples=10_000 if LONG else 250)
@hypothesis.given(path=st.sampled_from(["responses", "chat/completions", "completions"]), body=bodies)
def hostile(app, path, body):
    async def ask():
        async with client(app) as http:  # raises what the application raises
            content = body if isinstance(body, bytes) else json.dumps(body).encode()
            return await http.post(f"/v1/{path}", content=content)

    answer = asyncio.run(ask())
    assert answer.status_code in (200, 400, 404), answer.text
    if "event-stream" in answer.headers["content-type"]:
        found = events(answer.text)
        last = found[-1] if path == "responses" else found[-2]
        assert answer.status_code == 200 and last.get("type", "").startswith(("response.c", "response.i")) or (
            path != "responses" and "choices" in last), last
    elif answer.status_code == 200:
        assert answer.json()["object"] in ("response", "chat.completion", "text_completion")
    else:
        error = answer.json()["error"]
        assert isinstance(error["message"], str) and error["type"] == "invalid_request_error"


def test_hostile_bodies(tokenizer, caplog):
    """Whatever is sent: an answer, or an error in OpenAI's form. Nothing is logged, nothing is raised."""
    hostile(serve.app(Answering(tokenizer), tokenizer))
    assert not caplog.records


@hypothesis.settings(max_examples=1000 if LONG else 100)
@hypothesis.given(body=st.fixed_dictionaries({"input": items}))
def test_what_is_read_of_items_can_be_rendered_or_is_refused(body):
    try:
        asked = responses.read(body)
    except ValueError as error:
        assert "expected" in str(error) or isinstance(error, request.Refused)
        return
    assert all(isinstance(message.content, str) for message in asked.history)
