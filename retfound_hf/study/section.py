"""A part of the study file: a mapping whose unknown keys and wrong values are refused with their place in the file."""

from collections.abc import Collection, Mapping, Sequence
from pathlib import Path
from typing import Any

import yaml

from ..runs.errors import RetFoundError, nearest


class Section:
    """A mapping of the file, with its place for messages such as `study.yaml: data > aptos`."""

    def __init__(self, value: Any, place: str, known: Collection[str], required: Collection[str] = ()):
        if not isinstance(value, Mapping):
            raise RetFoundError(f"{place} must map names to values, found {value!r}; it may hold {', '.join(known)}")
        for key in value:
            if key not in known:
                accepted = f"accepted: {', '.join(known)}" if len(known) < 20 else "see retfound finetune --help"
                raise RetFoundError(f"{place}: unknown key {key!r}{nearest(str(key), known)}; {accepted}")
        for key in required:
            if value.get(key) is None:
                raise RetFoundError(f"{place}: {key} is missing")
        self.values, self.place = value, place

    def at(self, key: str) -> str:
        """The place of a key, for messages."""
        return f"{self.place} > {key}"

    def get(self, key: str, kind: type | tuple[type, ...], default: Any = None) -> Any:
        """The value of a key, of the asked type; a missing or empty one is the default."""
        value = self.values.get(key)
        if value is None:
            return default
        if not isinstance(value, kind) or (isinstance(value, bool) and kind is not bool):
            names = " or ".join(one.__name__ for one in (kind if isinstance(kind, tuple) else (kind,)))
            raise RetFoundError(f"{self.at(key)}: {value!r} is not accepted; give one {names}")
        return value

    def choice(self, key: str, accepted: Sequence[str], default: Any = None) -> Any:
        """The value of a key, one of `accepted`."""
        return one_of(self.values.get(key, default), accepted, self.at(key)) if key in self.values else default

    def items(self, key: str, kind: type | tuple[type, ...], default: Sequence[Any] = ()) -> tuple[Any, ...]:
        """A list without repetitions; a single value stands for a list of one. It is empty only if `default` is."""
        value = self.values.get(key)
        if value is None:
            return tuple(default)
        listed = tuple(value if isinstance(value, list) else [value])
        if default and not listed:
            raise RetFoundError(f"{self.at(key)}: the list is empty; name at least one, or leave {key} out")
        for item in listed:
            if not isinstance(item, kind) or isinstance(item, bool):
                raise RetFoundError(f"{self.at(key)}: {item!r} is not accepted in this list")
            if listed.count(item) > 1:
                raise RetFoundError(f"{self.at(key)}: {item!r} is listed twice")
        return listed

    def shares(self, key: str, default: Sequence[float]) -> tuple[float, ...]:
        """Numbers above 0 and up to 1, in ascending order."""
        found = tuple(sorted(float(value) for value in self.items(key, (int, float), default)))
        wrong = [value for value in found if not 0 < value <= 1]
        if wrong:
            raise RetFoundError(f"{self.at(key)}: {wrong} is not accepted; give shares such as 0.1")
        return found

    def named(self, key: str) -> dict[str, Any]:
        """A mapping from names to settings; a list of names is one whose settings are empty or the names."""
        value = self.values.get(key)
        if not isinstance(value, (list, Mapping)) or not value:
            raise RetFoundError(f"{self.at(key)} must map names to settings, found {value!r}")
        for name in value:
            if not isinstance(name, str) or not name.strip() or "/" in name or name.startswith("."):
                raise RetFoundError(f"{self.at(key)}: {name!r} is no name; give text without / and no dot before it")
            if isinstance(value, list) and value.count(name) > 1:
                raise RetFoundError(f"{self.at(key)}: {name!r} is listed twice")
        return {name: name for name in value} if isinstance(value, list) else dict(value)


def one_of(value: Any, accepted: Collection[str], place: str) -> Any:
    """`value` if it is accepted, else an error that names the nearest."""
    if value not in accepted:
        raise RetFoundError(
            f"{place}: {value!r} is unknown{nearest(str(value), accepted)}; accepted: {', '.join(accepted)}"
        )
    return value


class _UniqueKeys(yaml.SafeLoader):
    """YAML in which a key that is written twice is an error: the first one would silently be lost."""


def _mapping(loader: _UniqueKeys, node: yaml.MappingNode) -> dict[Any, Any]:
    keys = [loader.construct_object(key, deep=True) for key, _ in node.value]
    repeated = [key for key in keys if keys.count(key) > 1]
    if repeated:
        raise yaml.YAMLError(f"key {repeated[0]!r} is written twice, line {node.start_mark.line + 1} on")
    return yaml.SafeLoader.construct_mapping(loader, node, deep=True)


_UniqueKeys.add_constructor(yaml.resolver.BaseResolver.DEFAULT_MAPPING_TAG, _mapping)


def read_yaml(path: Path) -> Any:
    """The content of a YAML file, or one line about what is wrong with it."""
    if not path.is_file():
        raise RetFoundError(
            f"study file {path} does not exist; give a YAML file such as scripts/studies/synthetic.yaml"
        )
    try:
        return yaml.load(path.read_text(encoding="utf-8"), Loader=_UniqueKeys)
    except UnicodeDecodeError as error:
        raise RetFoundError(
            f"study file {path} is not UTF-8 text (byte {error.start}: {error.object[error.start]:#04x}); save it as "
            "UTF-8"
        ) from error
    except (yaml.YAMLError, ValueError) as error:  # ValueError: a date that no calendar has
        raise RetFoundError(f"study file {path} is not valid YAML: {' '.join(str(error).split())}") from error
