"""From logits to the next token."""

from engine.sampling.params import check_params
from engine.sampling.sampler import Sampler

__all__ = ["Sampler", "check_params"]
