"""What the model itself thought of a token."""

from __future__ import annotations

import math

import numpy as np
from numpy.typing import NDArray

from engine.api import Alternative
from engine.sampling.candidates import largest


def log_probabilities(logits: NDArray[np.float32], token: int, n: int) -> tuple[float, tuple[Alternative, ...]]:
    """The natural log probability of the token, and the n likeliest tokens with theirs: a log-softmax of the logits."""
    highest = float(logits.max())
    norm = highest + math.log(float(np.exp(logits - np.float32(highest)).sum(dtype=np.float64)))
    likeliest = largest(logits, min(n, len(logits))).tolist()
    return float(logits[token]) - norm, tuple(Alternative(other, float(logits[other]) - norm) for other in likeliest)
