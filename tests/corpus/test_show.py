import pytest

from megatron_sky.corpus.show import funnel, read_summary
from megatron_sky.errors import RunError
from megatron_sky.files import write_json


def test_a_corpus_that_is_not_whole_is_refused(tmp_path):
    with pytest.raises(RunError, match="no whole corpus is here"):
        read_summary(tmp_path)


def test_the_funnel_names_the_rules(tmp_path):
    amounts = {"given": {"documents": 5, "bytes": 50}, "kept": {"documents": 3, "bytes": 30}}
    account = amounts | {"dropped": {"empty": {"documents": 2, "bytes": 20}}, "notes": {}}
    outputs = {"text": {"web": {"documents": 3, "bytes": 30, "tokens": 9}}, "validation": {}}
    write_json(tmp_path / "corpus.json", {"stages": {"read": {"a": account, "b": account}}, "outputs": outputs})
    lines = funnel(tmp_path).splitlines()
    assert lines[1].split() == ["read", "10", "6", "empty", "4"]
    assert lines[2] == "text/web: 3 documents, 30 bytes, 9 tokens"
