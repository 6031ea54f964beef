"""Launch scripts read without being run."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from megatron_sky.migrate.shell import read_script


def words(text: str, *arguments: str) -> list[str]:
    return read_script(text, arguments).words


def test_arrays_and_variables():
    script = """
    LAYERS=12
    MODEL=(
        --num-layers $LAYERS   # as many as fit
        --hidden-size "$((64 * LAYERS))"
    )
    MODEL+=( --swiglu )
    torchrun --nproc_per_node 8 pretrain.py "${MODEL[@]}" \\
        --lr ${LR:-6e-4}
    """
    assert words(script)[3:] == [
        "pretrain.py",
        "--num-layers",
        "12",
        "--hidden-size",
        "768",
        "--swiglu",
        "--lr",
        "6e-4",
    ]


def test_one_flat_line():
    assert words("--num-layers 2 --lr=1e-3 --bf16") == ["--num-layers", "2", "--lr=1e-3", "--bf16"]


def test_options_as_one_string():
    script = 'OPTIONS=" \\\n --seq-length 128 \\\n --data-path ${DATA} "\npython train.py $OPTIONS'
    assert words(script) == ["python", "train.py", "--seq-length", "128", "--data-path", "${DATA}"]


def test_elements_that_hold_several_words():
    script = """A=()\nA+=("--fp8-format hybrid" "--split '99,1,0'")\npython t.py ${A[@]}"""
    assert words(script)[2:] == ["--fp8-format", "hybrid", "--split", "99,1,0"]


def test_arguments_of_the_script():
    script = 'SAVE=$1 # where to\nKIND=${2:-"mock"}\npython t.py --save $SAVE --kind $KIND'
    assert words(script, "out")[2:] == ["--save", "out", "--kind", "mock"]
    assert words(script)[2:] == ["--save", "${SAVE}", "--kind", "mock"]


@pytest.mark.parametrize(
    ("condition", "flag"),
    [
        ('[[ "$KIND" == "fp8" ]]', "--then"),
        ('[ "$KIND" != fp8 ]', "--else"),
        ('[[ -z "$NOTHING" ]] && [[ -n "$KIND" ]]', "--then"),
        ('[[ "$KIND" == "a" ]] || [[ "$NUM" -gt 3 ]]', "--then"),
        ("[[ $NUM -le 3 && $KIND == fp8 ]]", "--else"),
        ("! [ -z $KIND ]", "--then"),
    ],
)
def test_conditions(condition, flag):
    script = (
        f'KIND="fp8"\nNUM=4\nA=()\nif {condition}; then\n  A+=(--then)\nelse\n  A+=(--else)\nfi\npython t.py ${{A[@]}}'
    )
    assert words(script)[2:] == [flag]


def test_elif_and_nested():
    script = """
    X=b
    if [ $X = a ]; then A=(--one)
    elif [ $X = b ]; then
        if [ $X = c ]; then A=(--no); else A=(--two); fi
    elif [ $X = b ]; then A=(--three)
    else A=(--four)
    fi
    python t.py ${A[@]}
    """
    assert words(script)[2:] == ["--two"]


def test_what_is_not_followed_is_told():
    script = read_script(
        "for i in 1 2; do A=$i; done\nhelp() {\n  python no.py --wrong\n}\n"
        "DIR=$(dirname x)\nif [ -f file ]; then echo --wrong; exit 1; fi\npython t.py --save $DIR/run"
    )
    assert script.words == ["python", "t.py", "--save", "/run"]
    told = " ".join(script.notes)
    assert "`for`" in told and "function" in told and "$(dirname x)" in told and "-f file" in told


def test_exports():
    assert read_script("export CUDA_DEVICE_MAX_CONNECTIONS=1 A=2\npython t.py --x").exported == {
        "CUDA_DEVICE_MAX_CONNECTIONS",
        "A",
    }


@given(st.text(max_size=200))
def test_no_text_breaks_the_reader(text):
    read_script(text)


@given(st.dictionaries(st.from_regex(r"[a-z]{1,6}(-[a-z]{1,6})?", fullmatch=True), st.integers(0, 10**6), min_size=1))
def test_a_script_of_arrays_is_the_flat_line(flags):
    flat = [word for name, value in flags.items() for word in (f"--{name}", str(value))]
    array = "A=(\n" + "\n".join(" ".join(flat[i : i + 2]) for i in range(0, len(flat), 2)) + "\n)\npython t.py ${A[@]}"
    assert words(array)[2:] == flat == words(" ".join(flat))
