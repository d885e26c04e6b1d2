"""Markdown as a flat list of blocks that can grow at its end. Free of Qt.

Containers (quotes, list items) do not nest the blocks; each block carries the frames it stands in. So one more word
in a streaming answer changes the last block only, and a long list is many small blocks.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from functools import cache

from markdown_it import MarkdownIt
from markdown_it.token import Token


@dataclass(frozen=True)
class Span:
    """A run of text in one style. `href` is the target of a link, or empty."""

    text: str
    bold: bool = False
    italic: bool = False
    code: bool = False
    strike: bool = False
    href: str = ""


@dataclass(frozen=True)
class Frame:
    """A container around a block.

    marker: "" for a quote; otherwise the list item's "•" or "3."; a task's is "☐" or "☑".
    first: whether the block is the first one in the container, so that a marker is drawn once.
    """

    marker: str = ""
    first: bool = True

    @property
    def quote(self) -> bool:
        return not self.marker


@dataclass(frozen=True)
class Paragraph:
    """Text; level 1 to 6 makes it a heading."""

    spans: tuple[Span, ...]
    level: int = 0
    frames: tuple[Frame, ...] = ()


@dataclass(frozen=True)
class Code:
    """A fenced or indented code block, its text without the last line break. An open fence is still being written."""

    text: str
    language: str = ""
    open: bool = False
    frames: tuple[Frame, ...] = ()


@dataclass(frozen=True)
class Table:
    """rows[0] is the head. Every row has as many cells as there are alignments ("left", "center", "right")."""

    rows: tuple[tuple[tuple[Span, ...], ...], ...]
    alignments: tuple[str, ...]
    frames: tuple[Frame, ...] = ()


@dataclass(frozen=True)
class Rule:
    frames: tuple[Frame, ...] = ()


@dataclass(frozen=True)
class PlainText:
    """Text shown as it was typed, with its line breaks."""

    text: str
    frames: tuple[Frame, ...] = ()


PARAGRAPH_LIMIT = 3000
"""Characters after which a paragraph is cut at the next space. A model that has lost its way writes such paragraphs,
and every word more would cost the parse of all of it."""

Block = Paragraph | Code | Table | Rule | PlainText

# A line that is being typed and could still become a rule, a heading's underline, a bullet, a fence or a table's head:
# shown at once it would flicker between two looks.
_UNDECIDED_LINE = re.compile(r"[ \t]*(?:[-=*_+#>~`|: \t]+|\d{1,9}[.)]?)[ \t]*")
_SPACE = re.compile(r"\s+")
_BARE_LINK = re.compile(r"https?://[^\s<>\"`]+")
_CLOSING_FENCE = re.compile(r" {0,3}(`{3,}|~{3,})[ \t]*")


@cache
def _parser() -> MarkdownIt:
    # Reference definitions are off: a later line must not change how an earlier block looks.
    return MarkdownIt("commonmark", {"html": False}).enable(["table", "strikethrough"]).disable("reference")


class MarkdownDocument:
    """The blocks of one markdown text that may still grow.

    `blocks` after any sequence of `append` calls and a `finish` are the same as those of the whole text at once.
    """

    def __init__(self, text: str = "") -> None:
        self.blocks: list[Block] = []
        self._settled = 0  # blocks that no later text can change
        self._tail = ""  # the source of all blocks after those
        self._numbering = _Numbering()
        self._finished = False
        self._fence: _OpenFence | None = None
        if text:
            self.append(text)
            self.finish()

    def append(self, text: str) -> int:
        """Adds text at the end; returns the index of the first block that may have changed."""
        text = text.replace("\r\n", "\n").replace("\r", "\n").replace("\0", "\N{REPLACEMENT CHARACTER}")
        self._tail += text
        if self._fence is not None and self._grow_fence():
            return len(self.blocks) - 1
        first = self._settled
        self._parse(final=False)
        return first

    def finish(self) -> int:
        """Shows what was held back at the end; returns the index of the first block that may have changed."""
        first = self._settled
        self._fence = None
        self._parse(final=True)
        return first

    def _parse(self, final: bool) -> None:
        visible = self._tail if final else _without_undecided_line(self._tail)
        units = _units(_parser().parse(visible), self._numbering)
        del self.blocks[self._settled :]
        lines = visible.split("\n")
        cut = self._long_paragraph(units, lines)
        if cut is not None:
            self._split_at(cut)
            self._parse(final)
            return
        # A unit whose first line is complete starts there whatever comes; all before it can no longer change.
        keep = len(units) - 1
        while keep > 0 and units[keep].line >= len(lines) - 1:
            keep -= 1
        for unit in units[:keep]:
            self.blocks += unit.blocks
        self._settled = len(self.blocks)
        for unit in units[keep:]:
            self.blocks += unit.blocks
        if final:
            closed = (replace(b, open=False) if isinstance(b, Code) else b for b in self.blocks[self._settled :])
            self.blocks[self._settled :] = closed
            return
        if keep > 0:
            self._numbering = units[keep].numbering
            self._tail = "\n".join(self._tail.split("\n")[units[keep].line :])
        self._fence = self._open_fence(units[keep:])

    def _long_paragraph(self, units: Sequence[_Unit], lines: Sequence[str]) -> int | None:
        """The place to cut a paragraph that is too long to be parsed again with every word."""
        for number, unit in enumerate(units):
            end = units[number + 1].line if number + 1 < len(units) else len(lines)
            if not unit.text or sum(map(len, lines[unit.line : end])) < PARAGRAPH_LIMIT:
                continue
            start = sum(len(line) + 1 for line in lines[: unit.line])
            stop = start + sum(len(line) + 1 for line in lines[unit.line : end])
            space = _SPACE.search(self._tail, start + PARAGRAPH_LIMIT, stop)
            if space is not None and self._tail[space.end() : stop].strip():
                return space.start()
        return None

    def _split_at(self, place: int) -> None:
        head, self._tail = self._tail[:place], self._tail[place:].lstrip()
        units = _units(_parser().parse(head), self._numbering)
        self.blocks += [block for unit in units for block in unit.blocks]
        self._settled = len(self.blocks)
        self._numbering = _Numbering()

    def _open_fence(self, units: Sequence[_Unit]) -> _OpenFence | None:
        """Set when the tail is nothing but one fence without an end, so that its text can grow without a parse."""
        if len(units) != 1 or len(units[0].blocks) != 1:
            return None
        block = units[0].blocks[0]
        if not isinstance(block, Code) or not block.open or block.frames:
            return None
        head, newline, _body = self._tail.lstrip("\n").partition("\n")
        fence = re.match(r"(`{3,}|~{3,})", head)
        if not newline or fence is None:  # an indented fence is rare; it takes the long way
            return None
        return _OpenFence(fence.group(1), len(self._tail) - len(_body))

    def _grow_fence(self) -> bool:
        fence = self._fence
        assert fence is not None
        line_start = self._tail.rfind("\n", 0, max(fence.checked, fence.body)) + 1
        line_start = max(line_start, fence.body)
        for line in self._tail[line_start:].split("\n"):
            closing = _CLOSING_FENCE.fullmatch(line)
            if closing and closing.group(1).startswith(fence.mark):
                self._fence = None
                return False
        fence.checked = len(self._tail)
        old = self.blocks[-1]
        assert isinstance(old, Code)
        body = _without_undecided_fence(self._tail[fence.body :], fence.mark)
        self.blocks[-1] = Code(body.removesuffix("\n"), old.language, True, old.frames)
        return True


def plain_blocks(text: str) -> list[Block]:
    """Text as typed, in pieces small enough to be laid out one at a time."""
    lines = text.split("\n")
    pieces: list[Block] = []
    for start in range(0, len(lines), 12):
        piece = "\n".join(lines[start : start + 12])
        while len(piece) > 4000:
            cut = piece.rfind(" ", 2000, 4000)
            cut = cut + 1 if cut >= 0 else 4000
            pieces.append(PlainText(piece[:cut]))
            piece = piece[cut:]
        pieces.append(PlainText(piece))
    return pieces


def block_text(block: Block) -> str:
    """What selecting and copying a whole block gives."""
    match block:
        case Paragraph():
            return "".join(span.text for span in block.spans)
        case Code() | PlainText():
            return block.text
        case Table():
            return "\n".join("\t".join("".join(s.text for s in cell) for cell in row) for row in block.rows)
        case Rule():
            return ""


def is_safe_link(href: str) -> bool:
    """Whether a click may hand this address to the system."""
    return href.lower().startswith(("http://", "https://", "mailto:"))


@dataclass
class _OpenFence:
    mark: str
    body: int  # where in the tail the code begins
    checked: int = 0


@dataclass
class _Numbering:
    """Where an ordered list stands when its first items are settled: the delimiter and the next number."""

    delimiter: str = ""
    next: int = 0


@dataclass
class _Unit:
    """A top-level block, or one item of a top-level list: what a parse can start again from."""

    line: int
    blocks: list[Block] = field(default_factory=list)
    numbering: _Numbering = field(default_factory=_Numbering)
    text: bool = False  # a paragraph, or one that a line below made a heading


def _without_undecided_line(text: str) -> str:
    line = text.rfind("\n") + 1
    return text[:line] if _UNDECIDED_LINE.fullmatch(text, line) else text


def _without_undecided_fence(body: str, mark: str) -> str:
    line = body.rfind("\n") + 1
    rest = body[line:].strip(" ")
    return body[:line] if rest and mark.startswith(rest) else body


def _units(tokens: Sequence[Token], numbering: _Numbering) -> list[_Unit]:
    units: list[_Unit] = []
    position = 0
    while position < len(tokens):
        token = tokens[position]
        end = _closing(tokens, position)
        if token.type in ("bullet_list_open", "ordered_list_open"):
            units += _list_units(tokens[position : end + 1], numbering if not units else _Numbering())
        else:
            unit = _Unit(
                token.map[0] if token.map else 0, text=token.type == "paragraph_open" or token.markup in ("=", "-")
            )
            _collect(tokens[position : end + 1], [], unit.blocks)
            units.append(unit)
        position = end + 1
    return units


def _list_units(tokens: Sequence[Token], numbering: _Numbering) -> list[_Unit]:
    """One unit per item. `numbering` is that of the list of which this one is the rest."""
    head = tokens[0]
    ordered = head.type == "ordered_list_open"
    number = 0
    if ordered:
        continues = numbering.delimiter == head.markup
        number = numbering.next if continues else int(head.attrGet("start") or 1)
        if head.attrGet("start") == 0 and not continues:
            number = 0
    units: list[_Unit] = []
    position = 1
    while position < len(tokens) - 1:
        item = tokens[position]
        end = _closing(tokens, position)
        marker = f"{number}." if ordered else "•"
        unit = _Unit(item.map[0] if item.map else 0, numbering=_Numbering(head.markup if ordered else "", number))
        _collect_item(tokens[position + 1 : end], marker, [], unit.blocks)
        units.append(unit)
        number += 1
        position = end + 1
    return units


def _closing(tokens: Sequence[Token], position: int) -> int:
    depth = 0
    for index in range(position, len(tokens)):
        depth += tokens[index].nesting
        if depth == 0:
            return index
    return len(tokens) - 1


def _collect(tokens: Sequence[Token], frames: list[Frame], blocks: list[Block]) -> None:
    """Appends the blocks of some tokens, all standing in `frames`."""
    position = 0
    while position < len(tokens):
        token = tokens[position]
        end = _closing(tokens, position)
        here = tuple(frames)
        before = len(blocks)
        match token.type:
            case "paragraph_open":
                blocks.append(Paragraph(_spans(tokens[position + 1]), 0, here))
            case "heading_open":
                blocks.append(Paragraph(_spans(tokens[position + 1]), int(token.tag[1:]), here))
            case "fence":
                language = token.info.strip().split(maxsplit=1)[0] if token.info.strip() else ""
                blocks.append(Code(token.content.removesuffix("\n"), language, _is_open(token), here))
            case "code_block":
                blocks.append(Code(token.content.removesuffix("\n"), "", False, here))
            case "hr":
                blocks.append(Rule(here))
            case "table_open":
                blocks.append(_table(tokens[position : end + 1], here))
            case "blockquote_open":
                _collect(tokens[position + 1 : end], [*frames, Frame()], blocks)
            case "bullet_list_open" | "ordered_list_open":
                start = token.attrGet("start")
                number = int(start) if start is not None else 1
                inner = position + 1
                while inner < end:
                    item_end = _closing(tokens, inner)
                    marker = f"{number}." if token.type == "ordered_list_open" else "•"
                    _collect_item(tokens[inner + 1 : item_end], marker, frames, blocks)
                    number += 1
                    inner = item_end + 1
        if len(blocks) > before:
            frames[:] = [Frame(frame.marker, first=False) for frame in frames]
        position = end + 1


def _collect_item(tokens: Sequence[Token], marker: str, frames: list[Frame], blocks: list[Block]) -> None:
    task = tokens[1].content[:4].lower() if len(tokens) > 1 and tokens[0].type == "paragraph_open" else ""
    if task in ("[ ] ", "[x] "):
        marker = "☑" if task == "[x] " else "☐"
    before = len(blocks)
    _collect(tokens, [*frames, Frame(marker)], blocks)
    if len(blocks) == before:  # an empty item still shows its marker
        blocks.append(Paragraph((), 0, (*frames, Frame(marker))))
    elif task in ("[ ] ", "[x] "):
        first = blocks[before]
        if isinstance(first, Paragraph) and first.spans and len(first.spans[0].text) >= 4:
            head = first.spans[0]
            rest = Span(head.text[4:], head.bold, head.italic, head.code, head.strike, head.href)
            blocks[before] = Paragraph((rest, *first.spans[1:]), first.level, first.frames)
    if len(blocks) > before:
        frames[:] = [Frame(frame.marker, first=False) for frame in frames]


def _is_open(token: Token) -> bool:
    """Whether a fence ran to the end of its container without a closing line."""
    if token.map is None:
        return False
    # All lines after the first are content if no closing fence was found.
    content = token.content
    lines = content.count("\n") + (1 if content and not content.endswith("\n") else 0)
    return token.map[1] - token.map[0] - 1 <= lines


def _table(tokens: Sequence[Token], frames: tuple[Frame, ...]) -> Table:
    rows: list[tuple[tuple[Span, ...], ...]] = []
    alignments: list[str] = []
    row: list[tuple[Span, ...]] = []
    for index, token in enumerate(tokens):
        if token.type in ("th_open", "td_open"):
            row.append(_spans(tokens[index + 1]))
            if token.type == "th_open":
                style = str(token.attrGet("style") or "")
                alignments.append(style.partition("text-align:")[2] or "left")
        elif token.type == "tr_close":
            rows.append(tuple(row))
            row = []
    return Table(tuple(rows), tuple(alignments), frames)


def _spans(inline: Token) -> tuple[Span, ...]:
    spans: list[Span] = []
    bold = italic = strike = 0
    href = ""

    def add(text: str, code: bool = False, link: str = "") -> None:
        if text:
            span = Span(text, bold > 0, italic > 0, code, strike > 0, link or href)
            if spans and _same_style(spans[-1], span):
                spans[-1] = Span(spans[-1].text + text, span.bold, span.italic, span.code, span.strike, span.href)
            else:
                spans.append(span)

    for token in inline.children or ():
        match token.type:
            case "text":
                if href:
                    add(token.content)
                else:
                    _add_with_links(token.content, add)
            case "code_inline":
                add(token.content, code=True)
            case "softbreak":
                add(" ")
            case "hardbreak":
                add("\n")
            case "strong_open" | "strong_close":
                bold += token.nesting
            case "em_open" | "em_close":
                italic += token.nesting
            case "s_open" | "s_close":
                strike += token.nesting
            case "link_open":
                href = str(token.attrGet("href") or "")
            case "link_close":
                href = ""
            case "image":  # nothing is fetched for a picture; its description leads there
                source = str(token.attrGet("src") or "")
                add(token.content or source, link=source)
            case _:
                add(token.content)
    return tuple(spans)


def _add_with_links(text: str, add: object) -> None:
    assert callable(add)
    position = 0
    for match in _BARE_LINK.finditer(text):
        link = match.group().rstrip(".,;:!?'*_")
        if link.endswith(")") and link.count("(") < link.count(")"):
            link = link[:-1]
        add(text[position : match.start()])
        add(link, False, link)
        position = match.start() + len(link)
    add(text[position:])


def _same_style(a: Span, b: Span) -> bool:
    return (a.bold, a.italic, a.code, a.strike, a.href) == (b.bold, b.italic, b.code, b.strike, b.href)
