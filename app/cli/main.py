"""The `realm` command: parses the command line, runs one command, and turns errors into sentences and exit codes."""

from __future__ import annotations

import argparse
import contextlib
import importlib
import os
import sys
from collections.abc import Sequence
from typing import Any, NoReturn, Protocol, cast

OK, FAILURE, USAGE, INTERRUPTED, BROKEN_PIPE = 0, 1, 2, 130, 141

COMMANDS: dict[str, tuple[str, str]] = {
    # name: (module, one line of help)
    "chat": ("chat", "chat with a model in the terminal"),
    "run": ("run", "answer one prompt"),
    "info": ("info", "say what is in a model file"),
    "devices": ("devices", "list the devices that can compute"),
    "fetch-starter": ("fetch_starter", "download the starter model"),
    "generate": ("generate", "generate tokens, with every setting"),
    "embed": ("embed", "turn texts into vectors"),
    "logits": ("logits", "write the logits after each token of a sequence"),
    "tokenize": ("tokenize", "turn text into token ids"),
    "detokenize": ("detokenize", "turn token ids into text"),
    "template": ("template", "render messages through a chat template"),
    "perplexity": ("perplexity", "measure how well a model predicts a text"),
    "compare": ("compare", "compare two models, or one on two devices"),
    "quantize": ("quantize", "write a model in another quantisation"),
    "bench": ("bench", "measure speed and memory"),
}

EPILOG = """
MODEL is the path of a GGUF file, or the name starter.
`realm COMMAND --help` tells the options of a command; docs/terminal.md shows each with an example.
"""


class Command(Protocol):
    """What a module of a command offers."""

    def add_arguments(self, parser: argparse.ArgumentParser) -> None: ...

    def run(self, args: argparse.Namespace) -> int: ...


def main(argv: Sequence[str] | None = None) -> int:
    """Runs one command and returns its exit code: 0, 1 (an error, told), 2 (usage), 130 (Ctrl-C)."""
    arguments = list(sys.argv[1:] if argv is None else argv)
    _use_utf8()
    try:
        args = build_parser(arguments).parse_args(arguments)
        code = int(args.command_run(args))
        sys.stdout.flush()
        return code
    except SystemExit as exit_:  # argparse: usage, --help, --version
        return exit_.code if isinstance(exit_.code, int) else USAGE
    except KeyboardInterrupt:
        if sys.stderr.isatty():
            print(file=sys.stderr)  # the shell's prompt begins on a line of its own
        return INTERRUPTED
    except BrokenPipeError:
        _drop_stdout()
        return BROKEN_PIPE
    except Exception as error:
        return _report(error, "--json" in arguments)


def build_parser(arguments: Sequence[str]) -> argparse.ArgumentParser:
    """The parser of the whole command line. Only the commands named in `arguments` are imported and know options."""
    listing = "\n".join(f"  {name:<15}{help_line}" for name, (_, help_line) in COMMANDS.items())
    parser = _Parser(
        prog="realm",
        usage="realm COMMAND ...",
        description="Language models on your own machine.",
        epilog=f"commands:\n{listing}\n{EPILOG}",
    )
    parser.add_argument("--version", action=_Version)
    commands = parser.add_subparsers(
        metavar="COMMAND", dest="command", required=True, prog="realm", parser_class=_Parser, help=argparse.SUPPRESS
    )
    for name, (module, help_line) in COMMANDS.items():
        sub = commands.add_parser(name, description=f"{help_line[0].upper()}{help_line[1:]}.")
        if name in arguments:
            command = cast("Command", importlib.import_module(f"app.cli.{module}"))
            command.add_arguments(sub)
            sub.set_defaults(command_run=command.run)
    return parser


class _HelpFormatter(argparse.HelpFormatter):
    def __init__(self, prog: str) -> None:
        super().__init__(prog, max_help_position=30)

    def _fill_text(self, text: str, width: int, indent: str) -> str:
        """Keeps line ends and indented lines, where the standard formatter would make one paragraph of it all."""
        fill = super()._fill_text
        return "\n".join(line if line.startswith(" ") else fill(line, width, indent) for line in text.splitlines())


class _Parser(argparse.ArgumentParser):
    def __init__(self, *args: Any, **kwargs: Any) -> None:
        # Options are never abbreviated: a script that abbreviates breaks when an option is added.
        super().__init__(*args, **{"allow_abbrev": False, "formatter_class": _HelpFormatter, **kwargs})

    def error(self, message: str) -> NoReturn:
        self.exit(USAGE, f"{self.prog}: {message}\nTry `{self.prog} --help`.\n")


class _Version(argparse.Action):
    """Prints the version; a class of its own because finding the version takes longer than all the rest of --help."""

    def __init__(self, option_strings: Sequence[str], dest: str, **_: object) -> None:
        super().__init__(option_strings, argparse.SUPPRESS, nargs=0, help="print the version and exit")

    def __call__(self, parser: argparse.ArgumentParser, *_: object) -> NoReturn:
        from importlib.metadata import PackageNotFoundError, version

        try:
            number = version("realm-desktop")
        except PackageNotFoundError:
            number = "(not installed)"
        print(f"realm {number}")
        parser.exit(OK)


def _report(error: Exception, as_json: bool) -> int:
    """Tells a person's error as one sentence on stderr; anything else is a defect and keeps its traceback."""
    from app.cli.errors import sentence_of

    sentence = sentence_of(error)
    if sentence is None:
        raise error
    with contextlib.suppress(BrokenPipeError):
        if as_json:
            import json

            print(json.dumps({"error": sentence}), flush=True)
        print(f"realm: {sentence}", file=sys.stderr, flush=True)
    return FAILURE


def _use_utf8() -> None:
    """Output is UTF-8 everywhere, also through a pipe on Windows; what a terminal cannot show becomes `?`."""
    for stream in (sys.stdout, sys.stderr):
        if hasattr(stream, "reconfigure"):
            if stream.isatty():
                stream.reconfigure(errors="replace")
            else:
                stream.reconfigure(encoding="utf-8", errors="replace")


def _drop_stdout() -> None:
    """Whoever read our output is gone: Python must not complain again when it flushes at exit."""
    with contextlib.suppress(OSError, ValueError):
        devnull = os.open(os.devnull, os.O_WRONLY)
        os.dup2(devnull, sys.stdout.fileno())


if __name__ == "__main__":
    sys.exit(main())
