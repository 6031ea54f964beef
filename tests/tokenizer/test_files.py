"""Every kind of tokenizer is found in a folder, and found again where it was copied, with what belongs to it."""

import base64
import json
import re
import subprocess

import pytest

from megatron_sky.errors import DataError
from megatron_sky.tokenizer import files as tokenizer_files
from megatron_sky.tokenizer.kinds import load_tokenizer

KINDS = {
    "SentencePiece": (["zh_en.model", "notes.txt"], ["tokenizer.model"]),
    "a folder's model": (["tokenizer.model"], ["tokenizer.model"]),
    "tokenizer.json": (["tokenizer.json", "tokenizer_config.json"], ["tokenizer.json", "tokenizer_config.json"]),
    "another name": (["mine.json", "tokenizer_config.json"], ["tokenizer.json"]),
    "tiktoken": (["cl100k_base.tiktoken"], ["cl100k_base.tiktoken"]),
    "own ranks": (["a.tiktoken", "a.tiktoken.json", "b.json"], ["a.tiktoken", "a.tiktoken.json"]),
}


@pytest.fixture
def made(tmp_path):
    def make(names):
        for folder in ("from", "to"):
            (tmp_path / folder).mkdir()
        for name in names:
            (tmp_path / "from" / name).write_text(name)
        return tmp_path / "from", tmp_path / "to"

    return make


@pytest.mark.parametrize("kind", KINDS)
def test_a_copy_holds_what_belongs_to_it_and_is_found(kind, made):
    given, kept = KINDS[kind]
    source, target = made(given)
    tokenizer_files.copy(source / given[0], target)
    assert sorted(each.name for each in target.iterdir()) == sorted(kept)
    found = tokenizer_files.find(target)
    assert found == target / kept[0] and found.read_text() == given[0]


@pytest.mark.parametrize("kind", ["a folder's model", "tokenizer.json", "tiktoken", "own ranks"])
def test_a_folder_means_its_tokenizer(kind, made):
    given, kept = KINDS[kind]
    source, target = made(given)
    assert tokenizer_files.file_of(source) == source / given[0]
    tokenizer_files.copy(source, target)
    assert sorted(each.name for each in target.iterdir()) == sorted(kept)


def test_two_rank_files_are_no_answer(made):
    source, target = made(["a.tiktoken", "b.tiktoken"])
    assert tokenizer_files.find(source) is None and tokenizer_files.file_of(source) == source
    with pytest.raises(OSError):
        tokenizer_files.copy(source, target)


def test_a_tokenizer_json_under_a_models_name_is_known(made):
    """As checkpoints had it once."""
    source, target = made(["tokenizer.model"])
    (source / "tokenizer.model").write_text("{}")
    assert tokenizer_files.is_json(source / "tokenizer.model")
    tokenizer_files.copy(source, target)
    assert (target / "tokenizer.json").is_file()


def test_settings_beside_a_model_go_along_if_asked_for(made):
    names = ["tokenizer.model", "tokenizer.json", "tokenizer_config.json", "added_tokens.json", "notes.txt"]
    source, target = made(names)
    tokenizer_files.copy(source, target)
    assert [each.name for each in target.iterdir()] == ["tokenizer.model"]
    tokenizer_files.copy(source, target, settings=True)
    assert sorted(each.name for each in target.iterdir()) == sorted(names[:-1])
    assert tokenizer_files.find(target).name == "tokenizer.model"


def template(*pieces):
    return {"type": "TemplateProcessing", "single": [{piece: {"id": "x"}} for piece in pieces]}


BYTES = {"type": "ByteLevel"}
BEGINS = {
    "a template": ({"post_processor": template("SpecialToken", "Sequence")}, {}, True),
    "one of several": (
        {"post_processor": {"type": "Sequence", "processors": [BYTES, template("SpecialToken", "Sequence")]}},
        {"add_bos_token": False},
        True,
    ),
    "a template without": ({"post_processor": template("Sequence")}, {"add_bos_token": True}, False),
    "an end alone": ({"post_processor": template("Sequence", "SpecialToken")}, {}, False),
    "the settings": ({"post_processor": BYTES}, {"add_bos_token": True}, True),
    "settings alone": (None, {"add_bos_token": True}, True),
    "settings without": (None, {"add_bos_token": False}, False),
    "settings that say nothing": (None, {"add_bos_token": None}, False),
    "nothing": (None, None, False),
}


@pytest.mark.parametrize("kind", BEGINS)
def test_whether_a_text_gets_a_begin_token(kind, tmp_path):
    library, settings, expected = BEGINS[kind]
    for name, content in (("tokenizer.json", library), ("tokenizer_config.json", settings)):
        if content is not None:
            (tmp_path / name).write_text(json.dumps(content))
    for name in ("tokenizer.model", "tokenizer.json"):
        assert tokenizer_files.adds_begin(tmp_path / name) is expected
    assert not tokenizer_files.adds_begin(tmp_path / "mine.model")  # of which the settings do not speak


def test_settings_that_cant_be_read_are_named(tmp_path):
    (tmp_path / "tokenizer_config.json").write_text("{")
    with pytest.raises(DataError, match=r"tokenizer_config.json can't be read"):
        tokenizer_files.adds_begin(tmp_path / "tokenizer.model")


def test_the_size_of_a_tokenizer_json_counts_added_tokens(tmp_path):
    path = tmp_path / "tokenizer.json"
    for model, added, size in [({"a": 0, "b": 4}, [], 5), ([["a", 0.0], ["b", -1.0]], [], 2), ({"a": 0}, [7], 8)]:
        path.write_text(json.dumps({"model": {"vocab": model}, "added_tokens": [{"id": each} for each in added]}))
        assert tokenizer_files.json_size(path) == size
    path.write_text("{}")
    with pytest.raises(DataError, match=r"is no tokenizer.json"):
        tokenizer_files.json_size(path)


OTHER_FORMATS = {
    "tokenizer.model": ("IQ== 0\nIg== 1\n", "tiktoken's ranks", r"NAME\.tiktoken\.json"),
    "vocab.json": ('{"a": 0, "b": 1}', "without its merges", r"BPE.*'[^']*vocab\.json', 'merges\.txt'"),
    "tekken.json": ('{"vocab": [{"rank": 0, "token_bytes": "AA=="}]}', "list of ranks", r"tokenizer\.json of the same"),
    "ranks.json": ('[{"rank": 0, "token_bytes": "AA=="}]', "list of ranks", r"tokenizer\.json of the same"),
    "merges.txt": ("#version: 0.2\na b\n", "no SentencePiece model that can be read", "give a SentencePiece"),
    "broken.json": ("{", "no tokenizer.json that can be read", "fetch or copy it again"),
}


@pytest.mark.parametrize("name", OTHER_FORMATS)
def test_files_of_other_tokenizers_are_recognised_and_told_what_to_give(name, tmp_path):
    pytest.importorskip("tokenizers")
    content, kind, fix = OTHER_FORMATS[name]
    (tmp_path / name).write_text(content)
    with pytest.raises(DataError, match=rf"{name} is (no |a |the |).*{kind}(.|\n)*fix: (.|\n)*{fix}"):
        load_tokenizer(tmp_path / name)


def test_the_command_for_vocabulary_and_merges_gives_the_same_ids(tmp_path):
    tokenizers = pytest.importorskip("tokenizers")
    library = tokenizers.ByteLevelBPETokenizer()
    library.train_from_iterator(["the end of the text"] * 9, 300, special_tokens=["<|endoftext|>"], show_progress=False)
    library.save_model(str(tmp_path))
    fix = tokenizer_files.to_json("vocab.json", "merges.txt")
    subprocess.run(re.search(r"python -c (.*)", fix).group(0), shell=True, cwd=tmp_path, check=True)
    loaded = load_tokenizer(tmp_path / "tokenizer.json")
    for text in ("the end of the text", " 12 文 "):
        assert loaded.encode(text) == library.encode(text).ids
    assert loaded.piece(loaded.eod_id) == "<|endoftext|>"


def test_ranks_that_make_no_tokenizer_are_named(tmp_path):
    pytest.importorskip("gigatoken")
    ranks = [bytes([byte]) for byte in range(256)] + [b"three"]  # which no two tokens make
    lines = [base64.b64encode(piece) + b" %d" % rank for rank, piece in enumerate(ranks)]
    (tmp_path / "a.tiktoken").write_bytes(b"\n".join(lines) + b"\n")
    (tmp_path / "a.tiktoken.json").write_text('{"pretokenizer": "cl100k"}')
    with pytest.raises(DataError, match=r"a\.tiktoken is no tiktoken file that can be read"):
        load_tokenizer(tmp_path / "a.tiktoken")
