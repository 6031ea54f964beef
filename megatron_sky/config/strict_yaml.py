"""YAML without the surprises of version 1.1, and within limits that no honest file meets.

Numbers are decimal: `0100`, `0x40` and `1:30` are texts, as are `yes`, `off` and dates; `6e-4` is a number. A file is
plain values alone: a tag that would make anything else of them is refused. All that is wrong is a yaml.YAMLError.
"""

import re

import yaml

MAX_CHARACTERS = 8 << 20
MAX_VALUES = 500_000  # those that an alias stands for counted wherever it stands
MAX_LEVELS = 100

_PREFIX = "tag:yaml.org,2002:"
_MERGE = _PREFIX + "merge"  # of the key <<
_FLOAT = re.compile(
    r"""^[-+]?(?:[0-9][0-9_]*\.?[0-9_]*(?:[eE][-+]?[0-9]+)|\.[0-9_]+(?:[eE][-+]?[0-9]+)?
    |[0-9][0-9_]*\.[0-9_]*|\.inf|\.nan)$""",
    re.X | re.I,
)
_RULES = {
    "null": (re.compile(r"^(?:~|null|Null|NULL|)$"), ["~", "n", "N", ""]),
    "bool": (re.compile(r"^(?:true|True|TRUE|false|False|FALSE)$"), list("tTfF")),
    "int": (re.compile(r"^[-+]?(?:0|[1-9][0-9_]*)$"), list("-+0123456789")),
    "float": (_FLOAT, list("-+0123456789.")),
    "merge": (re.compile(r"^<<$"), ["<"]),
}
_KINDS = {yaml.ScalarNode: {"str", *_RULES}, yaml.MappingNode: {"map"}, yaml.SequenceNode: {"seq"}}


class _Loader(yaml.SafeLoader):
    """Of which only the resolving of plain scalars is used: nothing is constructed."""

    yaml_implicit_resolvers: dict = {}  # noqa: RUF012 (PyYAML's own attribute)


class Dumper(yaml.SafeDumper):
    """Quotes what this or another reader of YAML would not take for a text."""

    yaml_implicit_resolvers = {first: list(rules) for first, rules in yaml.SafeDumper.yaml_implicit_resolvers.items()}  # noqa: RUF012


for _name, (_rule, _first) in _RULES.items():
    _Loader.add_implicit_resolver(_PREFIX + _name, _rule, _first)
Dumper.add_implicit_resolver(_PREFIX + "float", _FLOAT, _RULES["float"][1])


def _represent_str(dumper: Dumper, text: str) -> yaml.ScalarNode:
    """In double quotes, with escapes, where PyYAML's other styles lose Unicode's line ends."""
    style = '"' if any(char in text for char in "\r\x85\u2028\u2029\ufeff") else None
    return dumper.represent_scalar(_PREFIX + "str", text, style=style)


Dumper.add_representer(str, _represent_str)


def dump(tree: object) -> str:
    """Mappings, lists and plain values as YAML whose strings `load` takes for strings."""
    return yaml.dump(tree, Dumper=Dumper, sort_keys=False, allow_unicode=True, width=120)


def load(text: str, name: str = "<text>") -> object:
    """The document as plain Python. Raises yaml.YAMLError."""
    node = compose(text, name)
    return None if node is None else _plain(node)


def compose(text: str, name: str) -> yaml.Node | None:
    """The document's nodes, None where it is empty: within the limits, with no tags but those of plain values."""
    if len(text) > MAX_CHARACTERS:
        raise yaml.YAMLError(f"has more than {MAX_CHARACTERS:,} characters")
    loader = _Loader(text)
    loader.name = name  # in what PyYAML says of a place
    try:
        node = loader.get_single_node()
    except RecursionError:
        raise yaml.YAMLError("is nested too deeply") from None
    except (ValueError, OverflowError) as error:  # an escape of no character
        raise yaml.YAMLError(str(error)) from None
    finally:
        loader.dispose()
    if node is not None:
        _check(node)
    return node


def scalar(node: yaml.Node) -> object:
    """Its value, by its tag. Raises yaml.YAMLError where a tag in the file says what the text is not."""
    kind, text = node.tag.removeprefix(_PREFIX), node.value
    if kind in ("str", "merge"):
        return text
    if not (_RULES[kind][0].match(text) or (kind == "float" and _RULES["int"][0].match(text))):
        raise _error(node, f"{text[:40]!r} is tagged as {kind}, which it is not")
    if kind == "null":
        return None
    if kind == "bool":
        return text.lower() == "true"
    try:
        if kind == "int":
            return int(text.replace("_", ""))
        return float(text.lower().replace("_", "").replace(".inf", "inf").replace(".nan", "nan"))
    except ValueError as error:  # thousands of digits
        raise _error(node, str(error)) from None


def entries(node: yaml.MappingNode) -> tuple[list, list]:
    """A mapping's own entries, and those that its `<<` bring in; of these, the later ones win."""
    own, merged = [], []
    for name, value in node.value:
        if name.tag != _MERGE:
            own.append((name, value))
            continue
        for source in reversed(value.value if isinstance(value, yaml.SequenceNode) else [value]):
            if not isinstance(source, yaml.MappingNode):
                raise _error(value, "<< wants a mapping, or a list of them")
            theirs, further = entries(source)
            merged += [*further, *theirs]
    return own, merged


def _plain(node: yaml.Node) -> object:
    if isinstance(node, yaml.MappingNode):
        own, merged = entries(node)
        return {str(_plain(name)): _plain(value) for name, value in [*merged, *own]}
    if isinstance(node, yaml.SequenceNode):
        return [_plain(item) for item in node.value]
    return scalar(node)


def _check(root: yaml.Node) -> None:
    """Counts what the nodes stand for, each once: aliases of aliases may stand for more than can be gone through."""
    sizes: dict[int, tuple[int, int]] = {}  # values and levels
    pending: list[tuple[yaml.Node, bool]] = [(root, False)]
    open_nodes: set[int] = set()
    while pending:
        node, is_done = pending.pop()
        if id(node) in sizes:
            continue
        children = _children(node)
        if is_done:
            open_nodes.discard(id(node))
            inner = [sizes[id(child)] for child in children]
            values, levels = 1 + sum(count for count, _ in inner), 1 + max((deep for _, deep in inner), default=0)
            if values > MAX_VALUES:
                raise _error(node, f"stands for more than {MAX_VALUES:,} values")
            if levels > MAX_LEVELS:
                raise _error(node, f"is nested in more than {MAX_LEVELS} levels")
            sizes[id(node)] = values, levels
            continue
        if id(node) in open_nodes:
            raise _error(node, "has an anchor (&) that holds itself: remove the alias (*) within it")
        if node.tag.removeprefix(_PREFIX) not in _KINDS[type(node)]:
            raise _error(node, f"has the tag {node.tag[:60]!r}: only plain values are read")
        if isinstance(node, yaml.MappingNode):
            for name, _ in node.value:
                if not isinstance(name, yaml.ScalarNode):
                    raise _error(name, "can't be a key: keys are plain values")
        open_nodes.add(id(node))
        pending += [(node, True), *((child, False) for child in children)]


def _children(node: yaml.Node) -> list[yaml.Node]:
    if isinstance(node, yaml.MappingNode):
        return [part for entry in node.value for part in entry]
    return node.value if isinstance(node, yaml.SequenceNode) else []


def _error(node: yaml.Node, rule: str) -> yaml.YAMLError:
    return yaml.MarkedYAMLError(problem=rule, problem_mark=node.start_mark)
