"""What the report shows, looked for in the miniature: python figures.py FOLDER. Exit code 1 where it is not found."""

import json
import sys
from pathlib import Path

from megatron_sky.monitor.metrics import read_metrics

GENERAL = ("en_web", "zh_web", "code", "papers")


def losses(run_dir: Path) -> dict[int, dict[str, float]]:
    """Validation loss by step and domain."""
    found: dict[int, dict[str, float]] = {}
    for record in read_metrics(run_dir).validation:
        found.setdefault(record.step, {})[record.set] = record.lm_loss
    return found


def session_steps(run_dir: Path) -> dict[str, int]:
    """The step after which each session begins."""
    events = read_metrics(run_dir).events
    return {event.fields["session"]: event.fields["step"] for event in events if event.event == "session"}


def ramp_findings(run_dir: Path) -> list[tuple[str, bool]]:
    """Stage 2: STEM is learnt while the general domains stay (figures 1 and 5)."""
    found, begins = losses(run_dir), session_steps(run_dir)["stage-2"]
    before, after = found[begins], found[max(found)]
    fall = before["stem"] - after["stem"]
    worst = max(after[name] - before[name] for name in GENERAL)
    return [
        (f"stage 2 lowers the STEM loss: {before['stem']:.2f} -> {after['stem']:.2f}", fall > 3.0),
        (f"and raises no general domain's by more than 0.05 (the worst change: {worst:+.3f})", worst < 0.05),
    ]


def burst_findings(run_dir: Path) -> list[tuple[str, bool]]:
    """In-domain data alone: that domain's loss falls, the others' rise (table 7)."""
    found = losses(run_dir)
    before, after = found[min(found)], found[max(found)]
    least = min(after[name] - before[name] for name in GENERAL)
    return [
        (f"a burst of STEM alone lowers its loss: {before['stem']:.2f} -> {after['stem']:.2f}", after["stem"] < 4.0),
        (f"and raises every other domain's, the least by {least:+.3f}", least > 0.1),
    ]


def leak_findings(results: Path) -> list[tuple[str, bool]]:
    """The copy that has seen the test split is found, the clean model is not accused (table 8)."""
    models = {each["model"]["name"]: each for each in json.loads(results.read_text(encoding="utf-8"))["models"]}
    findings = []
    for name, expected in (("clean", "no sign of a leak"), ("leaked", "test data leaked")):
        plain = next(each for each in models[name]["comparisons"] if each["basis"] == "plain")
        verdict = models[name]["test_verdict"]["finding"]
        findings.append((f"{name}: delta1 {plain['delta1']['value']:+.3f}, {verdict}", verdict == expected))
    return findings


def main() -> None:
    folder = Path(sys.argv[1])
    findings = [
        *ramp_findings(folder / "run"),
        *burst_findings(folder / "burst"),
        *leak_findings(folder / "run" / "eval" / "leakage.json"),
    ]
    for text, holds in findings:
        print(f"{'yes' if holds else 'NO '}  {text}")
    sys.exit(not all(holds for _, holds in findings))


if __name__ == "__main__":
    main()
