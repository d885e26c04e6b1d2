"""Damage to model files: some of it to what the file says, some to the bytes that say it."""

from __future__ import annotations

import random
import struct
from collections.abc import Sequence

from tests.fuzz.content import ARRAY, CODES, STRING, Content, Key, Tensor, array_items, array_value, string_value

_EXTREMES = [0, 1, 2, 3, 7, 8, 31, 63, 64, 255, 256, 65535, 2**31 - 1, 2**31, 2**32 - 1, 2**40, 2**62, 2**63, 2**64 - 1]
_FLOATS = [0.0, -0.0, 1.0, -1.0, 1e-38, 1e-45, 1e38, 3e38, -3e38, float("inf"), float("-inf"), float("nan"), 10000.0]
_TYPES = [*range(13), 13, 255, 2**31]
_WORDS = [b"", b"llama", b"gpt2", b"bert", b"t5", b"qwen2", b"gemma3", b"deepseek2", b"lfm2", b"gpt-oss", b"yarn"]
_WORDS += [b"linear", b"longrope", b"none", b"smollm", b"llama-bpe", b"default", b"\xff\xfe", b"\x00", b"x" * 300]
_WORDS += ["▁".encode(), "é".encode(), b"<0x41>", b"<0xZZ>", b"<|im_end|>", b"</s>", b" ", b"a b", b"a  b", b"{{"]
_TEMPLATES = [
    b"{% for i in range(999999999) %}x{% endfor %}",
    b"{{ 'x' * 999999999 }}",
    b"{% macro f() %}{{ f() }}{% endmacro %}{{ f() }}",
    b"{{ messages[0].__class__.__mro__ }}",
    b"{{ 10 ** 10 ** 10 }}",
    b"{{ messages | tojson(indent=99999999) }}",
    b"{%" * 500,
    b"{{" + b"(" * 3000 + b"1" + b")" * 3000 + b"}}",
    b"{{ messages|map('upper')|list|join(x)|wordwrap(0) }}",
    b"{{ '%999999999d' % 1 }}{{ '{:>999999999}'.format(1) }}",
    b"{% set ns = namespace(a=[]) %}{% for m in messages %}{% set ns.a = ns.a + [ns] %}{% endfor %}{{ ns.a|string }}",
]


def mutated(rng: random.Random, source: Content, others: Sequence[Content]) -> bytes:
    """The source with one to four changes to its content, its bytes, or both. Some take a piece out of another file."""
    content = source.copy()
    kind = rng.random()
    if kind < 0.7:
        for _ in range(rng.choice((1, 1, 1, 2, 4))):
            if rng.random() < 0.3:
                rng.choice((_foreign_key, _foreign_key, _foreign_key, _foreign_tensor, _other_family))(
                    rng, content, rng.choice(others)
                )
            else:
                rng.choice(_CHANGES)(rng, content)
    data = content.to_bytes()
    if kind > 0.55:
        data = _damaged_bytes(rng, data, content.marks)
    return data


# ---- changes to what the file says


def _drop_key(rng: random.Random, content: Content) -> None:
    if content.keys:
        content.keys.remove(rng.choice(content.keys))


def _repeat_key(rng: random.Random, content: Content) -> None:
    if content.keys:
        key = rng.choice(content.keys)
        content.keys.append(Key(key.name + rng.choice((b"", b"x")), key.type, key.value))


def _other_value(rng: random.Random, content: Content) -> None:
    """Another value of the same type."""
    if not content.keys:
        return
    key = rng.choice(content.keys)
    if key.type == STRING:
        key.value = string_value(_text(rng, key, content))
    elif key.type in CODES:
        key.value = _number(rng, CODES[key.type], key.value)
    elif key.type == ARRAY:
        _change_array(rng, key)


def _small_other_value(rng: random.Random, content: Content) -> None:
    """A number or a word of the model's own settings, where most damage passes the reader."""
    keys = [key for key in content.keys if key.type != ARRAY]
    if keys:
        key = rng.choice(keys)
        if key.type == STRING:
            key.value = string_value(_text(rng, key, content))
        else:
            key.value = _number(rng, CODES[key.type], key.value)


def _other_type(rng: random.Random, content: Content) -> None:
    """A sound value of another type under the same name."""
    if not content.keys:
        return
    key = rng.choice(content.keys)
    key.type = rng.choice((4, 5, 6, 7, STRING, ARRAY, 10, 12))
    if key.type == STRING:
        key.value = string_value(rng.choice(_WORDS))
    elif key.type == ARRAY:
        element = rng.choice((0, 4, 5, 6, STRING))
        count = rng.choice((0, 1, 2, 3, 100))
        items = [rng.choice(_WORDS) if element == STRING else _number(rng, CODES[element]) for _ in range(count)]
        key.value = array_value(element, items)
    else:
        key.value = _number(rng, CODES[key.type])


def _text(rng: random.Random, key: Key, content: Content) -> bytes:
    if key.name == b"tokenizer.chat_template":
        text = key.value[8:]
        if rng.random() < 0.5 or not text:
            return rng.choice(_TEMPLATES)
        return _spliced(rng, text)
    others = [other.value[8:] for other in content.keys if other.type == STRING]
    return rng.choice((rng.choice(_WORDS), rng.choice(others), _spliced(rng, key.value[8:])))


def _spliced(rng: random.Random, text: bytes) -> bytes:
    """With a piece cut out, doubled, or replaced by rubbish."""
    start = rng.randint(0, len(text))
    end = min(len(text), start + rng.randint(0, 20))
    piece = rng.choice((b"", text[start:end] * 2, rng.randbytes(rng.randint(1, 8)), rng.choice(_WORDS)))
    return text[:start] + piece + text[end:]


def _number(rng: random.Random, code: str, old: bytes | None = None) -> bytes:
    if code in "fd":
        value = rng.choice(_FLOATS)
        if old and rng.random() < 0.3:
            value = struct.unpack("<" + code, old)[0] * rng.choice((-1, 0.5, 2, 1e10))
        try:
            return struct.pack("<" + code, value)
        except OverflowError:
            return struct.pack("<" + code, float("inf"))
    size = struct.calcsize(code)
    number = rng.choice(_EXTREMES)
    if old and rng.random() < 0.5:
        number = int.from_bytes(old, "little")
        number = rng.choice((number + 1, number - 1, number * 2, number // 2, -number, number * 4, number + 32))
    return (number % 2 ** (8 * size)).to_bytes(size, "little")


def _change_array(rng: random.Random, key: Key) -> None:
    element, items = array_items(key)
    how = rng.randrange(6)
    if how == 0:
        del items[rng.randint(0, len(items)) :]
    elif how == 1 and items:
        items.append(rng.choice(items))
    elif how == 2 and items:
        for _ in range(rng.choice((1, 3, 20))):
            at = rng.randrange(len(items))
            if element == STRING:
                items[at] = rng.choice((rng.choice(_WORDS), rng.choice(items), _spliced(rng, items[at])))
            elif element in CODES:
                items[at] = _number(rng, CODES[element], items[at])
    elif how == 3:
        rng.shuffle(items)
    elif how == 4 and element == STRING and items:
        items = [rng.choice(items)] * len(items)
    elif how == 5 and element in CODES:
        other = rng.choice([code for code in CODES if code != element])
        items = [_number(rng, CODES[other]) for _ in items[:2000]]
        element = other
    key.value = array_value(element, items)


def _other_tensor(rng: random.Random, content: Content) -> None:
    if not content.tensors:
        return
    tensor = rng.choice(content.tensors)
    how = rng.randrange(9)
    if how == 0:
        content.tensors.remove(tensor)
    elif how == 1:
        tensor.name = rng.choice((rng.choice(content.tensors).name, b"", b"x" * rng.choice((63, 64)), b"a.weight"))
    elif how == 2:
        tensor.dims = rng.choice((tensor.dims[::-1], [*tensor.dims, 1], [1, *tensor.dims], tensor.dims[:-1]))
    elif how == 3 and tensor.dims:
        at = rng.randrange(len(tensor.dims))
        tensor.dims[at] = int.from_bytes(_number(rng, "Q", struct.pack("<Q", tensor.dims[at] % 2**64)), "little")
    elif how == 4:
        tensor.type = rng.choice([*range(42), 99, 2**31])
    elif how == 5:
        tensor.offset_shift = rng.choice((1, 32, -32, 64, 2**40, 2**63))
    elif how == 6:
        tensor.data = rng.choice((b"", tensor.data[: len(tensor.data) // 2], tensor.data * 2))
    elif how == 7:
        size = min(len(tensor.data), 4096)
        tensor.data = rng.choice((rng.randbytes(size), b"\xff" * size)) + tensor.data[size:]
    else:  # half as many rows, and data for it
        tensor.dims = [*tensor.dims[:-1], tensor.dims[-1] // 2]
        tensor.data = tensor.data[: len(tensor.data) // 2]


def _other_order(rng: random.Random, content: Content) -> None:
    rng.shuffle(content.tensors)
    rng.shuffle(content.keys)


def _other_alignment(rng: random.Random, content: Content) -> None:
    value = rng.choice((0, 1, 2, 8, 16, 33, 64, 4096, 2**20, 2**31))
    content.keys = [key for key in content.keys if key.name != b"general.alignment"]
    content.keys.append(Key(b"general.alignment", 4, struct.pack("<I", value)))
    if rng.random() < 0.5 and 0 < value <= 4096:
        content.alignment = value


def _other_version(rng: random.Random, content: Content) -> None:
    content.version = rng.choice((0, 1, 2, 3, 4, 0x3000000, 2**32 - 1))


def _split_keys(rng: random.Random, content: Content) -> None:
    for name in (b"split.no", b"split.count", b"split.tensors.count"):
        if rng.random() < 0.7:
            content.keys.append(Key(name, 2, struct.pack("<H", rng.choice((0, 1, 2, 65535)))))


_CHANGES = (
    *[_other_value, _small_other_value, _other_type, _other_tensor] * 4,
    *[_drop_key] * 3,
    _repeat_key,
    _other_order,
    _other_alignment,
    _other_version,
    _split_keys,
)


# ---- pieces of other files


def _family(content: Content) -> bytes:
    key = content.key("general.architecture")
    return key.value[8:] if key is not None and key.type == STRING else b""


def _foreign_key(rng: random.Random, content: Content, other: Content) -> None:
    """A setting that another file has, as if it were one of this family; often with another value."""
    if not other.keys:
        return
    key = rng.choice([key for key in other.keys if key.type != ARRAY or len(key.value) < 10_000])
    name, family = key.name, _family(other)
    if family and name.startswith(family + b"."):
        name = _family(content) + name[len(family) :]
    content.keys = [old for old in content.keys if old.name != name]
    content.keys.append(Key(name, key.type, key.value))
    if rng.random() < 0.5:
        if key.type == ARRAY:
            _change_array(rng, content.keys[-1])
        elif key.type in CODES:
            content.keys[-1].value = _number(rng, CODES[key.type], key.value)


def _foreign_tensor(rng: random.Random, content: Content, other: Content) -> None:
    """A small tensor that another file has: a bias, a norm, factors of rope."""
    small = [tensor for tensor in other.tensors if len(tensor.data) < 5000]
    if small:
        tensor = rng.choice(small)
        content.tensors = [old for old in content.tensors if old.name != tensor.name]
        content.tensors.append(Tensor(tensor.name, list(tensor.dims), tensor.type, tensor.data))


def _other_family(rng: random.Random, content: Content, other: Content) -> None:
    """All settings under the name of another architecture."""
    old, new = _family(content), _family(other)
    if old and new:
        for key in content.keys:
            if key.name.startswith(old + b"."):
                key.name = new + key.name[len(old) :]
            elif key.name == b"general.architecture":
                key.value = string_value(new)


# ---- damage to the bytes


def _damaged_bytes(rng: random.Random, data: bytes, marks: list[tuple[int, int]]) -> bytes:
    damaged = bytearray(data)
    head = max(1, marks[-1][0] + 8)
    for _ in range(rng.choice((1, 1, 2, 8))):
        how = rng.random()
        if how < 0.6:
            at, width = rng.choice(marks)
            old = bytes(damaged[at : at + width])
            if len(old) == width:
                code = {1: "B", 2: "H", 4: "I", 8: "Q"}[width]
                number = rng.choice((_number(rng, code, old), rng.choice(_TYPES).to_bytes(8, "little")[:width]))
                damaged[at : at + width] = number
        elif how < 0.8:
            at = rng.randrange(min(head, len(damaged) or 1))
            damaged[at : at + rng.randint(0, 16)] = rng.randbytes(rng.randint(0, 16))
        elif how < 0.9:
            at = rng.randrange(min(head, len(damaged) or 1))
            damaged[at : at + 1] = bytes([rng.randrange(256)])
        else:
            del damaged[rng.randrange(len(damaged) or 1) :]
    return bytes(damaged)
