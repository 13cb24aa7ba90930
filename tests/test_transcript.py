"""Conversations as JSON in OpenAI's message form: there and back, from other programs, and files that are wrong."""

import json
import os

import pytest
from hypothesis import given
from hypothesis import strategies as st

import transcript
from harmony import Message

CALL = {"recipient": "functions.add", "channel": "commentary", "content_type": "<|constrain|>json"}
HISTORY = [
    Message("user", "What is 6 * 7?"),
    Message("assistant", "They want a product.", channel="analysis"),
    Message("assistant", "6 * 7", channel="analysis", recipient="python"),
    Message("tool", "42\n", name="python", recipient="assistant", channel="analysis"),
    Message("assistant", "I'll check that.", channel="commentary"),
    Message("assistant", '{"a":1}', **CALL),
    Message("tool", "5", name="functions.add", recipient="assistant", channel="commentary"),
    Message("assistant", "Fine.", channel="analysis"),
    Message("assistant", "42.", channel="final"),
    Message("user", "Thanks"),
]
MESSAGES = [
    {"role": "user", "content": "What is 6 * 7?"},
    {"role": "assistant", "content": None, "reasoning": "They want a product.", "tool_calls": [
        {"id": "call_1", "type": "function", "function": {"name": "python", "arguments": "6 * 7"}}]},
    {"role": "tool", "tool_call_id": "call_1", "content": "42\n"},
    {"role": "assistant", "content": "I'll check that.", "tool_calls": [
        {"id": "call_2", "type": "function", "function": {"name": "add", "arguments": '{"a":1}'}}]},
    {"role": "tool", "tool_call_id": "call_2", "content": "5"},
    {"role": "assistant", "content": "42.", "reasoning": "Fine."},
    {"role": "user", "content": "Thanks"},
]


def test_there_and_back():
    assert transcript.to_openai(HISTORY) == MESSAGES
    assert transcript.from_openai(MESSAGES) == (None, HISTORY)


text = st.text(min_size=1, max_size=5)
said = st.one_of(
    st.builds(lambda t: [Message("user", t)], st.text(max_size=5)),
    st.builds(lambda t, c: [Message("assistant", t, channel=c)], text,
              st.sampled_from(["analysis", "commentary", "final"])),
    st.builds(lambda t, r: [Message("assistant", t, **CALL),
                            Message("tool", r, name="functions.add", recipient="assistant", channel="commentary")],
              text, st.text(max_size=5)),
    st.builds(lambda r, c, t: [Message("assistant", t, recipient=r, channel=c,
                                       content_type="<|constrain|>json" if c == "commentary" else None),
                               Message("tool", t, name=r, recipient="assistant", channel=c)],
              st.sampled_from(["functions.add", "python", "browser.open", "container.exec", "functions.python", "x"]),
              st.sampled_from(["analysis", "commentary", "final"]), st.text(max_size=3)))


@given(st.lists(said, max_size=8))
def test_every_history_comes_back(parts):
    """Through JSON text, in whatever order things were said."""
    history = [message for part in parts for message in part]
    messages = json.loads(json.dumps(transcript.to_openai(history)))
    assert transcript.from_openai(messages) == (None, history)


def test_what_other_programs_write():
    parts = [{"type": "text", "text": "What "}, {"type": "input_text", "text": "is it?", "more": 1}]
    arguments = {"a": 1}
    messages = [{"role": "system", "content": "Be brief."}, {"role": "developer", "content": parts[:1]},
                {"role": "user", "content": parts, "name": "bob"},
                {"role": "assistant", "reasoning_content": "Hm.", "content": "", "refusal": None, "tool_calls": [
                    {"id": "x", "function": {"name": "add", "arguments": arguments}},
                    {"id": "y", "function": {"name": "browser.search"}}]},
                {"role": "tool", "tool_call_id": "y", "content": "none"},
                {"role": "tool", "tool_call_id": "x", "content": None}]
    instructions, history = transcript.from_openai(messages)
    assert instructions == "Be brief.\n\nWhat " and history == [
        Message("user", "What is it?"), Message("assistant", "Hm.", channel="analysis"),
        Message("assistant", '{"a": 1}', **CALL),
        Message("tool", "", name="functions.add", recipient="assistant", channel="commentary"),
        Message("assistant", "", channel="analysis", recipient="browser.search"),
        Message("tool", "none", name="browser.search", recipient="assistant", channel="analysis")]
    assert transcript.from_openai(transcript.to_openai(history)) == (None, history)


def test_an_id_that_is_used_again():
    """Some programs count calls from the beginning in every turn: each gets the result that follows it."""
    messages = []
    for result in ("1", "2"):
        call = {"id": "call_0", "function": {"name": "next", "arguments": "{}"}}
        messages += [{"role": "assistant", "tool_calls": [call]},
                     {"role": "tool", "tool_call_id": "call_0", "content": result}]
    assert [message.content for message in transcript.from_openai(messages)[1]] == ["{}", "1", "{}", "2"]


def test_a_call_without_a_result_gets_one():
    messages = [{"role": "assistant", "tool_calls": [{"id": "x", "function": {"name": "add", "arguments": "{}"}}]}]
    assert transcript.from_openai(messages)[1][1] == Message("tool", "(no result)", name="functions.add",
                                                            recipient="assistant", channel="commentary")


@pytest.mark.parametrize(("content", "message"), [
    (b"", "FILE: expected JSON, found Expecting value"),
    (b"\xff", "FILE: expected JSON, found 'utf-8' codec"),
    (b"[" * 100_000, "FILE: expected JSON, found "),
    (b"5", "FILE: expected an object, found 5"),
    (b"{}", "FILE: messages: expected a list, found None"),
    (b'{"reasoning_effort": "huge", "messages": []}', "FILE: reasoning_effort: expected one of low, medium, high, "),
    (b"[5]", "FILE: messages[0]: expected an object, found 5"),
    (b'[{"role": "user", "content": 5}]', "FILE: messages[0].content: expected a text or a list of parts, found 5"),
    (b'[{"role": "user", "content": [{"type": "image_url"}]}]',
     "FILE: messages[0].content[0]: expected a part with a text, found {'type': 'image_url'}"),
    (b'[{"role": "boss", "content": ""}]',
     "FILE: messages[0].role: expected user, assistant, tool, developer or system, found 'boss'"),
    (b'[{"role": "tool", "tool_call_id": "a", "content": ""}]',
     "FILE: messages[0].tool_call_id: expected the id of a call before it, found 'a'"),
    (b'[{"role": "tool", "tool_call_id": [], "content": ""}]', "FILE: messages[0].tool_call_id: expected the id of "),
    (b'[{"role": "assistant", "tool_calls": [{"id": "a"}]}]',
     "FILE: messages[0].tool_calls[0].function: expected an object, found None"),
    (b'[{"role": "assistant", "tool_calls": [{"id": "a", "function": {"name": "f", "arguments": ""}}]},'
     b' {"role": "tool", "tool_call_id": "a", "content": {}}]',
     "FILE: messages[0].tool_calls[0]: its result: expected a text or a list of parts, found {}"),
    (b'[{"role": "assistant", "tool_calls": 5}]', "FILE: messages[0].tool_calls: expected a list, found 5"),
    (b'[{"role": "assistant", "reasoning": {"a": 1}}]', "FILE: messages[0].reasoning: expected a text or a list "),
], ids=str)
def test_what_is_wrong_with_a_file_is_said_in_one_sentence(content, message, tmp_path):
    path = tmp_path / "FILE"
    path.write_bytes(content)
    with pytest.raises(ValueError) as error:
        transcript.load(path)
    assert str(error.value).startswith(message.replace("FILE", str(path))) and "\n" not in str(error.value)


def test_what_is_no_file(tmp_path):
    os.mkfifo(tmp_path / "pipe")
    other = "a directory or a device"
    for path, found in ((tmp_path, other), (tmp_path / "pipe", other), (tmp_path / "none", "no such file")):
        with pytest.raises(ValueError, match=f"expected a saved conversation, found {found}"):
            transcript.load(path)


def test_a_file_is_written_whole_or_not_at_all(tmp_path, monkeypatch):
    path = tmp_path / "talk.json"
    transcript.save(path, HISTORY, instructions="Be brief.", effort="high")
    assert transcript.load(path) == ("Be brief.", "high", HISTORY)
    before = path.read_bytes()
    assert json.loads(before)["messages"][0] == {"role": "developer", "content": "Be brief."}
    for name in ("fsync", "replace"):  # the disk is full, or the program ends
        with monkeypatch.context() as patch, pytest.raises(OSError):
            patch.setattr(os, name, lambda *_: (_ for _ in ()).throw(OSError("No space left on device")))
            transcript.save(path, HISTORY[:1])
        assert path.read_bytes() == before and list(tmp_path.iterdir()) == [path]
    os.mkfifo(tmp_path / "pipe")
    for other in (tmp_path / "nowhere" / "talk.json", tmp_path, tmp_path / "pipe"):
        with pytest.raises(OSError) as error:
            transcript.save(other, HISTORY)
        assert error.value.filename == str(other)
    assert (tmp_path / "pipe").is_fifo()
