# spec: fuse-linears
from typing import TypeVar
from tvm.script import ir as I, relax as R, tirx as T
from morendo.ir.dialect import M

n = TypeVar("n")
@I.ir_module
class Module:
    @R.function
    def main(input_ids: R.Tensor((1, n), dtype="int64"), position_ids: R.Tensor((1, n), dtype="int64")) -> R.Tensor((1, n, 64), dtype="float32"):
        with R.dataflow():
            lv = M.embedding(input_ids, weight="embed", rows=96, features=64, format="q8g32")
            lv1 = M.rms_norm(lv, weight="norm", eps=1e-05)
            lv2 = M.linear(lv1, weight="gate", out_features=64, in_features=64, format="q4g32", order="gate.order")
            lv3 = M.linear(lv1, weight="up", out_features=64, in_features=64, format="q4g32", order="up.order")
            lv4 = M.gated(lv2, lv3, activation="silu")
            lv5 = M.linear(lv4, weight="gate2", out_features=64, in_features=64, format="q4g32", order="mlp.order")
            lv6 = M.linear(lv4, weight="up2", out_features=64, in_features=64, format="q4g32", order="mlp.order")
            lv9 = M.gated(lv5, lv6, activation="silu")
            gv = lv9
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
    def main(input_ids: R.Tensor((1, n), dtype="int64"), position_ids: R.Tensor((1, n), dtype="int64")) -> R.Tensor((1, n, 64), dtype="float32"):
        with R.dataflow():
            lv: R.Tensor((1, n, 64), dtype="float32") = M.embedding(input_ids, weight="embed", rows=96, features=64, format="q8g32")
            lv1: R.Tensor((1, n, 64), dtype="float32") = M.rms_norm(lv, weight="norm", eps=1e-05)
            lv2: R.Tensor((1, n, 64), dtype="float32") = M.fused_linear(lv1, weights=["gate"], out_features=[64], in_features=64, format="q4g32", order="gate.order")
            lv3: R.Tensor((1, n, 64), dtype="float32") = M.fused_linear(lv1, weights=["up"], out_features=[64], in_features=64, format="q4g32", order="up.order")
            lv4: R.Tensor((1, n, 64), dtype="float32") = M.gated(lv2, lv3, activation="silu")
            lv7: R.Tensor((1, n, 64), dtype="float32") = M.fused_linear(lv4, weights=["gate2", "up2"], out_features=[64, 64], in_features=64, format="q4g32", order="mlp.order", gate="silu")
            gv: R.Tensor((1, n, 64), dtype="float32") = lv7
            R.output(gv)
        return gv
