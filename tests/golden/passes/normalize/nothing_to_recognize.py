# spec: normalize
from typing import TypeVar
from tvm.script import ir as I, relax as R, tirx as T
from morendo.ir.dialect import M

n = TypeVar("n")
@I.ir_module
class Module:
    @R.function
    def main(input_ids: R.Tensor((1, n), dtype="int64"), position_ids: R.Tensor((1, n), dtype="int64")) -> R.Tensor((1, n, 8), dtype="float32"):
        with R.dataflow():
            lv: R.Tensor((1, n, 8), dtype="float32") = M.embedding(input_ids, weight="tokens", rows=16, features=8)
            lv1: R.Tensor((1, n, 8), dtype="float32") = M.linear(lv, weight="first", out_features=8, in_features=8)
            lv2: R.Tensor((8, 8), dtype="float32") = M.weight(name="mixed", shape=[8, 8])
            lv3: R.Tensor((8, 8), dtype="float32") = R.tanh(lv2)
            lv4: R.Tensor((1, n, 8), dtype="float32") = R.matmul(lv1, lv3, out_dtype="float32")
            lv5: R.Tensor((1, n, 8), dtype="float32") = R.power(lv4, R.const(2.0, "float32"))
            lv6: R.Tensor((1, n, 1), dtype="float32") = R.mean(lv5, axis=[2], keepdims=True)
            lv7: R.Tensor((1, n, 1), dtype="float32") = R.rsqrt(lv6)
            lv8: R.Tensor((1, n, 8), dtype="float32") = R.multiply(lv4, lv7)
            gv: R.Tensor((1, n, 8), dtype="float32") = lv8
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
    def main(input_ids: R.Tensor((1, n), dtype="int64"), position_ids: R.Tensor((1, n), dtype="int64")) -> R.Tensor((1, n, 8), dtype="float32"):
        with R.dataflow():
            lv: R.Tensor((1, n, 8), dtype="float32") = M.embedding(input_ids, weight="tokens", rows=16, features=8)
            lv1: R.Tensor((1, n, 8), dtype="float32") = M.linear(lv, weight="first", out_features=8, in_features=8)
            lv2: R.Tensor((8, 8), dtype="float32") = M.weight(name="mixed", shape=[8, 8])
            lv3: R.Tensor((8, 8), dtype="float32") = R.tanh(lv2)
            lv4: R.Tensor((1, n, 8), dtype="float32") = R.matmul(lv1, lv3, out_dtype="float32")
            lv5: R.Tensor((1, n, 8), dtype="float32") = R.power(lv4, R.const(2.0, "float32"))
            lv6: R.Tensor((1, n, 1), dtype="float32") = R.mean(lv5, axis=[2], keepdims=True)
            lv7: R.Tensor((1, n, 1), dtype="float32") = R.rsqrt(lv6)
            lv8: R.Tensor((1, n, 8), dtype="float32") = R.multiply(lv4, lv7)
            gv: R.Tensor((1, n, 8), dtype="float32") = lv8
            R.output(gv)
        return gv
