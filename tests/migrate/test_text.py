"""What a user is told of a script that starts no command which can be read."""

import pytest

from megatron_sky.errors import ConfigError
from megatron_sky.migrate.text import read_arguments

COMMAND = "torchrun --nnodes 2 pretrain_gpt.py --num-layers 2 --lr 1e-3"


@pytest.mark.parametrize(
    ("script", "reasons"),
    [
        (f'for h in n1 n2; do\nssh $h "cd /d && {COMMAND}"\ndone', ["`ssh` is given a command line"]),
        (f"ssh h <<EOF\n{COMMAND}\nEOF", ["`ssh` is given a here document"]),
        (
            f"for h in $(cat hosts); do ssh $h <<'EOF'\n{COMMAND}\nEOF\ndone",
            ["a `for` is not", "`ssh` is given"],
        ),
        (f"while read h; do ssh $h '{COMMAND}' & done < hosts", ["a `while` is not followed", "`ssh` is given"]),
        (
            f"cat > job.sh <<EOF\n{COMMAND}\nEOF\nbash job.sh",
            ["`cat` is given a here", "starts another script"],
        ),
        ("bash train_8b.sh 4", ["starts another script"]),
        (f"run() {{ {COMMAND}; }}", ["line 1 is not run"]),
        (f"A=1\nif [ $A = 2 ]; then\n  {COMMAND}\nfi", ["line 3 is not run, or has no --arguments: torchrun"]),
        (f"trap '{COMMAND}' EXIT", ["line 1 is not run"]),
        (f'bash <<< "{COMMAND}"', ["line 1 is not run"]),
        (f"X=$({COMMAND})", ["is not computed"]),
        ("# x.py --a 1\n\ntorchrun train.py config.yaml", ["line 3 is not run, or has no --arguments"]),
        ("if true; then\npython x.py --a 1", ["line 1 is not understood"]),
        ("x() { y.py --a; }\n" * 9, ["nor are 4 more lines"]),
    ],
)
def test_the_reasons_that_are_known_are_told(script, reasons, tmp_path):
    path = tmp_path / "run.sh"
    path.write_text(script, encoding="utf-8")
    with pytest.raises(ConfigError, match="starts no command with --arguments") as caught:
        read_arguments([str(path)])
    assert all(reason in str(caught.value) for reason in reasons)
    assert "# x.py" not in str(caught.value)
