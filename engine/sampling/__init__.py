"""From logits to the next token."""

from engine.sampling.logprobs import log_probabilities
from engine.sampling.params import check_params
from engine.sampling.sampler import Sampler

__all__ = ["Sampler", "check_params", "log_probabilities"]
