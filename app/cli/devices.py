"""`realm devices`: where models can be computed."""

from __future__ import annotations

import argparse
from dataclasses import asdict

from app.cli.options import add_json_argument
from app.cli.terminal import bytes_text, printable, table, write_json
from engine.devices import list_devices


def add_arguments(parser: argparse.ArgumentParser) -> None:
    add_json_argument(parser)


def run(args: argparse.Namespace) -> int:
    devices = list_devices()
    if args.json:
        write_json([asdict(device) for device in devices])
        return 0
    rows = [["id", "kind", "memory", "name", "vendor", "driver", "kernel variants"]]
    for device in devices:
        memory = bytes_text(device.memory_bytes) if device.memory_bytes else ""
        variants = ", ".join(device.variants)
        rows.append([device.id, device.kind, memory, device.name, device.vendor, device.driver, variants])
    print(table(rows))
    for device in devices:
        if device.problem:
            print(f"\n{device.id}: {printable(device.problem)}")
    return 0
