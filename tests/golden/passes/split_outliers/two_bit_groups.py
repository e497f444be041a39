# spec: split-outliers{fraction=0.005}
from typing import TypeVar
from tvm.script import ir as I, relax as R, tirx as T
from morendo.ir.dialect import M

n = TypeVar("n")
@I.ir_module
class Module:
    @R.function
    def main(input_ids: R.Tensor((1, n), dtype="int64"), position_ids: R.Tensor((1, n), dtype="int64")) -> R.Tensor((1, n, 32), dtype="float32"):
        with R.dataflow():
            lv: R.Tensor((1, n, 64), dtype="float32") = M.embedding(input_ids, weight="table", rows=96, features=64, format="q8g32")
            lv1: R.Tensor((1, n, 64), dtype="float32") = M.linear(lv, weight="promoted", out_features=64, in_features=64, format="q4g32p1,0")
            lv2: R.Tensor((1, n, 64), dtype="float32") = M.linear(lv1, weight="plain", out_features=64, in_features=64, format="q4g32")
            lv3: R.Tensor((1, n, 32), dtype="float32") = M.linear(lv2, weight="two_bits", out_features=32, in_features=64, format="q4g32p0,0")
            gv: R.Tensor((1, n, 32), dtype="float32") = lv3
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
    def main(input_ids: R.Tensor((1, n), dtype="int64"), position_ids: R.Tensor((1, n), dtype="int64")) -> R.Tensor((1, n, 32), dtype="float32"):
        with R.dataflow():
            lv: R.Tensor((1, n, 64), dtype="float32") = M.embedding(input_ids, weight="table", rows=96, features=64, format="q8g32")
            lv1: R.Tensor((1, n, 64), dtype="float32") = M.linear(lv, weight="promoted", out_features=64, in_features=64, format="q4g32p1,0o3")
            lv2: R.Tensor((1, n, 64), dtype="float32") = M.linear(lv1, weight="plain", out_features=64, in_features=64, format="q4g32")
            lv3: R.Tensor((1, n, 32), dtype="float32") = M.linear(lv2, weight="two_bits", out_features=32, in_features=64, format="q4g32p0,0o5")
            gv: R.Tensor((1, n, 32), dtype="float32") = lv3
            R.output(gv)
        return gv
