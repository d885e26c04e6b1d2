"""Layers that predict further tokens (multi-token prediction; llama.cpp's `nextn` tensors), as graphs of their own.

Such a layer stands behind the blocks of the decoder in the file. From what the decoder made of position p after its
last norm, h, and the token at p + 1 it predicts the token at p + 2:

    x = eh_proj [enorm(embedding of the token) ; hnorm(h)]
    x = shared_head_norm(block(x)),    logits = shared_head_head x

where block is one more block of the decoder, with keys and values of its own. To go on, x takes the place of h. This is
how DeepSeek-V3's report (arXiv 2412.19437, 2.2) has it; that h is taken after the last norm, and x after its own, is as
in vLLM (deepseek_mtp.py, glm4_moe_mtp.py: the decoder's forward() ends with its norm), SGLang (deepseek_nextn.py) and
llama.cpp (h_nextn in glm4-moe.cpp). Table, norm and head that the file does not have for the layer are the decoder's.
(vLLM also blanks the embedding at its position 0, which neither the report nor the others do.)
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

from engine.architectures.decoder import Decoder
from engine.architectures.tensors import matrix
from engine.gguf import GGUFFile
from engine.graph import Attention, Graph, Piece, Value

Block = Callable[[Value, int], Value]
"""Adds the block of a layer, given by its number in the file, to the graph."""

Family = Callable[[Decoder], Block]


def build_decoder(d: Decoder, family: Family) -> Graph:
    """The graph of a model that is a list of such blocks."""
    block = family(d)
    h = d.embed()
    for layer in range(d.n_layers):
        h = block(h, layer)
    d.logits(h)
    return d.g


def build_with_prediction(file: GGUFFile, context_length: int, family: Family) -> tuple[Graph, Graph]:
    """The decoder, keeping the rows that its first prediction layer reads, and the graph of that layer, which is given
    these rows. Raises ModelFileError or UnsupportedModelError, for the layer too."""
    decoder = build_decoder(Decoder(file, context_length, keeps_rows=True), family)
    return decoder, _build_layer(Decoder(file, context_length), family)


def _build_layer(d: Decoder, family: Family) -> Graph:
    g, layer = d.g, d.n_layers
    name = f"blk.{layer}.nextn"
    h = d.norm(g.input(d.width), f"{name}.hnorm")
    if d.has(f"{name}.embed_tokens.weight"):
        embedded = g.embed(matrix(d.file, f"{name}.embed_tokens.weight", g.n_vocab, d.width))
    else:
        embedded = d.embed()
    e = d.norm(embedded, f"{name}.enorm")
    both = g.join(Piece(e, 1, 0, d.width), Piece(h, 1, 0, d.width), heads=1)
    x = family(d)(d.linear(both, f"{name}.eh_proj", d.width), layer)
    x = g.kept = d.norm(x, f"{name}.shared_head_norm" if d.has(f"{name}.shared_head_norm.weight") else "output_norm")
    g.hidden = g.select_rows(x)
    d.head(g.hidden, f"{name}.shared_head_head" if d.has(f"{name}.shared_head_head.weight") else "output")
    g.operations = [replace(op, layer=0) if isinstance(op, Attention) else op for op in g.operations]
    g.n_layers = 1
    return g
