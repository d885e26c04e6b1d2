"""Names of the transformers library's modules as GGUF models have them."""

from __future__ import annotations

import re
from collections.abc import Mapping

MODULES: Mapping[str, str] = {
    "self_attn.q_proj": "attn_q",
    "self_attn.k_proj": "attn_k",
    "self_attn.v_proj": "attn_v",
    "self_attn.o_proj": "attn_output",
    "self_attn.out_proj": "attn_output",  # lfm2
    "self_attn.dense": "attn_output",
    "self_attn.qkv_proj": "attn_qkv",  # phi3
    "self_attn.q_a_proj": "attn_q_a",  # deepseek2
    "self_attn.q_b_proj": "attn_q_b",
    "self_attn.kv_a_proj_with_mqa": "attn_kv_a_mqa",
    "self_attn.kv_b_proj": "attn_kv_b",
    "mlp.gate_proj": "ffn_gate",
    "mlp.up_proj": "ffn_up",
    "mlp.down_proj": "ffn_down",
    "mlp.gate_up_proj": "ffn_up",  # phi3, glm4: gate and up in one
    "mlp.c_fc": "ffn_up",  # starcoder2
    "mlp.c_proj": "ffn_down",
    "feed_forward.w1": "ffn_gate",  # lfm2
    "feed_forward.w3": "ffn_up",
    "feed_forward.w2": "ffn_down",
    "conv.in_proj": "shortconv.in_proj",
    "conv.out_proj": "shortconv.out_proj",
    "mlp.gate": "ffn_gate_inp",  # routers
    "mlp.router": "ffn_gate_inp",
    "block_sparse_moe.gate": "ffn_gate_inp",
    "mlp.shared_expert_gate": "ffn_gate_inp_shexp",  # qwen2moe
    "mlp.shared_expert.gate_proj": "ffn_gate_shexp",
    "mlp.shared_expert.up_proj": "ffn_up_shexp",
    "mlp.shared_expert.down_proj": "ffn_down_shexp",
    "mlp.shared_experts.gate_proj": "ffn_gate_shexp",  # deepseek2
    "mlp.shared_experts.up_proj": "ffn_up_shexp",
    "mlp.shared_experts.down_proj": "ffn_down_shexp",
}
"""Inside of a layer."""

EXPERTS: Mapping[str, str] = {
    "gate_proj": "ffn_gate_exps",
    "up_proj": "ffn_up_exps",
    "down_proj": "ffn_down_exps",
    "w1": "ffn_gate_exps",  # mixtral, lfm2
    "w3": "ffn_up_exps",
    "w2": "ffn_down_exps",
}
"""Of one expert of a layer: GGUF models have the matrices of all experts in one tensor."""

_TOP = {"embed_tokens": "token_embd", "lm_head": "output"}
_PREFIX = r"(?:(?:base_model|model|language_model|transformer)\.)*"
_LAYER = re.compile(_PREFIX + r"layers\.(0|[1-9][0-9]{0,8})\.(.+)")
_EXPERT = re.compile(r"(?:mlp|block_sparse_moe|feed_forward)\.experts\.(0|[1-9][0-9]{0,2})\.(\w+)")
_OUTSIDE = re.compile(_PREFIX + r"(embed_tokens|lm_head)")


def tensor_name(module: str) -> str | None:
    """ "model.layers.3.self_attn.q_proj" -> "blk.3.attn_q"; None where there is no such tensor."""
    if match := _OUTSIDE.fullmatch(module):
        return _TOP[match[1]]
    if match := _LAYER.fullmatch(module):
        expert = _EXPERT.fullmatch(match[2])
        kind = EXPERTS.get(expert[2]) if expert else MODULES.get(match[2])
        return f"blk.{match[1]}.{kind}" if kind else None
    return None


def expert_of(module: str) -> int | None:
    """The number of the expert that a module belongs to, if it does."""
    match = _LAYER.fullmatch(module)
    expert = _EXPERT.fullmatch(match[2]) if match else None
    return int(expert[1]) if expert else None


def layer_of(module: str) -> int | None:
    match = _LAYER.fullmatch(module)
    return int(match[1]) if match else None
