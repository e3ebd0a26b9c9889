"""params.yaml: one section per stage, each read into the frozen dataclass that its stage owns."""

from __future__ import annotations

import dataclasses
import difflib
import sys
import types
import typing
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Literal, TypeVar, Union, get_args, get_origin, get_type_hints

from ruamel.yaml import YAML
from ruamel.yaml.error import MarkedYAMLError, YAMLError

from pipeline.errors import UserError
from pipeline.errors import nearest as nearest

SEEDS = (0, 2**32 - 1)  # NumPy's older generators, which torch-fidelity draws by, take no more
THREADS = (1, 1024)  # of a stage: more than machines have, and few enough to be started
T = TypeVar("T")


def within(section: object, **ranges: tuple[float, float]) -> None:
    """Raise ValueError, beginning with its name, for a setting outside its range, ends included; None is in any."""
    for name, (least, most) in ranges.items():
        value = getattr(section, name)
        if value is not None and value < least:
            raise ValueError(f"{name} is {value}; needed at least {least}")
        if value is not None and value > most:
            raise ValueError(f"{name} is {value}; needed at most {most}")


class Document:
    """A params.yaml in memory. Errors name the file, the dotted key, what was found and what was needed."""

    def __init__(self, content: Mapping[str, Any], name: str = "params.yaml") -> None:
        self.content = content
        self.name = name

    @classmethod
    def load(cls, path: Path) -> Document:
        """Read as DVC reads it (YAML 1.2). Raises UserError when it is missing or not a mapping."""
        try:
            content = YAML(typ="safe").load(path.read_text(encoding="utf-8"))
        except FileNotFoundError:
            raise UserError(
                f"{path}: not found; needed the folder of a Forgeline project, 'forgeline recipe' lists ready settings"
            ) from None
        except OSError as error:
            raise UserError(f"{path}: cannot be read ({error.strerror})") from None
        except MarkedYAMLError as error:
            where = f"line {error.problem_mark.line + 1}: " if error.problem_mark else ""
            raise UserError(f"{path}: is not YAML: {where}{_one_line(error.problem or error)}") from None
        except (YAMLError, UnicodeDecodeError) as error:
            raise UserError(f"{path}: is not YAML: {_one_line(error)}") from None
        except (ValueError, KeyError, RecursionError) as error:  # what ruamel's constructors stumble over
            raise UserError(f"{path}: has a value that YAML does not allow ({_one_line(error)})") from None
        if not isinstance(content, dict):
            raise UserError(f"{path}: found {_describe(content)}, needed a mapping of sections")
        return cls(content, str(path))

    def section(self, key: str, into: type[T]) -> T:
        """The mapping at the dotted `key` as the dataclass `into`."""
        return self.build(key, self.mapping(key), into)

    def mapping(self, key: str) -> Mapping[str, Any]:
        """The mapping at the dotted `key`."""
        found = self.content
        walked: list[str] = []
        for part in key.split("."):
            if part not in found:
                hint = difflib.get_close_matches(part, map(str, found), n=1, cutoff=0.75)
                also = f"; did you misspell it as '{hint[0]}'?" if hint else "; needed this section"
                raise self.error(".".join([*walked, part]), f"is missing{also}")
            value = found[part]
            walked.append(part)
            if not isinstance(value, Mapping):
                raise self.error(".".join(walked), f"found {_describe(value)}, needed a mapping")
            found = value
        return found

    def build(self, key: str, found: Any, into: type[T]) -> T:
        """`found`, the value at the dotted `key`, as the dataclass `into`."""
        if not isinstance(found, Mapping):
            raise self.error(key, f"found {_describe(found)}, needed a mapping")
        assert dataclasses.is_dataclass(into)
        hints = get_type_hints(into)
        fields = {field.name: field for field in dataclasses.fields(into)}
        for name in found:
            if name not in fields:
                raise self.error(f"{key}.{name}", f"is not a setting; {nearest(str(name), fields)}")
        for name, field in fields.items():
            required = field.default is dataclasses.MISSING and field.default_factory is dataclasses.MISSING
            if required and name not in found:
                raise self.error(f"{key}.{name}", f"is missing; needed {_type_name(hints[name])}")
        values = {name: self._convert(f"{key}.{name}", value, hints[name]) for name, value in found.items()}
        try:
            return typing.cast(T, into(**values))
        except ValueError as error:  # a __post_init__ begins its sentence with the field's name
            raise UserError(f"{self.name}: {key}.{_one_line(error)}") from None

    def error(self, key: str, sentence: str) -> UserError:
        """A UserError about the value at the dotted `key`."""
        return UserError(f"{self.name}: {_one_line(key)} {_one_line(sentence)}")

    def _convert(self, key: str, value: Any, hint: Any) -> Any:
        origin, arguments = get_origin(hint), get_args(hint)
        if origin in (Union, types.UnionType):
            if value is None and type(None) in arguments:
                return None
            (inner,) = [argument for argument in arguments if argument is not type(None)]
            return self._convert(key, value, inner)
        if origin is Literal:
            for argument in arguments:
                if type(value) is type(argument) and value == argument:  # 1.0 and true equal 1, and are not it
                    return argument
            raise self.error(key, f"is {value!r}; {nearest(str(value), map(str, arguments))}")
        if origin is tuple and isinstance(value, list):
            return tuple(self._convert(f"{key}[{i}]", item, arguments[0]) for i, item in enumerate(value))
        if origin is dict and isinstance(value, Mapping):
            return {str(name): self._convert(f"{key}.{name}", item, arguments[1]) for name, item in value.items()}
        if dataclasses.is_dataclass(hint):
            return self.build(key, value, typing.cast(type[Any], hint))
        if hint is float and type(value) in (int, float) and abs(value) <= sys.float_info.max:  # .inf and .nan are not
            return float(value)
        if hint in (bool, int, str) and type(value) is hint:
            return value
        raise self.error(key, f"is {_describe(value)}; needed {_type_name(hint)}")


_NAMES = {bool: "true or false", int: "a whole number", float: "a number", str: "text"}


def _type_name(hint: Any) -> str:
    arguments = [argument for argument in get_args(hint) if argument is not type(None)]
    if get_origin(hint) in (Union, types.UnionType):
        return f"{_type_name(arguments[0])} or null"
    if get_origin(hint) is Literal:
        return "one of " + ", ".join(map(str, arguments))
    if get_origin(hint) is tuple:
        return f"a list, each item {_type_name(arguments[0])}"
    return _NAMES.get(hint, "a mapping")


def _one_line(words: object) -> str:
    return " ".join(str(words).split())


def _describe(value: Any) -> str:
    match value:
        case None:
            return "nothing"
        case bool():
            return str(value).lower()
        case Mapping():
            return "a mapping"
        case list():
            return "a list"
        case str():
            return f"the text {value!r}"
        case _:
            return str(value)
