"""Which commands a script comes to: conditions, cases, loops, functions."""

import pytest

from megatron_sky.migrate.shell import read_script


def words(text: str, *arguments: str) -> list[str]:
    return read_script(text, arguments).words


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
