"""What `make bench` measured here before, and what has changed since.

One JSON file for each machine, device, driver and model under the cache folder. A rate that came out more than
SLOWER below the recorded one is marked and the record keeps the faster one, so that it is marked again until it is
mended or accepted.
"""

from __future__ import annotations

import hashlib
import json
import platform
import subprocess
import time
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

from app.paths import cache_dir

SLOWER = 0.10


@dataclass(frozen=True)
class Setting:
    """What must be the same for rates to be compared."""

    processor: str
    cores: int
    device: str
    driver: str
    variants: str
    model: str

    @property
    def path(self) -> Path:
        digest = hashlib.sha256(json.dumps(asdict(self), sort_keys=True).encode()).hexdigest()[:16]
        return cache_dir() / "bench" / f"{digest}.json"


@dataclass(frozen=True)
class Change:
    """One rate (the more the better), recorded and now."""

    what: str
    before: float
    now: float
    version: str  # that made the recorded one

    @property
    def factor(self) -> float:
        return self.now / self.before

    @property
    def is_slower(self) -> bool:
        return self.factor < 1.0 - SLOWER

    def __str__(self) -> str:
        mark = "  SLOWER" if self.is_slower else ""
        return f"{self.what}: {self.before:.1f} -> {self.now:.1f} ({self.factor - 1:+.0%} since {self.version}){mark}"


def compare_and_record(setting: Setting, rates: Mapping[str, float], *, accept: bool = False) -> list[Change]:
    """Returns what the rates are beside the recorded ones, those without any left out, and records them.

    accept: also those that became slower. A record that cannot be read counts as none.
    """
    recorded = _read(setting.path)
    changes = [
        Change(what, *recorded[what][:1], now, recorded[what][1]) for what, now in rates.items() if what in recorded
    ]
    slower = set() if accept else {change.what for change in changes if change.is_slower}
    current = project_version()
    kept = recorded | {what: (rate, current) for what, rate in rates.items() if what not in slower}
    content = {
        "setting": asdict(setting),
        "written": time.strftime("%Y-%m-%dT%H:%M:%S%z"),
        "rates": {what: {"rate": rate, "version": made_by} for what, (rate, made_by) in kept.items()},
    }
    setting.path.parent.mkdir(parents=True, exist_ok=True)
    temporary = setting.path.with_suffix(".part")
    temporary.write_text(json.dumps(content, indent=1), encoding="utf-8")
    temporary.replace(setting.path)
    return changes


def project_version() -> str:
    """The installed version, with the commit where this is a checkout."""
    try:
        number = version("realm-desktop")
    except PackageNotFoundError:
        number = "unknown"
    command = ["git", "-C", str(Path(__file__).parent), "rev-parse", "--short", "HEAD"]
    try:
        commit = subprocess.run(command, capture_output=True, text=True, check=True, timeout=10).stdout.strip()
    except (OSError, subprocess.SubprocessError):
        return number
    return f"{number} ({commit})"


def processor_name() -> str:
    try:
        for line in Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines():
            if line.startswith("model name"):
                return line.partition(":")[2].strip()
    except OSError:
        pass
    return platform.processor() or platform.machine()


def _read(path: Path) -> dict[str, tuple[float, str]]:
    try:
        rates = json.loads(path.read_text(encoding="utf-8"))["rates"]
        return {
            what: (float(entry["rate"]), str(entry["version"])) for what, entry in rates.items() if entry["rate"] > 0
        }
    except (OSError, ValueError, KeyError, TypeError, AttributeError):
        return {}
