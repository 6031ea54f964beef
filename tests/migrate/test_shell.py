"""Launch scripts read without being run."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from megatron_sky.migrate.recipe import translate
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


def test_what_is_joined_to_a_condition():
    script = """
    A=(); SIZE=7b
    [ "$SIZE" = 7b ] && A+=(--yes)
    [[ $SIZE == 13b ]] && A+=(--no)
    [[ $SIZE == 13b ]] || A+=(--too)
    [[ $SIZE == 7* && ( -n $B || 3 < 4 ) ]] && A+=(--undecided)
    (( 2 * 3 > 5 && !0 )) && { B=1; A+=(--six); }
    mkdir -p x && A+=(--made) || A+=(--failed)
    python t.py "${A[@]}"
    """
    read = read_script(script)
    assert read.words[2:] == ["--yes", "--too", "--six", "--made"]
    assert len(read.notes) == 1 and "not decided" in read.notes[0]


def test_cases_loops_and_functions():
    script = """
    while [[ $# -gt 0 ]]; do
        case $1 in
            --size) SIZE="$2"; shift 2 ;;
            -h|--help) echo "usage: x --size SIZE"; exit 0 ;;
            *) REST+=("$1"); shift ;;
        esac
    done
    case "${SIZE}" in
        7b | 7B) LAYERS=32;;
        13*) LAYERS=40;;
        *) LAYERS=1
    esac
    BLEND=""
    for part in a b; do BLEND="$BLEND 1.0 data/$part"; done
    run() {
        local NAME=$1; shift
        until python t.py --name $NAME --num-layers $LAYERS --data-path $BLEND "$@"; do sleep 1; done
    }
    run first "${REST[@]}"
    """
    assert words(script, "--size", "13B", "--bf16", "--lr", "1")[2:] == (
        [
            "--name",
            "first",
            "--num-layers",
            "40",
            "--data-path",
            "1.0",
            "data/a",
            "1.0",
            "data/b",
            "--bf16",
            "--lr",
            "1",
        ]
    )


def test_what_another_shell_is_given():
    inner = "cd x; python t.py --a $A --rank \\$RANK 2>&1 | tee log"
    expected = ["python", "t.py", "--a", "1", "--rank", "${RANK}"]
    assert words(f'A=1\nsrun -l --label bash -c "{inner}" > log') == expected
    assert words(f'A=1\nCMD="{inner}"\neval $CMD --b')[:6] == expected
    assert words(f'A=1\nCMD="{inner}"\nsrun --container-image x sh -lc "${{CMD}}"') == expected
    assert words(f"A=1\nsbatch <<EOF\n#!/bin/bash\n{inner}\nEOF\n") == expected
    assert words(f"A=1\ncat > job.sh <<EOF\n#!/bin/bash\n{inner}\nEOF\nsbatch --nodes 2 job.sh") == expected
    assert words("cat <<EOF > hosts\n--not an argument\nEOF\npython t.py --a 1") == ["python", "t.py", "--a", "1"]


def test_another_shell_expands_only_what_it_is_to():
    script = (
        'A="--lr $LR --x $(date) --y $1"\nLR=1\nbash -c "python t.py $A --z \\$LR"\neval python t.py $A --z \'$LR\''
    )
    assert words(script)[2:] == ["--lr", "${LR}", "--x", "$(...)", "--y", "$1", "--z", "1"]


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


def test_which_command_is_read():
    script = """
    echo python pretrain_gpt.py --a 1 --b 2
    python pretrain_gpt.py --a 1
    python tools/convert.py --a 2 --b --c --d
    """
    assert words(script) == ["python", "pretrain_gpt.py", "--a", "1"]
    ended = "if [ -z $2 ]; then echo usage; exit 1; fi\npython t.py --a\nexit 0\npython t.py --b --c"
    assert words(ended) == ["python", "t.py", "--a"]


def test_a_variable_that_is_set_after_its_use_is_told():
    script = read_script("A=(--lr $LR --seed ${SEED:-1})\nLR=1e-4; SEED=2\npython t.py ${A[@]}")
    assert script.words[2:] == ["--lr", "${LR}", "--seed", "1"]
    assert script.notes == ["LR is set only after it is used"]


def test_what_only_arguments_of_the_script_tell():
    script = "DATA=$1/text; SAVE=${2:?where to}\npython t.py --data-path $DATA --save $SAVE --load $3"
    assert words(script)[2:] == ["--data-path", "${DATA}", "--save", "${SAVE}", "--load", "$3"]


def test_exports():
    assert words("export A=1 B=2; export -n A; declare +x B; A=3\nbash -c 'python t.py --a $A --b $B'")[2:] == [
        *("--a", "${A}", "--b", "${B}"),
    ]
    assert read_script("export CUDA_DEVICE_MAX_CONNECTIONS=1 A=2\npython t.py --x").exported == {
        "CUDA_DEVICE_MAX_CONNECTIONS",
        "A",
    }


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
