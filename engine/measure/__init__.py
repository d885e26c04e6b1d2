"""Measurements of a loaded model: logits, perplexity and speed."""

from engine.measure.compare import Comparison, compare_models, percentile
from engine.measure.logits import check_tokens, forward_chunks, logits_of
from engine.measure.perplexity import Perplexity, PerplexityProgress, chunk_tokens, measure_perplexity
from engine.measure.speed import Speed, measure_decode, measure_prefill, random_tokens

__all__ = [
    "Comparison",
    "Perplexity",
    "PerplexityProgress",
    "Speed",
    "check_tokens",
    "chunk_tokens",
    "compare_models",
    "forward_chunks",
    "logits_of",
    "measure_decode",
    "measure_perplexity",
    "measure_prefill",
    "percentile",
    "random_tokens",
]
