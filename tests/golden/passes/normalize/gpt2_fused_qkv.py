# spec: normalize
from typing import TypeVar
from tvm.script import ir as I, relax as R, tirx as T
from morendo.ir.dialect import M

n = TypeVar("n")
@I.ir_module
class Module:
    @R.function
    def main(input_ids: R.Tensor((1, n), dtype="int64"), position_ids: R.Tensor((1, n), dtype="int64"), transformer_wpe_weight: R.Tensor((64, 32), dtype="float32"), transformer_h_0_ln_1_weight: R.Tensor((32,), dtype="float32"), transformer_h_0_ln_1_bias: R.Tensor((32,), dtype="float32"), transformer_h_0_attn_c_attn_weight: R.Tensor((32, 96), dtype="float32"), transformer_h_0_attn_c_attn_bias: R.Tensor((96,), dtype="float32"), transformer_h_0_attn_c_proj_weight: R.Tensor((32, 32), dtype="float32"), transformer_h_0_attn_c_proj_bias: R.Tensor((32,), dtype="float32"), transformer_h_0_ln_2_weight: R.Tensor((32,), dtype="float32"), transformer_h_0_ln_2_bias: R.Tensor((32,), dtype="float32"), transformer_h_0_mlp_c_fc_weight: R.Tensor((32, 128), dtype="float32"), transformer_h_0_mlp_c_fc_bias: R.Tensor((128,), dtype="float32"), transformer_h_0_mlp_c_proj_weight: R.Tensor((128, 32), dtype="float32"), transformer_h_0_mlp_c_proj_bias: R.Tensor((32,), dtype="float32"), transformer_ln_f_weight: R.Tensor((32,), dtype="float32"), transformer_ln_f_bias: R.Tensor((32,), dtype="float32"), transformer_wte_weight: R.Tensor((96, 32), dtype="float32")) -> R.Tensor((1, n, 96), dtype="float32"):
        R.func_attr({"num_input": 2, "weight_names": ["transformer.wpe.weight", "transformer.h.0.ln_1.weight", "transformer.h.0.ln_1.bias", "transformer.h.0.attn.c_attn.weight", "transformer.h.0.attn.c_attn.bias", "transformer.h.0.attn.c_proj.weight", "transformer.h.0.attn.c_proj.bias", "transformer.h.0.ln_2.weight", "transformer.h.0.ln_2.bias", "transformer.h.0.mlp.c_fc.weight", "transformer.h.0.mlp.c_fc.bias", "transformer.h.0.mlp.c_proj.weight", "transformer.h.0.mlp.c_proj.bias", "transformer.ln_f.weight", "transformer.ln_f.bias", "transformer.wte.weight"]})
        with R.dataflow():
            lv: R.Tensor((1, n), dtype="int64") = R.reshape(input_ids, R.shape([1, n]))
            lv1: R.Tensor((1, n), dtype="int32") = R.astype(lv, dtype="int32")
            lv2: R.Tensor((n,), dtype="int32") = R.reshape(lv1, R.shape([n]))
            lv3: R.Tensor((n, 32), dtype="float32") = R.take(transformer_wte_weight, lv2, axis=0, mode="fast")
            lv4: R.Tensor((1, n, 32), dtype="float32") = R.reshape(lv3, R.shape([1, n, 32]))
            lv5: R.Tensor((1, n), dtype="int32") = R.astype(position_ids, dtype="int32")
            lv6: R.Tensor((n,), dtype="int32") = R.reshape(lv5, R.shape([n]))
            lv7: R.Tensor((n, 32), dtype="float32") = R.take(transformer_wpe_weight, lv6, axis=0, mode="fast")
            lv8: R.Tensor((1, n, 32), dtype="float32") = R.reshape(lv7, R.shape([1, n, 32]))
            lv9: R.Tensor((1, n, 32), dtype="float32") = R.astype(lv8, dtype="float32")
            lv10: R.Tensor((1, n, 32), dtype="float32") = R.add(lv4, lv9)
            lv11: R.Tensor((1, n, 32), dtype="float32") = R.nn.layer_norm(lv10, transformer_h_0_ln_1_weight, transformer_h_0_ln_1_bias, axes=[-1], epsilon=1.0000000000000001e-05, center=True, scale=True)
            lv12: R.Tensor((n, 32), dtype="float32") = R.reshape(lv11, R.shape([n, 32]))
            lv13: R.Tensor((n, 96), dtype="float32") = R.matmul(lv12, transformer_h_0_attn_c_attn_weight, out_dtype="float32")
            lv14: R.Tensor((n, 96), dtype="float32") = R.add(transformer_h_0_attn_c_attn_bias, lv13)
            lv15: R.Tensor((1, n, 96), dtype="float32") = R.reshape(lv14, R.shape([1, n, 96]))
            lv16: R.Tuple(R.Tensor((1, n, 32), dtype="float32"), R.Tensor((1, n, 32), dtype="float32"), R.Tensor((1, n, 32), dtype="float32")) = R.split(lv15, indices_or_sections=[32, 64], axis=2)
            lv17: R.Tensor((1, n, 32), dtype="float32") = lv16[0]
            lv18: R.Tensor((1, n, 32), dtype="float32") = lv16[1]
            lv19: R.Tensor((1, n, 32), dtype="float32") = lv16[2]
            lv20: R.Tensor((1, n, 4, 8), dtype="float32") = R.reshape(lv18, R.shape([1, n, 4, 8]))
            lv21: R.Tensor((1, 4, n, 8), dtype="float32") = R.permute_dims(lv20, axes=[0, 2, 1, 3])
            lv22: R.Tensor((1, n, 4, 8), dtype="float32") = R.reshape(lv19, R.shape([1, n, 4, 8]))
            lv23: R.Tensor((1, 4, n, 8), dtype="float32") = R.permute_dims(lv22, axes=[0, 2, 1, 3])
            lv24: R.Tensor((1, n, 4, 8), dtype="float32") = R.reshape(lv17, R.shape([1, n, 4, 8]))
            lv25: R.Tensor((1, 4, n, 8), dtype="float32") = R.permute_dims(lv24, axes=[0, 2, 1, 3])
            lv26: R.Tensor((1, n, 4, 8), dtype="float32") = R.permute_dims(lv25, axes=[0, 2, 1, 3])
            lv27: R.Tensor((1, n, 4, 8), dtype="float32") = R.permute_dims(lv21, axes=[0, 2, 1, 3])
            lv28: R.Tensor((1, n, 4, 8), dtype="float32") = R.permute_dims(lv23, axes=[0, 2, 1, 3])
            lv29: R.Tensor((1, n, 4, 8), dtype="float32") = M.attention(lv26, lv27, lv28, layer=0, scale=0.3535533905932738)
            lv30: R.Tensor((1, n, 32), dtype="float32") = R.reshape(lv29, R.shape([1, n, 32]))
            lv31: R.Tensor((n, 32), dtype="float32") = R.reshape(lv30, R.shape([n, 32]))
            lv32: R.Tensor((n, 32), dtype="float32") = R.matmul(lv31, transformer_h_0_attn_c_proj_weight, out_dtype="float32")
            lv33: R.Tensor((n, 32), dtype="float32") = R.add(transformer_h_0_attn_c_proj_bias, lv32)
            lv34: R.Tensor((1, n, 32), dtype="float32") = R.reshape(lv33, R.shape([1, n, 32]))
            lv35: R.Tensor((1, n, 32), dtype="float32") = R.add(lv34, lv10)
            lv36: R.Tensor((1, n, 32), dtype="float32") = R.nn.layer_norm(lv35, transformer_h_0_ln_2_weight, transformer_h_0_ln_2_bias, axes=[-1], epsilon=1.0000000000000001e-05, center=True, scale=True)
            lv37: R.Tensor((n, 32), dtype="float32") = R.reshape(lv36, R.shape([n, 32]))
            lv38: R.Tensor((n, 128), dtype="float32") = R.matmul(lv37, transformer_h_0_mlp_c_fc_weight, out_dtype="float32")
            lv39: R.Tensor((n, 128), dtype="float32") = R.add(transformer_h_0_mlp_c_fc_bias, lv38)
            lv40: R.Tensor((1, n, 128), dtype="float32") = R.reshape(lv39, R.shape([1, n, 128]))
            lv41: R.Tensor((1, n, 128), dtype="float32") = R.multiply(lv40, R.const(0.5, "float32"))
            lv42: R.Tensor((1, n, 128), dtype="float32") = R.power(lv40, R.const(3.0, "float32"))
            lv43: R.Tensor((1, n, 128), dtype="float32") = R.multiply(lv42, R.const(0.044714998453855515, "float32"))
            lv44: R.Tensor((1, n, 128), dtype="float32") = R.add(lv40, lv43)
            lv45: R.Tensor((1, n, 128), dtype="float32") = R.multiply(lv44, R.const(0.79788458347320557, "float32"))
            lv46: R.Tensor((1, n, 128), dtype="float32") = R.tanh(lv45)
            lv47: R.Tensor((1, n, 128), dtype="float32") = R.add(lv46, R.const(1.0, "float32"))
            lv48: R.Tensor((1, n, 128), dtype="float32") = R.multiply(lv41, lv47)
            lv49: R.Tensor((n, 128), dtype="float32") = R.reshape(lv48, R.shape([n, 128]))
            lv50: R.Tensor((n, 32), dtype="float32") = R.matmul(lv49, transformer_h_0_mlp_c_proj_weight, out_dtype="float32")
            lv51: R.Tensor((n, 32), dtype="float32") = R.add(transformer_h_0_mlp_c_proj_bias, lv50)
            lv52: R.Tensor((1, n, 32), dtype="float32") = R.reshape(lv51, R.shape([1, n, 32]))
            lv53: R.Tensor((1, n, 32), dtype="float32") = R.add(lv35, lv52)
            lv54: R.Tensor((1, n, 32), dtype="float32") = R.nn.layer_norm(lv53, transformer_ln_f_weight, transformer_ln_f_bias, axes=[-1], epsilon=1.0000000000000001e-05, center=True, scale=True)
            lv55: R.Tensor((1, n, 32), dtype="float32") = R.reshape(lv54, R.shape([1, n, 32]))
            lv56: R.Tensor((32, 96), dtype="float32") = R.permute_dims(transformer_wte_weight, axes=None)
            lv57: R.Tensor((1, n, 96), dtype="float32") = R.matmul(lv55, lv56, out_dtype="float32")
            gv: R.Tensor((1, n, 96), dtype="float32") = lv57
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
            lv: R.Tensor((1, n, 32), dtype="float32") = M.embedding(input_ids, weight="transformer.wte.weight", rows=96, features=32)
            lv1: R.Tensor((1, n, 32), dtype="float32") = M.embedding(position_ids, weight="transformer.wpe.weight", rows=64, features=32)
            lv2: R.Tensor((1, n, 32), dtype="float32") = R.add(lv, lv1)
            lv3: R.Tensor((1, n, 32), dtype="float32") = M.layer_norm(lv2, weight="transformer.h.0.ln_1.weight", bias="transformer.h.0.ln_1.bias", eps=1e-05)
            lv4: R.Tensor((1, n, 32), dtype="float32") = M.linear(lv3, weight="transformer.h.0.attn.c_attn.weight[:,0:32]", bias="transformer.h.0.attn.c_attn.bias[0:32]", out_features=32, in_features=32, transposed=True)
            lv5: R.Tensor((1, n, 32), dtype="float32") = M.linear(lv3, weight="transformer.h.0.attn.c_attn.weight[:,32:64]", bias="transformer.h.0.attn.c_attn.bias[32:64]", out_features=32, in_features=32, transposed=True)
            lv6: R.Tensor((1, n, 32), dtype="float32") = M.linear(lv3, weight="transformer.h.0.attn.c_attn.weight[:,64:96]", bias="transformer.h.0.attn.c_attn.bias[64:96]", out_features=32, in_features=32, transposed=True)
            lv7: R.Tensor((1, n, 4, 8), dtype="float32") = R.reshape(lv5, R.shape([1, n, 4, 8]))
            lv8: R.Tensor((1, n, 4, 8), dtype="float32") = R.reshape(lv6, R.shape([1, n, 4, 8]))
            lv9: R.Tensor((1, n, 4, 8), dtype="float32") = R.reshape(lv4, R.shape([1, n, 4, 8]))
            lv10: R.Tensor((1, n, 4, 8), dtype="float32") = M.attention(lv9, lv7, lv8, layer=0, scale=0.3535533905932738)
            lv11: R.Tensor((1, n, 32), dtype="float32") = R.reshape(lv10, R.shape([1, n, 32]))
            lv12: R.Tensor((1, n, 32), dtype="float32") = M.linear(lv11, weight="transformer.h.0.attn.c_proj.weight", bias="transformer.h.0.attn.c_proj.bias", out_features=32, in_features=32, transposed=True)
            lv13: R.Tensor((1, n, 32), dtype="float32") = R.add(lv12, lv2)
            lv14: R.Tensor((1, n, 32), dtype="float32") = M.layer_norm(lv13, weight="transformer.h.0.ln_2.weight", bias="transformer.h.0.ln_2.bias", eps=1e-05)
            lv15: R.Tensor((1, n, 128), dtype="float32") = M.linear(lv14, weight="transformer.h.0.mlp.c_fc.weight", bias="transformer.h.0.mlp.c_fc.bias", out_features=128, in_features=32, transposed=True)
            lv16: R.Tensor((1, n, 128), dtype="float32") = R.nn.gelu_tanh(lv15)
            lv17: R.Tensor((1, n, 32), dtype="float32") = M.linear(lv16, weight="transformer.h.0.mlp.c_proj.weight", bias="transformer.h.0.mlp.c_proj.bias", out_features=32, in_features=128, transposed=True)
            lv18: R.Tensor((1, n, 32), dtype="float32") = R.add(lv13, lv17)
            lv19: R.Tensor((1, n, 32), dtype="float32") = M.layer_norm(lv18, weight="transformer.ln_f.weight", bias="transformer.ln_f.bias", eps=1e-05)
            lv20: R.Tensor((1, n, 96), dtype="float32") = M.linear(lv19, weight="transformer.wte.weight", out_features=96, in_features=32)
            gv: R.Tensor((1, n, 96), dtype="float32") = lv20
            R.output(gv)
        return gv
