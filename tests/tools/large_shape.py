"""A model of Llama 3 8B's shape with made-up weights; `make bench ARGS="--large"`."""

from __future__ import annotations

from engine.backends import opencl
from engine.batch import KV_BLOCK
from engine.devices import choose_device
from engine.errors import RequestError
from engine.measure import measure_decode, measure_prefill, random_tokens
from engine.measure.synthetic import llama_8b

PROMPT, DECODED = 512, 64


def large_page(device_id: str, repetitions: int) -> str:
    """A section of the page: prefill and decode on an OpenCL device. Raises RequestError for numpy, DeviceError and
    OutOfMemoryError."""
    device = choose_device(device_id)
    if device.id == "numpy":
        raise RequestError("The 8B shape is measured on OpenCL devices only.", "Choose one with --device.")
    file, graph = llama_8b()
    blocks = -(-(PROMPT + DECODED + 1) // KV_BLOCK)
    model = opencl.load(
        file,  # type: ignore[arg-type]
        graph,
        device=device,
        n_blocks=blocks,
        progress=lambda *_: None,
        cancelled=lambda: False,
    )
    try:
        prefill = measure_prefill(model, random_tokens(graph.n_vocab, PROMPT, 1), repetitions)
        decode = measure_decode(model, 1, DECODED, repetitions)
        share = decode.median_rate * model.weight_bytes_per_token / (model.read_bandwidth() or float("inf"))
    finally:
        model.close()
    return (
        "## Llama 3 8B's shape\n\n"
        f"Made-up weights in Q4_K and Q6_K on {device.name}, medians of {repetitions} runs.\n\n"
        "| What | Tokens/s | Share of read bandwidth |\n|---|---:|---:|\n"
        f"| prefill {PROMPT} | {prefill.median_rate:.1f} | - |\n"
        f"| decode at 1 | {decode.median_rate:.1f} | {share:.0%} |\n"
    )
