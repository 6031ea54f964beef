"""The account: what each stage was given, gave on and dropped, by rule and source; and the proof that it adds up.

Each task writes its part as one file, `ledger/<stage>/<rank>.json`, when its documents have gone through; a task that
is run again writes the same file again. Documents are counted, and the UTF-8 bytes of their texts.
"""

import os
from collections import Counter
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path

from megatron_sky.errors import RunError
from megatron_sky.files import read_json, write_json
from megatron_sky.records import read_record


def num_done(folder: Path, name: str) -> int:
    """Tasks of a pass that have completed: datatrove notes each by a file."""
    place = folder / "logs" / name / "completions"
    return len(os.listdir(place)) if place.is_dir() else 0


@dataclass
class Amount:
    """Documents, and bytes of their texts."""

    documents: int = 0
    bytes: int = 0

    def add(self, other: "Amount") -> None:
        self.documents += other.documents
        self.bytes += other.bytes


@dataclass
class StageAccount:
    """One stage's documents of one source.

    Attributes:
        notes: other things that were counted, such as masked addresses; they have no part in the proof.
        histograms: documents by bin, such as `characters` by power of two; no part in the proof either.
    """

    given: Amount = field(default_factory=Amount)
    kept: Amount = field(default_factory=Amount)
    dropped: dict[str, Amount] = field(default_factory=dict)
    notes: dict[str, int] = field(default_factory=dict)
    histograms: dict[str, dict[str, int]] = field(default_factory=dict)

    def take(self, size: int) -> None:
        self.given.add(Amount(1, size))

    def keep(self, size: int) -> None:
        self.kept.add(Amount(1, size))

    def drop(self, rule: str, size: int) -> None:
        self.dropped.setdefault(rule, Amount()).add(Amount(1, size))

    def note(self, name: str, count: int = 1) -> None:
        self.notes[name] = self.notes.get(name, 0) + count

    def count(self, histogram: str, one: str) -> None:
        """One document more in the bin `one` of a histogram."""
        bins = self.histograms.setdefault(histogram, {})
        bins[one] = bins.get(one, 0) + 1

    def add(self, other: "StageAccount") -> None:
        self.given.add(other.given)
        self.kept.add(other.kept)
        for rule, amount in other.dropped.items():
            self.dropped.setdefault(rule, Amount()).add(amount)
        self.notes = dict(Counter(self.notes) + Counter(other.notes))
        for name, bins in other.histograms.items():
            self.histograms[name] = dict(Counter(self.histograms.get(name, {})) + Counter(bins))

    @property
    def num_dropped(self) -> int:
        return sum(amount.documents for amount in self.dropped.values())

    @property
    def cut_bytes(self) -> int:
        """Bytes taken out of documents that stayed; negative where a stage made them longer."""
        return self.given.bytes - self.kept.bytes - sum(amount.bytes for amount in self.dropped.values())


Accounts = dict[str, StageAccount]  # by source


def power_bin(value: float) -> str:
    """The bin of a number of at least 1 by powers of two, named by the power that it begins with."""
    return str(1 << (max(1, int(value)).bit_length() - 1))


def write_part(folder: Path, stage: str, rank: int, accounts: Accounts) -> None:
    """A task's part. Raises OSError."""
    place = folder / "ledger" / stage
    place.mkdir(parents=True, exist_ok=True)
    write_json(place / f"{rank:05d}.json", {source: asdict(account) for source, account in accounts.items()})


def dropped_part(folder: Path, before: str, rank: int, rule: str) -> Accounts:
    """A task's part in which all that the stage `before` gave on is dropped by `rule`."""
    accounts: Accounts = {}
    for source, account in _read_part(folder / "ledger" / before / f"{rank:05d}.json").items():
        size = account.kept
        accounts[source] = StageAccount(given=Amount(**asdict(size)))
        if size.documents:
            accounts[source].dropped[rule] = size
    return accounts


def _read_part(path: Path) -> Accounts:
    return {source: read_record(StageAccount, given) for source, given in read_json(path).items()}


def read_stage(folder: Path, stage: str) -> Accounts:
    """All tasks' parts of a stage, summed, sources in the order in which they come."""
    accounts: Accounts = {}
    for path in sorted((folder / "ledger" / stage).glob("*.json")):
        for source, account in _read_part(path).items():
            accounts.setdefault(source, StageAccount()).add(account)
    return accounts


def read_ledger(folder: Path, stages: Sequence[str]) -> dict[str, Accounts]:
    """The accounts of those stages that have any, in order."""
    return {stage: accounts for stage in stages if (accounts := read_stage(folder, stage))}


def prove(ledger: dict[str, Accounts]) -> None:
    """Raises RunError where documents are missing or too many: within a stage, or from one stage to the next."""
    problems = []
    before: tuple[str, Accounts] | None = None
    for stage, accounts in ledger.items():
        for source, account in accounts.items():
            if account.given.documents != account.kept.documents + account.num_dropped:
                problems.append(
                    f"{stage}, {source}: {account.given.documents:,} documents came, {account.kept.documents:,} went "
                    f"on and {account.num_dropped:,} were dropped"
                )
        if before is not None:
            for source in dict.fromkeys((*before[1], *accounts)):
                gave = before[1].get(source, StageAccount()).kept
                got = accounts.get(source, StageAccount()).given
                if gave != got:
                    problems.append(
                        f"{source}: {before[0]} gave {gave.documents:,} documents of {gave.bytes:,} bytes, {stage} got "
                        f"{got.documents:,} of {got.bytes:,}"
                    )
        before = stage, accounts
    if problems:
        fix = "files of the corpus's folder were changed or lost; build it again in an empty one"
        raise RunError("the corpus's account does not add up:\n  " + "\n  ".join(problems) + f"\n  fix: {fix}")
