"""Every kind of tokenizer is found in a folder, and found again where it was copied, with what belongs to it."""

import pytest

from megatron_sky.config import tokenizer_files

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
