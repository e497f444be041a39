"""Comparing an artifact with torch: logits, divergence, torch models of dequantized weights."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np


def torch_logits(model, ids) -> np.ndarray:
    """float32 [tokens, vocabulary] of a torch model."""
    import torch

    with torch.inference_mode():
        return model(input_ids=torch.tensor([list(ids)])).logits[0].numpy()


def kl_divergence(reference: np.ndarray, logits: np.ndarray) -> float:
    """Mean over tokens of KL(softmax(reference) || softmax(logits)), in nats."""

    def log_softmax(x: np.ndarray) -> np.ndarray:
        x = x.astype(np.float64) - x.max(-1, keepdims=True)
        return x - np.log(np.exp(x).sum(-1, keepdims=True))

    p, q = log_softmax(reference), log_softmax(logits)
    return float((np.exp(p) * (p - q)).sum(-1).mean())


def round_linears(model, formats: Callable[[str], str]) -> None:
    """Replace every matrix of a torch model by what its packed codes stand for."""
    import torch

    from morendo.ir.formats import WeightFormat
    from morendo.ir.reference import dequantize, quantize

    for name, parameter in model.named_parameters():
        if parameter.ndim == 2:
            fmt = WeightFormat.parse(formats(name))
            weight = parameter.detach().numpy()
            rounded = dequantize(quantize(weight, fmt), fmt, weight.shape[1])
            parameter.data = torch.from_numpy(rounded)
