# spec: normalize
from typing import TypeVar
from tvm.script import ir as I, relax as R, tirx as T
from morendo.ir.dialect import M

n = TypeVar("n")
@I.ir_module
class Module:
    @R.function
    def main(input_ids: R.Tensor((1, n), dtype="int64"), position_ids: R.Tensor((1, n), dtype="int64"), model_embed_tokens_weight: R.Tensor((96, 32), dtype="float32"), model_layers_0_self_attn_q_proj_weight: R.Tensor((32, 32), dtype="float32"), model_layers_0_self_attn_q_proj_bias: R.Tensor((32,), dtype="float32"), model_layers_0_self_attn_k_proj_weight: R.Tensor((32, 32), dtype="float32"), model_layers_0_self_attn_k_proj_bias: R.Tensor((32,), dtype="float32"), model_layers_0_self_attn_v_proj_weight: R.Tensor((32, 32), dtype="float32"), model_layers_0_self_attn_v_proj_bias: R.Tensor((32,), dtype="float32"), model_layers_0_self_attn_dense_weight: R.Tensor((32, 32), dtype="float32"), model_layers_0_self_attn_dense_bias: R.Tensor((32,), dtype="float32"), model_layers_0_mlp_fc1_weight: R.Tensor((48, 32), dtype="float32"), model_layers_0_mlp_fc1_bias: R.Tensor((48,), dtype="float32"), model_layers_0_mlp_fc2_weight: R.Tensor((32, 48), dtype="float32"), model_layers_0_mlp_fc2_bias: R.Tensor((32,), dtype="float32"), model_layers_0_input_layernorm_weight: R.Tensor((32,), dtype="float32"), model_layers_0_input_layernorm_bias: R.Tensor((32,), dtype="float32"), model_final_layernorm_weight: R.Tensor((32,), dtype="float32"), model_final_layernorm_bias: R.Tensor((32,), dtype="float32"), lm_head_weight: R.Tensor((96, 32), dtype="float32"), lm_head_bias: R.Tensor((96,), dtype="float32"), model_rotary_emb_inv_freq: R.Tensor((2,), dtype="float32")) -> R.Tensor((1, n, 96), dtype="float32"):
        R.func_attr({"num_input": 2, "weight_names": ["model.embed_tokens.weight", "model.layers.0.self_attn.q_proj.weight", "model.layers.0.self_attn.q_proj.bias", "model.layers.0.self_attn.k_proj.weight", "model.layers.0.self_attn.k_proj.bias", "model.layers.0.self_attn.v_proj.weight", "model.layers.0.self_attn.v_proj.bias", "model.layers.0.self_attn.dense.weight", "model.layers.0.self_attn.dense.bias", "model.layers.0.mlp.fc1.weight", "model.layers.0.mlp.fc1.bias", "model.layers.0.mlp.fc2.weight", "model.layers.0.mlp.fc2.bias", "model.layers.0.input_layernorm.weight", "model.layers.0.input_layernorm.bias", "model.final_layernorm.weight", "model.final_layernorm.bias", "lm_head.weight", "lm_head.bias", "model.rotary_emb.inv_freq"]})
        with R.dataflow():
            lv: R.Tensor((1, n), dtype="int32") = R.astype(input_ids, dtype="int32")
            lv1: R.Tensor((n,), dtype="int32") = R.reshape(lv, R.shape([n]))
            lv2: R.Tensor((n, 32), dtype="float32") = R.take(model_embed_tokens_weight, lv1, axis=0, mode="fast")
            lv3: R.Tensor((1, n, 32), dtype="float32") = R.reshape(lv2, R.shape([1, n, 32]))
            lv4: R.Tensor((1, n, 1), dtype="int64") = R.expand_dims(position_ids, axis=[2])
            lv5: R.Tensor((1, n, 1), dtype="float32") = R.astype(lv4, dtype="float32")
            lv6: R.Tensor((2,), dtype="float32") = R.astype(model_rotary_emb_inv_freq, dtype="float32")
            lv7: R.Tensor((1, n, 2), dtype="float32") = R.multiply(lv5, lv6)
            lv8: R.Tensor((1, n, 4), dtype="float32") = R.concat((lv7, lv7), axis=-1)
            lv9: R.Tensor((1, n, 4), dtype="float32") = R.cos(lv8)
            lv10: R.Tensor((1, n, 4), dtype="float32") = R.multiply(lv9, R.const(1.0, "float32"))
            lv11: R.Tensor((1, n, 4), dtype="float32") = R.sin(lv8)
            lv12: R.Tensor((1, n, 4), dtype="float32") = R.multiply(lv11, R.const(1.0, "float32"))
            lv13: R.Tensor((1, n, 4), dtype="float32") = R.astype(lv10, dtype="float32")
            lv14: R.Tensor((1, n, 4), dtype="float32") = R.astype(lv12, dtype="float32")
            lv15: R.Tensor((1, n, 32), dtype="float32") = R.nn.layer_norm(lv3, model_layers_0_input_layernorm_weight, model_layers_0_input_layernorm_bias, axes=[-1], epsilon=1.0000000000000001e-05, center=True, scale=True)
            lv16: R.Tensor((32, 32), dtype="float32") = R.permute_dims(model_layers_0_self_attn_q_proj_weight, axes=None)
            lv17: R.Tensor((1, n, 32), dtype="float32") = R.matmul(lv15, lv16, out_dtype="float32")
            lv18: R.Tensor((1, n, 32), dtype="float32") = R.add(lv17, model_layers_0_self_attn_q_proj_bias)
            lv19: R.Tensor((1, n, 4, 8), dtype="float32") = R.reshape(lv18, R.shape([1, n, 4, 8]))
            lv20: R.Tensor((1, 4, n, 8), dtype="float32") = R.permute_dims(lv19, axes=[0, 2, 1, 3])
            lv21: R.Tensor((32, 32), dtype="float32") = R.permute_dims(model_layers_0_self_attn_k_proj_weight, axes=None)
            lv22: R.Tensor((1, n, 32), dtype="float32") = R.matmul(lv15, lv21, out_dtype="float32")
            lv23: R.Tensor((1, n, 32), dtype="float32") = R.add(lv22, model_layers_0_self_attn_k_proj_bias)
            lv24: R.Tensor((1, n, 4, 8), dtype="float32") = R.reshape(lv23, R.shape([1, n, 4, 8]))
            lv25: R.Tensor((1, 4, n, 8), dtype="float32") = R.permute_dims(lv24, axes=[0, 2, 1, 3])
            lv26: R.Tensor((32, 32), dtype="float32") = R.permute_dims(model_layers_0_self_attn_v_proj_weight, axes=None)
            lv27: R.Tensor((1, n, 32), dtype="float32") = R.matmul(lv15, lv26, out_dtype="float32")
            lv28: R.Tensor((1, n, 32), dtype="float32") = R.add(lv27, model_layers_0_self_attn_v_proj_bias)
            lv29: R.Tensor((1, n, 4, 8), dtype="float32") = R.reshape(lv28, R.shape([1, n, 4, 8]))
            lv30: R.Tensor((1, 4, n, 8), dtype="float32") = R.permute_dims(lv29, axes=[0, 2, 1, 3])
            lv31: R.Tensor((1, 4, n, 4), dtype="float32") = R.strided_slice(lv20, (3,), (0,), (4,), (1,), assume_inbound=False)
            lv32: R.Tensor((1, 4, n, 4), dtype="float32") = R.strided_slice(lv20, (3,), (4,), (9223372036854775807,), (1,), assume_inbound=False)
            lv33: R.Tensor((1, 4, n, 4), dtype="float32") = R.strided_slice(lv25, (3,), (0,), (4,), (1,), assume_inbound=False)
            lv34: R.Tensor((1, 4, n, 4), dtype="float32") = R.strided_slice(lv25, (3,), (4,), (9223372036854775807,), (1,), assume_inbound=False)
            lv35: R.Tensor((1, 1, n, 4), dtype="float32") = R.expand_dims(lv13, axis=[1])
            lv36: R.Tensor((1, 1, n, 4), dtype="float32") = R.expand_dims(lv14, axis=[1])
            lv37: R.Tensor((1, 4, n, 4), dtype="float32") = R.multiply(lv31, lv35)
            lv38: R.Tensor((1, 4, n, 2), dtype="float32") = R.strided_slice(lv31, (3,), (0,), (2,), (1,), assume_inbound=False)
            lv39: R.Tensor((1, 4, n, 2), dtype="float32") = R.strided_slice(lv31, (3,), (2,), (9223372036854775807,), (1,), assume_inbound=False)
            lv40: R.Tensor((1, 4, n, 2), dtype="float32") = R.negative(lv39)
            lv41: R.Tensor((1, 4, n, 4), dtype="float32") = R.concat((lv40, lv38), axis=-1)
            lv42: R.Tensor((1, 4, n, 4), dtype="float32") = R.multiply(lv41, lv36)
            lv43: R.Tensor((1, 4, n, 4), dtype="float32") = R.add(lv37, lv42)
            lv44: R.Tensor((1, 4, n, 4), dtype="float32") = R.multiply(lv33, lv35)
            lv45: R.Tensor((1, 4, n, 2), dtype="float32") = R.strided_slice(lv33, (3,), (0,), (2,), (1,), assume_inbound=False)
            lv46: R.Tensor((1, 4, n, 2), dtype="float32") = R.strided_slice(lv33, (3,), (2,), (9223372036854775807,), (1,), assume_inbound=False)
            lv47: R.Tensor((1, 4, n, 2), dtype="float32") = R.negative(lv46)
            lv48: R.Tensor((1, 4, n, 4), dtype="float32") = R.concat((lv47, lv45), axis=-1)
            lv49: R.Tensor((1, 4, n, 4), dtype="float32") = R.multiply(lv48, lv36)
            lv50: R.Tensor((1, 4, n, 4), dtype="float32") = R.add(lv44, lv49)
            lv51: R.Tensor((1, 4, n, 8), dtype="float32") = R.concat((lv43, lv32), axis=-1)
            lv52: R.Tensor((1, 4, n, 8), dtype="float32") = R.concat((lv50, lv34), axis=-1)
            lv53: R.Tensor((1, n, 4, 8), dtype="float32") = R.permute_dims(lv51, axes=[0, 2, 1, 3])
            lv54: R.Tensor((1, n, 4, 8), dtype="float32") = R.permute_dims(lv52, axes=[0, 2, 1, 3])
            lv55: R.Tensor((1, n, 4, 8), dtype="float32") = R.permute_dims(lv30, axes=[0, 2, 1, 3])
            lv56: R.Tensor((1, n, 4, 8), dtype="float32") = M.attention(lv53, lv54, lv55, layer=0, scale=0.3535533905932738)
            lv57: R.Tensor((1, n, 32), dtype="float32") = R.reshape(lv56, R.shape([1, n, 32]))
            lv58: R.Tensor((32, 32), dtype="float32") = R.permute_dims(model_layers_0_self_attn_dense_weight, axes=None)
            lv59: R.Tensor((1, n, 32), dtype="float32") = R.matmul(lv57, lv58, out_dtype="float32")
            lv60: R.Tensor((1, n, 32), dtype="float32") = R.add(lv59, model_layers_0_self_attn_dense_bias)
            lv61: R.Tensor((32, 48), dtype="float32") = R.permute_dims(model_layers_0_mlp_fc1_weight, axes=None)
            lv62: R.Tensor((1, n, 48), dtype="float32") = R.matmul(lv15, lv61, out_dtype="float32")
            lv63: R.Tensor((1, n, 48), dtype="float32") = R.add(lv62, model_layers_0_mlp_fc1_bias)
            lv64: R.Tensor((1, n, 48), dtype="float32") = R.multiply(lv63, R.const(0.5, "float32"))
            lv65: R.Tensor((1, n, 48), dtype="float32") = R.power(lv63, R.const(3.0, "float32"))
            lv66: R.Tensor((1, n, 48), dtype="float32") = R.multiply(lv65, R.const(0.044714998453855515, "float32"))
            lv67: R.Tensor((1, n, 48), dtype="float32") = R.add(lv63, lv66)
            lv68: R.Tensor((1, n, 48), dtype="float32") = R.multiply(lv67, R.const(0.79788458347320557, "float32"))
            lv69: R.Tensor((1, n, 48), dtype="float32") = R.tanh(lv68)
            lv70: R.Tensor((1, n, 48), dtype="float32") = R.add(lv69, R.const(1.0, "float32"))
            lv71: R.Tensor((1, n, 48), dtype="float32") = R.multiply(lv64, lv70)
            lv72: R.Tensor((48, 32), dtype="float32") = R.permute_dims(model_layers_0_mlp_fc2_weight, axes=None)
            lv73: R.Tensor((1, n, 32), dtype="float32") = R.matmul(lv71, lv72, out_dtype="float32")
            lv74: R.Tensor((1, n, 32), dtype="float32") = R.add(lv73, model_layers_0_mlp_fc2_bias)
            lv75: R.Tensor((1, n, 32), dtype="float32") = R.add(lv60, lv74)
            lv76: R.Tensor((1, n, 32), dtype="float32") = R.add(lv75, lv3)
            lv77: R.Tensor((1, n, 32), dtype="float32") = R.nn.layer_norm(lv76, model_final_layernorm_weight, model_final_layernorm_bias, axes=[-1], epsilon=1.0000000000000001e-05, center=True, scale=True)
            lv78: R.Tensor((32, 96), dtype="float32") = R.permute_dims(lm_head_weight, axes=None)
            lv79: R.Tensor((1, n, 96), dtype="float32") = R.matmul(lv77, lv78, out_dtype="float32")
            lv80: R.Tensor((1, n, 96), dtype="float32") = R.add(lv79, lm_head_bias)
            gv: R.Tensor((1, n, 96), dtype="float32") = lv80
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
            lv: R.Tensor((1, n, 32), dtype="float32") = M.embedding(input_ids, weight="model.embed_tokens.weight", rows=96, features=32)
            lv1: R.Tensor((1, n, 32), dtype="float32") = M.layer_norm(lv, weight="model.layers.0.input_layernorm.weight", bias="model.layers.0.input_layernorm.bias", eps=1e-05)
            lv2: R.Tensor((1, n, 32), dtype="float32") = M.linear(lv1, weight="model.layers.0.self_attn.q_proj.weight", bias="model.layers.0.self_attn.q_proj.bias", out_features=32, in_features=32)
            lv3: R.Tensor((1, n, 4, 8), dtype="float32") = R.reshape(lv2, R.shape([1, n, 4, 8]))
            lv4: R.Tensor((1, n, 32), dtype="float32") = M.linear(lv1, weight="model.layers.0.self_attn.k_proj.weight", bias="model.layers.0.self_attn.k_proj.bias", out_features=32, in_features=32)
            lv5: R.Tensor((1, n, 4, 8), dtype="float32") = R.reshape(lv4, R.shape([1, n, 4, 8]))
            lv6: R.Tensor((1, n, 32), dtype="float32") = M.linear(lv1, weight="model.layers.0.self_attn.v_proj.weight", bias="model.layers.0.self_attn.v_proj.bias", out_features=32, in_features=32)
            lv7: R.Tensor((1, n, 4, 8), dtype="float32") = R.reshape(lv6, R.shape([1, n, 4, 8]))
            lv8: R.Tensor((1, n, 4, 8), dtype="float32") = M.rope(lv3, position_ids, inv_freq="model.rotary_emb.inv_freq", rotary_dim=4)
            lv9: R.Tensor((1, n, 4, 8), dtype="float32") = M.rope(lv5, position_ids, inv_freq="model.rotary_emb.inv_freq", rotary_dim=4)
            lv10: R.Tensor((1, n, 4, 8), dtype="float32") = M.attention(lv8, lv9, lv7, layer=0, scale=0.3535533905932738)
            lv11: R.Tensor((1, n, 32), dtype="float32") = R.reshape(lv10, R.shape([1, n, 32]))
            lv12: R.Tensor((1, n, 32), dtype="float32") = M.linear(lv11, weight="model.layers.0.self_attn.dense.weight", bias="model.layers.0.self_attn.dense.bias", out_features=32, in_features=32)
            lv13: R.Tensor((1, n, 48), dtype="float32") = M.linear(lv1, weight="model.layers.0.mlp.fc1.weight", bias="model.layers.0.mlp.fc1.bias", out_features=48, in_features=32)
            lv14: R.Tensor((1, n, 48), dtype="float32") = R.nn.gelu_tanh(lv13)
            lv15: R.Tensor((1, n, 32), dtype="float32") = M.linear(lv14, weight="model.layers.0.mlp.fc2.weight", bias="model.layers.0.mlp.fc2.bias", out_features=32, in_features=48)
            lv16: R.Tensor((1, n, 32), dtype="float32") = R.add(lv12, lv15)
            lv17: R.Tensor((1, n, 32), dtype="float32") = R.add(lv16, lv)
            lv18: R.Tensor((1, n, 32), dtype="float32") = M.layer_norm(lv17, weight="model.final_layernorm.weight", bias="model.final_layernorm.bias", eps=1e-05)
            lv19: R.Tensor((1, n, 96), dtype="float32") = M.linear(lv18, weight="lm_head.weight", bias="lm_head.bias", out_features=96, in_features=32)
            gv: R.Tensor((1, n, 96), dtype="float32") = lv19
            R.output(gv)
        return gv
