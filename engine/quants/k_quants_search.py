"""Quantising to ggml's k-quants: a search for the scales that leave the least squared error.

Each group of 16 or 32 values gets the best scale (and minimum) of a few candidates; those are then quantised over the
super-block and the values rounded once more with what the file will really hold. Every search runs on all groups at
once: values are float32 [groups, size] in it, scales and minimums [groups, 1].
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from engine.quants.bits import Blocks, Values, half_bytes, inverse, pack_fields

_TINY = np.float32(1e-30)


def encode_q2_k(values: Values) -> Blocks:
    d, dmin, scales, minimums, q = _with_minimums(values, groups=16, steps=3, scale_steps=15)
    packed = pack_fields(q.reshape(-1, 2, 4, 32), 2).reshape(-1, 64)
    return np.concatenate([scales | minimums << 4, packed, half_bytes(d), half_bytes(dmin)], axis=1)


def encode_q3_k(values: Values) -> Blocks:
    d, scales, q = _symmetric(values, levels=4, scale_levels=32)
    codes = (scales + 32).astype(np.uint8)
    low = pack_fields((codes & 15).reshape(-1, 2, 8), 4)
    high = pack_fields((codes >> 4).reshape(-1, 4, 4), 2)
    third = pack_fields((q >> 2).reshape(-1, 8, 32), 1)
    packed = pack_fields((q & 3).reshape(-1, 2, 4, 32), 2).reshape(-1, 64)
    return np.concatenate([third, packed, low, high, half_bytes(d)], axis=1)


def encode_q4_k(values: Values) -> Blocks:
    d, dmin, scales, minimums, q = _with_minimums(values, groups=8, steps=15, scale_steps=63)
    packed = pack_fields(q.reshape(-1, 4, 2, 32), 4).reshape(-1, 128)
    return np.concatenate([half_bytes(d), half_bytes(dmin), _pack_scales(scales, minimums), packed], axis=1)


def encode_q5_k(values: Values) -> Blocks:
    d, dmin, scales, minimums, q = _with_minimums(values, groups=8, steps=31, scale_steps=63)
    fifth = pack_fields((q >> 4).reshape(-1, 8, 32), 1)
    packed = pack_fields((q & 15).reshape(-1, 4, 2, 32), 4).reshape(-1, 128)
    return np.concatenate([half_bytes(d), half_bytes(dmin), _pack_scales(scales, minimums), fifth, packed], axis=1)


def encode_q6_k(values: Values) -> Blocks:
    d, scales, q = _symmetric(values, levels=32, scale_levels=128)
    low = pack_fields((q & 15).reshape(-1, 2, 2, 64), 4).reshape(-1, 128)
    high = pack_fields((q >> 4).reshape(-1, 2, 4, 32), 2).reshape(-1, 64)
    return np.concatenate([low, high, scales.astype(np.int8).view(np.uint8), half_bytes(d)], axis=1)


def _pack_scales(scales: Blocks, minimums: Blocks) -> Blocks:
    """The reverse of k_quants.scales_and_minimums()."""
    first = scales[:, :4] | scales[:, 4:] >> 4 << 6
    second = minimums[:, :4] | minimums[:, 4:] >> 4 << 6
    third = scales[:, 4:] & 15 | minimums[:, 4:] << 4
    return np.concatenate([first, second, third], axis=1)


# ---- value = d * scale * q - dmin * minimum


def _with_minimums(
    values: Values, groups: int, steps: int, scale_steps: int
) -> tuple[Values, Values, NDArray[np.uint8], NDArray[np.uint8], NDArray[np.uint8]]:
    """d, dmin [n, 1]; scales, minimums uint8 [n, groups]; q uint8 [n, groups, size] of 0..steps."""
    n = len(values)
    grouped = values.reshape(n * groups, -1)
    scale, minimum = (part.reshape(n, groups) for part in _fit_with_minimum(grouped, steps))
    d, scales = _quantised_scales(scale, scale_steps)
    dmin, minimums = _quantised_scales(minimum, scale_steps)
    scales, minimums = _neighbouring_codes(grouped, d, dmin, scales, minimums, steps, scale_steps)
    step, offset = (d * scales).reshape(-1, 1), (dmin * minimums).reshape(-1, 1)
    q = _nearest(grouped + offset, step, 0, steps)
    return d, dmin, scales.astype(np.uint8), minimums.astype(np.uint8), q.astype(np.uint8).reshape(n, groups, -1)


def _neighbouring_codes(
    x: Values, d: Values, dmin: Values, scales: Values, minimums: Values, steps: int, scale_steps: int
) -> tuple[Values, Values]:
    """The codes [n, groups] next to the given ones that leave the least error once the values are rounded with them.

    Rounding scale and minimum apart is not the best: an error of one can make up for that of the other.
    """
    best_error = np.full((len(x), 1), np.inf, np.float32)
    best_scales, best_minimums = scales, minimums
    for scale_shift in (0, -1, 1):
        for minimum_shift in (0, -1, 1):
            some_scales = np.clip(scales + scale_shift, 0, scale_steps)
            some_minimums = np.clip(minimums + minimum_shift, 0, scale_steps)
            step, offset = (d * some_scales).reshape(-1, 1), (dmin * some_minimums).reshape(-1, 1)
            error = _squared(step * _nearest(x + offset, step, 0, steps) - offset - x)
            better = (error < best_error).reshape(scales.shape)
            best_error = np.minimum(error, best_error)
            best_scales = np.where(better, some_scales, best_scales)
            best_minimums = np.where(better, some_minimums, best_minimums)
    return best_scales, best_minimums


def _fit_with_minimum(x: Values, steps: int) -> tuple[Values, Values]:
    """scale >= 0 and minimum >= 0 with scale * q - minimum near x, q of 0..steps.

    From several starting points (the range of x stretched, its lower end moved so that an outlier counts for less),
    rounding and least squares take turns; the best of all is kept.
    """
    low = np.minimum(x.min(axis=1, keepdims=True), 0)
    high = np.maximum(x.max(axis=1, keepdims=True), 0)
    sum_x = x.sum(axis=1, keepdims=True)
    best_error = np.full_like(low, np.inf)
    best_scale, best_minimum = np.zeros_like(low), np.zeros_like(low)
    # Four times as many starting points leave half a per cent less error and take three times as long.
    for share in np.array([1, 0.7], np.float32):
        for stretch in np.linspace(-1, 0.8, 4, dtype=np.float32):
            minimum = -low * share
            scale = (high + minimum) / np.maximum(steps + stretch, 1)
            for turn in range(3):
                q = _nearest(x + minimum, scale, 0, steps)
                error = _squared(scale * q - minimum - x)
                better = error < best_error
                best_error = np.where(better, error, best_error)
                best_scale = np.where(better, scale, best_scale)
                best_minimum = np.where(better, minimum, best_minimum)
                if turn < 2:
                    scale, minimum = _least_squares(x, sum_x, q)
    return best_scale, best_minimum


def _least_squares(x: Values, sum_x: Values, q: Values) -> tuple[Values, Values]:
    """The best scale and minimum for given q, neither below 0."""
    size = np.float32(x.shape[1])
    sum_q, sum_qq = q.sum(axis=1, keepdims=True), _squared(q)
    sum_xq = (x * q).sum(axis=1, keepdims=True)
    det = np.maximum(size * sum_qq - sum_q * sum_q, _TINY)
    scale = (size * sum_xq - sum_x * sum_q) / det
    minimum = (sum_q * sum_xq - sum_qq * sum_x) / det
    without_minimum = sum_xq / np.maximum(sum_qq, _TINY)
    return np.maximum(np.where(minimum < 0, without_minimum, scale), 0), np.maximum(minimum, 0)


def _quantised_scales(scales: Values, steps: int) -> tuple[Values, Values]:
    """d [n, 1] as F16 will hold it, and codes of 0..steps with d * code near scales [n, groups]."""
    d = _as_half(scales.max(axis=1, keepdims=True) / np.float32(steps))
    return d, _nearest(scales, d, 0, steps)


# ---- value = d * scale * (q - levels)


def _symmetric(values: Values, levels: int, scale_levels: int) -> tuple[Values, NDArray[np.int32], NDArray[np.uint8]]:
    """d [n, 1]; scales int32 [n, 16] of -scale_levels..scale_levels-1; q uint8 [n, 16, 16] of 0..2*levels-1."""
    n = len(values)
    grouped = values.reshape(n * 16, 16)
    scale = _fit_symmetric(grouped, levels).reshape(n, 16)
    # The largest scale takes the one code more that there is below zero.
    furthest = np.abs(scale).argmax(axis=1)[:, None]
    d = _as_half(np.take_along_axis(scale, furthest, axis=1) / np.float32(-scale_levels))
    scales = _nearest(scale, d, -scale_levels, scale_levels - 1)
    q = _nearest(grouped, (d * scales).reshape(-1, 1), -levels, levels - 1) + levels
    return d, scales.astype(np.int32), q.astype(np.uint8).reshape(n, 16, 16)


def _fit_symmetric(x: Values, levels: int) -> Values:
    """scale with scale * q near x, q of -levels..levels-1; of either sign."""
    furthest = np.abs(x).argmax(axis=1)[:, None]
    extreme = np.take_along_axis(x, furthest, axis=1)
    best_scale = extreme / np.float32(-levels)
    best_error = _squared(best_scale * _nearest(x, best_scale, -levels, levels - 1) - x)
    for stretch in np.linspace(-1, 1, 21, dtype=np.float32):
        q = _nearest(x, -extreme / (levels + stretch), -levels, levels - 1)
        scale = (x * q).sum(axis=1, keepdims=True) / np.maximum(_squared(q), _TINY)
        error = _squared(scale * q - x)
        better = error < best_error
        best_error = np.where(better, error, best_error)
        best_scale = np.where(better, scale, best_scale)
    return best_scale


# ---- arithmetic


def _nearest(x: Values, step: Values, low: int, high: int) -> Values:
    """x / step rounded and kept in low..high; 0 where step is."""
    rounded: Values = np.clip(np.rint(x * inverse(step)), low, high)
    return rounded


def _squared(x: Values) -> Values:
    total: Values = np.einsum("ij,ij->i", x, x)
    return total[:, None]


def _as_half(d: Values) -> Values:
    return d.astype(np.float16).astype(np.float32)
