"""What is done to each row by itself: norms, activations, copies of columns."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from engine.graph import Activation

Array = NDArray[np.float32]

ONE = np.float32(1)


def rms_norm(x: Array, weight: Array, epsilon: float, heads: int) -> Array:
    parts = x if heads == 1 else x.reshape(-1, x.shape[1] // heads)
    squares = np.einsum("ij,ij->i", parts, parts)
    normed: Array = parts * (ONE / np.sqrt(squares / np.float32(parts.shape[1]) + np.float32(epsilon)))[:, None]
    return _weighted(normed, weight, x)


def layer_norm(x: Array, weight: Array, bias: Array | None, epsilon: float, heads: int) -> Array:
    parts = x if heads == 1 else x.reshape(-1, x.shape[1] // heads)
    centred = parts - parts.mean(axis=1, keepdims=True)
    squares = np.einsum("ij,ij->i", centred, centred)
    normed: Array = centred * (ONE / np.sqrt(squares / np.float32(parts.shape[1]) + np.float32(epsilon)))[:, None]
    out = _weighted(normed, weight, x)
    if bias is not None:
        out = (out if len(bias) == out.shape[1] else out.reshape(-1, len(bias))) + bias
    return out.reshape(x.shape)


def _weighted(normed: Array, weight: Array, x: Array) -> Array:
    """normed, in parts or not, times a weight as wide as a part or as x."""
    if len(weight) != normed.shape[1]:
        normed = normed.reshape(x.shape)
    normed *= weight
    return normed.reshape(x.shape)


def sigmoid(x: Array) -> Array:
    return ONE / (ONE + np.exp(-x))


def activate(activation: Activation, x: Array) -> Array:
    match activation:
        case Activation.SILU:
            return x * sigmoid(x)
        case Activation.GELU:
            cubic: Array = x * (np.float32(0.044715) * x * x + ONE)
            activated: Array = x * (ONE + np.tanh(np.float32(0.79788456) * cubic)) * np.float32(0.5)
            return activated
        case Activation.SIGMOID:
            return sigmoid(x)
        case Activation.IDENTITY:
            return x
        case Activation.CLAMPED_SWIGLU:
            raise ValueError("CLAMPED_SWIGLU is an activation of Gate only")


def gate(activation: Activation, x: Array, up: Array) -> Array:
    if activation is Activation.CLAMPED_SWIGLU:
        x = np.minimum(x, np.float32(7))
        return x * sigmoid(np.float32(1.702) * x) * (np.clip(up, np.float32(-7), np.float32(7)) + ONE)
    return activate(activation, x) * up


def join(pieces: list[tuple[Array, int, int, int]], heads: int) -> Array:
    """pieces: (x, number of parts, start, width); see engine.graph.Join."""
    rows = len(pieces[0][0])
    out = np.empty((rows, heads, sum(width for *_, width in pieces)), np.float32)
    at = 0
    for x, parts, start, width in pieces:
        out[:, :, at : at + width] = x.reshape(rows, parts, -1)[:, :, start : start + width]
        at += width
    return out.reshape(rows, -1)
