"""The loss of tuning: its value and its gradient are those of the plain formula."""

import torch
from torch.nn import functional

from morendo.passes.quantizer.divergence import Divergence
from morendo.passes.streaming.torch_ops import attention


def test_divergence_and_its_gradient() -> None:
    logits = (5 * torch.randn(37, 113)).requires_grad_()  # 37: the last rows are not a whole block
    target = 5 * torch.randn(37, 113)
    wanted = functional.kl_div(
        torch.log_softmax(logits, -1),
        torch.log_softmax(target, -1),
        log_target=True,
        reduction="sum",
    ) / len(target)
    (gradient,) = torch.autograd.grad(3 * wanted, logits)
    found = Divergence.apply(logits, target.clone())
    torch.testing.assert_close(found, wanted)
    torch.testing.assert_close(torch.autograd.grad(3 * found, logits)[0], gradient)


def test_attention_in_bfloat16_is_that_in_float32() -> None:
    attrs = {"window": 0, "softcap": 0.0, "alibi": "", "scale": 0.3}
    q, k, v = (torch.randn(1, 21, heads, 8).bfloat16() for heads in (6, 2, 2))
    wanted = attention(attrs, q.float(), k.float(), v.float(), None)
    found = attention(attrs, q, k, v, None)
    assert found.dtype == torch.bfloat16
    torch.testing.assert_close(found.float(), wanted, atol=0.03, rtol=0.03)
