"""Files in repositories of the model hub: their addresses, and fetching one of them."""

from __future__ import annotations

import os
import threading
from dataclasses import dataclass
from pathlib import Path

from huggingface_hub import get_token, hf_hub_url

from app.hub.download import Progress, Retry, ServerUnreachable, download

DEFAULT_ENDPOINT = "https://huggingface.co"


@dataclass(frozen=True)
class HubFile:
    """One file of a repository. size and sha256 are given where the exact content is known beforehand."""

    repo_id: str
    file_name: str
    revision: str = "main"
    size: int | None = None
    sha256: str | None = None

    def url(self) -> str:
        endpoint = (os.environ.get("HF_ENDPOINT") or DEFAULT_ENDPOINT).rstrip("/")
        return hf_hub_url(self.repo_id, self.file_name, revision=self.revision, endpoint=endpoint)


def hub_is_offline() -> bool:
    """Whether HF_HUB_OFFLINE forbids asking the hub."""
    return os.environ.get("HF_HUB_OFFLINE", "").strip().upper() in ("1", "ON", "YES", "TRUE")


def download_from_hub(
    file: HubFile,
    destination: Path,
    *,
    progress: Progress | None = None,
    cancel: threading.Event | None = None,
    retry: Retry | None = None,
) -> Path:
    """Fetch a file of the hub; HF_ENDPOINT, HF_TOKEN (or a stored login) and HF_HUB_OFFLINE are respected.

    Raises as `app.hub.download.download` does.
    """
    if hub_is_offline():
        raise ServerUnreachable("HF_HUB_OFFLINE is set, so the hub was not asked.", "Unset it to allow downloads.")
    return download(
        file.url(),
        destination,
        size=file.size,
        sha256=file.sha256,
        token=get_token(),
        progress=progress,
        cancel=cancel,
        retry=retry,
    )
