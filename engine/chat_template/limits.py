"""Limits on what a chat template may do: time, text written, sizes of what it builds.

A template is somebody else's program. Jinja's sandbox keeps it away from Python's insides, but lets it loop for ever
and build gigabytes. So a `Meter` counts: `Metering` rewrites the template's syntax tree so that every loop, every piece
of text written and every container passes through it; calls, operators and filters reach it through the hooks of the
environment. No signals and no threads: it works on any thread of any system.
"""

from __future__ import annotations

import re
import time
from collections.abc import Callable, Iterator, Mapping
from itertools import islice
from typing import Any, cast

from jinja2 import nodes
from jinja2.utils import Namespace
from jinja2.visitor import NodeTransformer

from engine.errors import TemplateError

MAX_ITEMS = 200_000  # in one container or range, all levels of it together
_MAX_WIDTH = 10_000  # of anything padded, indented or rounded
_MAX_BITS = 4096  # of an integer
_ITEM_BYTES = 8
_CHECK_EVERY = 64  # steps between two looks at the clock
_PERCENT_WIDTH = re.compile(r"%(?:\([^)]*\))?[-+ #0]*(?:\d*\.)?(?:\*|\d{5})")
_BRACE_WIDTH = re.compile(r"\{[^{}]*\d{5}")


class Meter:
    """What one rendering has used up. Every method raises TemplateError when a limit is passed."""

    def __init__(self, seconds: float, output: int) -> None:
        self._seconds = seconds
        self._deadline = time.monotonic() + seconds
        self._output = output
        self._emitted = 0
        self._built = 0
        self._steps = 0

    def step(self) -> None:
        """Counts a step; looks at the clock now and then."""
        self._steps += 1
        if self._steps % _CHECK_EVERY == 0:
            self.check_time()

    def check_time(self) -> None:
        if time.monotonic() > self._deadline:
            raise TemplateError(f"The chat template ran longer than {self._seconds:g} seconds and was stopped.")

    def room_for(self, characters: int) -> None:
        """Refuses to build a text or list of this size."""
        if characters > self._output:
            raise TemplateError(
                f"The chat template was stopped: it would build a text or list larger than {self._output} characters."
            )

    def built(self, value: Any) -> Any:
        """Takes note of a new value, returns it. All that is ever built is limited, not only what is kept."""
        if isinstance(value, str | bytes):
            size = len(value)
        elif isinstance(value, list | tuple | set | dict):
            size = _ITEM_BYTES * len(value)
            items = value.values() if isinstance(value, dict) else value
            if len(value) > MAX_ITEMS or any(isinstance(item, list | tuple | dict) for item in items):
                self.size(value)
        elif isinstance(value, int) and value.bit_length() > _MAX_BITS:
            raise TemplateError("The chat template was stopped: it computes numbers that are too large.")
        else:
            return value
        self._built += size
        if self._built > 64 * self._output:
            raise TemplateError("The chat template was stopped: it builds too much text.")
        return value

    def size(self, value: object) -> int:
        """About how many characters `value` takes when written out.

        A container that holds itself many times over is refused rather than walked.
        """
        if isinstance(value, str | bytes):
            return len(value)
        total = 0
        items_left = MAX_ITEMS
        stack: list[object] = [value]
        while stack:
            item = stack.pop()
            items_left -= 1
            if isinstance(item, Namespace):
                item = getattr(item, "_Namespace__attrs", {})
            if isinstance(item, str | bytes):
                total += len(item)
            elif isinstance(item, Mapping):
                total += 4 * len(item)
                stack.extend(item.keys())
                stack.extend(item.values())
            elif isinstance(item, list | tuple | set):
                total += 2 * len(item)
                stack.extend(item)
            else:
                total += 8
            if items_left < len(stack):
                raise TemplateError(
                    f"The chat template was stopped: it would build a list or dictionary of over {MAX_ITEMS} items."
                )
        return total

    # What `Metering` calls

    def emit(self, value: object) -> object:
        """Counts text on its way out. A macro's text goes out twice, so this allows for several times the output."""
        self.step()
        self._emitted += self.size(value)
        if self._emitted > 8 * self._output:
            self.check_output(self._emitted)
        return value

    def check_output(self, characters: int) -> None:
        if characters > self._output:
            raise TemplateError(f"The chat template wrote more than {self._output} characters and was stopped.")

    def iterate(self, iterable: Any) -> Any:
        """Wraps what a loop runs over, so that its turns are counted."""
        return _Counted(iterable, self)

    def concatenate(self, *parts: Any) -> str:
        self.step()
        self.room_for(sum(map(self.size, parts)))
        return str(self.built("".join(map(str, parts))))

    # What the environment's hooks call, before the thing is done

    def operator(self, operator: str, left: Any, right: Any) -> None:
        self.step()
        if operator == "+" and isinstance(left, _SIZED) and isinstance(right, _SIZED):
            self.room_for(len(left) + len(right))
        elif operator == "*":
            for sized, count in ((left, right), (right, left)):
                if isinstance(sized, _SIZED) and isinstance(count, int):
                    self.room_for(len(sized) * count)
            if isinstance(left, int) and isinstance(right, int):
                self._number(left.bit_length() + right.bit_length())
        elif operator == "**" and isinstance(left, int) and isinstance(right, int):
            self._number(left.bit_length() * abs(right))
        elif operator == "%" and isinstance(left, str | bytes):
            self._format(left, (right,), _PERCENT_WIDTH, "%")

    def call(self, function: Any, args: tuple[Any, ...]) -> tuple[Any, ...]:
        """Checks a call; methods of built-in types are where sizes can explode. Returns the arguments to call with."""
        self.check_time()
        owner = getattr(function, "__self__", None)
        if not isinstance(owner, str | bytes | int | list | tuple | dict):
            return args
        for value in args:
            if isinstance(value, int):
                self.room_for(value)
        if isinstance(owner, str | bytes) and args:
            name = getattr(function, "__name__", "")
            if name == "join":
                return (self.joined(owner, args[0]), *args[1:])
            if name == "replace":
                self.replaced(owner, *args[:2])
            elif name == "expandtabs":
                self.room_for(len(owner) * (1 + int(args[0])))
            elif name == "translate":
                raise TemplateError("The chat template calls translate, which is not allowed.")
        return args

    def brace_format(self, template: str, values: tuple[Any, ...]) -> None:
        """Checks str.format."""
        for value in values:
            if isinstance(value, int):
                self.width(value)
        self._format(template, values, _BRACE_WIDTH, "{")

    def width(self, value: object) -> None:
        if isinstance(value, int) and abs(value) > _MAX_WIDTH:
            raise TemplateError(f"The chat template was stopped: it asks for a width or count of {value}.")

    def joined(self, separator: Any, items: Any) -> list[Any]:
        """The items of a join as a list, if their text is not too long."""
        listed = items if isinstance(items, list) else list(islice(items, MAX_ITEMS + 1))
        self.room_for(len(str(separator)) * len(listed) + self.size(listed))
        return listed

    def replaced(self, text: Any, old: Any, new: Any) -> None:
        count = len(text) + 1 if not old else text.count(old)
        self.room_for(len(text) + count * max(0, len(new) - len(old)))

    def _format(self, template: Any, values: tuple[Any, ...], width: re.Pattern[str], mark: str) -> None:
        text = template if isinstance(template, str) else template.decode("latin-1")
        if width.search(text):
            raise TemplateError("The chat template was stopped: it formats text with a width that is too large.")
        self.room_for(len(text) + text.count(mark) * sum(map(self.size, values)))

    def _number(self, bits: int) -> None:
        if bits > _MAX_BITS:
            raise TemplateError("The chat template was stopped: it computes numbers that are too large.")


_SIZED = (str, bytes, list, tuple)


class _Counted:
    """An iterable whose steps are counted; as long as what it wraps, where that has a length."""

    def __init__(self, iterable: Any, meter: Meter) -> None:
        self._iterable = iterable
        self._meter = meter

    def __iter__(self) -> Iterator[Any]:
        for item in self._iterable:
            self._meter.step()
            yield item

    def __len__(self) -> int:
        return len(self._iterable)


class Metering(NodeTransformer):
    """Rewrites a syntax tree: loops, text written, concatenations and containers pass through methods of the
    environment (`metered_iterate` and so on), which a template cannot name."""

    def visit_For(self, node: nodes.For) -> nodes.Node:
        self.generic_visit(node)
        node.iter = _through("metered_iterate", cast("nodes.Expr", node.iter))
        return node

    def visit_Output(self, node: nodes.Output) -> nodes.Node:
        self.generic_visit(node)
        node.nodes = [
            _through(
                "metered_emit",
                nodes.Const(part.data, lineno=part.lineno) if isinstance(part, nodes.TemplateData) else part,
            )
            for part in node.nodes
        ]
        return node

    def visit_Concat(self, node: nodes.Concat) -> nodes.Node:
        self.generic_visit(node)
        return _through("metered_concatenate", *node.nodes)

    def visit_List(self, node: nodes.List) -> nodes.Node:
        self.generic_visit(node)
        return _through("metered_built", node)

    def visit_Dict(self, node: nodes.Dict) -> nodes.Node:
        self.generic_visit(node)
        return _through("metered_built", node)

    def visit_Tuple(self, node: nodes.Tuple) -> nodes.Node:
        self.generic_visit(node)
        return _through("metered_built", node) if node.ctx == "load" else node


def _through(method: str, *args: nodes.Expr) -> nodes.Expr:
    line = args[0].lineno if args else 0
    function = nodes.EnvironmentAttribute(method, lineno=line)
    return nodes.Call(function, list(args), [], None, None, lineno=line)


def metered_filters(
    filters: Mapping[str, Callable[..., Any]], meter: Callable[[], Meter]
) -> dict[str, Callable[..., Any]]:
    """The filters with checks before and after each. `meter` returns that of the rendering in progress."""
    return {name: _metered(name, function, meter) for name, function in filters.items() if name not in _LEFT_OUT}


# Their work grows faster than their input, and no chat template needs them.
_LEFT_OUT = frozenset({"pprint", "urlize", "xmlattr"})
_ANY_NUMBER = frozenset({"default", "d", "int", "float", "truncate"})  # numbers that are no widths
_WRITTEN_OUT = frozenset({"string", "safe", "e", "escape", "forceescape", "tojson", "center", "title", "urlencode"})


def _metered(name: str, function: Callable[..., Any], meter_of: Callable[[], Meter]) -> Callable[..., Any]:
    def metered(*args: Any, **kwargs: Any) -> Any:
        meter = meter_of()
        meter.check_time()
        values = list(args[1:] if passes else args)
        others = [*values[1:], *kwargs.values()]
        if name not in _ANY_NUMBER:
            for value in others:
                meter.width(value)
        if name in _WRITTEN_OUT and values:
            meter.size(values[0])
        elif name == "join" and values and hasattr(values[0], "__iter__"):
            separator = kwargs.get("d", values[1] if len(values) > 1 else "")
            values[0] = meter.joined(separator, values[0])
        elif name == "replace" and len(values) > 2:
            meter.replaced(str(values[0]), str(values[1]), str(values[2]))
        elif name == "format" and values:
            meter.operator("%", str(values[0]), tuple(others))
        elif name == "indent" and values:
            width = next((value for value in others if isinstance(value, int | str)), 4)
            each = width if isinstance(width, int) else len(width)
            meter.room_for(len(str(values[0])) + each * (str(values[0]).count("\n") + 1))
        elif name == "sum" and any(isinstance(value, _SIZED) for value in [kwargs.get("start"), *values[2:]]):
            raise TemplateError("The chat template sums up lists, which is not allowed.")
        return meter.built(function(*args[:passes], *values, **kwargs))

    passes = 1 if hasattr(function, "jinja_pass_arg") else 0
    metered.__dict__.update(getattr(function, "__dict__", {}))
    metered.__dict__.pop("jinja_async_variant", None)
    metered.__name__ = function.__name__
    return metered
