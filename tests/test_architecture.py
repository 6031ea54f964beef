"""Who may import whom, and what may be said where: the package's rules, read from its syntax trees."""

import ast
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
PACKAGE = ROOT / "megatron_sky"
FILES = sorted(PACKAGE.rglob("*.py"))

# Upper may import lower, never the reverse; siblings (same number) don't import each other.
LEVELS = {
    "errors": 0,
    "log": 1,
    "config": 2,
    "distributed": 3,
    "model": 4,
    "checkpoint": 5,
    "data": 5,
    "optim": 5,
    "monitor": 5,
    "inference": 6,
    "convert": 6,
    "evaluate": 6,
    "trainer": 7,
    "report": 7,
    "quickstart": 8,
    "doctor": 7,
    "cli_doctor": 8,
    "slurm": 8,
    "migrate": 8,
    "cli_slurm": 9,
    "cli_migrate": 9,
    "cli": 10,
    "cli_data": 8,
    "cli_tokenizer": 8,
    "cli_convert": 8,
    "cli_eval": 8,
    "cli_checkpoint": 8,
    "__main__": 11,
}
NO_TORCH = [
    "config",
    "errors.py",
    "log.py",
    "distributed/topology.py",
    "distributed/seeding.py",
    "model/flops.py",
    "optim/schedule.py",
    "data/sampling/plan.py",
    "data/tokens/indexed.py",
    "data/tokens/meta.py",
    "checkpoint/store.py",
    "monitor",
    "evaluate/windows.py",
    "evaluate/metrics.py",
    "evaluate/bootstrap.py",
    "evaluate/leakage.py",
    "evaluate/reference.py",
    "evaluate/results.py",
    "evaluate/tables.py",
    "trainer/batches.py",
    "trainer/state.py",
    "trainer/run_folder.py",
]


def imports(path: Path) -> list[tuple[str, ast.AST]]:
    found = []
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            found += [(alias.name, node) for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            found += [(f"{node.module}.{alias.name}", node) for alias in node.names]
    return found


def part(name: str) -> str | None:
    """The top-level part of megatron_sky that a dotted name belongs to."""
    words = name.split(".")
    return words[1] if words[0] == "megatron_sky" and len(words) > 1 else None


def module_of(path: Path) -> str:
    return path.relative_to(PACKAGE).with_suffix("").parts[0]


@pytest.mark.parametrize("path", FILES, ids=lambda path: str(path.relative_to(PACKAGE)))
def test_imports_point_down(path):
    own = module_of(path)
    if own == "__init__":
        return
    for name, node in imports(path):
        other = part(name)
        if other is None or other == own or other not in LEVELS:
            continue
        assert LEVELS[own] > LEVELS[other], f"{path}:{node.lineno}: {own} may not import {other}"


@pytest.mark.parametrize("path", FILES, ids=lambda path: str(path.relative_to(PACKAGE)))
def test_process_globals_and_the_accelerator_have_one_door(path):
    place = path.relative_to(PACKAGE).as_posix()
    for name, node in imports(path):
        assert not name.startswith("megatron.training"), f"{place}:{node.lineno}"
        if "parallel_state" in name:
            assert place == "distributed/context.py", f"{place}:{node.lineno} touches parallel_state"
    if place != "distributed/device.py":
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if isinstance(node, ast.Attribute):
                assert node.attr != "cuda", f"{place}:{node.lineno} names the accelerator"
            if isinstance(node, ast.Constant) and isinstance(node.value, str):
                assert not node.value.startswith("cuda"), f"{place}:{node.lineno} names the accelerator"


@pytest.mark.parametrize("path", FILES, ids=lambda path: str(path.relative_to(PACKAGE)))
def test_nothing_is_swallowed_and_no_global_is_set(path):
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        assert not isinstance(node, ast.Global), f"{path}:{node.lineno}: progress lives in objects"
        if isinstance(node, ast.ExceptHandler):
            assert node.type is not None, f"{path}:{node.lineno}: a bare except"
            assert not all(isinstance(each, ast.Pass) for each in node.body), f"{path}:{node.lineno}: swallowed"


@pytest.mark.parametrize("place", NO_TORCH)
def test_arithmetic_and_config_import_no_torch(place):
    target = PACKAGE / place
    for path in sorted(target.rglob("*.py")) if target.is_dir() else [target]:
        for name, node in imports(path):
            assert name.split(".")[0] not in ("torch", "megatron"), f"{path}:{node.lineno} imports {name}"


def test_every_part_has_a_level():
    parts = {module_of(path) for path in FILES} - {"__init__"}
    assert parts <= LEVELS.keys(), f"give a level to {sorted(parts - LEVELS.keys())}"


def test_help_imports_neither_torch_nor_pydantic():
    code = (
        "import sys; from megatron_sky.cli.main import app; import typer.main; typer.main.get_command(app);"
        "print([m for m in ('torch', 'megatron.core', 'pydantic', 'yaml', 'numpy', 'matplotlib') if m in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, cwd=ROOT, check=True)
    assert done.stdout.strip() == "[]"


def test_the_loop_fits_one_screen():
    tree = ast.parse((PACKAGE / "trainer/loop.py").read_text(encoding="utf-8"))
    fit = next(node for node in ast.walk(tree) if isinstance(node, ast.FunctionDef) and node.name == "fit")
    assert fit.end_lineno - fit.lineno < 20
