"""Mixtures of experts: rows are sorted by expert, and each expert in use is one matrix product."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from engine.adapters import LowRank
from engine.backends.numpy_backend.rows import sigmoid
from engine.backends.numpy_backend.weights import Weights
from engine.graph import ExpertLinear, Gating, Route

Array = NDArray[np.float32]


def route(op: Route, logits: Array, bias: Array | None) -> Array:
    """Experts and weights for each row; see engine.graph.Route."""
    values = logits
    if op.gating is Gating.SOFTMAX:
        values = softmax(logits)
    elif op.gating is Gating.SIGMOID:
        values = sigmoid(logits)
    wanted = values if bias is None else values + bias
    if op.groups > 1:
        wanted = _best_groups(wanted, op.groups, op.groups_used)
    chosen = np.argsort(-wanted, axis=1, kind="stable")[:, : op.n_used]
    weights = np.take_along_axis(values, chosen, axis=1)
    if op.gating is Gating.CHOSEN_SOFTMAX:
        weights = softmax(weights)
    if op.renormalise:
        weights = weights / np.maximum(weights.sum(axis=1, keepdims=True), np.float32(2.0**-14))
    return np.concatenate([chosen.astype(np.float32), weights * np.float32(op.scale)], axis=1)


def softmax(x: Array) -> Array:
    powers = np.exp(x - x.max(axis=1, keepdims=True))
    out: Array = powers / powers.sum(axis=1, keepdims=True)
    return out


def _best_groups(wanted: Array, groups: int, used: int) -> Array:
    """wanted, -inf outside of each row's best groups."""
    parts = wanted.reshape(len(wanted), groups, -1)
    scores = np.sort(parts, axis=2)[:, :, -2:].sum(axis=2)
    chosen = np.argsort(-scores, axis=1, kind="stable")[:, :used]
    out = np.full_like(parts, -np.inf)
    np.put_along_axis(out, chosen[:, :, None], np.take_along_axis(parts, chosen[:, :, None], axis=1), axis=1)
    return out.reshape(wanted.shape)


class Assignment:
    """The rows of a batch sorted by expert: worked out once for the products of one mixture."""

    def __init__(self, routed: Array) -> None:
        self.n_used = routed.shape[1] // 2
        experts = routed[:, : self.n_used].astype(np.intp).ravel()
        self.order = np.argsort(experts, kind="stable")
        """Places (row * n_used + choice), those of the first expert in use first."""
        self.experts, starts = np.unique(experts[self.order], return_index=True)
        self.spans = list(zip(starts.tolist(), [*starts[1:].tolist(), len(experts)], strict=True))


def expert_linear(op: ExpertLinear, assignment: Assignment, x: Array, weights: Weights) -> Array:
    n_used, order = assignment.n_used, assignment.order
    outputs = op.weight.rows // op.n_experts
    shared = x.shape[1] == op.weight.columns
    gathered = x[order // n_used] if shared else x.reshape(-1, op.weight.columns)[order]
    out = np.empty((len(x) * n_used, outputs), np.float32)
    for expert, (start, stop) in zip(assignment.experts.tolist(), assignment.spans, strict=True):
        first = expert * outputs
        out[order[start:stop]] = weights.multiply(gathered[start:stop], op.weight, first, first + outputs)
    if op.bias is not None:
        experts = np.repeat(assignment.experts, [stop - start for start, stop in assignment.spans])
        out[order] += weights.vector(op.bias).reshape(op.n_experts, outputs)[experts]
    return out.reshape(len(x), -1)


def add_low_rank(op: ExpertLinear, out: Array, routed: Array, x: Array, low: LowRank, factor: np.float32) -> None:
    """Adds to the products of some rows what an adapter has for their experts, times factor; all arguments are of
    these rows alone."""
    n_used = op.n_used
    products, experts = out.reshape(len(out), n_used, -1), routed[:, :n_used].astype(np.intp)
    inputs = np.broadcast_to(x.reshape(len(x), -1, op.weight.columns), (len(x), n_used, op.weight.columns))
    for expert in np.unique(experts).tolist():
        places = np.nonzero(experts == expert)
        products[places] += inputs[places] @ low.a[expert].T @ low.b[expert].T * factor


def expert_sum(x: Array, routed: Array) -> Array:
    n_used = routed.shape[1] // 2
    out: Array = np.einsum("rnw,rn->rw", x.reshape(len(x), n_used, -1), routed[:, n_used:])
    return out
