# spec: quantize-activations
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
    def main(input_ids: R.Tensor((1, n), dtype="int64"), position_ids: R.Tensor((1, n), dtype="int64")) -> R.Tensor((1, n, 96), dtype="float32"):
        with R.dataflow():
            lv: R.Tensor((1, n, 64), dtype="float32") = M.embedding(input_ids, weight="model.embed_tokens.weight", rows=96, features=64, format="q8g32")
            lv2: R.Tuple(R.Tensor((1, n, 64), dtype="int8"), R.Tensor((1, n, 2), dtype="float32"), R.Tensor((1, n, 2), dtype="int32")) = M.rms_norm_quantize(lv, weight="model.layers.0.input_layernorm.weight", eps=1e-05, group_size=32)
            lv3: R.Tensor((1, n, 64), dtype="int8") = lv2[0]
            lv4: R.Tensor((1, n, 2), dtype="float32") = lv2[1]
            lv5: R.Tensor((1, n, 2), dtype="int32") = lv2[2]
            lv6: R.Tensor((1, n, 128), dtype="float32") = M.quantized_linear(lv3, lv4, lv5, weights=["model.layers.0.self_attn.q_proj.weight", "model.layers.0.self_attn.k_proj.weight", "model.layers.0.self_attn.v_proj.weight"], out_features=[64, 32, 32], in_features=64, format="q4g32")
            lv7: R.Tensor((1, n, 64), dtype="float32") = M.stacked_attention(lv6, position_ids, heads=4, kv_heads=2, head_dim=16, inv_freq="model.rotary_emb.inv_freq", rotary_dim=16, layer=0, scale=0.25)
            lv8: R.Tensor((1, n, 4, 16), dtype="float32") = R.reshape(lv7, R.shape([1, n, 4, 16]))
            lv9: R.Tensor((1, n, 64), dtype="float32") = R.reshape(lv8, R.shape([1, n, 64]))
            lv10: R.Tuple(R.Tensor((1, n, 64), dtype="int8"), R.Tensor((1, n, 2), dtype="float32"), R.Tensor((1, n, 2), dtype="int32")) = M.quantize_activation(lv9, group_size=32)
            lv11: R.Tensor((1, n, 64), dtype="int8") = lv10[0]
            lv12: R.Tensor((1, n, 2), dtype="float32") = lv10[1]
            lv13: R.Tensor((1, n, 2), dtype="int32") = lv10[2]
            lv14: R.Tensor((1, n, 64), dtype="float32") = M.quantized_linear(lv11, lv12, lv13, lv, weights=["model.layers.0.self_attn.o_proj.weight"], out_features=[64], in_features=64, format="q4g32")
            lv16: R.Tuple(R.Tensor((1, n, 64), dtype="int8"), R.Tensor((1, n, 2), dtype="float32"), R.Tensor((1, n, 2), dtype="int32")) = M.rms_norm_quantize(lv14, weight="model.layers.0.post_attention_layernorm.weight", eps=1e-05, group_size=32)
            lv17: R.Tensor((1, n, 64), dtype="int8") = lv16[0]
            lv18: R.Tensor((1, n, 2), dtype="float32") = lv16[1]
            lv19: R.Tensor((1, n, 2), dtype="int32") = lv16[2]
            lv20: R.Tensor((1, n, 128), dtype="float32") = M.quantized_linear(lv17, lv18, lv19, weights=["model.layers.0.mlp.gate_proj.weight", "model.layers.0.mlp.up_proj.weight"], out_features=[128, 128], in_features=64, format="q4g32", gate="silu")
            lv21: R.Tuple(R.Tensor((1, n, 128), dtype="int8"), R.Tensor((1, n, 4), dtype="float32"), R.Tensor((1, n, 4), dtype="int32")) = M.quantize_activation(lv20, group_size=32)
            lv22: R.Tensor((1, n, 128), dtype="int8") = lv21[0]
            lv23: R.Tensor((1, n, 4), dtype="float32") = lv21[1]
            lv24: R.Tensor((1, n, 4), dtype="int32") = lv21[2]
            lv25: R.Tensor((1, n, 64), dtype="float32") = M.quantized_linear(lv22, lv23, lv24, lv14, weights=["model.layers.0.mlp.down_proj.weight"], out_features=[64], in_features=128, format="q4g32")
            lv27: R.Tuple(R.Tensor((1, n, 64), dtype="int8"), R.Tensor((1, n, 2), dtype="float32"), R.Tensor((1, n, 2), dtype="int32")) = M.rms_norm_quantize(lv25, weight="model.norm.weight", eps=1e-05, group_size=32)
            lv28: R.Tensor((1, n, 64), dtype="int8") = lv27[0]
            lv29: R.Tensor((1, n, 2), dtype="float32") = lv27[1]
            lv30: R.Tensor((1, n, 2), dtype="int32") = lv27[2]
            lv31: R.Tensor((1, n, 96), dtype="float32") = M.quantized_linear(lv28, lv29, lv30, weights=["model.embed_tokens.weight"], out_features=[96], in_features=64, format="q8g32")
            gv: R.Tensor((1, n, 96), dtype="float32") = lv31
            R.output(gv)
        return gv
