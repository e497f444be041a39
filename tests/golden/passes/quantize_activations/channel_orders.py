# spec: quantize-activations
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
            lv2 = M.fused_linear(lv1, weights=["a"], out_features=[64], in_features=64, format="q4g32p1,0", order="a.order")
            lv3 = M.fused_linear(lv1, lv2, weights=["b"], out_features=[64], in_features=64, format="q4g32", order="a.order")
            lv4 = M.fused_linear(lv1, lv3, weights=["c"], out_features=[64], in_features=64, format="q4g32")
            lv9 = M.fused_linear(lv4, weights=["d"], out_features=[64], in_features=64, format="q4g32", order="d.order")
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
            lv2: R.Tuple(R.Tensor((1, n, 64), dtype="int8"), R.Tensor((1, n, 2), dtype="float32"), R.Tensor((1, n, 2), dtype="int32")) = M.rms_norm_quantize(lv, weight="norm", eps=1e-05, group_size=32, order="a.order")
            lv3: R.Tensor((1, n, 64), dtype="int8") = lv2[0]
            lv4: R.Tensor((1, n, 2), dtype="float32") = lv2[1]
            lv5: R.Tensor((1, n, 2), dtype="int32") = lv2[2]
            lv6: R.Tensor((1, n, 64), dtype="float32") = M.quantized_linear(lv3, lv4, lv5, weights=["a"], out_features=[64], in_features=64, format="q4g32p1,0", order="a.order")
            lv7: R.Tensor((1, n, 64), dtype="int8") = lv2[0]
            lv8: R.Tensor((1, n, 2), dtype="float32") = lv2[1]
            lv9: R.Tensor((1, n, 2), dtype="int32") = lv2[2]
            lv10: R.Tensor((1, n, 64), dtype="float32") = M.quantized_linear(lv7, lv8, lv9, lv6, weights=["b"], out_features=[64], in_features=64, format="q4g32", order="a.order")
            lv11: R.Tuple(R.Tensor((1, n, 64), dtype="int8"), R.Tensor((1, n, 2), dtype="float32"), R.Tensor((1, n, 2), dtype="int32")) = M.rms_norm_quantize(lv, weight="norm", eps=1e-05, group_size=32)
            lv12: R.Tensor((1, n, 64), dtype="int8") = lv11[0]
            lv13: R.Tensor((1, n, 2), dtype="float32") = lv11[1]
            lv14: R.Tensor((1, n, 2), dtype="int32") = lv11[2]
            lv15: R.Tensor((1, n, 64), dtype="float32") = M.quantized_linear(lv12, lv13, lv14, lv10, weights=["c"], out_features=[64], in_features=64, format="q4g32")
            lv16: R.Tuple(R.Tensor((1, n, 64), dtype="int8"), R.Tensor((1, n, 2), dtype="float32"), R.Tensor((1, n, 2), dtype="int32")) = M.quantize_activation(lv15, group_size=32, order="d.order")
            lv17: R.Tensor((1, n, 64), dtype="int8") = lv16[0]
            lv18: R.Tensor((1, n, 2), dtype="float32") = lv16[1]
            lv19: R.Tensor((1, n, 2), dtype="int32") = lv16[2]
            lv20: R.Tensor((1, n, 64), dtype="float32") = M.quantized_linear(lv17, lv18, lv19, weights=["d"], out_features=[64], in_features=64, format="q4g32", order="d.order")
            gv: R.Tensor((1, n, 64), dtype="float32") = lv20
            R.output(gv)
        return gv
