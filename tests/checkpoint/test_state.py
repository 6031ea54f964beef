"""A checkpoint's tensors under global names: how the content is described, and what is asked of it."""

import shutil
from types import SimpleNamespace

from megatron_sky.checkpoint.state import _fill, _named, content_metadata, load
from megatron_sky.errors import CheckpointError
from tests.checkpoint.record import RECORDED


def test_the_description_says_whether_there_is_an_optimizer_and_a_history():
    plain = content_metadata(holds_optimizer=False)
    assert plain["holds_optimizer"] is False and plain["fp8"] is None
    assert content_metadata(holds_optimizer=True, fp8={"amax_history_len": 4}) == plain | {
        "holds_optimizer": True,
        "fp8": {"amax_history_len": 4},
    }


def test_chunks_have_megatron_cores_names():
    assert _named(["a"]) == [("model", "a")] and _named(["a", "b"]) == [("model0", "a"), ("model1", "b")]


def test_a_module_is_filled_strictly_but_for_extra_states_that_are_not_there():
    taken: list[dict] = []

    def load_state_dict(state, strict):
        assert strict
        taken.append(state)

    chunk = SimpleNamespace(state_dict=lambda: {"w": 0, "norm._extra_state": 0}, load_state_dict=load_state_dict)
    _fill(chunk, {"w": 1})
    _fill(chunk, {"w": 1, "norm._extra_state": b"x"})
    assert taken == [{"w": 1, "norm._extra_state": None}, {"w": 1, "norm._extra_state": b"x"}]


def refused(info, folder: str, takes_optimizer: bool) -> str:
    """What `load` says of a checkpoint."""
    from pathlib import Path

    from megatron_sky.config.schema import ParallelConfig
    from megatron_sky.distributed.context import open_context

    with open_context(ParallelConfig(), info) as context:
        try:
            load(Path(folder), context=context, chunks=[], optimizer=object() if takes_optimizer else None)
        except CheckpointError as error:
            return str(error)
    return ""


def test_a_folder_without_an_index_is_named(ranks, tmp_path):
    (text,) = ranks(1, refused, str(tmp_path), False)
    assert str(tmp_path / ".metadata") in text


def test_weights_alone_do_not_resume_a_run(ranks, tmp_path):
    (recorded,) = [folder for folder in RECORDED.iterdir() if folder.name.startswith("0.16")]
    folder = shutil.copytree(recorded / "checkpoint", tmp_path / "step_0000001")
    (text,) = ranks(1, without_optimizer, str(folder))
    assert "was saved without its optimizer state" in text and f"init_from={folder}" in text


def without_optimizer(info, folder: str) -> str:
    from megatron_sky.checkpoint import state

    original = state._content_metadata
    state._content_metadata = lambda path: content_metadata(holds_optimizer=False)
    try:
        return refused(info, folder, True)
    finally:
        state._content_metadata = original
