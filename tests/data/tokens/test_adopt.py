"""A meta file for a pair of another tool."""

import pytest

from megatron_sky.data.tokens.adopt import write_meta_of
from megatron_sky.data.tokens.meta import read_meta
from megatron_sky.data.tokens.verify import verify
from tests.data.helpers import write_pair


@pytest.mark.parametrize("ended", [True, False])
def test_what_is_proved_is_written_down(ended, text_corpus, tmp_path):
    tokenizer = text_corpus.tokenizer
    end = [tokenizer.eod_id] if ended else []
    write_pair(tmp_path / "p", [[5, 6, 7, *end], [8, *end], [9, 10, *end]])
    written = write_meta_of(verify(tmp_path / "p", tokenizer=tokenizer), tokenizer)
    assert read_meta(tmp_path / "p") == written
    assert written.append_eod == ended and written.tokenizer.sha256 == tokenizer.sha256
    assert written.documents.read == written.num_documents == 3 and written.documents.written == 3
    assert written.notes == {"made_by_another_tool": 1}
    assert verify(tmp_path / "p", tokenizer=tokenizer).meta == written
