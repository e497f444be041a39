# spec: choose-levels
from typing import TypeVar
from tvm.script import ir as I, relax as R, tirx as T
from morendo.ir.dialect import M

n = TypeVar("n")
@I.ir_module
class Module:
    @R.function
    def main(input_ids: R.Tensor((1, n), dtype="int64"), position_ids: R.Tensor((1, n), dtype="int64")) -> R.Tensor((1, n, 96), dtype="float32"):
        with R.dataflow():
            lv: R.Tensor((1, n, 64), dtype="float32") = M.embedding(input_ids, weight="model.embed_tokens.weight", rows=96, features=64, format="f16")
            lv1: R.Tensor((1, n, 64), dtype="float32") = M.rms_norm(lv, weight="model.layers.0.input_layernorm.weight", eps=1e-05)
            lv2: R.Tensor((1, n, 64), dtype="float32") = M.fused_linear(lv1, weights=["model.layers.0.self_attn.q_proj.weight"], out_features=[64], in_features=64, format="f16")
            lv3: R.Tensor((1, n, 4, 16), dtype="float32") = R.reshape(lv2, R.shape([1, n, 4, 16]))
            lv4: R.Tensor((1, n, 32), dtype="float32") = M.fused_linear(lv1, weights=["model.layers.0.self_attn.k_proj.weight"], out_features=[32], in_features=64, format="f16")
            lv5: R.Tensor((1, n, 2, 16), dtype="float32") = R.reshape(lv4, R.shape([1, n, 2, 16]))
            lv6: R.Tensor((1, n, 32), dtype="float32") = M.fused_linear(lv1, weights=["model.layers.0.self_attn.v_proj.weight"], out_features=[32], in_features=64, format="f16")
            lv7: R.Tensor((1, n, 2, 16), dtype="float32") = R.reshape(lv6, R.shape([1, n, 2, 16]))
            lv8: R.Tensor((1, n, 4, 16), dtype="float32") = M.rope(lv3, position_ids, inv_freq="model.rotary_emb.inv_freq", rotary_dim=16)
            lv9: R.Tensor((1, n, 2, 16), dtype="float32") = M.rope(lv5, position_ids, inv_freq="model.rotary_emb.inv_freq", rotary_dim=16)
            lv10: R.Tensor((1, n, 4, 16), dtype="float32") = M.attention(lv8, lv9, lv7, layer=0, scale=0.25)
            lv11: R.Tensor((1, n, 64), dtype="float32") = R.reshape(lv10, R.shape([1, n, 64]))
            lv13: R.Tensor((1, n, 64), dtype="float32") = M.fused_linear(lv11, lv, weights=["model.layers.0.self_attn.o_proj.weight"], out_features=[64], in_features=64, format="f16")
            lv14: R.Tensor((1, n, 64), dtype="float32") = M.rms_norm(lv13, weight="model.layers.0.post_attention_layernorm.weight", eps=1e-05)
            lv17: R.Tensor((1, n, 128), dtype="float32") = M.fused_linear(lv14, weights=["model.layers.0.mlp.gate_proj.weight", "model.layers.0.mlp.up_proj.weight"], out_features=[128, 128], in_features=64, format="f16", gate="silu")
            lv19: R.Tensor((1, n, 64), dtype="float32") = M.fused_linear(lv17, lv13, weights=["model.layers.0.mlp.down_proj.weight"], out_features=[64], in_features=128, format="f16")
            lv20: R.Tensor((1, n, 64), dtype="float32") = M.rms_norm(lv19, weight="model.norm.weight", eps=1e-05)
            lv21: R.Tensor((1, n, 96), dtype="float32") = M.fused_linear(lv20, weights=["model.embed_tokens.weight"], out_features=[96], in_features=64, format="f16")
            gv: R.Tensor((1, n, 96), dtype="float32") = lv21
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
    def main(input_ids: R.Tensor((1, n), dtype="int64"), position_ids: R.Tensor((1, n), dtype="int64")) -> R.Tensor((1, n, 96), dtype="float32"):
        with R.dataflow():
            lv: R.Tensor((1, n, 64), dtype="float32") = M.embedding(input_ids, weight="model.embed_tokens.weight", rows=96, features=64, format="f16")
            lv1: R.Tensor((1, n, 64), dtype="float32") = M.rms_norm(lv, weight="model.layers.0.input_layernorm.weight", eps=1e-05)
            lv2: R.Tensor((1, n, 64), dtype="float32") = M.fused_linear(lv1, weights=["model.layers.0.self_attn.q_proj.weight"], out_features=[64], in_features=64, format="f16")
            lv3: R.Tensor((1, n, 4, 16), dtype="float32") = R.reshape(lv2, R.shape([1, n, 4, 16]))
            lv4: R.Tensor((1, n, 32), dtype="float32") = M.fused_linear(lv1, weights=["model.layers.0.self_attn.k_proj.weight"], out_features=[32], in_features=64, format="f16")
            lv5: R.Tensor((1, n, 2, 16), dtype="float32") = R.reshape(lv4, R.shape([1, n, 2, 16]))
            lv6: R.Tensor((1, n, 32), dtype="float32") = M.fused_linear(lv1, weights=["model.layers.0.self_attn.v_proj.weight"], out_features=[32], in_features=64, format="f16")
            lv7: R.Tensor((1, n, 2, 16), dtype="float32") = R.reshape(lv6, R.shape([1, n, 2, 16]))
            lv8: R.Tensor((1, n, 4, 16), dtype="float32") = M.rope(lv3, position_ids, inv_freq="model.rotary_emb.inv_freq", rotary_dim=16)
            lv9: R.Tensor((1, n, 2, 16), dtype="float32") = M.rope(lv5, position_ids, inv_freq="model.rotary_emb.inv_freq", rotary_dim=16)
            lv10: R.Tensor((1, n, 4, 16), dtype="float32") = M.attention(lv8, lv9, lv7, layer=0, scale=0.25)
            lv11: R.Tensor((1, n, 64), dtype="float32") = R.reshape(lv10, R.shape([1, n, 64]))
            lv12: R.Tensor((1, n, 64), dtype="float32") = M.fused_linear(lv11, lv, weights=["model.layers.0.self_attn.o_proj.weight"], out_features=[64], in_features=64, format="f16")
            lv13: R.Tensor((1, n, 64), dtype="float32") = M.rms_norm(lv12, weight="model.layers.0.post_attention_layernorm.weight", eps=1e-05)
            lv14: R.Tensor((1, n, 128), dtype="float32") = M.fused_linear(lv13, weights=["model.layers.0.mlp.gate_proj.weight", "model.layers.0.mlp.up_proj.weight"], out_features=[128, 128], in_features=64, format="f16", gate="silu")
            lv15: R.Tensor((1, n, 64), dtype="float32") = M.fused_linear(lv14, lv12, weights=["model.layers.0.mlp.down_proj.weight"], out_features=[64], in_features=128, format="f16")
            lv16: R.Tensor((1, n, 64), dtype="float32") = M.rms_norm(lv15, weight="model.norm.weight", eps=1e-05)
            lv17: R.Tensor((1, n, 96), dtype="float32") = M.fused_linear(lv16, weights=["model.embed_tokens.weight"], out_features=[96], in_features=64, format="f16")
            gv: R.Tensor((1, n, 96), dtype="float32") = lv17
            R.output(gv)
        return gv
