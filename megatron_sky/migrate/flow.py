"""What branches, loops, calls and subshells do to a script's state. Where a way is not decided, all are followed.

Their states are joined where the ways meet again: at the branch's end, or, of a way that ends in `break`, `return` and
the like, at the end of the loop or the call that it leaves.
"""

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field

from megatron_sky.migrate.tree import may_set, parts, source
from megatron_sky.migrate.values import ARGUMENTS, State
from megatron_sky.migrate.words import Words

RAN = "ran"  # the status of a command that is taken to have succeeded
Status = bool | str | None  # True and False of a test, None of one that is not decided, RAN
_TURNS = 1000  # of all loops and calls of a script, after which they are not followed
_UNDECIDED = 20  # ways out of one loop that are not decided, after which it is not followed


@dataclass(eq=False)
class Frame:
    """A loop, a call or a shell that runs, and the ways that left it early: (`break` or the like, state, reason)."""

    kind: str
    left: list[tuple[str, State, str]] = field(default_factory=list)


class Leave(Exception):
    """`break`, `continue`, `return` or `exit`, on its way to the frame that it ends."""

    def __init__(self, kind: str, frame: Frame, status: Status):
        super().__init__(kind)
        self.kind, self.frame, self.status = kind, frame, status


class Flow(Words):
    def __init__(self):
        super().__init__()
        self.frames: list[Frame] = []
        self.turns = 0
        self.undecided = 0  # branches around
        self.decisions: list[str] = []  # by number, what the words with that mark hang on

    def may_set(self, text: str) -> set[str]:
        functions = {name: source(body) for name, body in self.state.functions.items() if body}
        self.budget.spend(len(functions) ** 2 // 20, characters=len(text) + sum(map(len, functions.values())))
        return may_set(text, functions)

    def effects(self, node) -> set[str]:
        """Names that expansions within a node may set."""
        inner = [part for part in parts(node) if part.type != "command_substitution"]
        return set().union(*(may_set(source(part).lstrip()[2:]) for part in inner))

    def turn(self) -> bool:
        """Counts a turn of a loop, or a call; False when it is one too many."""
        self.turns += 1
        return self.turns <= _TURNS

    def decide(self, why: str) -> Callable[[], int]:
        """Numbers for marks of what hangs on this decision."""

        def number() -> int:
            self.decisions.append(why)
            return len(self.decisions) - 1

        return number

    def join(self, others: Iterable[State], why: str) -> None:
        """The state becomes what it may be where this one or any of the others came to pass."""
        lost: dict[str, list[str]] = {}
        for other in others:
            self.budget.spend(len(other.values), characters=sum(map(len, other.values.values())))
            lost |= self.state.join(other, self.decide(why))
        self.note_lost(lost, why)

    def branch(self, why: str, ways: Sequence[Callable[[], Status]]) -> Status:
        """Follows all ways from the same state."""
        start = self.state
        ended: list[State] = []
        left: list[tuple[Leave, State]] = []
        statuses: list[Status] = []
        self.undecided += 1
        for way in ways:
            self.state = start.copy()
            try:
                statuses.append(way())
                ended.append(self.state)
            except Leave as leave:
                left.append((leave, self.state))
        self.undecided -= 1
        last = None if ended else left.pop()
        for leaving, state in left:
            leaving.frame.left.append((leaving.kind, state, why))
        self.state, *others = ended if last is None else [last[1]]
        self.join(others, why)
        if last is not None:
            raise last[0]
        return statuses[0] if all(status is statuses[0] for status in statuses) else None

    def leave(self, kind: str, levels: int = 1, status: Status = RAN) -> Status:
        """To the end of a loop, a call or the shell; nothing where there is none to end."""
        wanted = {"return": "call", "exit": "shell"}.get(kind, "loop")
        for frame in reversed(self.frames):
            if frame.kind == wanted:
                levels -= 1
                if levels <= 0:
                    raise Leave(kind, frame, status)
            elif frame.kind == "shell" or wanted == "loop":
                break
        return True

    def within(self, kind: str, run: Callable[[Frame], Status]) -> Status:
        """`run` in a frame of its own; what left it early is joined in at its end."""
        frame = Frame(kind)
        self.frames.append(frame)
        try:
            status = run(frame)
        except Leave as leave:
            if leave.frame is not frame:
                raise
            status = leave.status
        finally:
            self.frames.remove(frame)
        if kind == "shell":  # of what a shell set nothing lasts
            for _, state, why in frame.left:
                self.state.join_command(state, self.decide(why))
        else:
            self.join_left(frame, "break", "continue", "return")
        return status

    def join_left(self, frame: Frame, *kinds: str) -> None:
        for entry in [entry for entry in frame.left if entry[0] in kinds]:
            frame.left.remove(entry)
            self.join([entry[1]], entry[2])

    def apart(self, run: Callable[[], Status]) -> Status:
        """As a subshell: what it sets does not last; a command that trains does."""
        before, self.state = self.state, self.state.copy()
        try:
            return self.within("shell", lambda _: run())
        finally:
            before.words, before.rank, self.state = self.state.words, self.state.rank, before

    def call(self, body, arguments: list[str], prepare: Callable[[], None] = lambda: None) -> Status:
        """A function's body with its own arguments and `local` variables; `prepare` assigns those of the call."""
        self.state.local.append({})
        prepare()
        self.state.cover(ARGUMENTS)
        self.state.values[ARGUMENTS] = arguments
        status = self.within("call", lambda _: self.step(body))
        self.state.uncover()
        return status

    def rounds(self, node, body, rounds: Iterable[bool]) -> Status:
        """A loop: a turn for each True that `rounds` gives; False ends it as one that can't be followed."""

        def turns(frame: Frame) -> Status:
            for goes_on in rounds:
                if not goes_on or not self.turn() or len(frame.left) > _UNDECIDED:
                    return self.unfollowed(node, body)
                try:
                    self.step(body)
                except Leave as leave:
                    if leave.frame is not frame or leave.kind == "break":
                        raise
                self.join_left(frame, "continue")
            return True

        return self.within("loop", turns)

    def unfollowed(self, node, body) -> Status:
        """What a loop may set is not known; its body is read once, for the command that trains."""
        names, kind = self.may_set(source(node)), node.children[0].type
        why = f"a `{kind}` is not followed (line {node.start_point[0] + 1})"
        self.lose(names, why)
        self.branch(why, [lambda: self.step(body), lambda: True])
        self.lose(names, why)
        return None

    def step(self, node) -> Status:
        raise NotImplementedError
