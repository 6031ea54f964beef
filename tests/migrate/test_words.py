"""Words as bash makes them: quotes, arrays, expansions, braces, arithmetic."""

import pytest

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


@pytest.mark.parametrize("end", ["", "| tee log", "&", "&& work", "2>&1 | tee log", "> log"])
@pytest.mark.parametrize("lines", ["A=1 B=2", "A=1 B=2 # both", "A=0 B=0\nA=1 B=2", "A=1 B=0\nB=2 C=3"])
def test_assignments_on_one_line(lines, end):
    """The grammar takes them for those of the command that follows."""
    assert words(f"{lines}\ntorchrun t.py --a $A --b $B {end}")[2:] == ["--a", "1", "--b", "2"]
    assert words(f"A=1; B=2\nA=3 \\\n B=4 torchrun t.py --a $A --b $B {end}")[2:] == ["--a", "1", "--b", "2"]


def test_options_as_one_string():
    script = 'OPTIONS=" \\\n --seq-length 128 \\\n --data-path ${DATA} "\npython train.py $OPTIONS'
    assert words(script) == ["python", "train.py", "--seq-length", "128", "--data-path", "${DATA}"]


def test_elements_that_hold_several_words():
    script = """A=()\nA+=("--fp8-format hybrid" "--split '99,1,0'")\npython t.py ${A[@]}"""
    assert words(script)[2:] == ["--fp8-format", "hybrid", "--split", "99,1,0"]


def test_beginnings_and_ends_taken_off():
    script = "P=a/b.tar.gz; python t.py --a ${P#*/} --b ${P##*[./]} --c ${P%.*} --d ${P%%.*} --e ${P#x} --f ${NO#x}"
    flat = "--a b.tar.gz --b gz --c a/b.tar --d a/b --e a/b.tar.gz --f"
    assert words(script)[2:] == [*words(flat), "$(...)"]


def test_quoted_words_stay_whole():
    script = """
    NAME="two words"; OPTS=("--tag" "$NAME" "")
    python t.py --name "$NAME" --loose $NAME --pattern '\\p{L} "x"' "${OPTS[@]}" --end"2"
    """
    assert words(script)[2:] == [
        *("--name", "two words", "--loose", "two", "words", "--pattern", '\\p{L} "x"'),
        *("--tag", "two words", "", "--end2"),
    ]


@pytest.mark.parametrize(
    ("word", "expected"),
    [
        ("{a,b}", "a b"),
        ("x{1..3}y", "x1y x2y x3y"),
        ("$D/{a,b}_{1,2}", "d/a_1 d/a_2 d/b_1 d/b_2"),
        ("{08..10}", "08 09 10"),
        ("{5..1..2}", "5 3 1"),
        ("{-1..1}", "-1 0 1"),
        ("{a,}", "a"),
        ("'{a,b}'", "{a,b}"),
        ("\\{a,b}", "{a,b}"),
        ("{a}", "{a}"),
        ("{{a,b},c}", "$(...)"),
        ("{a..e}", "$(...)"),
        ('{"a b",c}', "$(...)"),
        ("{1..100000}", "$(...)"),
    ],
)
def test_braces(word, expected):
    assert words(f"D=d\nA={{a,b}}\npython t.py --x {word} --y $A")[3:] == [*expected.split(), "--y", "{a,b}"]


def test_arithmetic():
    script = """
    GPUS=8; NODES=$((2 * 2)); HEADS=$(( ${GPUS} * NODES )); SAMPLES=$(( 1000 * 1000 / 7 )); LEFT=$((-7 / 2))
    OPEN=$((MISSING * 2))
    python t.py --h $HEADS --s $SAMPLES --l $LEFT --d $((${GPUS:-1} % 3)) --open $OPEN --direct $((MISSING + 1))
    """
    assert words(script)[2:] == [
        "--h",
        "32",
        "--s",
        "142857",
        "--l",
        "-3",
        "--d",
        "2",
        "--open",
        "${OPEN}",
        "--direct",
        "$(...)",
    ]
