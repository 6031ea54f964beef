"""Whether the example came to what it should: python check.py FOLDER. Exit code 1 where it did not."""

import json
import sys
from pathlib import Path

from megatron_sky.evaluate.answers import read_answers
from megatron_sky.monitor.metrics import read_metrics

EXACT = 0.9  # of the held-out questions
QUESTION = {"role": "user", "content": "Where does the baker work?"}


def answer_findings(folder: Path) -> list[tuple[str, bool]]:
    findings = []
    for run in ("full", "lora", "dpo"):
        results = read_answers(folder / run / "eval")
        before, after = (score.exact / results.questions for score in results.scores)
        findings.append(
            (
                f"{run}: {after:.1%} of {results.questions} held-out answers are exact ({before:.1%} before)",
                after >= EXACT,
            )
        )
    return findings


def preference_findings(folder: Path) -> list[tuple[str, bool]]:
    records = [record.preference for record in read_metrics(folder / "dpo").validation]
    first, last = records[0], records[-1]
    text = f"dpo: reward margin of held-out pairs {first.margin:.3f} -> {last.margin:.3f}, accuracy {last.accuracy:.1%}"
    return [(text, abs(first.margin) < 1e-4 and last.margin > 0.1 and last.accuracy > 0.9)]


def export_findings(folder: Path) -> list[tuple[str, bool]]:
    """transformers answers with the exported template; with peft, where it is installed, as the adapters do here."""
    import transformers

    tokenizer = transformers.AutoTokenizer.from_pretrained(folder / "full-hf")
    model = transformers.AutoModelForCausalLM.from_pretrained(folder / "full-hf")
    answer = _answer(model, tokenizer)
    findings = [(f"transformers, by the folder's own chat template: {answer}", answer == "In the kitchen.")]
    try:
        import peft
    except ImportError:
        return [*findings, ("peft is not installed: its loading of the adapters is not tried", True)]
    base = transformers.AutoModelForCausalLM.from_pretrained(folder / "base-hf")
    ours = json.loads((folder / "answers.jsonl").read_text(encoding="utf-8").splitlines()[0])["completion"].strip()
    answer = _answer(peft.PeftModel.from_pretrained(base, folder / "lora-peft"), tokenizer)
    return [*findings, (f"peft, on the exported base: {answer}", answer == ours)]


def _answer(model, tokenizer) -> str:
    ids = tokenizer.apply_chat_template([QUESTION], add_generation_prompt=True, return_tensors="pt", return_dict=True)
    whole = model.generate(**ids, max_new_tokens=20, do_sample=False, pad_token_id=tokenizer.eos_token_id)
    return tokenizer.decode(whole[0, ids["input_ids"].shape[1] :], skip_special_tokens=True).strip()


def main() -> None:
    folder = Path(sys.argv[1])
    findings = [*answer_findings(folder), *preference_findings(folder), *export_findings(folder)]
    for text, holds in findings:
        print(f"{'yes' if holds else 'NO '}  {text}")
    sys.exit(not all(holds for _, holds in findings))


if __name__ == "__main__":
    main()
