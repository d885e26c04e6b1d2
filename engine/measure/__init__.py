"""Measurements of a loaded model: logits, perplexity and speed."""

from engine.measure.adapters import AdapterCost, measure_adapters
from engine.measure.compare import Comparison, compare_models, percentile
from engine.measure.kernels import KernelCase, KernelTime, Peaks, measure_kernels, other_cases, product_cases
from engine.measure.logits import check_tokens, forward_chunks, logits_of
from engine.measure.perplexity import Perplexity, PerplexityProgress, chunk_tokens, measure_perplexity
from engine.measure.speed import Speed, fill_cache, measure_decode, measure_prefill, random_tokens

__all__ = [
    "AdapterCost",
    "Comparison",
    "KernelCase",
    "KernelTime",
    "Peaks",
    "Perplexity",
    "PerplexityProgress",
    "Speed",
    "check_tokens",
    "chunk_tokens",
    "compare_models",
    "fill_cache",
    "forward_chunks",
    "logits_of",
    "measure_adapters",
    "measure_decode",
    "measure_kernels",
    "measure_perplexity",
    "measure_prefill",
    "other_cases",
    "percentile",
    "product_cases",
    "random_tokens",
]
