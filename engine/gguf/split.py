"""Models that lie in several files, NAME-00001-of-00003.gguf and so on."""

from __future__ import annotations

import re
from pathlib import Path

from engine.errors import ModelFileError
from engine.gguf.parse import Part, parse, shown

_NAME = re.compile(r"(?P<stem>.*)-(?P<number>\d{5})-of-(?P<count>\d{5})(?P<suffix>\.[^.]*)?", re.DOTALL)
_FETCH = "All parts have to lie in one folder, under the names they were published with."


def parse_all(path: Path) -> list[Part]:
    """Parses a file and, where it is the first part of a split model, the other parts."""
    first = parse(path)
    count = _split_key(first, "split.count")
    if count is None or count <= 1:
        return [first]
    number = _split_key(first, "split.no")
    name = _NAME.fullmatch(path.name)
    if number is None or not 0 <= number < count:
        raise ModelFileError(f"{path.name}: the key split.no is {number}, but the model has {count} parts.", _FETCH)
    if number > 0:
        other = part_path(path, 0, count).name if name else "the first part"
        raise ModelFileError(f"{path.name} is part {number + 1} of {count} of a model.", f"Open {other} instead.")
    if name is None or int(name["number"]) != 1 or int(name["count"]) != count:
        raise ModelFileError(
            f"{path.name} is the first of {count} parts of a model, but is not named …-00001-of-{count:05d}.gguf, so"
            " the other parts cannot be found.",
            _FETCH,
        )
    missing = [p.name for p in (part_path(path, part, count) for part in range(1, count)) if not p.is_file()]
    if missing:
        more = f" and {len(missing) - 1} more" if len(missing) > 1 else ""
        raise ModelFileError(f"{path.name} needs {missing[0]}{more}, which is not beside it.", _FETCH)
    parts = [first, *(_other_part(part_path(path, part, count), part, count) for part in range(1, count))]
    _check_tensors(parts)
    return parts


def part_path(path: Path, part: int, count: int) -> Path:
    """The path of another part (from 0) of the split model that path belongs to."""
    name = _NAME.fullmatch(path.name)
    if name is None:
        raise ValueError(f"{path.name} is not the name of a part")
    return path.with_name(f"{name['stem']}-{part + 1:05d}-of-{count:05d}{name['suffix'] or ''}")


def _other_part(path: Path, part: int, count: int) -> Part:
    parsed = parse(path, part)
    for key, wanted in (("split.no", part), ("split.count", count)):
        found = _split_key(parsed, key)
        if found != wanted:
            raise ModelFileError(f"{path.name}: the key {key} is {found}, but must be {wanted}.", _FETCH)
    return parsed


def _check_tensors(parts: list[Part]) -> None:
    holder: dict[str, Part] = {}
    for part in parts:
        for name in part.tensors:
            if name in holder:
                raise ModelFileError(
                    f"The tensor {shown(name)} is in {holder[name].path.name} and in {part.path.name}.", _FETCH
                )
            holder[name] = part
    total = _split_key(parts[0], "split.tensors.count")
    if total is not None and total != len(holder):
        raise ModelFileError(
            f"{parts[0].path.name}: the key split.tensors.count is {total}, but the parts hold {len(holder)} tensors.",
            _FETCH,
        )


def _split_key(part: Part, key: str) -> int | None:
    value = part.metadata.get(key)
    if value is not None and (isinstance(value, bool) or not isinstance(value, int)):
        raise ModelFileError(
            f"{part.path.name}: the key {key} must be an integer, but the file has {part.value_types[key]}.", _FETCH
        )
    return value
