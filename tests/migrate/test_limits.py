"""Scripts that nobody writes by hand end soon, in little memory, with a message of ours."""

import subprocess
import sys

import pytest
import yaml

from megatron_sky.errors import ConfigError
from megatron_sky.migrate.limits import MAX_BYTES, MAX_NOTES
from megatron_sky.migrate.readings import translate_script
from megatron_sky.migrate.shell import read_script
from megatron_sky.migrate.text import read_arguments, recipe_text, report_lines

LAST = "\npython t.py --num-layers 2 --a $A ${B[@]}\n"
DOUBLE = 'A="$A$A"\n'


@pytest.mark.parametrize(
    ("script", "rule"),
    [
        ("A=1\n" * 200_000, r"800,\d+ bytes"),
        ("\n" * 20_000, r"20,00\d lines"),
        ("(" * 20_000, r"20,00\d brackets"),
        ("A={" + "{a," * 20_000, "brackets"),
        ("a | " * 5000 + "b", "5,000 pipe signs"),
        ("[[ " + "! " * 5000 + "a ]]", "signs within each other"),
        ("x && " * 4000 + "A=1", "within each other"),
        ("if true; then " * 400 + "A=1;" + "fi;" * 400, "within each other"),
        ("{ " * 90 + "A=1;" + "} ;" * 90, "60 statements"),
        ("if x; then A=1\n" + "elif y; then A=2\n" * 4000 + "fi", "calls can follow"),
        ("".join(f"f{i}() {{ f{i + 1}; }}\n" for i in range(1500)) + "for i in $(x); do f0; done", "steps"),
        ("set -- x\n" + 'set -- "$@" "$@"\n' * 60, "steps"),
        ("A='x y z'\n" + DOUBLE * 13 + "python t.py --a " + "$A " * 2000, "steps"),
        ("B=(x y)\n" + 'B+=("${B[@]}")\n' * 60, "steps"),
        ("A=':;'\n" + DOUBLE * 14 + 'eval "$A"\n' * 20, "steps"),
        ("".join(f"V{i}=1\n" for i in range(5000)) + "if x; then A=1; fi\n" * 4000, "steps"),
    ],
)
def test_a_script_beyond_the_limits_is_refused(script, rule):
    with pytest.raises(ConfigError, match=rf"(?s){rule}.*fix: give Megatron-LM's arguments themselves") as caught:
        read_script(script + LAST)
    assert caught.value.exit_code == 2


@pytest.mark.parametrize(
    "script",
    [
        "A=x\n" + DOUBLE * 60,
        "A=x\nfor i in 1 2 3 4 5 6; do for j in 1 2 3 4 5 6; do " + DOUBLE.strip() + "; done; done",
        "A=x\nwhile true; do " + DOUBLE.strip() + "; done",
        "A=x\nfor ((i = 0; i < 100000; i++)); do A+=$A; done",
        "A=x\n" + DOUBLE * 15 + "A=${A//x/$A}",
        "echo {1..999999999} {a,b}{a,b}{a,b}{a,b}{a,b}{a,b}{a,b}{a,b}{a,b}{a,b}{a,b}{a,b}{a,b}{a,b}{a,b}{a,b}{a,b}",
        "A=$((" + "(" * 200 + "1" + ")" * 200 + "))",
        "A=$((2 ** 62 ** 9))",
        "f() { f; f; }\nf",
        'A=\'eval "$A;$A"\'\neval "$A"',
    ],
)
def test_what_grows_is_not_known_and_told(script):
    read = read_script(script + LAST)
    assert read.words[:4] == ["python", "t.py", "--num-layers", "2"] and read.notes


def test_the_size_is_checked_before_the_file_is_read(tmp_path):
    with open(tmp_path / "a.sh", "wb") as file:
        file.truncate(2**40)
    with pytest.raises(ConfigError, match=rf"1,099,511,627,776 bytes, and no more than {MAX_BYTES:,}"):
        read_arguments([str(tmp_path / "a.sh")])


def test_a_long_script_is_read():
    """Of as many lines as are allowed; the notes stay few."""
    read = read_script("".join(f"V{i}=$(x{i})\n" for i in range(5000)) + "A=1" + LAST)
    assert read.words[4:6] == ["--a", "1"] and len(read.notes) == MAX_NOTES + 1


@pytest.mark.slow
@pytest.mark.parametrize("grows", ["A=${A//x/$A}", "for i in $B; do B=(${B[@]} ${B[@]}); done", "A=$A$A$A$A$A$A$A$A"])
def test_memory_is_bounded(grows):
    import resource

    script = "A=x; B=(1 2)\n" + DOUBLE * 15 + f"{grows}\n" * 50 + LAST
    code = "import sys; from megatron_sky.migrate.shell import read_script; read_script(sys.argv[1])"
    done = subprocess.run(
        [sys.executable, "-c", code, script],
        preexec_fn=lambda: resource.setrlimit(resource.RLIMIT_AS, (2**30, 2**30)),
        capture_output=True,
        text=True,
        check=False,
        timeout=120,
    )
    assert "MemoryError" not in done.stderr and (done.returncode == 0 or "steps to follow" in done.stderr)


ENDS = ["\n", "\r", "\r\n", "\x0b", "\x0c", "\x85", "\u2028", "\u2029", "\0", "\x1b[2J"]
PLACES = """
--num-layers "V" | --save 'V' | --data-path 'V' | --data-path 1 'V' | --rampup-batch-size 'V' 'V' 2
--vocab-size 'V' | --no-such 'V' | '--V' 3 | --wandb-project 'V' --wandb-exp-name 'V' | --bf16 '${V}'
--seed '$(V)' | --load 'V' | --finetune --load 'V' | --lr-decay-style 'V'
--tokenizer-type NullTokenizer --vocab-size 'V' | --tensorboard-dir 'V' | --position-embedding-type 'V'
--train-iters "${X:-V}"
"""


@pytest.mark.parametrize("end", ENDS)
@pytest.mark.parametrize("place", PLACES.strip().replace("\n", " | ").split(" | "))
def test_a_value_adds_no_keys_to_the_recipe(place, end):
    """Values go into the file as values, and into comments and the terminal with control characters escaped."""
    value = f"x{end}model: {{}}{end}injected: 1{end}# y"
    script = read_script(f"if [ -f x ]; then exit 1; fi\npython t.py {place.replace('V', value)} --hidden-size 64\n")
    done = translate_script(script)
    text = recipe_text(done, f"a{end}b: 1")
    recipe = yaml.safe_load(text)
    assert recipe == done.recipe and "injected" not in recipe and recipe["model"]["hidden_size"] == 64
    assert all(line.startswith("# ") and line.isprintable() for line in text.split("\nmodel:\n")[0].split("\n"))
    assert all(line.isprintable() for line in report_lines(done, script.notes))
