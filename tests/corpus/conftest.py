"""What the tests of the corpus pipeline share: datatrove or a skip, and documents as its steps take them."""

import importlib.util

import pytest

NEED_ENGINE = ("build", "duplicates", "extract", "judge", "page", "quality", "read", "recurrence", "show", "stage")
if any(importlib.util.find_spec(name) is None for name in ("datatrove", "warcio", "resiliparse", "orjson")):
    collect_ignore = [f"test_{name}.py" for name in NEED_ENGINE]


@pytest.fixture
def document():
    """`document("text", url=...)`: a datatrove document of the source `web`."""
    from datatrove.data import Document

    def make(text, **metadata):
        defaults = {"source": "web", "file": "a.jsonl", "place": 0, "language": "en", "quality": 1.0}
        return Document(text, f"web/{text[:8]}", metadata=defaults | metadata)

    return make
