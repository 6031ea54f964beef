"""Who may import whom, and what may be said where: the package's rules, read from its syntax trees."""

import ast
import re
import subprocess
import sys
import tokenize
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
PACKAGE = ROOT / "megatron_sky"
FILES = sorted(PACKAGE.rglob("*.py"))

# The floors of the house, from the ground up. What stands on a floor may import from the floors below it, never from
# above, and not from its neighbours. A part is a package or a module; `planner`, `finetune` and `corpus` are rooms to
# come. The planner stands above the trainer, since a rehearsal runs the trainer's own step.
FLOORS = [
    ["__init__"],
    ["appender", "control", "errors"],
    ["log", "files", "palette", "records", "terminal", "versions"],
    ["config"],
    ["distributed"],
    ["model", "tokenizer"],
    ["checkpoint", "data", "optim", "monitor"],
    ["inference"],
    ["convert", "migrate"],
    ["generation"],
    ["evaluate", "finetune", "corpus", "serve"],
    ["trainer"],
    ["planner", "report", "doctor"],
    ["quickstart", "slurm"],
    ["cli"],
    ["__main__"],
]
LEVELS = {name: number for number, floor in enumerate(FLOORS) for name in floor}
NO_TORCH = [
    "config",
    "appender.py",
    "control.py",
    "errors.py",
    "files.py",
    "log.py",
    "records.py",
    "terminal.py",
    "distributed/topology.py",
    "distributed/seeding.py",
    "model/flops.py",
    "optim/schedule.py",
    "data/sampling/plan.py",
    "data/tokens/indexed.py",
    "data/tokens/meta.py",
    "checkpoint/description.py",
    "checkpoint/store.py",
    "monitor",
    *(f"planner/{path.name}" for path in sorted((PACKAGE / "planner").glob("*.py"))),  # the rehearsal is torch's
    "generation/sampling.py",
    "generation/texts.py",
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
    "trainer/run_record.py",
]


def imports(path: Path) -> list[tuple[str, ast.AST]]:
    """What a file imports, anywhere in it: the dotted name of each module or of a name in one, with its node."""
    names = []
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            names += [(alias.name, node) for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path}:{node.lineno}: imports are absolute"
            names += [(f"{node.module}.{alias.name}", node) for alias in node.names]
    return names


def file_of(name: str) -> Path | None:
    """The file of the package that a dotted name means: a module, or a name in one."""
    words = name.split(".")
    if words[0] != "megatron_sky":
        return None
    for length in range(len(words), 0, -1):
        stem = ROOT.joinpath(*words[:length])
        for path in (stem.with_suffix(".py"), stem / "__init__.py"):
            if path.is_file():
                return path
    raise AssertionError(f"{name} is imported and is no file of the package")


def part_of(path: Path) -> str:
    """The part of the package that a file belongs to."""
    return path.relative_to(PACKAGE).with_suffix("").parts[0]


@pytest.mark.parametrize("path", FILES, ids=lambda path: str(path.relative_to(PACKAGE)))
def test_imports_point_down(path):
    own = part_of(path)
    for name, node in imports(path):
        other = file_of(name)
        if other is not None and part_of(other) not in (own, "__init__"):
            assert LEVELS[own] > LEVELS[part_of(other)], f"{path}:{node.lineno}: {own} may not import {name}"


def test_no_circle_between_files():
    """Imports inside functions count: a circle that only a late import breaks is one all the same."""
    arrows = {
        path: {file for name, _ in imports(path) if (file := file_of(name)) not in (None, path)} for path in FILES
    }
    done: set[Path] = set()

    def visit(path: Path, way: list[Path]) -> None:
        circle = (
            [step.relative_to(PACKAGE).as_posix() for step in (*way[way.index(path) :], path)] if path in way else []
        )
        assert not circle, " -> ".join(circle)
        if path not in done:
            for other in sorted(arrows[path]):
                visit(other, [*way, path])
            done.add(path)

    for path in FILES:
        visit(path, [])


@pytest.mark.parametrize("path", FILES, ids=lambda path: str(path.relative_to(PACKAGE)))
def test_process_globals_and_the_accelerator_have_one_door(path):
    place = path.relative_to(PACKAGE).as_posix()
    for name, node in imports(path):
        assert not name.startswith("megatron.training"), f"{place}:{node.lineno}"
        if "parallel_state" in name:
            assert place == "distributed/context.py", f"{place}:{node.lineno} touches parallel_state"
    doors = ("device.py", "cpu_emulation.py", "meta_device.py", "te_stand_in/")
    if not place.startswith(tuple(f"distributed/{door}" for door in doors)):
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


def comments_of(path: Path) -> set[int]:
    """The lines of a file that have a comment."""
    with tokenize.open(path) as file:
        return {token.start[0] for token in tokenize.generate_tokens(file.readline) if token.type == tokenize.COMMENT}


def passes_over(handler: ast.ExceptHandler) -> bool:
    """Whether an error is neither told nor used: the handler only goes on, or sets something else."""
    uses = {node.id for each in handler.body for node in ast.walk(each) if isinstance(node, ast.Name)}
    goes_on = (ast.Pass, ast.Continue, ast.Break, ast.Assign, ast.AugAssign, ast.AnnAssign)
    return handler.name not in uses and all(isinstance(each, goes_on) for each in handler.body)


@pytest.mark.parametrize("path", FILES, ids=lambda path: str(path.relative_to(PACKAGE)))
def test_what_is_passed_over_says_why_on_its_line(path):
    comments = comments_of(path)
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.ExceptHandler) and passes_over(node):
            lines = range(node.lineno, node.body[-1].end_lineno + 1)
            assert comments & set(lines), f"{path}:{node.lineno}: an error is passed over, and no comment says why"
        if isinstance(node, ast.Call) and ast.unparse(node.func).rpartition(".")[2] == "suppress":
            names = {ast.unparse(each) for each in node.args}
            assert not {"Exception", "BaseException"} & names, f"{path}:{node.lineno}: suppresses everything"
            is_signal = all(name.startswith("_") for name in names)  # of a module to itself, no error
            assert is_signal or node.lineno in comments, f"{path}:{node.lineno}: suppressed, and no comment says why"


def test_an_error_that_is_passed_over_is_seen():
    def handler(body: str) -> ast.ExceptHandler:
        return (
            ast.parse(f"for x in y:\n    try:\n        z()\n    except E as e:\n        {body}")
            .body[0]
            .body[0]
            .handlers[0]
        )

    assert all(passes_over(handler(body)) for body in ("pass", "continue", "break", "x = None", "x += 1"))
    assert not any(passes_over(handler(body)) for body in ("raise", "x = e", "warn(e)", "raise V from None"))


@pytest.mark.parametrize("place", NO_TORCH)
def test_arithmetic_and_config_import_no_torch(place):
    target = PACKAGE / place
    for path in sorted(target.rglob("*.py")) if target.is_dir() else [target]:
        for name, node in imports(path):
            assert name.split(".")[0] not in ("torch", "megatron"), f"{path}:{node.lineno} imports {name}"


@pytest.mark.parametrize("place", ["checkpoint/reader", "inference/checkpoints.py", "inference/model.py"])
def test_a_checkpoint_is_opened_without_torch(place):
    """What some callers alone need torch for, imports it where they ask."""
    target = PACKAGE / place
    for path in sorted(target.rglob("*.py")) if target.is_dir() else [target]:
        for node in ast.parse(path.read_text(encoding="utf-8")).body:
            if isinstance(node, ast.Import | ast.ImportFrom):
                names = [alias.name for alias in node.names] if isinstance(node, ast.Import) else [node.module]
                assert not {name.split(".")[0] for name in names} & {"torch", "megatron"}, f"{path}:{node.lineno}"


def test_every_part_has_a_level():
    parts = {part_of(path) for path in FILES}
    assert parts <= LEVELS.keys(), f"give a level to {sorted(parts - LEVELS.keys())}"


def test_help_imports_neither_torch_nor_pydantic():
    code = (
        "import sys; from megatron_sky.cli.main import app; import typer.main; typer.main.get_command(app);"
        "print([m for m in ('torch', 'megatron.core', 'pydantic', 'yaml', 'numpy', 'matplotlib') if m in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, cwd=ROOT, check=True)
    assert done.stdout.strip() == "[]"


LONGEST_FUNCTION, LONGEST_MODULE = 60, 450


def too_long(text: str) -> list[str]:
    """The module and its functions that have too many lines, but for those whose docstring says why.

    The sentence is `Longer than 60 lines: ...`, of a module `Longer than 450 lines: ...`.
    """
    tree = ast.parse(text)
    sizes: list[tuple[ast.AST, str, int, int]] = [(tree, "the module", len(text.splitlines()), LONGEST_MODULE)]
    for node in ast.walk(tree):
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
            sizes.append((node, node.name, node.end_lineno - node.lineno + 1, LONGEST_FUNCTION))
    return [
        f"{name} has {size} lines, and its head does not say `Longer than {limit} lines: ...`"
        for node, name, size, limit in sizes
        if size > limit and not re.search(rf"\bLonger than {limit} lines: \w", ast.get_docstring(node) or "")
    ]


@pytest.mark.parametrize("path", FILES, ids=lambda path: str(path.relative_to(PACKAGE)))
def test_what_is_long_says_why(path):
    assert not too_long(path.read_text(encoding="utf-8"))


def test_what_is_too_long_is_seen():
    body = "    x = 1\n" * 59
    assert not too_long(f"def f():\n{body}")
    assert (
        len(too_long(f"class A:\n    def f(self):\n{body}        x = 2\n".replace("    x = 1", "        x = 1"))) == 1
    )
    assert too_long(f"async def f():\n{body}    x = 2\n")
    assert not too_long(f'def f():\n    """A list.\n\n    Longer than 60 lines: a list.\n    """\n{body}')
    assert too_long(f'def f():\n    """Longer than 60 lines:"""\n{body}'), "no reason"
    assert not too_long("x = 1\n" * 450) and too_long("x = 1\n" * 451)


TESTED_ELSEWHERE = {
    "cli/corpus.py": "verbs: tests/corpus/test_build.py calls them",
    "cli/slurm.py": "verbs: tests/slurm/ calls them",
    "cli/tokenizer.py": "verbs: tests/cli/test_data.py and tests/tokenizer/ call them",
    "cli/train.py": "a verb: tests/cli/test_main.py and tests/faults/ call it",
    "convert/compare/run_megatron.py": "a side of `convert check`: tests/convert/compare/test_check.py",
    "convert/compare/run_transformers.py": "a side of `convert check`: tests/convert/compare/test_check.py",
    "convert/dist_files.py": "files of a native checkpoint: tests/convert/test_native.py",
    "convert/megatron/flat_state.py": "a form of the optimizer's state: tests/convert/megatron/test_training.py",
    "convert/megatron/rank_files.py": "files of `convert to-megatron`: tests/convert/megatron/test_hand_back.py",
    "convert/megatron/rank_state.py": "a form of the optimizer's state: tests/convert/megatron/test_training.py",
    "convert/megatron/settings.py": "args of `convert to-megatron`: tests/convert/megatron/test_hand_back.py",
    "convert/megatron/take_over.py": "what a verb does: tests/convert/megatron/test_training.py",
    "convert/training_state.py": "what both ways have in common: tests/convert/megatron/test_training.py",
    "corpus/executors.py": "how passes are run: tests/corpus/test_build.py",
    "corpus/outputs.py": "the last passes: tests/corpus/test_build.py",
    "corpus/passes.py": "the passes put together: tests/corpus/test_build.py",
    "corpus/stage.py": "what all steps share: every test of a step is its test",
    "generation/prompts.py": "files of prompts: tests/generation/test_chat.py reads and answers them",
    "planner/picture.py": "pictures: tests/cli/test_plan.py has them drawn",
    "planner/run.py": "what a verb does: tests/cli/test_plan.py calls it",
    "planner/show.py": "its lines: tests/cli/test_plan.py reads them",
    "serve/answers.py": "answers in OpenAI's form: tests/serve/test_app.py reads them with its client",
    "serve/bodies.py": "what clients send: tests/serve/test_app.py",
    "serve/limits.py": "limits of requests: tests/serve/test_app.py",
    "trainer/job.py": "a run's parts put together: every test of training is its test",
    "trainer/build.py": "two calls: every test of training is its test",
}
"""Modules that have no test file of their own name, and why."""


def has_logic(path: Path) -> bool:
    """Whether a file has a function that does something: not only a docstring, `...` or NotImplementedError."""
    return any(
        isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef) and not all(map(is_empty, node.body))
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8")))
    )


def is_empty(node: ast.stmt) -> bool:
    return (isinstance(node, ast.Expr) and isinstance(node.value, ast.Constant)) or (
        isinstance(node, ast.Raise) and node.exc is not None and ast.unparse(node.exc) == "NotImplementedError"
    )


def file_for(path: Path) -> Path:
    """A module's test file; a package's own `__init__` has one under the package's name."""
    place = path.relative_to(PACKAGE)
    name = f"{place.parent.name}.py" if place.name == "__init__.py" else place.name
    return ROOT / "tests" / place.parent / f"test_{name}"


@pytest.mark.parametrize("path", FILES, ids=lambda path: str(path.relative_to(PACKAGE)))
def test_what_does_something_has_a_test_file_of_its_name(path):
    place, lacks_one = path.relative_to(PACKAGE).as_posix(), has_logic(path) and not file_for(path).is_file()
    assert not (lacks_one and place not in TESTED_ELSEWHERE), f"write {file_for(path).relative_to(ROOT)}"
    assert lacks_one or place not in TESTED_ELSEWHERE, (
        f"{place} has one, or needs none: take it out of TESTED_ELSEWHERE"
    )


def test_no_test_file_is_missed_of_a_module_that_is_gone():
    places = {path.relative_to(PACKAGE).as_posix() for path in FILES}
    assert TESTED_ELSEWHERE.keys() <= places


def test_paths_are_resolved_at_one_door():
    """`files.real_path`: `Path.resolve` has another exception than OSError for links in a circle, till Python 3.12."""
    calls = re.compile(r"\.resolve\(\)")
    assert [file.name for file in FILES if calls.search(file.read_text())] == []


def test_the_loop_fits_one_screen():
    tree = ast.parse((PACKAGE / "trainer/loop.py").read_text(encoding="utf-8"))
    fit = next(node for node in ast.walk(tree) if isinstance(node, ast.FunctionDef) and node.name == "fit")
    assert fit.end_lineno - fit.lineno < 20
