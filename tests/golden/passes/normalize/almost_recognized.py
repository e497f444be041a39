# spec: normalize
from typing import TypeVar
from tvm.script import ir as I, relax as R, tirx as T
from morendo.ir.dialect import M

n = TypeVar("n")
@I.ir_module
class Module:
    @R.function
    def main(input_ids: R.Tensor((1, n), dtype="int64"), position_ids: R.Tensor((1, n), dtype="int64"), slow: R.Tensor((2,), dtype="float32"), fast: R.Tensor((2,), dtype="float32"), eps: R.Tensor((1,), dtype="float32"), w: R.Tensor((4,), dtype="float32")) -> R.Tensor((1, n, 2, 4), dtype="float32"):
        R.func_attr({"num_input": 2, "weight_names": ["slow", "fast", "eps", "w"]})
        with R.dataflow():
            lv: R.Tensor((1, n, 8), dtype="float32") = M.embedding(input_ids, weight="tokens", rows=16, features=8)
            lv1: R.Tensor((1, n, 2, 4), dtype="float32") = R.reshape(lv, R.shape([1, n, 2, 4]))
            lv2: R.Tensor((1, n, 1), dtype="int64") = R.expand_dims(position_ids, axis=[2])
            lv3: R.Tensor((1, n, 1), dtype="float32") = R.astype(lv2, dtype="float32")
            lv4: R.Tensor((1, n, 2), dtype="float32") = R.multiply(lv3, slow)
            lv5: R.Tensor((1, n, 4), dtype="float32") = R.concat((lv4, lv4), axis=-1)
            lv6: R.Tensor((1, n, 4), dtype="float32") = R.cos(lv5)
            lv7: R.Tensor((1, n, 2), dtype="float32") = R.multiply(lv3, fast)
            lv8: R.Tensor((1, n, 4), dtype="float32") = R.concat((lv7, lv7), axis=-1)
            lv9: R.Tensor((1, n, 4), dtype="float32") = R.sin(lv8)
            lv10: R.Tensor((1, n, 1, 4), dtype="float32") = R.expand_dims(lv6, axis=[2])
            lv11: R.Tensor((1, n, 1, 4), dtype="float32") = R.expand_dims(lv9, axis=[2])
            lv12: R.Tensor((1, n, 2, 4), dtype="float32") = R.multiply(lv1, lv10)
            lv13: R.Tensor((1, n, 2, 2), dtype="float32") = R.strided_slice(lv1, (3,), (0,), (2,), (1,), assume_inbound=False)
            lv14: R.Tensor((1, n, 2, 2), dtype="float32") = R.strided_slice(lv1, (3,), (2,), (4,), (1,), assume_inbound=False)
            lv15: R.Tensor((1, n, 2, 2), dtype="float32") = R.negative(lv14)
            lv16: R.Tensor((1, n, 2, 4), dtype="float32") = R.concat((lv15, lv13), axis=-1)
            lv17: R.Tensor((1, n, 2, 4), dtype="float32") = R.multiply(lv16, lv11)
            lv18: R.Tensor((1, n, 2, 4), dtype="float32") = R.add(lv12, lv17)
            lv19: R.Tensor((1, n, 2, 4), dtype="float32") = R.power(lv18, R.const(2.0, "float32"))
            lv20: R.Tensor((1, n, 2, 1), dtype="float32") = R.mean(lv19, axis=[-1], keepdims=True)
            lv21: R.Tensor((1, n, 2, 1), dtype="float32") = R.add(lv20, eps)
            lv22: R.Tensor((1, n, 2, 1), dtype="float32") = R.rsqrt(lv21)
            lv23: R.Tensor((1, n, 2, 4), dtype="float32") = R.multiply(lv18, lv22)
            lv24: R.Tensor((1, n, 2, 4), dtype="float32") = R.multiply(lv23, w)
            lv25: R.Tensor((1, n, 2, 4), dtype="float32") = R.nn.silu(lv24)
            lv26: R.Tensor((1, n, 2, 4), dtype="float32") = R.multiply(lv25, R.const(2.0, "float32"))
            gv: R.Tensor((1, n, 2, 4), dtype="float32") = lv26
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
    def main(input_ids: R.Tensor((1, n), dtype="int64"), position_ids: R.Tensor((1, n), dtype="int64")) -> R.Tensor((1, n, 2, 4), dtype="float32"):
        with R.dataflow():
            lv: R.Tensor((2,), dtype="float32") = M.weight(name="slow", shape=[2])
            lv1: R.Tensor((2,), dtype="float32") = M.weight(name="fast", shape=[2])
            lv2: R.Tensor((1,), dtype="float32") = M.weight(name="eps", shape=[1])
            lv3: R.Tensor((4,), dtype="float32") = M.weight(name="w", shape=[4])
            lv4: R.Tensor((1, n, 8), dtype="float32") = M.embedding(input_ids, weight="tokens", rows=16, features=8)
            lv5: R.Tensor((1, n, 2, 4), dtype="float32") = R.reshape(lv4, R.shape([1, n, 2, 4]))
            lv6: R.Tensor((1, n, 1), dtype="int64") = R.expand_dims(position_ids, axis=[2])
            lv7: R.Tensor((1, n, 1), dtype="float32") = R.astype(lv6, dtype="float32")
            lv8: R.Tensor((1, n, 2), dtype="float32") = R.multiply(lv7, lv)
            lv9: R.Tensor((1, n, 4), dtype="float32") = R.concat((lv8, lv8), axis=-1)
            lv10: R.Tensor((1, n, 4), dtype="float32") = R.cos(lv9)
            lv11: R.Tensor((1, n, 2), dtype="float32") = R.multiply(lv7, lv1)
            lv12: R.Tensor((1, n, 4), dtype="float32") = R.concat((lv11, lv11), axis=-1)
            lv13: R.Tensor((1, n, 4), dtype="float32") = R.sin(lv12)
            lv14: R.Tensor((1, n, 1, 4), dtype="float32") = R.expand_dims(lv10, axis=[2])
            lv15: R.Tensor((1, n, 1, 4), dtype="float32") = R.expand_dims(lv13, axis=[2])
            lv16: R.Tensor((1, n, 2, 4), dtype="float32") = R.multiply(lv5, lv14)
            lv17: R.Tensor((1, n, 2, 2), dtype="float32") = R.strided_slice(lv5, (3,), (0,), (2,), (1,), assume_inbound=False)
            lv18: R.Tensor((1, n, 2, 2), dtype="float32") = R.strided_slice(lv5, (3,), (2,), (4,), (1,), assume_inbound=False)
            lv19: R.Tensor((1, n, 2, 2), dtype="float32") = R.negative(lv18)
            lv20: R.Tensor((1, n, 2, 4), dtype="float32") = R.concat((lv19, lv17), axis=-1)
            lv21: R.Tensor((1, n, 2, 4), dtype="float32") = R.multiply(lv20, lv15)
            lv22: R.Tensor((1, n, 2, 4), dtype="float32") = R.add(lv16, lv21)
            lv23: R.Tensor((1, n, 2, 4), dtype="float32") = R.power(lv22, R.const(2.0, "float32"))
            lv24: R.Tensor((1, n, 2, 1), dtype="float32") = R.mean(lv23, axis=[-1], keepdims=True)
            lv25: R.Tensor((1, n, 2, 1), dtype="float32") = R.add(lv24, lv2)
            lv26: R.Tensor((1, n, 2, 1), dtype="float32") = R.rsqrt(lv25)
            lv27: R.Tensor((1, n, 2, 4), dtype="float32") = R.multiply(lv22, lv26)
            lv28: R.Tensor((1, n, 2, 4), dtype="float32") = R.multiply(lv27, lv3)
            lv29: R.Tensor((1, n, 2, 4), dtype="float32") = R.nn.silu(lv28)
            lv30: R.Tensor((1, n, 2, 4), dtype="float32") = R.multiply(lv29, R.const(2.0, "float32"))
            gv: R.Tensor((1, n, 2, 4), dtype="float32") = lv30
            R.output(gv)
        return gv
