# spec: prune-tokens{ratio=0.2,prunings=2}
from typing import TypeVar
from tvm.script import ir as I, relax as R, tirx as T
from morendo.ir.dialect import M

n = TypeVar("n")
@I.ir_module
class Module:
    @R.function
    def decode(input_ids: R.Tensor((1, 1), dtype="int64"), position_ids: R.Tensor((1, 1), dtype="int64")) -> R.Tensor((1, 1, 32), dtype="float32"):
        with R.dataflow():
            lv: R.Tensor((1, 1, 32), dtype="float32") = M.embedding(input_ids, weight="embed", rows=32, features=32)
            lv1: R.Tensor((1, 1, 96), dtype="float32") = M.fused_linear(lv, weights=["qkv.0"], out_features=[96], in_features=32)
            lv2: R.Tensor((1, 1, 32), dtype="float32") = M.cached_stacked_attention(lv1, position_ids, heads=2, kv_heads=2, head_dim=16, inv_freq="inv_freq", rotary_dim=16, layer=0, scale=0.25)
            lv3: R.Tensor((1, 1, 32), dtype="float32") = M.fused_linear(lv2, lv, weights=["o.0"], out_features=[32], in_features=32)
            lv4: R.Tensor((1, 1, 96), dtype="float32") = M.fused_linear(lv3, weights=["qkv.1"], out_features=[96], in_features=32)
            lv5: R.Tensor((1, 1, 32), dtype="float32") = M.cached_stacked_attention(lv4, position_ids, heads=2, kv_heads=2, head_dim=16, inv_freq="inv_freq", rotary_dim=16, layer=1, scale=0.25)
            lv6: R.Tensor((1, 1, 32), dtype="float32") = M.fused_linear(lv5, lv3, weights=["o.1"], out_features=[32], in_features=32)
            lv7: R.Tensor((1, 1, 96), dtype="float32") = M.fused_linear(lv6, weights=["qkv.2"], out_features=[96], in_features=32)
            lv8: R.Tensor((1, 1, 32), dtype="float32") = M.cached_stacked_attention(lv7, position_ids, heads=2, kv_heads=2, head_dim=16, inv_freq="inv_freq", rotary_dim=16, layer=2, scale=0.25)
            lv9: R.Tensor((1, 1, 32), dtype="float32") = M.fused_linear(lv8, lv6, weights=["o.2"], out_features=[32], in_features=32)
            lv10: R.Tensor((1, 1, 32), dtype="float32") = M.fused_linear(lv9, weights=["q.3"], out_features=[32], in_features=32)
            lv11: R.Tensor((1, 1, 2, 16), dtype="float32") = R.reshape(lv10, R.shape([1, 1, 2, 16]))
            lv12: R.Tensor((1, 1, 2, 16), dtype="float32") = M.rope(lv11, position_ids, inv_freq="inv_freq", rotary_dim=16)
            lv13: R.Tensor((1, 1, 32), dtype="float32") = M.fused_linear(lv9, weights=["k.3"], out_features=[32], in_features=32)
            lv14: R.Tensor((1, 1, 2, 16), dtype="float32") = R.reshape(lv13, R.shape([1, 1, 2, 16]))
            lv15: R.Tensor((1, 1, 2, 16), dtype="float32") = M.rope(lv14, position_ids, inv_freq="inv_freq", rotary_dim=16)
            lv16: R.Tensor((1, 1, 32), dtype="float32") = M.fused_linear(lv9, weights=["v.3"], out_features=[32], in_features=32)
            lv17: R.Tensor((1, 1, 2, 16), dtype="float32") = R.reshape(lv16, R.shape([1, 1, 2, 16]))
            lv18: R.Tensor((1, 1, 2, 16), dtype="float32") = M.cached_attention(lv12, lv15, lv17, layer=3, scale=0.25)
            lv19: R.Tensor((1, 1, 32), dtype="float32") = R.reshape(lv18, R.shape([1, 1, 32]))
            lv20: R.Tensor((1, 1, 32), dtype="float32") = M.fused_linear(lv19, lv9, weights=["o.3"], out_features=[32], in_features=32)
            gv: R.Tensor((1, 1, 32), dtype="float32") = lv20
            R.output(gv)
        return gv

    @R.function
    def prefill(input_ids: R.Tensor((1, n), dtype="int64"), position_ids: R.Tensor((1, n), dtype="int64")) -> R.Tensor((1, 1, 32), dtype="float32"):
        with R.dataflow():
            lv: R.Tensor((1, n, 32), dtype="float32") = M.embedding(input_ids, weight="embed", rows=32, features=32)
            lv1: R.Tensor((1, n, 96), dtype="float32") = M.fused_linear(lv, weights=["qkv.0"], out_features=[96], in_features=32)
            lv2: R.Tensor((1, n, 32), dtype="float32") = M.cached_stacked_attention(lv1, position_ids, heads=2, kv_heads=2, head_dim=16, inv_freq="inv_freq", rotary_dim=16, layer=0, scale=0.25)
            lv3: R.Tensor((1, n, 32), dtype="float32") = M.fused_linear(lv2, lv, weights=["o.0"], out_features=[32], in_features=32)
            lv4: R.Tensor((1, n, 96), dtype="float32") = M.fused_linear(lv3, weights=["qkv.1"], out_features=[96], in_features=32)
            lv5: R.Tensor((1, n, 32), dtype="float32") = M.cached_stacked_attention(lv4, position_ids, heads=2, kv_heads=2, head_dim=16, inv_freq="inv_freq", rotary_dim=16, layer=1, scale=0.25)
            lv6: R.Tensor((1, n, 32), dtype="float32") = M.fused_linear(lv5, lv3, weights=["o.1"], out_features=[32], in_features=32)
            lv7: R.Tensor((1, n, 96), dtype="float32") = M.fused_linear(lv6, weights=["qkv.2"], out_features=[96], in_features=32)
            lv8: R.Tensor((1, n, 32), dtype="float32") = M.cached_stacked_attention(lv7, position_ids, heads=2, kv_heads=2, head_dim=16, inv_freq="inv_freq", rotary_dim=16, layer=2, scale=0.25)
            lv9: R.Tensor((1, n, 32), dtype="float32") = M.fused_linear(lv8, lv6, weights=["o.2"], out_features=[32], in_features=32)
            lv10: R.Tensor((1, n, 32), dtype="float32") = M.fused_linear(lv9, weights=["q.3"], out_features=[32], in_features=32)
            lv11: R.Tensor((1, n, 2, 16), dtype="float32") = R.reshape(lv10, R.shape([1, n, 2, 16]))
            lv12: R.Tensor((1, n, 2, 16), dtype="float32") = M.rope(lv11, position_ids, inv_freq="inv_freq", rotary_dim=16)
            lv13: R.Tensor((1, n, 32), dtype="float32") = M.fused_linear(lv9, weights=["k.3"], out_features=[32], in_features=32)
            lv14: R.Tensor((1, n, 2, 16), dtype="float32") = R.reshape(lv13, R.shape([1, n, 2, 16]))
            lv15: R.Tensor((1, n, 2, 16), dtype="float32") = M.rope(lv14, position_ids, inv_freq="inv_freq", rotary_dim=16)
            lv16: R.Tensor((1, n, 32), dtype="float32") = M.fused_linear(lv9, weights=["v.3"], out_features=[32], in_features=32)
            lv17: R.Tensor((1, n, 2, 16), dtype="float32") = R.reshape(lv16, R.shape([1, n, 2, 16]))
            lv18: R.Tensor((1, n, 2, 16), dtype="float32") = M.cached_attention(lv12, lv15, lv17, layer=3, scale=0.25)
            lv19: R.Tensor((1, n, 32), dtype="float32") = R.reshape(lv18, R.shape([1, n, 32]))
            lv20: R.Tensor((1, n, 32), dtype="float32") = M.fused_linear(lv19, lv9, weights=["o.3"], out_features=[32], in_features=32)
            lv21: R.Tensor((1, 1, 32), dtype="float32") = M.last_token(lv20)
            gv: R.Tensor((1, 1, 32), dtype="float32") = lv21
            R.output(gv)
        return gv

    @R.function
    def score(input_ids: R.Tensor((1, n), dtype="int64"), position_ids: R.Tensor((1, n), dtype="int64")) -> R.Tensor((1, n, 32), dtype="float32"):
        with R.dataflow():
            lv: R.Tensor((1, n, 32), dtype="float32") = M.embedding(input_ids, weight="embed", rows=32, features=32)
            lv1: R.Tensor((1, n, 96), dtype="float32") = M.fused_linear(lv, weights=["qkv.0"], out_features=[96], in_features=32)
            lv2: R.Tensor((1, n, 32), dtype="float32") = M.cached_stacked_attention(lv1, position_ids, heads=2, kv_heads=2, head_dim=16, inv_freq="inv_freq", rotary_dim=16, layer=0, scale=0.25)
            lv3: R.Tensor((1, n, 32), dtype="float32") = M.fused_linear(lv2, lv, weights=["o.0"], out_features=[32], in_features=32)
            lv4: R.Tensor((1, n, 96), dtype="float32") = M.fused_linear(lv3, weights=["qkv.1"], out_features=[96], in_features=32)
            lv5: R.Tensor((1, n, 32), dtype="float32") = M.cached_stacked_attention(lv4, position_ids, heads=2, kv_heads=2, head_dim=16, inv_freq="inv_freq", rotary_dim=16, layer=1, scale=0.25)
            lv6: R.Tensor((1, n, 32), dtype="float32") = M.fused_linear(lv5, lv3, weights=["o.1"], out_features=[32], in_features=32)
            lv7: R.Tensor((1, n, 96), dtype="float32") = M.fused_linear(lv6, weights=["qkv.2"], out_features=[96], in_features=32)
            lv8: R.Tensor((1, n, 32), dtype="float32") = M.cached_stacked_attention(lv7, position_ids, heads=2, kv_heads=2, head_dim=16, inv_freq="inv_freq", rotary_dim=16, layer=2, scale=0.25)
            lv9: R.Tensor((1, n, 32), dtype="float32") = M.fused_linear(lv8, lv6, weights=["o.2"], out_features=[32], in_features=32)
            lv10: R.Tensor((1, n, 32), dtype="float32") = M.fused_linear(lv9, weights=["q.3"], out_features=[32], in_features=32)
            lv11: R.Tensor((1, n, 2, 16), dtype="float32") = R.reshape(lv10, R.shape([1, n, 2, 16]))
            lv12: R.Tensor((1, n, 2, 16), dtype="float32") = M.rope(lv11, position_ids, inv_freq="inv_freq", rotary_dim=16)
            lv13: R.Tensor((1, n, 32), dtype="float32") = M.fused_linear(lv9, weights=["k.3"], out_features=[32], in_features=32)
            lv14: R.Tensor((1, n, 2, 16), dtype="float32") = R.reshape(lv13, R.shape([1, n, 2, 16]))
            lv15: R.Tensor((1, n, 2, 16), dtype="float32") = M.rope(lv14, position_ids, inv_freq="inv_freq", rotary_dim=16)
            lv16: R.Tensor((1, n, 32), dtype="float32") = M.fused_linear(lv9, weights=["v.3"], out_features=[32], in_features=32)
            lv17: R.Tensor((1, n, 2, 16), dtype="float32") = R.reshape(lv16, R.shape([1, n, 2, 16]))
            lv18: R.Tensor((1, n, 2, 16), dtype="float32") = M.cached_attention(lv12, lv15, lv17, layer=3, scale=0.25)
            lv19: R.Tensor((1, n, 32), dtype="float32") = R.reshape(lv18, R.shape([1, n, 32]))
            lv20: R.Tensor((1, n, 32), dtype="float32") = M.fused_linear(lv19, lv9, weights=["o.3"], out_features=[32], in_features=32)
            gv: R.Tensor((1, n, 32), dtype="float32") = lv20
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
    def decode(input_ids: R.Tensor((1, 1), dtype="int64"), position_ids: R.Tensor((1, 1), dtype="int64")) -> R.Tensor((1, 1, 32), dtype="float32"):
        with R.dataflow():
            lv: R.Tensor((1, 1, 32), dtype="float32") = M.embedding(input_ids, weight="embed", rows=32, features=32)
            lv1: R.Tensor((1, 1, 96), dtype="float32") = M.fused_linear(lv, weights=["qkv.0"], out_features=[96], in_features=32)
            lv2: R.Tensor((1, 1, 32), dtype="float32") = M.cached_stacked_attention(lv1, position_ids, heads=2, kv_heads=2, head_dim=16, inv_freq="inv_freq", rotary_dim=16, layer=0, scale=0.25)
            lv3: R.Tensor((1, 1, 32), dtype="float32") = M.fused_linear(lv2, lv, weights=["o.0"], out_features=[32], in_features=32)
            lv4: R.Tensor((1, 1, 96), dtype="float32") = M.fused_linear(lv3, weights=["qkv.1"], out_features=[96], in_features=32)
            lv5: R.Tensor((1, 1, 32), dtype="float32") = M.cached_stacked_attention(lv4, position_ids, heads=2, kv_heads=2, head_dim=16, inv_freq="inv_freq", rotary_dim=16, layer=1, scale=0.25)
            lv6: R.Tensor((1, 1, 32), dtype="float32") = M.fused_linear(lv5, lv3, weights=["o.1"], out_features=[32], in_features=32)
            lv7: R.Tensor((1, 1, 96), dtype="float32") = M.fused_linear(lv6, weights=["qkv.2"], out_features=[96], in_features=32)
            lv8: R.Tensor((1, 1, 32), dtype="float32") = M.cached_stacked_attention(lv7, position_ids, heads=2, kv_heads=2, head_dim=16, inv_freq="inv_freq", rotary_dim=16, layer=2, scale=0.25, stage=1)
            lv9: R.Tensor((1, 1, 32), dtype="float32") = M.fused_linear(lv8, lv6, weights=["o.2"], out_features=[32], in_features=32)
            lv10: R.Tensor((1, 1, 32), dtype="float32") = M.fused_linear(lv9, weights=["q.3"], out_features=[32], in_features=32)
            lv11: R.Tensor((1, 1, 2, 16), dtype="float32") = R.reshape(lv10, R.shape([1, 1, 2, 16]))
            lv12: R.Tensor((1, 1, 2, 16), dtype="float32") = M.rope(lv11, position_ids, inv_freq="inv_freq", rotary_dim=16)
            lv13: R.Tensor((1, 1, 32), dtype="float32") = M.fused_linear(lv9, weights=["k.3"], out_features=[32], in_features=32)
            lv14: R.Tensor((1, 1, 2, 16), dtype="float32") = R.reshape(lv13, R.shape([1, 1, 2, 16]))
            lv15: R.Tensor((1, 1, 2, 16), dtype="float32") = M.rope(lv14, position_ids, inv_freq="inv_freq", rotary_dim=16)
            lv16: R.Tensor((1, 1, 32), dtype="float32") = M.fused_linear(lv9, weights=["v.3"], out_features=[32], in_features=32)
            lv17: R.Tensor((1, 1, 2, 16), dtype="float32") = R.reshape(lv16, R.shape([1, 1, 2, 16]))
            lv18: R.Tensor((1, 1, 2, 16), dtype="float32") = M.cached_attention(lv12, lv15, lv17, layer=3, scale=0.25, stage=2)
            lv19: R.Tensor((1, 1, 32), dtype="float32") = R.reshape(lv18, R.shape([1, 1, 32]))
            lv20: R.Tensor((1, 1, 32), dtype="float32") = M.fused_linear(lv19, lv9, weights=["o.3"], out_features=[32], in_features=32)
            gv: R.Tensor((1, 1, 32), dtype="float32") = lv20
            R.output(gv)
        return gv

    @R.function
    def prefill(input_ids: R.Tensor((1, n), dtype="int64"), position_ids: R.Tensor((1, n), dtype="int64")) -> R.Tensor((1, 1, 32), dtype="float32"):
        with R.dataflow():
            lv: R.Tensor((1, n, 32), dtype="float32") = M.embedding(input_ids, weight="embed", rows=32, features=32)
            lv1: R.Tensor((1, n, 96), dtype="float32") = M.fused_linear(lv, weights=["qkv.0"], out_features=[96], in_features=32)
            lv2: R.Tensor((1, n, 32), dtype="float32") = M.cached_stacked_attention(lv1, position_ids, heads=2, kv_heads=2, head_dim=16, inv_freq="inv_freq", rotary_dim=16, layer=0, scale=0.25)
            lv3: R.Tensor((1, n, 32), dtype="float32") = M.fused_linear(lv2, lv, weights=["o.0"], out_features=[32], in_features=32)
            lv4: R.Tensor((1, n, 96), dtype="float32") = M.fused_linear(lv3, weights=["qkv.1"], out_features=[96], in_features=32)
            lv5: R.Tuple(R.Tensor((1, n, 32), dtype="float32"), R.Tensor((1, n, 2), dtype="float32")) = M.cached_stacked_attention(lv4, position_ids, heads=2, kv_heads=2, head_dim=16, inv_freq="inv_freq", rotary_dim=16, layer=1, scale=0.25, importance="first")
            lv6: R.Tensor((1, n, 2), dtype="float32") = lv5[1]
            lv7: R.Tensor((1, n, 32), dtype="float32") = lv5[0]
            lv8: R.Tensor((1, n, 32), dtype="float32") = M.fused_linear(lv7, lv3, weights=["o.1"], out_features=[32], in_features=32)
            lv9: R.Tuple(R.Tensor((1, (n * 8944 + 11055) // 10000, 32), dtype="float32"), R.Tensor((1, (n * 8944 + 11055) // 10000), dtype="int64")) = M.prune_tokens(lv8, position_ids, lv6, dropped=1056)
            lv10: R.Tensor((1, (n * 8944 + 11055) // 10000), dtype="int64") = lv9[1]
            lv11: R.Tensor((1, (n * 8944 + 11055) // 10000, 32), dtype="float32") = lv9[0]
            lv12: R.Tensor((1, (n * 8944 + 11055) // 10000, 96), dtype="float32") = M.fused_linear(lv11, weights=["qkv.2"], out_features=[96], in_features=32)
            lv13: R.Tuple(R.Tensor((1, (n * 8944 + 11055) // 10000, 32), dtype="float32"), R.Tensor((1, (n * 8944 + 11055) // 10000, 2), dtype="float32")) = M.cached_stacked_attention(lv12, lv10, heads=2, kv_heads=2, head_dim=16, inv_freq="inv_freq", rotary_dim=16, layer=2, scale=0.25, stage=1, importance="first")
            lv14: R.Tensor((1, (n * 8944 + 11055) // 10000, 2), dtype="float32") = lv13[1]
            lv15: R.Tensor((1, (n * 8944 + 11055) // 10000, 32), dtype="float32") = lv13[0]
            lv16: R.Tensor((1, (n * 8944 + 11055) // 10000, 32), dtype="float32") = M.fused_linear(lv15, lv11, weights=["o.2"], out_features=[32], in_features=32)
            lv17: R.Tuple(R.Tensor((1, ((n * 8944 + 11055) // 10000 * 8944 + 11055) // 10000, 32), dtype="float32"), R.Tensor((1, ((n * 8944 + 11055) // 10000 * 8944 + 11055) // 10000), dtype="int64")) = M.prune_tokens(lv16, lv10, lv14, dropped=1056)
            lv18: R.Tensor((1, ((n * 8944 + 11055) // 10000 * 8944 + 11055) // 10000), dtype="int64") = lv17[1]
            lv19: R.Tensor((1, ((n * 8944 + 11055) // 10000 * 8944 + 11055) // 10000, 32), dtype="float32") = lv17[0]
            lv20: R.Tensor((1, ((n * 8944 + 11055) // 10000 * 8944 + 11055) // 10000, 32), dtype="float32") = M.fused_linear(lv19, weights=["q.3"], out_features=[32], in_features=32)
            lv21: R.Tensor((1, ((n * 8944 + 11055) // 10000 * 8944 + 11055) // 10000, 2, 16), dtype="float32") = R.reshape(lv20, R.shape([1, ((n * 8944 + 11055) // 10000 * 8944 + 11055) // 10000, 2, 16]))
            lv22: R.Tensor((1, ((n * 8944 + 11055) // 10000 * 8944 + 11055) // 10000, 2, 16), dtype="float32") = M.rope(lv21, lv18, inv_freq="inv_freq", rotary_dim=16)
            lv23: R.Tensor((1, ((n * 8944 + 11055) // 10000 * 8944 + 11055) // 10000, 32), dtype="float32") = M.fused_linear(lv19, weights=["k.3"], out_features=[32], in_features=32)
            lv24: R.Tensor((1, ((n * 8944 + 11055) // 10000 * 8944 + 11055) // 10000, 2, 16), dtype="float32") = R.reshape(lv23, R.shape([1, ((n * 8944 + 11055) // 10000 * 8944 + 11055) // 10000, 2, 16]))
            lv25: R.Tensor((1, ((n * 8944 + 11055) // 10000 * 8944 + 11055) // 10000, 2, 16), dtype="float32") = M.rope(lv24, lv18, inv_freq="inv_freq", rotary_dim=16)
            lv26: R.Tensor((1, ((n * 8944 + 11055) // 10000 * 8944 + 11055) // 10000, 32), dtype="float32") = M.fused_linear(lv19, weights=["v.3"], out_features=[32], in_features=32)
            lv27: R.Tensor((1, ((n * 8944 + 11055) // 10000 * 8944 + 11055) // 10000, 2, 16), dtype="float32") = R.reshape(lv26, R.shape([1, ((n * 8944 + 11055) // 10000 * 8944 + 11055) // 10000, 2, 16]))
            lv28: R.Tensor((1, ((n * 8944 + 11055) // 10000 * 8944 + 11055) // 10000, 2, 16), dtype="float32") = M.cached_attention(lv22, lv25, lv27, layer=3, scale=0.25, stage=2)
            lv29: R.Tensor((1, ((n * 8944 + 11055) // 10000 * 8944 + 11055) // 10000, 32), dtype="float32") = R.reshape(lv28, R.shape([1, ((n * 8944 + 11055) // 10000 * 8944 + 11055) // 10000, 32]))
            lv30: R.Tensor((1, ((n * 8944 + 11055) // 10000 * 8944 + 11055) // 10000, 32), dtype="float32") = M.fused_linear(lv29, lv19, weights=["o.3"], out_features=[32], in_features=32)
            lv31: R.Tensor((1, 1, 32), dtype="float32") = M.last_token(lv30)
            gv: R.Tensor((1, 1, 32), dtype="float32") = lv31
            R.output(gv)
        return gv

    @R.function
    def score(input_ids: R.Tensor((1, n), dtype="int64"), position_ids: R.Tensor((1, n), dtype="int64")) -> R.Tensor((1, n, 32), dtype="float32"):
        with R.dataflow():
            lv: R.Tensor((1, n, 32), dtype="float32") = M.embedding(input_ids, weight="embed", rows=32, features=32)
            lv1: R.Tensor((1, n, 96), dtype="float32") = M.fused_linear(lv, weights=["qkv.0"], out_features=[96], in_features=32)
            lv2: R.Tensor((1, n, 32), dtype="float32") = M.cached_stacked_attention(lv1, position_ids, heads=2, kv_heads=2, head_dim=16, inv_freq="inv_freq", rotary_dim=16, layer=0, scale=0.25)
            lv3: R.Tensor((1, n, 32), dtype="float32") = M.fused_linear(lv2, lv, weights=["o.0"], out_features=[32], in_features=32)
            lv4: R.Tensor((1, n, 96), dtype="float32") = M.fused_linear(lv3, weights=["qkv.1"], out_features=[96], in_features=32)
            lv5: R.Tensor((1, n, 32), dtype="float32") = M.cached_stacked_attention(lv4, position_ids, heads=2, kv_heads=2, head_dim=16, inv_freq="inv_freq", rotary_dim=16, layer=1, scale=0.25)
            lv6: R.Tensor((1, n, 32), dtype="float32") = M.fused_linear(lv5, lv3, weights=["o.1"], out_features=[32], in_features=32)
            lv7: R.Tensor((1, n, 96), dtype="float32") = M.fused_linear(lv6, weights=["qkv.2"], out_features=[96], in_features=32)
            lv8: R.Tensor((1, n, 32), dtype="float32") = M.cached_stacked_attention(lv7, position_ids, heads=2, kv_heads=2, head_dim=16, inv_freq="inv_freq", rotary_dim=16, layer=2, scale=0.25, stage=1)
            lv9: R.Tensor((1, n, 32), dtype="float32") = M.fused_linear(lv8, lv6, weights=["o.2"], out_features=[32], in_features=32)
            lv10: R.Tensor((1, n, 32), dtype="float32") = M.fused_linear(lv9, weights=["q.3"], out_features=[32], in_features=32)
            lv11: R.Tensor((1, n, 2, 16), dtype="float32") = R.reshape(lv10, R.shape([1, n, 2, 16]))
            lv12: R.Tensor((1, n, 2, 16), dtype="float32") = M.rope(lv11, position_ids, inv_freq="inv_freq", rotary_dim=16)
            lv13: R.Tensor((1, n, 32), dtype="float32") = M.fused_linear(lv9, weights=["k.3"], out_features=[32], in_features=32)
            lv14: R.Tensor((1, n, 2, 16), dtype="float32") = R.reshape(lv13, R.shape([1, n, 2, 16]))
            lv15: R.Tensor((1, n, 2, 16), dtype="float32") = M.rope(lv14, position_ids, inv_freq="inv_freq", rotary_dim=16)
            lv16: R.Tensor((1, n, 32), dtype="float32") = M.fused_linear(lv9, weights=["v.3"], out_features=[32], in_features=32)
            lv17: R.Tensor((1, n, 2, 16), dtype="float32") = R.reshape(lv16, R.shape([1, n, 2, 16]))
            lv18: R.Tensor((1, n, 2, 16), dtype="float32") = M.cached_attention(lv12, lv15, lv17, layer=3, scale=0.25, stage=2)
            lv19: R.Tensor((1, n, 32), dtype="float32") = R.reshape(lv18, R.shape([1, n, 32]))
            lv20: R.Tensor((1, n, 32), dtype="float32") = M.fused_linear(lv19, lv9, weights=["o.3"], out_features=[32], in_features=32)
            gv: R.Tensor((1, n, 32), dtype="float32") = lv20
            R.output(gv)
        return gv
