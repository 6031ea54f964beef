import pytest

from megatron_sky.data.ingest.tokenize import TokenizeOptions, tokenize_files
from megatron_sky.data.tokens.inspection import draw, overview, show_document
from megatron_sky.errors import DataError
from megatron_sky.tokenizer.language import language_of
from tests.data.helpers import read_texts, write_pair


def test_languages_by_script():
    assert language_of("The cook waits by the river.") == "en"
    assert language_of("渔民在河边修补渔网。") == "zh"
    assert language_of("привет, как дела") == "other"
    assert language_of("12 + 3 = 15; 4 * 5 == 20;") == "code and numbers"
    assert language_of("") == "code and numbers"


def test_an_overview_and_its_picture(text_corpus, tmp_path):
    files = [text_corpus.files["test"]["zh_web"], text_corpus.files["test"]["en_web"]]
    tokenize_files(files, tmp_path / "a", text_corpus.tokenizer, TokenizeOptions())
    view = overview(tmp_path / "a", text_corpus.tokenizer)
    texts = [text for file in files for text in read_texts(file)]
    assert sum(view.documents) == view.num_documents == len(texts) == view.sampled
    assert view.language_tokens.keys() == {"zh", "en"}
    assert sum(view.language_tokens.values()) == view.num_tokens
    assert show_document(tmp_path / "a", 3, text_corpus.tokenizer) == texts[3]
    draw([view, view], tmp_path / "a.png")
    assert (tmp_path / "a.png").read_bytes().startswith(b"\x89PNG")


@pytest.mark.parametrize("number", [-1, 3, 1 << 40])
def test_a_document_that_is_not_there_is_told(text_corpus, tmp_path, number):
    prefix = write_pair(tmp_path / "a", [[5], [], [6]])
    with pytest.raises(DataError, match=rf"a has no document {number}: its 3 documents are numbered from 0 to 2"):
        show_document(prefix, number, text_corpus.tokenizer)
    assert show_document(prefix, 1, text_corpus.tokenizer) == ""
