"""How much attention tokens receive, as codegen/cpu/kernels/received_attention.py says it.

A block has the keys of some new tokens, one a thread, and goes through the queries that see them:
so sums have one order, and each query is taken as attention takes it.
"""

from __future__ import annotations

from typing import Any

from tvm import tirx
from tvm.tirx.script.builder import ir as T

from morendo.codegen.cpu.kernels.attention_tile import Scores
from morendo.codegen.cpu.kernels.kv_cache import KVCache
from morendo.codegen.cpu.vectors.vector_blocks import Rows, kernel_name
from morendo.codegen.touched import USED
from morendo.ir.formats import ceil_div
from morendo.targets.cuda.blocks import barrier, function, kernel, launch, local, when

from .attention import Query, chunks_of
from .cache import declare_cache

_THREADS = 128


def received_attention(
    isa: Any,
    *,
    max_tokens: int,
    heads: int,
    cache: KVCache,
    scores: Scores,
    q_rows: Rows | None = None,
) -> tirx.PrimFunc:
    """What share of their attention the queries pay to each new token, on average over those from
    its own on.

    Parameters of the kernel: q f32[M, H, D], the cache, [slopes f32[H] with alibi,] maxima and
    inverses f32[M, H] as `cached_attention` keeps them, importance f32[M, H], tokens, position.
    """
    dim = cache.head_dim
    q_rows = q_rows or Rows(heads * dim)
    name = kernel_name(
        "received_attention", m=max_tokens, h=heads, c=cache.name, s=scores.name,
        q=f"{q_rows.stride}o{q_rows.offset}",
    )  # fmt: skip
    with kernel(name) as k:
        q = k.buffer("q", (max_tokens, q_rows.stride))
        stored = declare_cache(k, cache)
        slopes = k.buffer("slopes", (heads,)) if scores.alibi else None
        maxima, inverses = (k.buffer(each, (max_tokens, heads)) for each in ("maxima", "inverses"))
        out = k.buffer("importance", (max_tokens, heads))
        tokens, position = k.state("tokens"), k.state("position")
        grid = [heads, ceil_div(max_tokens, _THREADS)]
        with launch(grid, _THREADS) as (head, block, thread):
            count, start = tokens.read(), position.read()
            begin = T.bind(block * _THREADS)  # queries before it see none of the keys
            mine, kv_head = T.bind(begin + thread), T.bind(head // (heads // cache.kv_heads))
            chunks = chunks_of(cache)(cache, scores, stored, kv_head, thread, _THREADS)
            slope = T.bind(slopes[head]) if slopes is not None else None
            received, key = local(1, T.float32(0.0)), T.bind(start + mine)
            with T.serial(0, T.max(count - begin, T.int32(0))) as step:
                m = T.bind(begin + step)
                query = Query(scores, slope, T.bind(start + m))
                low = query.first_key()
                chunks.load_query(lambda d: q[m, q_rows.offset + head * dim + d])
                with when(tirx.all(mine <= m, key >= low)):
                    score = query.score(T.bind(chunks.product(key)), key)
                    weight = function("expf", T.bind(score - maxima[m, head])) * inverses[m, head]
                    T.buffer_store(received, received[0] + weight, [0])
                barrier()  # the next query lies where this one does
            with when(mine < count):
                share = received[0] / T.cast(count - mine, "float32")
                T.buffer_store(out, share, [mine, head])
    return k.function.with_attr(USED, {"q": heads * dim})
