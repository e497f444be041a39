"""Train the small llama that tests use: real weights with structure, under 3 MB.

    python tools/train_tiny_llama.py tests/models/tiny_llama

It learns the text that every Python installation carries (`pydoc_data.topics`), with a byte-pair
vocabulary of 512 made from the same text. Two CPU cores need a few minutes; the result is
committed, so nobody has to run this again.
"""

from __future__ import annotations

import argparse
from pathlib import Path
from pydoc_data.topics import topics

import torch
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

VOCABULARY = 512
WINDOW = 128
BATCH = 16


def corpus() -> str:
    """All topics in one text."""
    return "\n\n".join(topics[name] for name in sorted(topics))


def train_tokenizer(text: str) -> Tokenizer:
    """A byte-level BPE with <s> and </s> as its first two tokens."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=VOCABULARY,
        special_tokens=["<s>", "</s>"],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    tokenizer.train_from_iterator(text.split("\n"), trainer)
    return tokenizer


def make_model() -> LlamaForCausalLM:
    """A llama with grouped queries and tied embeddings, about 0.9 M weights."""
    config = LlamaConfig(
        vocab_size=VOCABULARY,
        hidden_size=128,
        intermediate_size=384,
        num_hidden_layers=4,
        num_attention_heads=4,
        num_key_value_heads=2,
        max_position_embeddings=512,
        tie_word_embeddings=True,
        bos_token_id=0,
        eos_token_id=1,
    )
    torch.manual_seed(0)
    return LlamaForCausalLM(config)


def train(model: LlamaForCausalLM, ids: torch.Tensor, steps: int) -> None:
    """AdamW with a warm-up and a linear decay on random windows."""
    optimizer = torch.optim.AdamW(model.parameters(), lr=3e-3, weight_decay=0.1)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, 3e-3, steps, pct_start=0.1)
    generator = torch.Generator().manual_seed(0)
    for step in range(steps):
        starts = torch.randint(len(ids) - WINDOW, (BATCH,), generator=generator)
        batch = torch.stack([ids[s : s + WINDOW] for s in starts])
        loss = model(input_ids=batch, labels=batch).loss
        optimizer.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        schedule.step()
        if step % 50 == 0 or step == steps - 1:
            print(f"step {step}: loss {loss.item():.3f}", flush=True)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("out", type=Path)
    parser.add_argument("--steps", type=int, default=800)
    arguments = parser.parse_args()
    text = corpus()
    tokenizer = train_tokenizer(text)
    model = make_model()
    train(model, torch.tensor(tokenizer.encode(text).ids), arguments.steps)
    model.half().save_pretrained(arguments.out)
    PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, bos_token="<s>", eos_token="</s>", model_max_length=512
    ).save_pretrained(arguments.out)


if __name__ == "__main__":
    main()
