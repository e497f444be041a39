"""torch eager as a peer: a process of its own that times prefill and decode when asked.

The benchmark writes a line `prefill N` or `decode N` and reads the seconds it took; between lines
the process sleeps, so that the two sides are measured in turn on an otherwise idle machine.
"""

from __future__ import annotations

import subprocess
import sys
import time
from pathlib import Path


class TorchPeer:
    """The worker process of one model, dtype, number of threads, and device as torch names it."""

    def __init__(self, model: str, dtype: str, threads: int, device: str = "cpu") -> None:
        command = [sys.executable, __file__, model, dtype, str(threads), device]
        self._process = subprocess.Popen(
            command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
        )
        self._answer()

    def _answer(self) -> str:
        assert self._process.stdout
        line = self._process.stdout.readline()
        if not line:
            raise RuntimeError("the torch process ended")
        return line

    def seconds(self, what: str, tokens: int) -> float:
        """Seconds of one `prefill` or `decode` of so many tokens."""
        assert self._process.stdin
        self._process.stdin.write(f"{what} {tokens}\n")
        self._process.stdin.flush()
        return float(self._answer())

    def close(self) -> None:
        """End the process."""
        self._process.kill()
        self._process.wait()


def _load(model: str, dtype: str):
    import torch
    from transformers import AutoModelForCausalLM
    from transformers.utils import logging

    logging.disable_progress_bar()
    path, options = Path(model), {}
    if path.suffix == ".gguf":
        path, options = path.parent, {"gguf_file": path.name}
    # Cast afterwards: read in another dtype, the matrices of a GGUF file would stay packed.
    loaded = AutoModelForCausalLM.from_pretrained(path, dtype=torch.float32, **options)
    return loaded.to(getattr(torch, dtype))


def main() -> None:
    import torch

    model_name, dtype, threads, device = sys.argv[1:]
    torch.set_num_threads(int(threads))
    model = _load(model_name, dtype).eval().to(device)
    print("ready", flush=True)
    with torch.inference_mode():
        for line in sys.stdin:
            what, tokens = line.split()
            ids = torch.randint(model.config.vocab_size, (1, int(tokens)), device=device)
            start = time.perf_counter()
            if what == "prefill":
                model(input_ids=ids, logits_to_keep=1)
            else:
                cache = None
                for i in range(int(tokens)):
                    out = model(input_ids=ids[:, i : i + 1], past_key_values=cache, use_cache=True)
                    cache = out.past_key_values
            if device != "cpu":
                torch.cuda.synchronize()
            print(time.perf_counter() - start, flush=True)


if __name__ == "__main__":
    main()
