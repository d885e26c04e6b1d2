"""Every error that a person can meet. Each message is a sentence that says what was wrong, where, and what to do."""

from __future__ import annotations


class RealmError(Exception):
    """Base of all errors meant for a person.

    Attributes:
        message: one or two sentences: what went wrong and where.
        hint: what to do about it; may be empty.
    """

    def __init__(self, message: str, hint: str = "") -> None:
        super().__init__(message)
        self.message = message
        self.hint = hint

    def __str__(self) -> str:
        return f"{self.message} {self.hint}".strip()


class ModelFileError(RealmError):
    """A model file is damaged, truncated or not what it claims to be; names the tensor or key."""


class UnsupportedModelError(RealmError):
    """A sound model file that this version cannot run (architecture, tensor type, tokenizer)."""


class AdapterError(RealmError):
    """An adapter is damaged, of a kind that Realm does not apply, or made for another model; names what is wrong."""


class TokenizerError(RealmError):
    """The vocabulary in a model file cannot be used, or token ids are outside of it."""


class TemplateError(RealmError):
    """A chat template failed, ran too long, or wrote too much."""


class RequestError(RealmError):
    """A request asks for something impossible (empty prompt, token out of range, bad setting)."""


class ContextFullError(RequestError):
    """The prompt does not fit into the context; the message gives both numbers."""


class DeviceError(RealmError):
    """A compute device is missing, failed to compile a kernel, or was lost while running."""


class OutOfMemoryError(DeviceError):
    """A device has too little memory; the message says how much was wanted and how much there is."""


class DownloadError(RealmError):
    """A file could not be fetched or did not verify."""


class StoreError(RealmError):
    """The chat history could not be read or written."""
