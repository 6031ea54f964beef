"""A recorded run, its data and its checkpoint, in a folder and with names that no honest file has."""

import json
import re
import shutil
from pathlib import Path

from tests.trainer.record import RECORDED

EVIL = "e\x1b[31mv\r\x9b2J\u202el\u200f\x07"
"""Turns a terminal red, goes back to the line's begin, clears the screen, turns the direction of writing, rings."""
RAW = re.compile("[\x00-\x08\x0b-\x1f\x7f-\x9f\u061c\u200e\u200f\u2028\u2029\u202a-\u202e\u2066-\u2069]")
"""What no verb may print."""


def copy(folder: Path) -> Path:
    """A copy of all that was recorded."""
    return shutil.copytree(RECORDED, folder)


def change_json(path: Path, change) -> None:
    """Writes a file anew with what `change` makes of its content, in place or by what it returns."""
    content = json.loads(path.read_text(encoding="utf-8"))
    changed = change(content)
    path.write_text(json.dumps(content if changed is None else changed), encoding="utf-8")


def make_evil(folder: Path) -> None:
    """Puts EVIL into every file that holds names."""
    change_json(folder / "tokens/en.meta.json", lambda meta: meta["tokenizer"].update(name=EVIL))
    change_json(folder / "run/run.json", lambda run: run["attempts"][1]["ended"].update(reason=EVIL, cause=EVIL))
    change_json(folder / "run/slurm/jobs.json", lambda jobs: jobs[0].update(name=EVIL))
    change_json(folder / "run/eval/loss.json", lambda found: found["models"][0]["model"].update(name=EVIL))
    lines = (folder / "run/metrics.jsonl").read_text(encoding="utf-8").splitlines()
    extra = {"kind": "event", "event": EVIL, "time": 1.0, "step": 3, "message": EVIL}
    (folder / "run/metrics.jsonl").write_text("\n".join([*lines, json.dumps(extra)]) + "\n", encoding="utf-8")
    (folder / "evil.jsonl").write_text(json.dumps({"text": f"Some text {EVIL}", EVIL: 1}) + "\n{\x1b]0;\n", "utf-8")
    (folder / EVIL).write_text("x")
