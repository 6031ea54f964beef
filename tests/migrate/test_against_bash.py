# ruff: noqa: E501
"""What is read from a script beside what bash itself hands to the command that trains.

Scripts are run by `bash -r` in an empty folder, where every command is a stub. A value that the reader gives must be
bash's; where it says that it does not know, anything may be.
"""

import os
import re
import shutil
import subprocess
from pathlib import Path

import pytest
from hypothesis import given, reject, settings
from hypothesis import strategies as st

from megatron_sky.migrate.arguments import parse
from megatron_sky.migrate.shell import read_script

BASH = shutil.which("bash", path=os.defpath)
pytestmark = pytest.mark.skipif(BASH is None, reason="no bash")
ARGUMENTS = ["x1", "7"]


@pytest.fixture(scope="module")
def stubs(tmp_path_factory) -> Path:
    """A folder of commands that do nothing; torchrun prints its arguments."""
    folder = tmp_path_factory.mktemp("stubs")
    shutil.copy(BASH, folder / "bash")
    (folder / "torchrun").write_text("#!/bin/sh\nprintf '%s\\0' torchrun \"$@\"\nprintf '\\n'\n")
    for name in ("work", "grep", "cat", "mkdir", "sleep"):
        (folder / name).write_text("#!/bin/sh\nexit 0\n")
    (folder / "srun").write_text('#!/bin/sh\nexec "$@"\n')
    for path in folder.iterdir():
        path.chmod(0o755)
    return folder


def run(script: str, stubs: Path, folder: Path) -> list[list[str]]:
    """The words of each command that trains, as bash hands them over."""
    try:
        result = subprocess.run(
            [BASH, "-r", "-c", f"ulimit -S -t 2 -v 1000000\n{script}", "script", *ARGUMENTS],
            env={"PATH": str(stubs)},
            cwd=folder,
            stdin=subprocess.DEVNULL,
            capture_output=True,
            timeout=20,
            check=False,
        )
    except subprocess.TimeoutExpired:
        reject()
    if result.returncode < 0 or re.search(b"cannot allocate|error token is", result.stderr):
        reject()  # a loop without end, or an expression that is none
    lines = result.stdout.decode("utf-8", "replace").split("\0\n")
    return [line.split("\0") for line in lines if line.startswith("torchrun\0")]


def compare(script: str, stubs: Path, folder: Path) -> int:
    """Checks the reader's values; returns how many it gave."""
    commands = run(script, stubs, folder)
    read = read_script(script, ARGUMENTS)
    if not commands or not read.words:
        return 0
    texts = [words[2:] for words in (read.words, *(words for words, _ in read.readings))]
    readings, actual = [parse(words) for words in texts], parse(commands[-1][2:])
    names = set().union(*readings, actual)
    is_whole = not any(any(map(is_open, words)) for words in texts)
    left_open = r"unset|shift|set --|NONE|\\\$|'[^'\n]*\$"  # to the environment, or a $ that is no variable's
    assert is_whole or read.notes or re.search(left_open, script), f"what is not known is not told: {texts}"
    may_grow = any(is_open(text[0]) for text in texts if text) or any(
        is_open(word) for reading in readings for words in reading.values() for word in words[1:]
    )
    may_grow = may_grow or any("not split by IFS" in note for note in read.notes)
    given = 0
    for name in names if not any(note.startswith("the quotes of") for note in read.notes) else ():
        first, *others = [reading.get(name) for reading in readings]
        is_told = any(other != first for other in others) or any(map(is_open, first or []))
        if not is_told and not may_grow and (first is not None or is_whole):
            assert first == actual.get(name), f"--{name} is {actual.get(name)}, read as {first}: {read.notes}"
            given += first is not None
    return given


def is_open(word: str) -> bool:
    return "$" in word


NUMBERS = tuple("0123456789")
PLAIN = (*NUMBERS, "x", "yz", "p.q", "u/v/w.py", "a,b", "--s")
EXPANSIONS = """
$<a> | ${<a>} | "$<a>" | "${<a>}<w>" | ${<a>:-<w>} | "${<a>-<w> <v>}" | ${<a>:=<w>} | ${<a>:+<w>} | ${<a>+"<w> <v>"} | "${<a>:-$<b>}"
${<a>#*<n>} | ${<a>%.*} | ${<a>##*/} | ${<a>%%[<n><n>]*} | ${<a>/<w>/<v>} | ${<a>//<n>/<w>} | "${<a>//,/ }" | ${<a>/#x/y} | ${<a>^^} | ${<a>,}
${#<a>} | ${#<l>[@]} | ${<a>:1} | ${<a>:0:<n>} | ${<a>: -1} | ${!<a>} | ${<l>[@]} | "${<l>[@]}" | "${<l>[*]}" | "<w>${<l>[@]}<v>" | $<l> | ${<l>[<n>]} | ${<l>[-1]}
"${<l>[@]:1}" | ${<l>[@]#x} | ${!<l>[@]} | $((<a>+<n>)) | $(( $<a> * <n> - ${#<b>} )) | $((<a>++)) | $(( <a> > <n> ? 1 : 2 )) | $((<a>=<n>)) | $(( -<n> ** 2 )) | $((<l>[1]+1))
$1 | "$@" | $# | "$*" | ${2:-<w>} | ${3:-<w>} | "${@:2}" | $(echo <w> $<a>) | `echo $<b>` | "$(echo "<w>")" | '<w> $<a>' | "<w> '$<a>'" | $'<w>' | $"<w>" | \\$<a> | <w>\\ <v>
{<w>,<v>} | {1..<n>} | ~/<w> | <w>* | ${<a>@Q} | ${NONE:-<w>} | $RANDOM
"""
SIMPLE = """
<a>=<x> ; <a>+=<x> ; <a>="<w> <v>" ; <a>=<x> <b>=<y> ; <l>=(<x> <y>) ; <l>=("<w> <v>" <x>) ; <l>=() ; <l>+=(<x>) ; <l>+=<w> ; <l>[<n>]=<x> ; <l>[<a>]=<w> ; <l>[1]+=<w>
<l>=([2]=<w> <v>) ; unset <a> ; unset <l> ; unset '<l>[0]' ; ((<a>+=<n>)) ; ((<a>++, <b>=<a>*2)) ; (( <a> = <b> > <n> )) ; ((<a>--)) ; let <a>=<n>+1 ; let "<a> *= 2" <b>++ ; : $((<a>+=2)) ; : ${<a>:=<w>}
declare <a>=<x> ; declare -i <a>=<n>+<n> ; declare -a <l>=(<x>) ; declare -A <l>=([k]=<w>) ; declare -l <a>=XY ; typeset <a> ; export <a>=<x> ; export <a> ; export "<a>=<w> <v>" ; declare -n R=<a>; R=<w> ; declare +x <a>
read -r <a> <b> <<< "<w> <v>" ; read -ra <l> <<< "<w> <v>" ; IFS=, read <a> <b> <<< "1,2" ; mapfile -t <l> <<< "<w>" ; printf -v <a> %s <w> ; printf '%s' <a> ; getopts ab <a> ; set -- <x> <y> ; set -u ; shift ; shift 2 ; IFS=,
eval <a>=<w> ; eval "<a>=\\$<b>" ; eval "<l>+=(<w>)" ; eval 'for i in 1 2; do <a>=$i; done' ; eval "eval <a>=<w>" ; <a>=<w> eval '<b>=$<a>' ; <a>=<w> : ; <a>=<w> work ; <a>=<w> f <x> ; f ; f <x> <y> ; g <x> ; command eval <a>=<w> ; builtin read <a> <<< <w>
work $((<a>++)) ; work ; echo <x> ; (<a>=<w>) ; (<a>=<w>; f) ; echo <w> | read <a> ; { <a>=<w>; } | work ; { <a>=<w>; } & wait ; <a>=<w> & wait ; x=$(<a>=<w>; echo 1) ; : "$(<a>=<w>)" ; <a>=${<b>:-$(echo <w>)} ; trap '<a>=<w>' EXIT ; trap '<a>=<w>' USR1
for i in <x> <y>; do <a>=$i; done ; for <a> in 1 2 3; do :; done ; for i in "${<l>[@]}"; do <a>+=$i; done ; for i; do <a>=$i; done ; for ((i=0;i<<n>;i++)); do <l>+=($i); done ; for i in {1..3}; do <a>=$i; done ; for i in $(echo 1 2); do ((<a>++)); done
<a>=<n>; while ((<a> < 5)); do ((<a>++)); <b>=$<a>; done ; <a>=<n>; until [ $<a> -ge 3 ]; do <a>=$((<a>+1)); done ; while read -r i; do <a>=$i; done <<< <w> ; select <a> in <w>; do break; done <<< 1 ; while work; do <a>=<w>; break; done ; time <a>=<w>
"""
CONDITIONS = """
[[ $<a> == <w> ]] | [ "$<a>" = <w> ] | [ -z "$<a>" ] | [[ -n $<a> && $<b> != <w> ]] | [[ $<a> == <n>* ]] | [ -f nothing ] | [[ ! -d $<a> ]] | (( <a> > <n> )) | [ $<a> -lt <n> ] | [ "$<a>" == <w> -o "$<b>" = <v> ] | ! [ -n "$<a>" ]
true | false | work | grep -q x | f | ! work | [[ $RANDOM -ge 0 ]] | [[ $<a> =~ ^<n> ]] | test "$<a>" = <w> | [ $# -gt <n> ] | [[ -v <a> ]] | [[ $<a> < m ]] | [ -n "${<l>[*]}" ] | [[ "${<l>[0]}" == <w> ]] | { <a>=<w>; false; } | read <a> <<< <w>
"""


COMPOUND = """
if <c>; then <s>; fi | if <c>; then <s>; else <t>; fi | if <c>; then <s>; elif <d>; then <t>; else <a>=<w>; fi | <c> && <s> | <c> || <s> | <c> && <d> && <s> | <c> && { <s>; } || { <t>; }
case $<a> in <w>) <s>;; <n>*|<v>) <t>;; esac | case $<a> in <w>) <s>;; *) <t>;; esac | case "$1" in x*) <s>;& <w>) <t>;; esac | case <x> in "<w>") <s>;; [<n>-9]) <t>;;& *) <a>=<w>;; esac | case $(echo <w>) in <w>) <s>;; esac
for i in 1 2; do if <c>; then <e>; fi; <s>; done | for i in 1 2; do <c> && <e>; <s>; done; <t> | f() { <s>; if <c>; then <e>; fi; <t>; } | g() { local <a>=$1; <s>; <b>=$<a>; } | g() { local <l>; <s>; f <w>; } | f() ( <s> )
{ <s>; <t>; } | ( <s>; <t>; ) | <s> | <t> & wait | n=0; while [ $n -lt 2 ]; do n=$((n+1)); <s>; <c> && <e>; done | n=0; while true; do ((n++ > 2)) && break; <s>; <e>; done | <c> && <s> || <t> | if <c>; then exit 1; fi; <s> | if ! <c>; then <s>; fi
"""
ENDS = ("break", "continue", "return", "return 1", "exit", "shift", ":")


def listed(text: str, sign: str) -> list[str]:
    return [one for line in text.strip().split("\n") for one in line.split(sign)]


PLACES = {  # what a letter between < and > in a pattern stands for; a tuple's patterns have no letters themselves
    **dict.fromkeys("ab", ("A", "B", "C")),
    **dict.fromkeys("lm", ("L", "M")),
    **dict.fromkeys("wv", PLAIN),
    **dict.fromkeys("xy", (*PLAIN, *PLAIN, *listed(EXPANSIONS, " | "))),
    **dict.fromkeys("cd", tuple(listed(CONDITIONS, " | "))),
    "n": NUMBERS,
    "e": ENDS,
}
STATEMENTS, COMPOUNDS = listed(SIMPLE, " ; "), [*listed(COMPOUND, " | "), "<s>; <t>"]


def fill(draw, pattern: str, depth: int = 0) -> str:
    """`pattern` with each `<letter>` in it replaced by one of what it stands for."""

    def drawn(match: re.Match) -> str:
        if match[1] in "st":
            return block(draw, depth - 1)
        return fill(draw, draw(st.sampled_from(PLACES[match[1]])))

    return re.sub(r"<(\w)>", drawn, pattern)


def block(draw, depth: int) -> str:
    """A statement, which holds others while `depth` lasts."""
    patterns = COMPOUNDS if depth and draw(st.booleans()) else STATEMENTS
    return fill(draw, draw(st.sampled_from(patterns)), depth)


LAST = st.sampled_from(
    [
        'torchrun t.py --a "$A" --b "$B" --c "$C" --l "${L[@]}" --m ${M[@]} --n "$#" --o "$1"',
        'torchrun t.py --a $A --b x$B --c ${C:-no} --l0 "${L[0]}" --l1 "${L[1]}" --m "${M[*]}" --o "$@"',
        'A="--a $A --b=$B ${L[*]}"\ntorchrun t.py $A --c "$C" --m "$M"',
        'CMD="torchrun t.py --a $A --b \'$B\' --l ${L[@]}"\neval "$CMD" --m "${#M[@]}"',
        "srun bash -c \"torchrun t.py --a $A --b '$B' --c \\$C\"",
        'bash <<EOF\ntorchrun t.py --a $A --b "$B" --c \\$C\nEOF',
        'L+=(--c "$C"); if work; then M+=(--q 1); fi\ntorchrun t.py --a "$A" "${L[@]}" "${M[@]}"',
    ]
)
FIRST = "A=1; B=x; C='p q'; L=(--u 1); M=(m1 'm 2' m3)\nf() { A=$1; B+=f; }; g() { L+=(g); return; }\n"


@st.composite
def scripts(draw) -> str:
    blocks = [block(draw, 2) for _ in range(draw(st.integers(1, 4)))]
    return FIRST + "\n".join([*blocks, draw(LAST), ""])


@given(script=scripts())
@settings(max_examples=60, derandomize=True)
def test_random_scripts(script, stubs, tmp_path_factory):
    compare(script, stubs, tmp_path_factory.getbasetemp())


@pytest.mark.slow
@given(script=scripts())
@settings(max_examples=250, derandomize=True)
def test_many_random_scripts(script, stubs, tmp_path_factory):
    compare(script, stubs, tmp_path_factory.getbasetemp())
