"""The models that quality is measured on."""

from pathlib import Path

import torch

from tests.models import permute_llama

TINY = Path(__file__).parent / "models" / "tiny_llama"


def test_permuted_channels_change_nothing_but_their_order() -> None:
    from transformers import AutoModelForCausalLM

    model = AutoModelForCausalLM.from_pretrained(TINY, dtype=torch.float32).eval()
    before = {name: p.detach().clone() for name, p in model.named_parameters()}
    ids = torch.randint(2, 512, (1, 40))
    with torch.inference_mode():
        want = model(input_ids=ids).logits
        permute_llama(model)
        got = model(input_ids=ids).logits
    assert (got - want).norm() < 1e-5 * want.norm()
    for name, parameter in model.named_parameters():
        assert not torch.equal(parameter, before[name]), name
