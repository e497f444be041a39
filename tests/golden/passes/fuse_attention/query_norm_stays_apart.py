# spec: fuse-attention
from typing import TypeVar
from tvm.script import ir as I, relax as R, tirx as T
from morendo.ir.dialect import M

n = TypeVar("n")
@I.ir_module
class Module:
    @R.function
    def main(input_ids: R.Tensor((1, n), dtype="int64"), position_ids: R.Tensor((1, n), dtype="int64")) -> R.Tensor((1, n, 96), dtype="float32"):
        with R.dataflow():
            lv: R.Tensor((1, n, 64), dtype="float32") = M.embedding(input_ids, weight="embed", rows=96, features=64, format="q8g32")
            lv1: R.Tensor((1, n, 64), dtype="float32") = M.linear(lv, weight="q", out_features=64, in_features=64, format="q4g32")
            lv2: R.Tensor((1, n, 4, 16), dtype="float32") = R.reshape(lv1, R.shape([1, n, 4, 16]))
            lv3: R.Tensor((1, n, 4, 16), dtype="float32") = M.rms_norm(lv2, weight="qn", eps=1e-06)
            lv4: R.Tensor((1, n, 32), dtype="float32") = M.linear(lv, weight="k", out_features=32, in_features=64, format="q4g32")
            lv5: R.Tensor((1, n, 2, 16), dtype="float32") = R.reshape(lv4, R.shape([1, n, 2, 16]))
            lv6: R.Tensor((1, n, 2, 16), dtype="float32") = M.rms_norm(lv5, weight="kn", eps=1e-06)
            lv7: R.Tensor((1, n, 32), dtype="float32") = M.linear(lv, weight="v", out_features=32, in_features=64, format="q4g32")
            lv8: R.Tensor((1, n, 2, 16), dtype="float32") = R.reshape(lv7, R.shape([1, n, 2, 16]))
            lv9: R.Tensor((1, n, 4, 16), dtype="float32") = M.rope(lv3, position_ids, inv_freq="f", rotary_dim=16)
            lv10: R.Tensor((1, n, 2, 16), dtype="float32") = M.rope(lv6, position_ids, inv_freq="f", rotary_dim=16)
            lv11: R.Tensor((1, n, 4, 16), dtype="float32") = M.attention(lv9, lv10, lv8, layer=0, scale=0.25)
            lv12: R.Tensor((1, n, 64), dtype="float32") = R.reshape(lv11, R.shape([1, n, 64]))
            lv13: R.Tensor((1, n, 96), dtype="float32") = M.linear(lv12, weight="o", out_features=96, in_features=64, format="q4g32")
            gv: R.Tensor((1, n, 96), dtype="float32") = lv13
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
            lv: R.Tensor((1, n, 64), dtype="float32") = M.embedding(input_ids, weight="embed", rows=96, features=64, format="q8g32")
            lv1: R.Tensor((1, n, 64), dtype="float32") = M.linear(lv, weight="q", out_features=64, in_features=64, format="q4g32")
            lv2: R.Tensor((1, n, 4, 16), dtype="float32") = R.reshape(lv1, R.shape([1, n, 4, 16]))
            lv3: R.Tensor((1, n, 4, 16), dtype="float32") = M.rms_norm(lv2, weight="qn", eps=1e-06)
            lv4: R.Tensor((1, n, 32), dtype="float32") = M.linear(lv, weight="k", out_features=32, in_features=64, format="q4g32")
            lv5: R.Tensor((1, n, 2, 16), dtype="float32") = R.reshape(lv4, R.shape([1, n, 2, 16]))
            lv6: R.Tensor((1, n, 2, 16), dtype="float32") = M.rms_norm(lv5, weight="kn", eps=1e-06)
            lv7: R.Tensor((1, n, 32), dtype="float32") = M.linear(lv, weight="v", out_features=32, in_features=64, format="q4g32")
            lv8: R.Tensor((1, n, 2, 16), dtype="float32") = R.reshape(lv7, R.shape([1, n, 2, 16]))
            lv9: R.Tensor((1, n, 4, 16), dtype="float32") = M.rope(lv3, position_ids, inv_freq="f", rotary_dim=16)
            lv10: R.Tensor((1, n, 2, 16), dtype="float32") = M.rope(lv6, position_ids, inv_freq="f", rotary_dim=16)
            lv11: R.Tensor((1, n, 4, 16), dtype="float32") = M.attention(lv9, lv10, lv8, layer=0, scale=0.25)
            lv12: R.Tensor((1, n, 64), dtype="float32") = R.reshape(lv11, R.shape([1, n, 64]))
            lv13: R.Tensor((1, n, 96), dtype="float32") = M.linear(lv12, weight="o", out_features=96, in_features=64, format="q4g32")
            gv: R.Tensor((1, n, 96), dtype="float32") = lv13
            R.output(gv)
        return gv
