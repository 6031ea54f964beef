"""Commands: which one is read, what other shells are given, what is exported."""

from megatron_sky.migrate.shell import read_script


def words(text: str, *arguments: str) -> list[str]:
    return read_script(text, arguments).words


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


def test_which_command_is_read():
    script = """
    echo python pretrain_gpt.py --a 1 --b 2
    python pretrain_gpt.py --a 1
    python tools/convert.py --a 2 --b --c --d
    """
    assert words(script) == ["python", "pretrain_gpt.py", "--a", "1"]
    ended = "if [ -z $2 ]; then echo usage; exit 1; fi\npython t.py --a\nexit 0\npython t.py --b --c"
    assert words(ended) == ["python", "t.py", "--a"]


def test_exports():
    assert words("export A=1 B=2; export -n A; declare +x B; A=3\nbash -c 'python t.py --a $A --b $B'")[2:] == [
        *("--a", "${A}", "--b", "${B}"),
    ]
    assert read_script("export CUDA_DEVICE_MAX_CONNECTIONS=1 A=2\npython t.py --x").exported == {
        "CUDA_DEVICE_MAX_CONNECTIONS",
        "A",
    }
