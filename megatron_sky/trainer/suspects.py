"""Which text made a step bad: samples of the plan, told by source and document."""

from pathlib import Path

from megatron_sky.data.loader import TrainingData
from megatron_sky.data.sampling.run_plan import RunPlan
from megatron_sky.files import write_json

SHOWN = 4


def name_samples(data: TrainingData, numbers: list[int]) -> list[dict]:
    """For each sample of the plan: source, file, epoch, sequence, and the first and last document it touches."""
    plan = data.plan
    if not isinstance(plan, RunPlan):  # megatron-core's order: its index tells the source alone
        return [{"sample": number, "source": plan.sources[plan.source_of(number)].name} for number in numbers]
    suspects = []
    for number in numbers:
        location = plan.locate(number)
        file = data.sources[location.source].tokens
        offset = plan.token_offset(location)
        suspects.append(
            {
                "sample": number,
                "source": plan.sources[location.source].name,
                "file": str(file.prefix),
                "epoch": location.epoch,
                "sequence": location.sequence,
                "first_document": file.document_at(offset),
                "last_document": file.document_at(offset + data.seq_length),
            }
        )
    return suspects


def in_words(suspects: list[dict]) -> str:
    """A line that names the first few."""
    shown = [
        f"{suspect['source']} documents {suspect['first_document']}-{suspect['last_document']}"
        if "first_document" in suspect
        else f"{suspect['source']} sample {suspect['sample']}"
        for suspect in suspects[:SHOWN]
    ]
    more = f" and {len(suspects) - SHOWN} more" if len(suspects) > SHOWN else ""
    return ", ".join(shown) + more


def write(run_dir: Path, step: int, suspects: list[dict]) -> Path:
    """All of them, to `<run_dir>/bad_steps/step_0000123.json`."""
    path = run_dir / "bad_steps" / f"step_{step:07d}.json"
    path.parent.mkdir(exist_ok=True)
    write_json(path, suspects)
    return path
