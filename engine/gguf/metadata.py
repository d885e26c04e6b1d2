"""Typed access to the keys of a model file, with errors that name the key."""

from __future__ import annotations

import builtins
import math
from collections.abc import Mapping
from enum import Enum
from pathlib import Path
from typing import Any, Final, TypeVar, overload

import numpy as np
from numpy.typing import NDArray

from engine.errors import ModelFileError


class _Required(Enum):
    """The default of a key that a file must have."""

    REQUIRED = "required"


REQUIRED: Final = _Required.REQUIRED

_Default = TypeVar("_Default")

_DAMAGED = "The file is damaged or was converted wrongly; download or convert it again."


class TypedKeys:
    """The keys of a model file. Every getter raises ModelFileError naming the key and what is wrong with it.

    A getter with a default (None included) returns it where the key is absent; a key that is present but of the wrong
    type or out of range is an error all the same. Integers of any width are integers; booleans and floats are not.
    """

    path: Path
    metadata: Mapping[builtins.str, Any]
    value_types: Mapping[builtins.str, builtins.str]

    @property
    def architecture(self) -> builtins.str:
        """general.architecture, "llama"."""
        name = self.str("general.architecture")
        if not name or not name.isprintable():
            raise self._wrong("general.architecture", f"is {name!a}, which names no architecture")
        return name

    @overload
    def int(
        self,
        key: builtins.str,
        default: builtins.int | _Required = ...,
        *,
        minimum: builtins.int | None = ...,
        maximum: builtins.int | None = ...,
    ) -> builtins.int: ...

    @overload
    def int(
        self,
        key: builtins.str,
        default: None,
        *,
        minimum: builtins.int | None = ...,
        maximum: builtins.int | None = ...,
    ) -> builtins.int | None: ...

    def int(
        self,
        key: builtins.str,
        default: builtins.int | _Required | None = REQUIRED,
        *,
        minimum: builtins.int | None = None,
        maximum: builtins.int | None = None,
    ) -> builtins.int | None:
        """An integer, minimum <= value <= maximum."""
        if key not in self.metadata:
            return self._absent(key, default)
        value = self.metadata[key]
        if isinstance(value, builtins.bool) or not isinstance(value, builtins.int):
            raise self._wrong_type(key, "an integer")
        self._check_range(key, value, minimum, maximum)
        return value

    @overload
    def float(
        self,
        key: builtins.str,
        default: builtins.float | _Required = ...,
        *,
        minimum: builtins.float | None = ...,
        maximum: builtins.float | None = ...,
    ) -> builtins.float: ...

    @overload
    def float(
        self,
        key: builtins.str,
        default: None,
        *,
        minimum: builtins.float | None = ...,
        maximum: builtins.float | None = ...,
    ) -> builtins.float | None: ...

    def float(
        self,
        key: builtins.str,
        default: builtins.float | _Required | None = REQUIRED,
        *,
        minimum: builtins.float | None = None,
        maximum: builtins.float | None = None,
    ) -> builtins.float | None:
        """A finite floating-point number, minimum <= value <= maximum."""
        if key not in self.metadata:
            return self._absent(key, default)
        value = self.metadata[key]
        if not isinstance(value, builtins.float):
            raise self._wrong_type(key, "a floating-point number")
        if not math.isfinite(value):
            raise self._wrong(key, f"is {value}, which is not a number to compute with")
        self._check_range(key, value, minimum, maximum)
        return value

    @overload
    def bool(self, key: builtins.str, default: builtins.bool | _Required = ...) -> builtins.bool: ...

    @overload
    def bool(self, key: builtins.str, default: None) -> builtins.bool | None: ...

    def bool(self, key: builtins.str, default: builtins.bool | _Required | None = REQUIRED) -> builtins.bool | None:
        if key not in self.metadata:
            return self._absent(key, default)
        value = self.metadata[key]
        if not isinstance(value, builtins.bool):
            raise self._wrong_type(key, "a boolean")
        return value

    @overload
    def str(self, key: builtins.str, default: builtins.str | _Required = ...) -> builtins.str: ...

    @overload
    def str(self, key: builtins.str, default: None) -> builtins.str | None: ...

    def str(self, key: builtins.str, default: builtins.str | _Required | None = REQUIRED) -> builtins.str | None:
        """Text. Bytes that are not UTF-8 come as lone surrogates (surrogateescape)."""
        if key not in self.metadata:
            return self._absent(key, default)
        value = self.metadata[key]
        if not isinstance(value, builtins.str):
            raise self._wrong_type(key, "a string")
        return value

    @overload
    def strings(self, key: builtins.str, default: list[builtins.str] | _Required = ...) -> list[builtins.str]: ...

    @overload
    def strings(self, key: builtins.str, default: None) -> list[builtins.str] | None: ...

    def strings(
        self, key: builtins.str, default: list[builtins.str] | _Required | None = REQUIRED
    ) -> list[builtins.str] | None:
        """An array of strings, decoded as str() does. The file's own list: do not change it."""
        if key not in self.metadata:
            return self._absent(key, default)
        value = self.metadata[key]
        if not isinstance(value, list):
            raise self._wrong_type(key, "an array of strings")
        return value

    @overload
    def ints(
        self,
        key: builtins.str,
        default: NDArray[np.int64] | _Required = ...,
        *,
        minimum: builtins.int | None = ...,
        maximum: builtins.int | None = ...,
        count: builtins.int | None = ...,
    ) -> NDArray[np.int64]: ...

    @overload
    def ints(
        self,
        key: builtins.str,
        default: None,
        *,
        minimum: builtins.int | None = ...,
        maximum: builtins.int | None = ...,
        count: builtins.int | None = ...,
    ) -> NDArray[np.int64] | None: ...

    def ints(
        self,
        key: builtins.str,
        default: NDArray[np.int64] | _Required | None = REQUIRED,
        *,
        minimum: builtins.int | None = None,
        maximum: builtins.int | None = None,
        count: builtins.int | None = None,
    ) -> NDArray[np.int64] | None:
        """An array of integers, int64 [n], each minimum <= value <= maximum.

        count: how many there must be; then a single integer is taken as that many equal ones, as files do for
            settings that can differ per layer.
        """
        if key not in self.metadata:
            return self._absent(key, default)
        value = self.metadata[key]
        if count is not None and isinstance(value, builtins.int) and not isinstance(value, builtins.bool):
            self._check_range(key, value, minimum, maximum)
            if value > np.iinfo(np.int64).max:
                raise self._wrong(key, f"is {value}, which is too large")
            return np.full(count, value, np.int64)
        if not isinstance(value, np.ndarray) or not (value.dtype.kind in "iu" or value.size == 0):
            raise self._wrong_type(key, "an array of integers")
        if value.dtype == np.uint64 and value.size and builtins.int(value.max()) > np.iinfo(np.int64).max:
            raise self._wrong(key, f"holds {value.max()}, which is too large")
        array = value.astype(np.int64)
        self._check_array(key, array, minimum, maximum, count)
        return array

    @overload
    def floats(
        self,
        key: builtins.str,
        default: NDArray[np.float32] | _Required = ...,
        *,
        minimum: builtins.float | None = ...,
        maximum: builtins.float | None = ...,
        count: builtins.int | None = ...,
    ) -> NDArray[np.float32]: ...

    @overload
    def floats(
        self,
        key: builtins.str,
        default: None,
        *,
        minimum: builtins.float | None = ...,
        maximum: builtins.float | None = ...,
        count: builtins.int | None = ...,
    ) -> NDArray[np.float32] | None: ...

    def floats(
        self,
        key: builtins.str,
        default: NDArray[np.float32] | _Required | None = REQUIRED,
        *,
        minimum: builtins.float | None = None,
        maximum: builtins.float | None = None,
        count: builtins.int | None = None,
    ) -> NDArray[np.float32] | None:
        """An array of finite floating-point numbers, float32 [n]; the options are those of ints()."""
        if key not in self.metadata:
            return self._absent(key, default)
        value = self.metadata[key]
        if count is not None and isinstance(value, builtins.float):
            value = np.full(count, value, np.float32)
        if not isinstance(value, np.ndarray) or not (value.dtype.kind == "f" or value.size == 0):
            raise self._wrong_type(key, "an array of floating-point numbers")
        with np.errstate(over="ignore"):
            array = value.astype(np.float32)
        if not np.isfinite(array).all():
            raise self._wrong(key, "holds a value that is not a finite number")
        self._check_array(key, array, minimum, maximum, count)
        return array

    def _absent(self, key: builtins.str, default: _Default | _Required) -> _Default:
        if default is REQUIRED:
            raise ModelFileError(f"{self.path.name}: the key {key} is missing.", _DAMAGED)
        return default

    def _check_array(
        self,
        key: builtins.str,
        array: NDArray[Any],
        minimum: builtins.float | None,
        maximum: builtins.float | None,
        count: builtins.int | None,
    ) -> None:
        if count is not None and array.size != count:
            raise self._wrong(key, f"has {array.size} entries where {count} are needed")
        if array.size:
            self._check_range(key, array.min().item(), minimum, maximum)
            self._check_range(key, array.max().item(), minimum, maximum)

    def _check_range(
        self,
        key: builtins.str,
        value: builtins.float,
        minimum: builtins.float | None,
        maximum: builtins.float | None,
    ) -> None:
        if minimum is not None and value < minimum:
            raise self._wrong(key, f"is {value}, but must be at least {minimum}")
        if maximum is not None and value > maximum:
            raise self._wrong(key, f"is {value}, but must be at most {maximum}")

    def _wrong_type(self, key: builtins.str, wanted: builtins.str) -> ModelFileError:
        return self._wrong(key, f"must be {wanted}, but the file has {self.value_types[key]}")

    def _wrong(self, key: builtins.str, what: builtins.str) -> ModelFileError:
        return ModelFileError(f"{self.path.name}: the key {key} {what}.", _DAMAGED)
