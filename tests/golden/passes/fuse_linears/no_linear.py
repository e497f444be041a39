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
            lv1: R.Tensor((1, n, 64), dtype="float32") = M.rms_norm(lv, weight="w", eps=1e-06)
            gv: R.Tensor((1, n, 64), dtype="float32") = lv1
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
            lv1: R.Tensor((1, n, 64), dtype="float32") = M.rms_norm(lv, weight="w", eps=1e-06)
            gv: R.Tensor((1, n, 64), dtype="float32") = lv1
            R.output(gv)
        return gv
