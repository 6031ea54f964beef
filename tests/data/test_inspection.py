from megatron_sky.data.inspection import draw, language_of, overview, show_document
from megatron_sky.data.tokenize import TokenizeOptions, tokenize_files

from .helpers import read_texts


def test_languages_by_script():
    assert language_of("The cook waits by the river.") == "en"
    assert language_of("渔民在河边修补渔网。") == "zh"
    assert language_of("привет, как дела") == "other"
    assert language_of("12 + 3 = 15; 4 * 5 == 20;") == "code and numbers"
    assert language_of("") == "code and numbers"


def test_an_overview_and_its_picture(corpus, tmp_path):
    files = [corpus.files["test"]["zh_web"], corpus.files["test"]["en_web"]]
    tokenize_files(files, tmp_path / "a", corpus.tokenizer, TokenizeOptions())
    view = overview(tmp_path / "a", corpus.tokenizer)
    texts = [text for file in files for text in read_texts(file)]
    assert sum(view.documents) == view.num_documents == len(texts) == view.sampled
    assert view.language_tokens.keys() == {"zh", "en"}
    assert sum(view.language_tokens.values()) == view.num_tokens
    assert show_document(tmp_path / "a", 3, corpus.tokenizer) == texts[3]
    draw([view, view], tmp_path / "a.png")
    assert (tmp_path / "a.png").read_bytes().startswith(b"\x89PNG")
