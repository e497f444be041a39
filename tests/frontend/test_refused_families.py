"""What a model is refused for: one line that says what, and in which part of the model."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import AutoConfig
from transformers.models.llama import modeling_llama

import morendo
from morendo.frontend import torch_export
from morendo.frontend.families import TESTED, check_config
from morendo.ir.errors import MorendoError
from morendo.passes.base import Context
from morendo.passes.normalize import Normalize
from tests.frontend.families import COMMON, save_model
from tests.frontend.refused import MORE_THAN_TEXT, REFUSED, Refused


def _import(config: Any, change: Callable[[Any], Any] = lambda module: None) -> None:
    check_config(config, "here")
    empty = torch_export.build_empty(config)
    change(empty.module)
    Normalize().apply(torch_export.export(empty), Context())


def _refused(said: str, config: Any, change: Callable[[Any], Any] = lambda module: None) -> None:
    with pytest.raises(MorendoError, match=said) as caught:
        _import(config, change)
    line = str(caught.value)
    assert "\n" not in line
    assert len(line) < 300
    assert caught.value.where
    assert caught.value.hint


@pytest.mark.parametrize("one", REFUSED, ids=lambda one: one.kind)
def test_a_family_is_refused_for_what_it_is(one: Refused) -> None:
    _refused(one.said, one.config())
    assert not {one.kind, *one.alike} & set(TESTED)


def _llama(**options: Any) -> Any:
    return AutoConfig.for_model("llama", **{**COMMON, "num_key_value_heads": 2, **options})


MLP = modeling_llama.LlamaMLP
OWN = MLP.forward
ATTENTION = modeling_llama.LlamaAttention


def _counted(self: Any, x: torch.Tensor) -> torch.Tensor:
    self.seen.add_(1)
    return OWN(self, x * self.seen)


def _raises(self: Any, x: torch.Tensor) -> torch.Tensor:
    raise ValueError("words of a library\nabout its insides")


# What an MLP of the model does instead of its own, and what is said of it.
LAYERS: dict[str, Callable[..., Any]] = {
    r"operations that cannot be imported \(special_bessel_j0.default\)": (
        lambda self, x: torch.special.bessel_j0(x)
    ),
    "normalize: op relax.mean computes a token from others": (
        lambda self, x: OWN(self, x - x.mean(1, keepdim=True))
    ),
    "normalize: op relax.cumsum is not among those": (lambda self, x: OWN(self, x.cumsum(-1))),
    r"the model cannot be traced \(ValueError\) at LlamaMLP, llama": _raises,
    r"the model changes a buffer while it runs \(.*layers.0.mlp.seen\)": _counted,
    r"the logits do not depend on 6 weights of the model \(first: model.layers.0.mlp": (
        lambda self, x: x
    ),
}


@pytest.mark.parametrize("said", LAYERS)
def test_a_layer_that_cannot_be_compiled_is_refused(
    said: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    def with_buffers(module: torch.nn.Module) -> None:
        for part in module.modules():
            if isinstance(part, MLP):
                part.register_buffer("seen", torch.zeros((), device="meta"))

    monkeypatch.setattr(MLP, "forward", LAYERS[said])
    _refused(said, _llama(), with_buffers if LAYERS[said] is _counted else lambda module: None)


def test_attention_that_is_more_than_the_op_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    own = modeling_llama.eager_attention_forward

    def doubled(*args: Any, **kwargs: Any) -> Any:
        out, weights = own(*args, **kwargs)
        return 2 * out, weights

    monkeypatch.setattr(modeling_llama, "eager_attention_forward", doubled)
    _refused("the model's own attention is more than scores.* at LlamaAttention", _llama())


def test_masks_of_the_model_itself_are_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    forward = modeling_llama.LlamaModel.forward

    def masked(self: Any, input_ids: Any, **rest: Any) -> Any:
        return forward(self, input_ids, **{**rest, "attention_mask": input_ids.ne(0)})

    with monkeypatch.context() as patch:
        patch.setattr(modeling_llama.LlamaModel, "forward", masked)
        _refused("the model masks tokens by itself at llama", _llama())
    with monkeypatch.context() as patch:
        patch.setattr(modeling_llama, "create_causal_mask", lambda **rest: None)
        _refused("attention without a causal mask of transformers", _llama())


def test_attentions_of_other_shapes_are_refused() -> None:
    three = _llama(num_key_value_heads=3)
    _refused(r"do not share keys and values evenly \(got 4, 3, 3 heads\)", three)
    dropping = _llama(attention_dropout=0.25)
    _refused(r"drops out weights .*\(got 0.25\)", dropping, lambda module: module.train())


def test_a_model_without_attention_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(
        ATTENTION, "forward", lambda self, hidden_states, **r: (hidden_states, None)
    )
    _refused("no attention of the model goes through transformers'", _llama())


@pytest.mark.parametrize("kind", MORE_THAN_TEXT)
def test_models_of_more_than_text_are_refused(kind: str) -> None:
    _refused(f"architecture '{kind}' takes more than text", AutoConfig.for_model(kind))


def test_numbers_that_kernels_do_not_have_are_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(MLP, "forward", lambda self, x: OWN(self, x.double().exp().float()))
    save_model("llama", tmp_path / "model")
    with pytest.raises(MorendoError, match=r"the model computes float64 values \(need one of") as e:
        morendo.compile(tmp_path / "model", bits="f32", out=tmp_path / "artifact")
    assert "\n" not in str(e.value)
    assert [path.name for path in tmp_path.iterdir()] == ["model"]
