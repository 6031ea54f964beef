"""The newest whole checkpoint, found by all ranks together."""

import json
from pathlib import Path

import pytest

from megatron_sky.checkpoint import store
from megatron_sky.errors import CheckpointError
from tests.checkpoint.folders import write_checkpoint


def found_together(info, run_dir: str, blind: int | None = None) -> tuple[str, list[str], int]:
    """(the checkpoint or the error that this rank ends with, its warnings, the bytes that it hashed)."""
    from megatron_sky.checkpoint import shared_check
    from megatron_sky.config.schema import ParallelConfig
    from megatron_sky.distributed.context import open_context

    warnings: list[str] = []
    hashed = 0
    hash_files, is_file = store.hash_files, Path.is_file

    def counted(folder, names, algorithm="sha256"):
        nonlocal hashed
        names = list(names)
        hashed += sum((folder / name).stat().st_size for name in names)
        return hash_files(folder, names, algorithm)

    store.hash_files = counted
    if info.rank == blind:
        Path.is_file = lambda path: False
    try:
        with open_context(ParallelConfig(), info) as context:
            try:
                latest = shared_check.find_latest(Path(run_dir), context, warnings.append)
                answer = latest.name if latest else "none"
            except CheckpointError as error:
                answer = str(error)
    finally:
        store.hash_files, Path.is_file = hash_files, is_file
    return answer, warnings, hashed


@pytest.mark.parametrize("world_size", [2, 4])
def test_ranks_share_the_files_and_agree(world_size, ranks, tmp_path):
    folder = write_checkpoint(tmp_path, 1, 10, num_files=9)
    results = ranks(world_size, found_together, str(tmp_path))
    total = sum(path.stat().st_size for path in folder.iterdir() if path.name != "manifest.json")
    hashed = [count for _, _, count in results]
    assert [answer for answer, _, _ in results] == ["step_0000001"] * world_size
    assert sum(hashed) == total and max(hashed) < total / world_size + 4000, hashed


def owner_of(folder: Path, name: str, world_size: int) -> int:
    sizes = {file: record.size for file, record in store.read_manifest(folder).items()}
    (owner,) = [rank for rank in range(world_size) if name in store.share_of(sizes, rank, world_size)]
    return owner


@pytest.mark.parametrize("world_size", [2, 4])
def test_damage_in_any_ranks_share_sends_all_to_the_one_before(world_size, ranks, tmp_path):
    write_checkpoint(tmp_path, 1, 10)
    newest = write_checkpoint(tmp_path, 2, 20)
    seen = set()
    for name in sorted(store.read_manifest(newest)):
        path, content = newest / name, (newest / name).read_bytes()
        path.write_bytes(bytes([content[0] ^ 1]) + content[1:])
        results = ranks(world_size, found_together, str(tmp_path))
        assert [answer for answer, _, _ in results] == ["step_0000001"] * world_size
        (warning,) = results[0][1]
        assert f"{path}: its content is not what was written" in warning
        assert all(warnings == [] for _, warnings, _ in results[1:])
        path.write_bytes(content)
        seen.add(owner_of(newest, name, world_size))
    assert len(seen) > 1, "the damage must have lain in several ranks' shares"


def test_all_damaged_ends_all_ranks_with_the_same_words(ranks, tmp_path):
    folder = write_checkpoint(tmp_path, 1, 10)
    (folder / "shard_2").unlink()
    results = ranks(2, found_together, str(tmp_path))
    assert {answer.partition("\n")[0] for answer, _, _ in results} == {
        f"{tmp_path / 'checkpoints'}: none of its 1 checkpoints is whole"
    }


def test_a_newer_format_is_not_passed_over(ranks, tmp_path):
    write_checkpoint(tmp_path, 1, 10)
    path = write_checkpoint(tmp_path, 2, 20) / "manifest.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | {"format_version": 99}))
    for answer, _, _ in ranks(2, found_together, str(tmp_path)):
        assert "format_version = 99" in answer


def test_a_rank_that_does_not_see_the_files_is_named_and_nothing_is_passed_over(ranks, tmp_path):
    write_checkpoint(tmp_path, 1, 10)
    newest = write_checkpoint(tmp_path, 2, 20)
    for answer, warnings, _ in ranks(2, found_together, str(tmp_path), 1):
        assert answer.startswith(f"{newest}/manifest.json: rank 1 on ") and "does not see it" in answer
        assert warnings == []


def test_no_checkpoint_yet(ranks, tmp_path):
    assert [answer for answer, _, _ in ranks(2, found_together, str(tmp_path))] == ["none", "none"]


def resolved_together(info, path: str) -> str:
    from megatron_sky.checkpoint import shared_check
    from megatron_sky.config.schema import ParallelConfig
    from megatron_sky.distributed.context import open_context

    with open_context(ParallelConfig(), info) as context:
        try:
            return str(shared_check.resolve(Path(path), context, print))
        except CheckpointError as error:
            return str(error)


def test_a_folder_of_a_checkpoint_or_of_a_run(ranks, tmp_path):
    folder = write_checkpoint(tmp_path, 3, 30)
    for path in (tmp_path, folder):
        assert ranks(2, resolved_together, str(path)) == [str(folder)] * 2
    for answer in ranks(2, resolved_together, str(tmp_path / "elsewhere")):
        assert "is neither a checkpoint nor a run folder" in answer
