"""Bash's own commands, as far as they set variables, and the commands that a script starts."""

import re
from collections.abc import Callable
from pathlib import PurePath

from megatron_sky.migrate.conditions import judge, operand_or_sign
from megatron_sky.migrate.flow import RAN, Flow, Status
from megatron_sky.migrate.tree import EVERYTHING, adjacent, may_set, parse, shown, source
from megatron_sky.migrate.values import ARGUMENTS, decided, is_known, maybes, plain

_DEEPEST = 15  # calls, loops and shells within each other
_SHELLS = ("bash", "sh", "zsh")
_KEEP_ENVIRONMENT = (*_SHELLS, "env", "nohup", "srun", "sbatch", "setsid", "nice", "stdbuf", "cat")
_ANSWERS = ("grep", "egrep", "fgrep", "pgrep", "which", "type", "hash", "diff", "cmp", "expr", "timeout")
"""Commands of which a failure is an answer."""
_SETS_PATHS = ("activate", "conda.sh")
"""Files of virtual environments and of conda, which set no variable of a training."""
_NO_FUNCTIONS = re.compile(
    "accelerate|bash|cat|cd|chmod|conda|cp|date|deepspeed|env|git|hostname|kill|ln|ls|mkdir|module|mpirun|mv|"
    "nohup|numactl|nvidia-smi|pip|pwd|python|python3|rm|sbatch|sh|sleep|srun|tee|torchrun|touch|ulimit|umask|wait|echo|printf"
)
"""What a file that is not read does not make functions of."""
_MISPLACED = ("coproc", "{", "}", "then", "do", "done", "fi", "esac", "else", "elif", "[[")
_ASSIGNMENT = re.compile(r"([A-Za-z_]\w*)(\+?)=(.*)", re.S)


class Stop(Exception):
    """What follows in the script can't be read."""


class Commands(Flow):
    def named(self, words: list[str], document: str, assignments: list) -> Status:
        """A command, or the function of its name, with the assignments before it."""
        name = plain(words[0])
        if name in self.state.functions:
            body = self.state.functions[name]
            if body and self.turn() and len(self.frames) < _DEEPEST:
                return self.call(body, words[1:], lambda: self.assign_for_a_call(assignments))
            names = self.may_set(source(body)) if body else {EVERYTHING}
            self.lose(names, f"the function {name} is not followed")
            return None
        exported = set(self.state.exported)
        self.state.local.append({})
        self.assign_for_a_call(assignments)
        covered = self.state.local.pop()
        try:
            return self.run(words, document)
        finally:
            self.state.local.append(covered)
            self.state.uncover()
            if assignments:
                self.state.exported = exported

    def assign_for_a_call(self, assignments: list) -> None:
        for node in assignments:
            name = self.place(node.children[0])[0]
            before = self.state.values.get(name)
            self.assignment(node)
            self.state.local[-1].setdefault(name, before)
            self.state.exported.add(name)

    def run(self, words: list[str], document: str) -> Status:
        name, rest, text = plain(words[0]), words[1:], plain(" ".join(words))[:80]
        match name:
            case "true" | ":" | "false":
                return name != "false"
            case "test" | "[":
                return judge([operand_or_sign(decided(word)) for word in (rest if name == "test" else rest[:-1])])
            case "exit":
                return self.exit()
            case "return" | "break" | "continue":
                number = int(rest[0]) if rest and rest[0].isdecimal() else None
                return self.leave(name, number or 1, RAN if number is None else number == 0)
            case "let":
                values = [self.compute(one) for one in rest]
                if not all(map(is_known, rest)):
                    self.lose({EVERYTHING}, f"`{text}` is not followed")
                return None if not values or values[-1] is None else values[-1] != 0
            case "shift":
                return self.shift(rest)
            case "set":
                return self.set(rest)
            case "declare" | "typeset" | "local" | "export" | "readonly":
                return self.declare(name, rest)
            case "unset":
                return self.unset(rest)
            case "eval":
                return self.eval(" ".join(rest))
            case "source" | ".":
                names = set() if rest and PurePath(rest[0]).name in _SETS_PATHS else {EVERYTHING}
                self.lose(names, f"`{text}` is not read: give what it sets")
                return RAN
            case "trap":
                return self.trap(rest)
            case "read" | "mapfile" | "readarray" | "getopts" | "printf" | "wait" if names := may_set(text):
                self.lose(names, f"`{text}` is not followed")
                return None
            case "command" | "builtin" | "time" if rest:
                return self.prefixed(name, rest, document)
            case "exec" if rest:
                self.start(rest, document)
                return self.exit()
        if name in _MISPLACED or (name == "shopt" and {"nocasematch", "lastpipe", "expand_aliases"} & set(rest)):
            raise Stop(f"`{text}` is not followed, nor is what comes after it")
        return self.start(words, document)

    def exit(self) -> Status:
        if self.state.words or self.undecided or sum(frame.kind == "shell" for frame in self.frames) > 1:
            return self.leave("exit")
        self.note("`exit` comes before any command that trains and is passed over")
        return True

    def prefixed(self, name: str, rest: list[str], document: str) -> Status:
        """`command`, `builtin` and `time` before a command."""
        while rest and rest[0].startswith("-"):
            if rest.pop(0) in ("-v", "-V"):
                return None
        if not rest or name == "time":
            if rest and _ASSIGNMENT.fullmatch(rest[0]):
                raise Stop("`time` before an assignment is not followed, nor is what comes after it")
            return self.named(rest, document, []) if rest else RAN
        return self.run(rest, document)

    # Variables

    def shift(self, rest: list[str]) -> Status:
        given, count = self.state.values[ARGUMENTS], rest[0] if rest else "1"
        if isinstance(given, str) or any(map(maybes, given)) or not count.isdecimal():
            self.lose({ARGUMENTS}, "`shift` is not followed")
            return None
        if int(count) > len(given):
            return False
        self.state.values[ARGUMENTS] = given[int(count) :]
        return True

    def set(self, rest: list[str]) -> Status:
        while rest and re.fullmatch(r"[-+]\w+", rest[0]):
            if "a" in rest[0] or (rest[0].endswith("o") and rest[1:2] == ["allexport"]):
                self.exports_all = rest[0][0] == "-"
            rest = rest[2:] if rest[0].endswith("o") else rest[1:]
        if rest:
            self.state.values[ARGUMENTS] = rest[1:] if rest[0] in ("--", "-") else rest
        return True

    def declare(self, command: str, entries: list) -> Status:
        """Of words, or of nodes that assign."""
        state, letters = self.state, ""
        for entry in entries:
            word = entry if isinstance(entry, str) else source(entry)
            match = re.match(r"([A-Za-z_]\w*)(\+?=|\[|$)", word)
            if match is None and re.fullmatch(r"[-+][A-Za-z]+", word):
                letters += word
            elif match is None or ("n" in letters and command != "export"):
                raise Stop(f"`{command} {plain(word)[:60]}` is not followed, nor is what comes after it")
            elif not set(letters) & set("pfF"):
                name = match[1]
                if state.local and command in ("local", "declare", "typeset") and "g" not in letters:
                    state.cover(name)
                if re.search("[-+][a-zA-Z]*[ilucA]", letters) or ("g" in letters and state.local):
                    state.never.add(name)
                    self.lose({name}, f"`{command} {letters} {name}` is not followed")
                if re.search(r"\+[a-zA-Z]*x", letters) or (command == "export" and "n" in letters):
                    state.exported.discard(name)
                elif command == "export" or "x" in letters:
                    state.exported.add(name)
                if not isinstance(entry, str):
                    self.assignment(entry)
                elif match[2]:
                    self.assign(name, word[match.end() :], appends=match[2] == "+=")
                if command == "readonly" or "r" in letters:
                    state.fixed.add(name)
        return True

    def unset(self, rest: list[str]) -> Status:
        for word in rest:
            name = re.fullmatch(r"([A-Za-z_]\w*)(\[.*\])?", word)
            if "-f" in rest:
                self.state.functions.pop(word, None)
            elif name and name[2]:
                self.lose_known({name[1]}, f"`unset {word}` is not followed")
            elif name:
                self.state.unset(name[1])
            elif word != "-v":
                self.lose({EVERYTHING}, f"`unset {plain(word)}` is not followed")
        return True

    def trap(self, rest: list[str]) -> Status:
        body, *signals = [word for word in rest if word != "--"] or [""]
        names = self.may_set(plain(body)) if signals not in ([], ["EXIT"], ["0"]) else set()
        if EVERYTHING in names or not is_known(body):
            raise Stop(f"`trap {plain(body)[:60]}` is not followed, nor is what comes after it")
        if names:
            self.lose(names, f"`trap {plain(body)[:60]}` may run at any time")
            self.state.never |= names
        return True

    def assignment(self, node) -> None:
        target, sign, *value = node.children
        name, index = self.place(target)
        appends = sign.type == "+="
        if not value or value[0].type != "array":
            self.assign(name, self.text(value), index, appends=appends)
        elif any(source(child).startswith("[") for child in value[0].children[1:-1]):
            self.lose({name}, f"`{shown(node)}` is not followed")
        else:
            groups = adjacent(child for child in value[0].children[1:-1] if child.type != "comment")
            self.assign(name, [word for group in groups for word in self.words_of(group)], appends=appends)

    # Other shells and programs

    def eval(self, text: str) -> Status:
        command = (text.split() or [""])[0]
        if len(self.frames) >= _DEEPEST or not self.turn() or decided(command) != command:
            self.lose({EVERYTHING}, f"`eval {plain(text)[:60]}` is not followed")
            return None
        return self.within("eval", lambda _: self.step(parse(text)))

    def start(self, words: list[str], document: str) -> Status:
        """A program: another shell's script is followed, else it may be the command that trains."""
        command = plain(words[0])
        name = PurePath(command).name
        if inner := self.other_shell(words, document):
            return self.apart(inner)
        if (
            self.state.blind
            and "/" not in command
            and not _NO_FUNCTIONS.fullmatch(command)
            and not command.startswith("$")
        ):
            self.lose({EVERYTHING}, f"{command} may be a function of a file that is not read")
        for text, what in (*((word, "a command line") for word in words[1:]), (document, "a here document")):
            if re.search(r"\.py\b.*\s--\w", text, re.S):
                self.note(f"`{name}` is given {what}, which is not followed: give the command in it by itself")
        if words[0].endswith(".sh") or (name in (*_SHELLS, "sbatch") and any(word.endswith(".sh") for word in words)):
            self.note(f"`{plain(' '.join(words))[:80]}` starts another script, which is not read: give that one")
        self.offer(words)
        return None if name in _ANSWERS else True if name in ("echo", "printf") else RAN

    def offer(self, words: list[str]) -> None:
        """Takes the command if it looks at least as much like the one that trains as those before."""
        num_flags = sum(plain(word).startswith("--") for word in words)
        if not num_flags:
            return
        trains = any(word.endswith(".py") and "train" in PurePath(word).name for word in words)
        rank = (trains, PurePath(plain(words[0])).name not in ("echo", "printf"), num_flags)
        state = self.state
        if state.rank[:2] == rank[:2] == (True, True) and state.words != words:
            self.note("more than one command trains; of these the last with the most arguments is read")
        if rank >= state.rank:
            state.rank, state.words = rank, words

    def other_shell(self, words: list[str], document: str) -> Callable[[], Status] | None:
        """What `bash -c`, or a here document that is a script, is handed; None where it is no other shell.

        It has the variables that are exported, where what stands before it hands them on.
        """
        at = next((number for number, word in enumerate(words) if PurePath(word).name in _SHELLS), None)
        before = words[:at] if at is not None else words[:1]
        text, arguments = document, []
        if at is not None and len(words) > at + 2 and re.fullmatch(r"-[a-z]*c", words[at + 1]):
            text, arguments = words[at + 2], words[at + 4 :]
        elif at is None and PurePath(words[0]).name != "sbatch" and not re.match(r"#!.*sh\b", document):
            return None
        if not text or len(self.frames) >= _DEEPEST or not self.turn():
            return None
        given = {match[1]: match[3] for word in before if (match := _ASSIGNMENT.fullmatch(word))}
        keeps = PurePath(words[0]).name in _KEEP_ENVIRONMENT
        keeps = keeps and not any(word.startswith("--export") or word in ("-i", "-u") for word in before)

        def inside() -> Status:
            state = self.state
            state.exported = state.exported & state.values.keys() if keeps else set()
            state.values = {name: state.values[name] for name in state.exported} | {ARGUMENTS: arguments} | given
            state.functions, state.local = {}, []
            return self.step(parse(text))

        return inside
