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
            lv3 = M.fused_linear(lv1, lv2, weights=["b"], out_features=[64], in_features=64, format="q4g32", order="a.order", activations="a4f", factors="b.factors")
            lv4 = M.fused_linear(lv1, lv3, weights=["c"], out_features=[64], in_features=64, format="q4g32")
            lv9 = M.fused_linear(lv4, weights=["d"], out_features=[64], in_features=64, format="q4g32", order="d.order", activations="a4")
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
            lv7: R.Tuple(R.Tensor((1, n, 64), dtype="int8"), R.Tensor((1, n, 2), dtype="float32"), R.Tensor((1, n, 2), dtype="int32")) = M.rms_norm_quantize(lv, weight="norm", eps=1e-05, group_size=32, order="a.order", activations="a4f", factors="b.factors")
            lv8: R.Tensor((1, n, 64), dtype="int8") = lv7[0]
            lv9: R.Tensor((1, n, 2), dtype="float32") = lv7[1]
            lv10: R.Tensor((1, n, 2), dtype="int32") = lv7[2]
            lv11: R.Tensor((1, n, 64), dtype="float32") = M.quantized_linear(lv8, lv9, lv10, lv6, weights=["b"], out_features=[64], in_features=64, format="q4g32", order="a.order", activations="a4f", factors="b.factors")
            lv12: R.Tuple(R.Tensor((1, n, 64), dtype="int8"), R.Tensor((1, n, 2), dtype="float32"), R.Tensor((1, n, 2), dtype="int32")) = M.rms_norm_quantize(lv, weight="norm", eps=1e-05, group_size=32)
            lv13: R.Tensor((1, n, 64), dtype="int8") = lv12[0]
            lv14: R.Tensor((1, n, 2), dtype="float32") = lv12[1]
            lv15: R.Tensor((1, n, 2), dtype="int32") = lv12[2]
            lv16: R.Tensor((1, n, 64), dtype="float32") = M.quantized_linear(lv13, lv14, lv15, lv11, weights=["c"], out_features=[64], in_features=64, format="q4g32")
            lv17: R.Tuple(R.Tensor((1, n, 64), dtype="int8"), R.Tensor((1, n, 2), dtype="float32"), R.Tensor((1, n, 2), dtype="int32")) = M.quantize_activation(lv16, group_size=32, order="d.order", activations="a4")
            lv18: R.Tensor((1, n, 64), dtype="int8") = lv17[0]
            lv19: R.Tensor((1, n, 2), dtype="float32") = lv17[1]
            lv20: R.Tensor((1, n, 2), dtype="int32") = lv17[2]
            lv21: R.Tensor((1, n, 64), dtype="float32") = M.quantized_linear(lv18, lv19, lv20, weights=["d"], out_features=[64], in_features=64, format="q4g32", order="d.order", activations="a4")
            gv: R.Tensor((1, n, 64), dtype="float32") = lv21
            R.output(gv)
        return gv
