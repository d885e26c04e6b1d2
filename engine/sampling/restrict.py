"""The candidates that a grammar allows."""

from __future__ import annotations

import math

import numpy as np

from engine.errors import RequestError
from engine.grammar import Constraint
from engine.sampling.candidates import Candidates

LARGEST_FRONT = 128  # as many of the likeliest tokens are asked for one by one
PATIENCE = 8  # tokens that the grammar refuses; after more of them than twice those it allows, all are looked at


def restricted(candidates: Candidates, constraint: Constraint, most: int) -> Candidates:
    """The candidates, which are the whole vocabulary, without what the grammar does not allow.

    most: where not 0, as many of the likeliest suffice. Raises RequestError when no token is left.
    """
    if 0 < most <= LARGEST_FRONT and constraint.worth_asking:
        front = _permitted_front(candidates, constraint, most)
        if front is not None:
            return front
    allowed = constraint.allowed()
    if allowed.ids is not None:
        if not len(allowed.ids):
            raise RequestError(
                "The answer cannot go on: the grammar asks for text here that no token of this model begins.",
                "Change the grammar.",
            )
        kept = Candidates(allowed.ids, candidates.logits[allowed.ids])
    else:
        logits = candidates.logits.copy()
        logits[allowed.banned] = -np.inf
        kept = Candidates(None, logits)
    if kept.max() == -math.inf:
        raise RequestError("logit_bias bans every token that the grammar allows here.", "Leave at least one.")
    return kept


def _permitted_front(candidates: Candidates, constraint: Constraint, n: int) -> Candidates | None:
    """The n likeliest tokens that the grammar allows, or None where they are not soon found."""
    front = candidates.front(4 * n + PATIENCE)
    ids = range(len(front)) if front.ids is None else front.ids.tolist()
    kept: list[int] = []
    for place, (token, logit) in enumerate(zip(ids, front.logits.tolist(), strict=True)):
        if logit == -math.inf or place > 3 * len(kept) + PATIENCE:
            break
        if constraint.permits(token):
            kept.append(place)
            if len(kept) == n:
                return front.take(np.array(kept), True)
    return None
