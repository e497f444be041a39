# spec: specialize-phases
from typing import TypeVar
from tvm.script import ir as I, relax as R, tirx as T
from morendo.ir.dialect import M

n = TypeVar("n")
@I.ir_module
class Module:
    @R.function
    def main(input_ids: R.Tensor((1, n), dtype="int64"), position_ids: R.Tensor((1, n), dtype="int64")) -> R.Tensor((1, n, 96), dtype="float32"):
        with R.dataflow():
            lv: R.Tensor((1, n, 64), dtype="float32") = M.embedding(input_ids, weight="model.embed_tokens.weight", rows=96, features=64, format="q8g32")
            lv1: R.Tensor((1, n, 64), dtype="float32") = M.rms_norm(lv, weight="model.layers.0.input_layernorm.weight", eps=1e-05)
            lv2: R.Tensor((1, n, 128), dtype="float32") = M.fused_linear(lv1, weights=["model.layers.0.self_attn.q_proj.weight", "model.layers.0.self_attn.k_proj.weight", "model.layers.0.self_attn.v_proj.weight"], out_features=[64, 32, 32], in_features=64, format="q4g32")
            lv3: R.Tensor((1, n, 64), dtype="float32") = M.stacked_attention(lv2, position_ids, heads=4, kv_heads=2, head_dim=16, inv_freq="model.rotary_emb.inv_freq", rotary_dim=16, layer=0, scale=0.25)
            lv4: R.Tensor((1, n, 4, 16), dtype="float32") = R.reshape(lv3, R.shape([1, n, 4, 16]))
            lv5: R.Tensor((1, n, 64), dtype="float32") = R.reshape(lv4, R.shape([1, n, 64]))
            lv7: R.Tensor((1, n, 64), dtype="float32") = M.fused_linear(lv5, lv, weights=["model.layers.0.self_attn.o_proj.weight"], out_features=[64], in_features=64, format="q4g32")
            lv8: R.Tensor((1, n, 64), dtype="float32") = M.rms_norm(lv7, weight="model.layers.0.post_attention_layernorm.weight", eps=1e-05)
            lv11: R.Tensor((1, n, 128), dtype="float32") = M.fused_linear(lv8, weights=["model.layers.0.mlp.gate_proj.weight", "model.layers.0.mlp.up_proj.weight"], out_features=[128, 128], in_features=64, format="q4g32", gate="silu")
            lv13: R.Tensor((1, n, 64), dtype="float32") = M.fused_linear(lv11, lv7, weights=["model.layers.0.mlp.down_proj.weight"], out_features=[64], in_features=128, format="q4g32")
            lv14: R.Tensor((1, n, 64), dtype="float32") = M.rms_norm(lv13, weight="model.norm.weight", eps=1e-05)
            lv15: R.Tensor((1, n, 96), dtype="float32") = M.fused_linear(lv14, weights=["model.embed_tokens.weight"], out_features=[96], in_features=64, format="q8g32")
            gv: R.Tensor((1, n, 96), dtype="float32") = lv15
            R.output(gv)
        return gv

# after

from typing import TypeVar
from tvm.script import ir as I, relax as R, tirx as T
from morendo.ir.dialect import M

n = TypeVar("n")
@I.ir_module
class Module:
    @R.function
    def decode(input_ids: R.Tensor((1, 1), dtype="int64"), position_ids: R.Tensor((1, 1), dtype="int64")) -> R.Tensor((1, 1, 96), dtype="float32"):
        with R.dataflow():
            lv: R.Tensor((1, 1, 64), dtype="float32") = M.embedding(input_ids, weight="model.embed_tokens.weight", rows=96, features=64, format="q8g32")
            lv1: R.Tensor((1, 1, 64), dtype="float32") = M.rms_norm(lv, weight="model.layers.0.input_layernorm.weight", eps=1e-05)
            lv2: R.Tensor((1, 1, 128), dtype="float32") = M.fused_linear(lv1, weights=["model.layers.0.self_attn.q_proj.weight", "model.layers.0.self_attn.k_proj.weight", "model.layers.0.self_attn.v_proj.weight"], out_features=[64, 32, 32], in_features=64, format="q4g32")
            lv3: R.Tensor((1, 1, 64), dtype="float32") = M.cached_stacked_attention(lv2, position_ids, heads=4, kv_heads=2, head_dim=16, inv_freq="model.rotary_emb.inv_freq", rotary_dim=16, layer=0, scale=0.25)
            lv4: R.Tensor((1, 1, 4, 16), dtype="float32") = R.reshape(lv3, R.shape([1, 1, 4, 16]))
            lv5: R.Tensor((1, 1, 64), dtype="float32") = R.reshape(lv4, R.shape([1, 1, 64]))
            lv6: R.Tensor((1, 1, 64), dtype="float32") = M.fused_linear(lv5, lv, weights=["model.layers.0.self_attn.o_proj.weight"], out_features=[64], in_features=64, format="q4g32")
            lv7: R.Tensor((1, 1, 64), dtype="float32") = M.rms_norm(lv6, weight="model.layers.0.post_attention_layernorm.weight", eps=1e-05)
            lv8: R.Tensor((1, 1, 128), dtype="float32") = M.fused_linear(lv7, weights=["model.layers.0.mlp.gate_proj.weight", "model.layers.0.mlp.up_proj.weight"], out_features=[128, 128], in_features=64, format="q4g32", gate="silu")
            lv9: R.Tensor((1, 1, 64), dtype="float32") = M.fused_linear(lv8, lv6, weights=["model.layers.0.mlp.down_proj.weight"], out_features=[64], in_features=128, format="q4g32")
            lv10: R.Tensor((1, 1, 64), dtype="float32") = M.rms_norm(lv9, weight="model.norm.weight", eps=1e-05)
            lv11: R.Tensor((1, 1, 96), dtype="float32") = M.fused_linear(lv10, weights=["model.embed_tokens.weight"], out_features=[96], in_features=64, format="q8g32")
            gv: R.Tensor((1, 1, 96), dtype="float32") = lv11
            R.output(gv)
        return gv

    @R.function
    def prefill(input_ids: R.Tensor((1, n), dtype="int64"), position_ids: R.Tensor((1, n), dtype="int64")) -> R.Tensor((1, 1, 96), dtype="float32"):
        with R.dataflow():
            lv: R.Tensor((1, n, 64), dtype="float32") = M.embedding(input_ids, weight="model.embed_tokens.weight", rows=96, features=64, format="q8g32")
            lv1: R.Tensor((1, n, 64), dtype="float32") = M.rms_norm(lv, weight="model.layers.0.input_layernorm.weight", eps=1e-05)
            lv2: R.Tensor((1, n, 128), dtype="float32") = M.fused_linear(lv1, weights=["model.layers.0.self_attn.q_proj.weight", "model.layers.0.self_attn.k_proj.weight", "model.layers.0.self_attn.v_proj.weight"], out_features=[64, 32, 32], in_features=64, format="q4g32")
            lv3: R.Tensor((1, 1, 64), dtype="float32") = M.cached_stacked_attention(lv2, position_ids, heads=4, kv_heads=2, head_dim=16, inv_freq="model.rotary_emb.inv_freq", rotary_dim=16, layer=0, scale=0.25, last=True)
            lv4: R.Tensor((1, 1, 4, 16), dtype="float32") = R.reshape(lv3, R.shape([1, 1, 4, 16]))
            lv5: R.Tensor((1, 1, 64), dtype="float32") = R.reshape(lv4, R.shape([1, 1, 64]))
            lv6: R.Tensor((1, 1, 64), dtype="float32") = M.last_token(lv)
            lv7: R.Tensor((1, 1, 64), dtype="float32") = M.fused_linear(lv5, lv6, weights=["model.layers.0.self_attn.o_proj.weight"], out_features=[64], in_features=64, format="q4g32")
            lv8: R.Tensor((1, 1, 64), dtype="float32") = M.rms_norm(lv7, weight="model.layers.0.post_attention_layernorm.weight", eps=1e-05)
            lv9: R.Tensor((1, 1, 128), dtype="float32") = M.fused_linear(lv8, weights=["model.layers.0.mlp.gate_proj.weight", "model.layers.0.mlp.up_proj.weight"], out_features=[128, 128], in_features=64, format="q4g32", gate="silu")
            lv10: R.Tensor((1, 1, 64), dtype="float32") = M.fused_linear(lv9, lv7, weights=["model.layers.0.mlp.down_proj.weight"], out_features=[64], in_features=128, format="q4g32")
            lv11: R.Tensor((1, 1, 64), dtype="float32") = M.rms_norm(lv10, weight="model.norm.weight", eps=1e-05)
            lv12: R.Tensor((1, 1, 96), dtype="float32") = M.fused_linear(lv11, weights=["model.embed_tokens.weight"], out_features=[96], in_features=64, format="q8g32")
            gv: R.Tensor((1, 1, 96), dtype="float32") = lv12
            R.output(gv)
        return gv

    @R.function
    def score(input_ids: R.Tensor((1, n), dtype="int64"), position_ids: R.Tensor((1, n), dtype="int64")) -> R.Tensor((1, n, 96), dtype="float32"):
        with R.dataflow():
            lv: R.Tensor((1, n, 64), dtype="float32") = M.embedding(input_ids, weight="model.embed_tokens.weight", rows=96, features=64, format="q8g32")
            lv1: R.Tensor((1, n, 64), dtype="float32") = M.rms_norm(lv, weight="model.layers.0.input_layernorm.weight", eps=1e-05)
            lv2: R.Tensor((1, n, 128), dtype="float32") = M.fused_linear(lv1, weights=["model.layers.0.self_attn.q_proj.weight", "model.layers.0.self_attn.k_proj.weight", "model.layers.0.self_attn.v_proj.weight"], out_features=[64, 32, 32], in_features=64, format="q4g32")
            lv3: R.Tensor((1, n, 64), dtype="float32") = M.cached_stacked_attention(lv2, position_ids, heads=4, kv_heads=2, head_dim=16, inv_freq="model.rotary_emb.inv_freq", rotary_dim=16, layer=0, scale=0.25)
            lv4: R.Tensor((1, n, 4, 16), dtype="float32") = R.reshape(lv3, R.shape([1, n, 4, 16]))
            lv5: R.Tensor((1, n, 64), dtype="float32") = R.reshape(lv4, R.shape([1, n, 64]))
            lv6: R.Tensor((1, n, 64), dtype="float32") = M.fused_linear(lv5, lv, weights=["model.layers.0.self_attn.o_proj.weight"], out_features=[64], in_features=64, format="q4g32")
            lv7: R.Tensor((1, n, 64), dtype="float32") = M.rms_norm(lv6, weight="model.layers.0.post_attention_layernorm.weight", eps=1e-05)
            lv8: R.Tensor((1, n, 128), dtype="float32") = M.fused_linear(lv7, weights=["model.layers.0.mlp.gate_proj.weight", "model.layers.0.mlp.up_proj.weight"], out_features=[128, 128], in_features=64, format="q4g32", gate="silu")
            lv9: R.Tensor((1, n, 64), dtype="float32") = M.fused_linear(lv8, lv6, weights=["model.layers.0.mlp.down_proj.weight"], out_features=[64], in_features=128, format="q4g32")
            lv10: R.Tensor((1, n, 64), dtype="float32") = M.rms_norm(lv9, weight="model.norm.weight", eps=1e-05)
            lv11: R.Tensor((1, n, 96), dtype="float32") = M.fused_linear(lv10, weights=["model.embed_tokens.weight"], out_features=[96], in_features=64, format="q8g32")
            gv: R.Tensor((1, n, 96), dtype="float32") = lv11
            R.output(gv)
        return gv
