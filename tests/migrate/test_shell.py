"""Launch scripts read without being run."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from megatron_sky.migrate.recipe import translate
from megatron_sky.migrate.shell import read_script


def words(text: str, *arguments: str) -> list[str]:
    return read_script(text, arguments).words


def test_one_flat_line():
    assert words("--num-layers 2 --lr=1e-3 --bf16") == ["--num-layers", "2", "--lr=1e-3", "--bf16"]


def test_arguments_of_the_script():
    script = 'SAVE=$1 # where to\nKIND=${2:-"mock"}\npython t.py --save $SAVE --kind $KIND'
    assert words(script, "out")[2:] == ["--save", "out", "--kind", "mock"]
    assert words(script)[2:] == ["--save", "${SAVE}", "--kind", "mock"]


def test_what_is_not_followed_is_told():
    script = read_script(
        "for i in $(seq 2); do A=$i; done\nhelp() {\n  python no.py --wrong\n}\n. conf.sh\n"
        "DIR=$(dirname x)\nif [ -f file ]; then echo --wrong; exit 1; fi\n[ -d $DIR ] && A=(--wrong)\n"
        "python t.py --save $DIR/run --tag $(date) ${NONE[@]}"
    )
    assert script.words == ["python", "t.py", "--save", "${DIR}/run", "--tag", "$(...)"]
    told = " ".join(script.notes)
    for part in ("`for`", "$(dirname x)", "-f file", "[ -d $DIR ]", ". conf.sh", "$(date)", "array NONE"):
        assert part in told


@pytest.mark.parametrize(
    "end",
    [
        "2>&1 | tee log",
        "2>&1 \\\n  | tee -a log",
        "|& tee log",
        ">log 2>&1 &",
        "> log 2> err < /dev/null",
        "&> log",
        "&>> log &",
        ">& log",
        "1>>log 2>&-",
        "> >(tee log) 2> >(tee err >&2)",
        "; echo done",
        "&& echo done --fine",
        "|| exit 1",
        "|| { echo failed --code $?; exit 1; }",
        "<<< text",
        "<<EOF\n--lr 5 | x\nEOF\necho",
        "<<-'EOF' 2>log\n\t--lr 5\n\tEOF\n",
        "&\nwait $!",
        ") > log",
        "# the end",
    ],
)
def test_where_a_command_ends(end):
    opens = "(" if end.startswith(")") else ""
    assert words(f"{opens}python t.py --bf16 --data-path 0.3 A 0.7 B2 {end}")[2:] == [
        "--bf16",
        "--data-path",
        "0.3",
        "A",
        "0.7",
        "B2",
    ]
    assert words(f"cd x && echo y | {opens}python t.py --data-path B2>log {end}")[2:] == ["--data-path", "B2"]


def test_a_variable_that_is_set_after_its_use_is_told():
    script = read_script("A=(--lr $LR --seed ${SEED:-1})\nLR=1e-4; SEED=2\npython t.py ${A[@]}")
    assert script.words[2:] == ["--lr", "${LR}", "--seed", "1"]
    assert script.notes == ["LR is set only after it is used"]


def test_what_only_arguments_of_the_script_tell():
    script = "DATA=$1/text; SAVE=${2:?where to}\npython t.py --data-path $DATA --save $SAVE --load $3"
    assert words(script)[2:] == ["--data-path", "${DATA}", "--save", "${SAVE}", "--load", "$3"]


@given(st.text(max_size=200))
def test_no_text_breaks_the_reader(text):
    read_script(text)


PARTS = [
    *("if", "then", "fi", "else", "elif", "for", "in", "do", "done", "while", "until", "case", "esac", "f()", "x"),
    *("{", "}", "(", ")", "((", "))", "[[", "]]", "[", "]", "&&", "||", "|", ";", ";;", "&", "\n", " ", "!", "true"),
    *("$x", "${x:-1}", "${x[@]}", "$(", "$((", "`", '"', "'", "\\", "<<EOF", "EOF", "<", ">", "2>&1", "A=(", "x=$x$x"),
    *("--a", "eval", "bash -c", "shift", "$1", "$@", "exit", "#", "=", "${x:0}"),
]


@given(st.lists(st.sampled_from(PARTS), max_size=40), st.sampled_from(["", " "]))
def test_no_heap_of_syntax_breaks_the_reader(parts, between):
    translate(read_script(between.join(parts), ["one", "two words"]).words)


@given(st.dictionaries(st.from_regex(r"[a-z]{1,6}(-[a-z]{1,6})?", fullmatch=True), st.integers(0, 10**6), min_size=1))
def test_a_script_of_arrays_is_the_flat_line(flags):
    flat = [word for name, value in flags.items() for word in (f"--{name}", str(value))]
    array = "A=(\n" + "\n".join(" ".join(flat[i : i + 2]) for i in range(0, len(flat), 2)) + "\n)\npython t.py ${A[@]}"
    assert words(array)[2:] == flat == words(" ".join(flat))
