"""What the commands read: stdin, files, lists of token ids, messages, and one request per line."""

from __future__ import annotations

import json
import sys
import traceback
from argparse import ArgumentTypeError
from collections.abc import Callable
from pathlib import Path
from typing import Any

from app.cli.errors import sentence_of
from app.cli.terminal import write_json
from engine.errors import RequestError


def stdin_bytes() -> bytes:
    return sys.stdin.buffer.read()


def decoded(data: bytes, source: str) -> str:
    """Bytes as UTF-8 text, exactly; raises RequestError naming the place of what is not UTF-8."""
    try:
        return data.decode("utf-8")
    except UnicodeDecodeError as error:
        raise RequestError(
            f"{source} is not UTF-8: byte {data[error.start]:#04x} at offset {error.start} fits no character.",
            "Convert it to UTF-8 first.",
        ) from None


def whole_text(text: str) -> str:
    """`text`, or RequestError when it holds half of a surrogate pair, as JSON's \\ud83d alone gives."""
    try:
        text.encode("utf-8")
    except UnicodeEncodeError as error:
        half = ord(text[error.start])
        raise RequestError(f"The text holds \\u{half:04x} alone, half of a pair that makes one character.") from None
    return text


def file_text(path: Path) -> str:
    """The UTF-8 text of a file as it is; RequestError when there is none."""
    if path.is_dir():
        raise RequestError(f"{path} is a folder, not a file.")
    if not path.exists():
        raise RequestError(f"There is no file {path}.", "Check the path.")
    return decoded(path.read_bytes(), str(path))


def form_text(path: Path) -> str:
    """The text of a grammar or a schema, without the mark that some editors put before a text."""
    return file_text(path).removeprefix("\ufeff")


def parsed_json(text: str, source: str) -> Any:
    try:
        return json.loads(text.removeprefix("\ufeff"))
    except json.JSONDecodeError as error:
        raise RequestError(f"{source} is not JSON: {error.msg} (line {error.lineno}, column {error.colno}).") from None
    except (RecursionError, ValueError):
        raise RequestError(f"{source} cannot be read as JSON: nested too deeply, or a number too long.") from None


def token_list(text: str) -> list[int]:
    """ "1,2,3", "1 2 3" or "[1, 2, 3]" as ids; a type for argparse."""
    try:
        return [int(part) for part in text.strip().removeprefix("[").removesuffix("]").replace(",", " ").split()]
    except ValueError:
        raise ArgumentTypeError(f"{text!r} is not a list of token ids such as 1,2,3") from None


def token_ids(value: Any, what: str = "The request") -> list[int]:
    """A JSON value as token ids; RequestError when it is anything but an array of integers."""
    if not isinstance(value, list):
        raise RequestError(f"{what} has to be a JSON array of token ids such as [1, 2, 3].")
    for index, item in enumerate(value):
        if isinstance(item, bool) or not isinstance(item, int):
            raise RequestError(f"{what} holds {json.dumps(item)[:40]} at place {index + 1}, which is no token id.")
    return value


def checked_messages(value: Any) -> list[dict[str, Any]]:
    """A JSON value as the messages of a chat: a list of objects, each with a role."""
    if not isinstance(value, list):
        raise RequestError('The messages have to be a JSON array of objects like {"role": "user", "content": "Hi"}.')
    for index, message in enumerate(value):
        if not isinstance(message, dict) or not isinstance(message.get("role"), str):
            raise RequestError(
                f"Message {index + 1} is no object with a role.", 'Write it like {"role": "user", "content": "Hi"}.'
            )
    return value


def messages_file(path: Path) -> dict[str, Any]:
    """A file of messages, a JSON array or an object with "messages" and more, as an object with "messages"."""
    value = parsed_json(file_text(path), str(path))
    if not isinstance(value, dict):
        value = {"messages": value}
    elif "messages" not in value:
        raise RequestError(f"{path} has no messages.", 'It has to be an array, or an object with "messages".')
    checked_messages(value["messages"])
    return value


def answer_lines(answer: Callable[[Any], Any]) -> int:
    """Answers each line of stdin, one JSON value, by one line of JSON on stdout: answer(request) or {"error": ...}.

    Blank lines are skipped. Returns the exit code, 0: a line that fails is answered and does not end the process.
    """
    for number, line in enumerate(sys.stdin.buffer, 1):
        if not line.strip():
            continue
        try:
            write_json(answer(parsed_json(decoded(line, f"Line {number}"), f"Line {number}")))
        except BrokenPipeError:
            raise
        except Exception as error:
            sentence = sentence_of(error)
            if sentence is None:  # a defect: told where it was, but the other lines still get their answers
                traceback.print_exc()
                sentence = f"Internal error: {error!r}."
            write_json({"error": sentence})
    return 0
