# spec: quantize-weights{compact=True,readings=43}
from typing import TypeVar
from tvm.script import ir as I, relax as R, tirx as T
from morendo.ir.dialect import M

n = TypeVar("n")
@I.ir_module
class Module:
    @R.function
    def main(input_ids: R.Tensor((1, n), dtype="int64"), position_ids: R.Tensor((1, n), dtype="int64")) -> R.Tensor((1, n, 96), dtype="float32"):
        with R.dataflow():
            lv: R.Tensor((1, n, 64), dtype="float32") = M.embedding(input_ids, weight="model.embed_tokens.weight", rows=96, features=64)
            lv1: R.Tensor((1, n, 64), dtype="float32") = M.rms_norm(lv, weight="model.layers.0.input_layernorm.weight", eps=1e-05)
            lv2: R.Tensor((1, n, 64), dtype="float32") = M.linear(lv1, weight="model.layers.0.self_attn.q_proj.weight", out_features=64, in_features=64)
            lv3: R.Tensor((1, n, 4, 16), dtype="float32") = R.reshape(lv2, R.shape([1, n, 4, 16]))
            lv4: R.Tensor((1, n, 32), dtype="float32") = M.linear(lv1, weight="model.layers.0.self_attn.k_proj.weight", out_features=32, in_features=64)
            lv5: R.Tensor((1, n, 2, 16), dtype="float32") = R.reshape(lv4, R.shape([1, n, 2, 16]))
            lv6: R.Tensor((1, n, 32), dtype="float32") = M.linear(lv1, weight="model.layers.0.self_attn.v_proj.weight", out_features=32, in_features=64)
            lv7: R.Tensor((1, n, 2, 16), dtype="float32") = R.reshape(lv6, R.shape([1, n, 2, 16]))
            lv8: R.Tensor((1, n, 4, 16), dtype="float32") = M.rope(lv3, position_ids, inv_freq="model.rotary_emb.inv_freq", rotary_dim=16)
            lv9: R.Tensor((1, n, 2, 16), dtype="float32") = M.rope(lv5, position_ids, inv_freq="model.rotary_emb.inv_freq", rotary_dim=16)
            lv10: R.Tensor((1, n, 4, 16), dtype="float32") = M.attention(lv8, lv9, lv7, layer=0, scale=0.25)
            lv11: R.Tensor((1, n, 64), dtype="float32") = R.reshape(lv10, R.shape([1, n, 64]))
            lv12: R.Tensor((1, n, 64), dtype="float32") = M.linear(lv11, weight="model.layers.0.self_attn.o_proj.weight", out_features=64, in_features=64)
            lv13: R.Tensor((1, n, 64), dtype="float32") = R.add(lv, lv12)
            lv14: R.Tensor((1, n, 64), dtype="float32") = M.rms_norm(lv13, weight="model.layers.0.post_attention_layernorm.weight", eps=1e-05)
            lv15: R.Tensor((1, n, 128), dtype="float32") = M.linear(lv14, weight="model.layers.0.mlp.gate_proj.weight", out_features=128, in_features=64)
            lv16: R.Tensor((1, n, 128), dtype="float32") = M.linear(lv14, weight="model.layers.0.mlp.up_proj.weight", out_features=128, in_features=64)
            lv17: R.Tensor((1, n, 128), dtype="float32") = M.gated(lv15, lv16, activation="silu")
            lv18: R.Tensor((1, n, 64), dtype="float32") = M.linear(lv17, weight="model.layers.0.mlp.down_proj.weight", out_features=64, in_features=128)
            lv19: R.Tensor((1, n, 64), dtype="float32") = R.add(lv13, lv18)
            lv20: R.Tensor((1, n, 64), dtype="float32") = M.rms_norm(lv19, weight="model.norm.weight", eps=1e-05)
            lv21: R.Tensor((1, n, 96), dtype="float32") = M.linear(lv20, weight="model.embed_tokens.weight", out_features=96, in_features=64)
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
            lv: R.Tensor((1, n, 64), dtype="float32") = M.embedding(input_ids, weight="model.embed_tokens.weight", rows=96, features=64, format="q8g32")
            lv1: R.Tensor((1, n, 64), dtype="float32") = M.rms_norm(lv, weight="model.layers.0.input_layernorm.weight", eps=1e-05)
            lv2: R.Tensor((1, n, 64), dtype="float32") = M.linear(lv1, weight="model.layers.0.self_attn.q_proj.weight", out_features=64, in_features=64, format="q4g32cr43")
            lv3: R.Tensor((1, n, 4, 16), dtype="float32") = R.reshape(lv2, R.shape([1, n, 4, 16]))
            lv4: R.Tensor((1, n, 32), dtype="float32") = M.linear(lv1, weight="model.layers.0.self_attn.k_proj.weight", out_features=32, in_features=64, format="q4g32cr43")
            lv5: R.Tensor((1, n, 2, 16), dtype="float32") = R.reshape(lv4, R.shape([1, n, 2, 16]))
            lv6: R.Tensor((1, n, 32), dtype="float32") = M.linear(lv1, weight="model.layers.0.self_attn.v_proj.weight", out_features=32, in_features=64, format="q4g32cr43")
            lv7: R.Tensor((1, n, 2, 16), dtype="float32") = R.reshape(lv6, R.shape([1, n, 2, 16]))
            lv8: R.Tensor((1, n, 4, 16), dtype="float32") = M.rope(lv3, position_ids, inv_freq="model.rotary_emb.inv_freq", rotary_dim=16)
            lv9: R.Tensor((1, n, 2, 16), dtype="float32") = M.rope(lv5, position_ids, inv_freq="model.rotary_emb.inv_freq", rotary_dim=16)
            lv10: R.Tensor((1, n, 4, 16), dtype="float32") = M.attention(lv8, lv9, lv7, layer=0, scale=0.25)
            lv11: R.Tensor((1, n, 64), dtype="float32") = R.reshape(lv10, R.shape([1, n, 64]))
            lv12: R.Tensor((1, n, 64), dtype="float32") = M.linear(lv11, weight="model.layers.0.self_attn.o_proj.weight", out_features=64, in_features=64, format="q4g32cr43")
            lv13: R.Tensor((1, n, 64), dtype="float32") = R.add(lv, lv12)
            lv14: R.Tensor((1, n, 64), dtype="float32") = M.rms_norm(lv13, weight="model.layers.0.post_attention_layernorm.weight", eps=1e-05)
            lv15: R.Tensor((1, n, 128), dtype="float32") = M.linear(lv14, weight="model.layers.0.mlp.gate_proj.weight", out_features=128, in_features=64, format="q4g32cr43")
            lv16: R.Tensor((1, n, 128), dtype="float32") = M.linear(lv14, weight="model.layers.0.mlp.up_proj.weight", out_features=128, in_features=64, format="q4g32cr43")
            lv17: R.Tensor((1, n, 128), dtype="float32") = M.gated(lv15, lv16, activation="silu")
            lv18: R.Tensor((1, n, 64), dtype="float32") = M.linear(lv17, weight="model.layers.0.mlp.down_proj.weight", out_features=64, in_features=128, format="q4g32cr43")
            lv19: R.Tensor((1, n, 64), dtype="float32") = R.add(lv13, lv18)
            lv20: R.Tensor((1, n, 64), dtype="float32") = M.rms_norm(lv19, weight="model.norm.weight", eps=1e-05)
            lv21: R.Tensor((1, n, 96), dtype="float32") = M.linear(lv20, weight="model.embed_tokens.weight", out_features=96, in_features=64, format="q8g32")
            gv: R.Tensor((1, n, 96), dtype="float32") = lv21
            R.output(gv)
        return gv
