"""What became of each argument of Megatron-LM, and the recipe that grows from them."""

from dataclasses import dataclass, field

from megatron_sky.migrate.arguments import Arguments, Untold

TO_GIVE = ["TO GIVE"]  # a list of a text: whatever the key, loading the recipe refuses it


@dataclass
class Translation:
    """A recipe as plain mappings, and what became of each argument."""

    recipe: dict = field(default_factory=dict)
    mapped: list[str] = field(default_factory=list)
    no_effect: list[str] = field(default_factory=list)
    no_counterpart: list[str] = field(default_factory=list)
    to_give: list[str] = field(default_factory=list)
    """What the recipe still needs, that arguments don't tell."""
    open_words: list[str] = field(default_factory=list)
    """What is not known and may hold arguments."""
    nodes: int | str | None = None
    gpus_per_node: int | str | None = None
    """Numbers, or variables of the script."""


class Writer:
    def __init__(self, args: Arguments, done: Translation):
        self.args, self.done = args, done

    def put(self, key: str, value: object, *names: str) -> None:
        """Sets a key of the recipe, told as coming from the flags `names` (those given of them).

        `value` may be a function, for what is reckoned; an `Untold` is told as still to give.
        """
        try:
            value = value() if callable(value) else value
        except Untold as untold:
            value = untold
        *sections, leaf = key.split(".")
        here = self.done.recipe
        for section in sections:
            here = here.setdefault(section, {})
        here[leaf] = [*TO_GIVE] if isinstance(value, Untold) else value
        given = [" ".join([f"--{name}", *self.args.given[name][:4]]) for name in names if self.args.has(name)]
        if isinstance(value, Untold):
            self.done.to_give.append(f"{key}: {value}")
            return
        source = ", ".join(given) or "Megatron-LM's default"
        shown = f"{len(value)} of them" if isinstance(value, list | tuple) and len(str(value)) > 60 else value
        self.done.mapped.append(f"{source} -> {key}: {shown}")
