"""Markdown as blocks: what each construct becomes, and that a text grown piece by piece looks like the whole one."""

from __future__ import annotations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from markdown_it import MarkdownIt

from app.desktop.markdown import (
    Code,
    MarkdownDocument,
    Paragraph,
    PlainText,
    Rule,
    Span,
    Table,
    block_text,
    is_safe_link,
    plain_blocks,
)

ALL = """# Title

Some *italic*, **bold**, ~~gone~~ and `code` text\\
on two lines. See [there](https://example.org/a) or https://example.org/b.

3. three
   - nested

     ```py
     x = 1
     ```
4. four

> quoted
> - inside

| a | b |
|:-:|--:|
| 1 | `2` |

---

- [x] done
- [ ] open

    indented code

```python
def f():
    pass
```
The end."""


def texts(document: MarkdownDocument) -> list[str]:
    return [block_text(block) for block in document.blocks]


def test_every_construct_has_its_block():
    blocks = MarkdownDocument(ALL).blocks
    heading, text = blocks[0], blocks[1]
    assert isinstance(heading, Paragraph)
    assert heading.level == 1
    assert isinstance(text, Paragraph)
    assert Span("italic", italic=True) in text.spans
    assert Span("bold", bold=True) in text.spans
    assert Span("gone", strike=True) in text.spans
    assert Span("code", code=True) in text.spans
    assert Span("there", href="https://example.org/a") in text.spans
    assert Span("https://example.org/b", href="https://example.org/b") in text.spans
    assert "\n" in block_text(text)
    markers = [next((f.marker for f in b.frames if f.first and f.marker), "") for b in blocks]
    assert [marker for marker in markers if marker] == ["3.", "•", "4.", "•", "☑", "☐"]
    table = next(block for block in blocks if isinstance(block, Table))
    assert table.alignments == ("center", "right")
    assert block_text(table) == "a\tb\n1\t2"
    codes = [block for block in blocks if isinstance(block, Code)]
    assert [(code.language, code.text) for code in codes] == [("py", "x = 1"), ("python", "def f():\n    pass")]
    assert any(isinstance(block, Rule) for block in blocks)
    quoted = next(block for block in blocks if block_text(block) == "quoted")
    assert quoted.frames[0].quote


def test_html_is_shown_as_text():
    source = 'a <b onclick="x()">b</b> <script>alert(1)</script>\n\n<div>\n<img src=x onerror=y>\n</div>'
    assert "\n".join(texts(MarkdownDocument(source))).replace("\n", " ").count("<") == source.count("<")
    assert all(isinstance(block, Paragraph) for block in MarkdownDocument(source).blocks)


def test_a_picture_is_a_link_and_nothing_is_fetched():
    (block,) = MarkdownDocument("![a cat](https://example.org/cat.png)").blocks
    assert isinstance(block, Paragraph)
    assert block.spans == (Span("a cat", href="https://example.org/cat.png"),)


@pytest.mark.parametrize(
    ("href", "safe"),
    [
        ("https://example.org", True),
        ("HTTP://example.org", True),
        ("mailto:a@example.org", True),
        ("file:///etc/passwd", False),
        ("javascript:alert(1)", False),
        ("vscode://x", False),
        ("/etc/passwd", False),
        ("", False),
    ],
)
def test_only_web_and_mail_links_are_safe(href, safe):
    assert is_safe_link(href) is safe


def test_an_open_fence_is_code_from_its_first_line():
    document = MarkdownDocument()
    document.append("Look:\n\n```python\nfor x in y:\n    pri")
    code = document.blocks[-1]
    assert code == Code("for x in y:\n    pri", "python", open=True)
    document.append("nt(x)\n``")
    assert document.blocks[-1] == Code("for x in y:\n    print(x)", "python", open=True)
    document.append("`\nDone")
    assert document.blocks[-2] == Code("for x in y:\n    print(x)", "python")
    assert block_text(document.blocks[-1]) == "Done"


def test_a_fence_that_never_ends_is_closed_with_the_answer():
    document = MarkdownDocument("```\nabc\n")
    assert document.blocks == [Code("abc")]


@pytest.mark.parametrize("piece", ["-", "--", "=", "1", "12.", "#", "```", "|", "*", ">"])
def test_an_undecided_line_changes_nothing_yet(piece):
    document = MarkdownDocument()
    document.append("A sentence.\n")
    before = list(document.blocks)
    document.append(piece)
    assert document.blocks == before


def test_growing_touches_the_end_only():
    document = MarkdownDocument()
    document.append(ALL + "\n\n")
    settled = len(document.blocks) - 1
    for word in ("One ", "more ", "sentence ", "with **bold** words."):
        assert document.append(word) >= settled


def test_a_long_list_settles_item_by_item():
    document = MarkdownDocument()
    for number in range(1, 301):
        first = document.append(f"{number}. item {number}\n")
        assert first >= number - 3
    document.finish()
    assert [block.frames[0].marker for block in document.blocks] == [f"{n}." for n in range(1, 301)]


FRAGMENTS = st.sampled_from(
    ["# ", "## x\n", "- ", "* a\n", "1. ", "2. b\n", "10) ", "> ", "```", "```py\n", "~~~\n", "`", "**", "*", "_", "~~",
     "\n", "\n\n", "  ", "    ", "\t", "word ", "two words", "| a | b |\n", "|---|:-:|\n", "| 1 |\n", "---\n", "===\n",
     "***", "[x](http://a.b)", "![p](q)", "<b>", "&amp;", "\\", "- [ ] t\n", "[a]: http://b\n", "[a]", "é😀", "1",
     "0. z\n"]
)  # fmt: skip


@settings(max_examples=400, deadline=None)
@given(st.lists(FRAGMENTS, max_size=30).map("".join), st.data())
def test_grown_piece_by_piece_it_equals_the_whole(source, data):
    grown = MarkdownDocument()
    position = 0
    while position < len(source):
        step = data.draw(st.integers(1, 9))
        before = list(grown.blocks)
        first = grown.append(source[position : position + step])
        assert grown.blocks[:first] == before[:first], "a block before the announced one changed"
        position += step
    grown.finish()
    assert grown.blocks == MarkdownDocument(source).blocks


@settings(max_examples=200, deadline=None)
@given(st.lists(FRAGMENTS, max_size=25).map("".join))
def test_no_text_is_lost(source):
    """The blocks hold the text that a plain parse of the whole source holds, in its order."""
    parser = MarkdownIt("commonmark", {"html": False}).enable(["table", "strikethrough"]).disable("reference")

    def letters(text: str) -> str:
        return "".join(letter for letter in text if letter.isalnum())

    wanted = ""
    for token in parser.parse(source):
        for child in token.children or ():
            wanted += "" if child.type == "image" else child.content
            wanted += child.content if child.type == "image" else ""
        if token.type in ("fence", "code_block"):
            wanted += token.content
    shown = "".join(block_text(block) for block in MarkdownDocument(source).blocks)
    tasks = wanted.count("[x] ")
    assert len(letters(wanted)) - len(letters(shown)) in range(tasks + 1)


def test_plain_text_is_kept_as_typed():
    text = "one\n  two *stars* <b>\n\n" + "\n".join(f"line {n}" for n in range(40))
    blocks = plain_blocks(text)
    assert all(isinstance(block, PlainText) for block in blocks)
    assert "\n".join(block_text(block) for block in blocks) == text


def test_a_very_long_line_is_cut_into_pieces_that_can_be_laid_out():
    text = "word " * 5000
    blocks = plain_blocks(text)
    assert max(len(block_text(block)) for block in blocks) <= 4000
    assert "".join(block_text(block) for block in blocks) == text


@settings(max_examples=100, deadline=None)
@given(st.lists(FRAGMENTS.filter(lambda f: "|" not in f), max_size=40).map("".join), st.data())
def test_very_long_paragraphs_are_cut_at_the_same_places(source, data):
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("app.desktop.markdown.PARAGRAPH_LIMIT", 20)
        grown = MarkdownDocument()
        position = 0
        while position < len(source):
            step = data.draw(st.integers(1, 9))
            grown.append(source[position : position + step])
            position += step
        grown.finish()
        assert grown.blocks == MarkdownDocument(source).blocks


def test_a_paragraph_without_end_stays_cheap_to_grow():
    document = MarkdownDocument()
    for _ in range(400):
        document.append("la femme au martyre, la femme au martyre, ")
        assert len(document._tail) < 4000
    document.finish()
    assert "".join(block_text(block) for block in document.blocks).count("martyre") == 800
