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
            lv: R.Tensor((1, n, 64), dtype="float32") = M.embedding(input_ids, weight="embed", rows=96, features=64, format="q8g32")
            lv1: R.Tensor((1, n, 64), dtype="float32") = M.linear(lv, weight="gate", out_features=64, in_features=64, format="q4g32")
            lv2: R.Tensor((1, n, 64), dtype="float32") = M.linear(lv, weight="up", out_features=64, in_features=64, format="q4g32")
            lv3: R.Tensor((1, n, 64), dtype="float32") = M.gated(lv1, lv2, activation="silu")
            lv4: R.Tensor((1, n, 64), dtype="float32") = R.add(lv3, lv1)
            gv: R.Tensor((1, n, 64), dtype="float32") = lv4
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
            lv1: R.Tensor((1, n, 64), dtype="float32") = M.fused_linear(lv, weights=["gate"], out_features=[64], in_features=64, format="q4g32")
            lv2: R.Tensor((1, n, 64), dtype="float32") = M.fused_linear(lv, weights=["up"], out_features=[64], in_features=64, format="q4g32")
            lv3: R.Tensor((1, n, 64), dtype="float32") = M.gated(lv1, lv2, activation="silu")
            lv4: R.Tensor((1, n, 64), dtype="float32") = R.add(lv3, lv1)
            gv: R.Tensor((1, n, 64), dtype="float32") = lv4
            R.output(gv)
        return gv
