"""The cost model: what it makes of counts, and what its description of GPUs says."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path

import pytest

from morendo.codegen.cpu.kernels.kv_cache import KVCache
from morendo.codegen.kernel_code import KernelCode
from morendo.codegen.kernel_facts import KernelFacts
from morendo.kernel_table import print_kernels
from morendo.targets.cuda import cost
from morendo.targets.cuda.cost import Work, known_gpus, predict
from morendo.targets.cuda.disassembly import Instruction, Loop
from morendo.targets.cuda.kernels.attention import attention_parts, memory_waits
from morendo.targets.cuda.nvrtc import Image
from morendo.targets.cuda.report import DeviceCode, Machine, predicted
from morendo.targets.cuda.target import GPU

A100 = known_gpus()["A100"]
DECODE = Loop((Instruction("IDP.4A"),) * 32 + (Instruction("LOP3"),) * 64)
PREFILL = Loop((Instruction("IMMA.16832"),) * 16 + (Instruction("FFMA"),) * 128)


def test_gpus_are_described_with_sources() -> None:
    text = json.loads((Path(cost.__file__).parent / "gpus.json").read_text())
    assert list(known_gpus()) == ["A100", "RTX 4090", "H100"]
    for gpu in known_gpus().values():
        assert gpu.sources and all(source in text["sources"] for source in gpu.sources)
        products = 16 * 4096 / gpu.tensor_cycles(PREFILL) / gpu.mma_part
        assert products == pytest.approx(2 ** round(products).bit_length() / 2, rel=0.01)


def test_reading_weights_bounds_one_token() -> None:
    bytes_, products = 4096 * 4096 * 0.53, 4096 * 4096
    found = predict(Work(bytes_, products, DECODE, 256, 128, 56, 256), A100)
    assert found.bound == "memory"
    assert found.microseconds == pytest.approx(0.5 + 0.33 + 5.72 / 0.9, rel=0.01)
    assert found.bandwidth_part == pytest.approx(5.72 / found.microseconds, rel=0.01)
    slow = Loop(DECODE.body[:32] + (Instruction("I2F"),) * 320)
    assert predict(Work(bytes_, products, slow, 256, 128, 56, 256), A100).bound == "convert"


def test_copies_ahead_hide_the_latency_of_memory() -> None:
    """With one block for each multiprocessor; with more of them they hide each other's."""
    products = 4096 * 108 * 64 * 128
    times = {}
    for blocks in (108, 432):
        for ahead in (1, 4):
            work = Work(1e6, products * blocks / 108, PREFILL, blocks, 128, 128, 18000, ahead)
            times[blocks, ahead] = predict(work, A100)
    assert times[108, 1].bound == "latency" and times[108, 4].bound == "fma"
    assert times[108, 1].microseconds > 1.5 * times[108, 4].microseconds
    assert times[432, 1].microseconds == pytest.approx(times[432, 4].microseconds, rel=0.01)


def test_copies_in_the_background_are_as_many_as_the_shape_has() -> None:
    """Not as many as all lanes would make; through registers instructions say it all."""
    copies = Loop(PREFILL.body[:16] + (Instruction("LDGSTS.E.128"),) * 64)
    work = Work(1e6, 4096 * 108 * 64 * 128, copies, 108, 128, 128, 18000, 4)
    assert predict(work, A100).bound == "shared"
    known = dataclasses.replace(work, copied_bytes=6272)
    assert predict(known, A100).microseconds < 0.6 * predict(work, A100).microseconds
    stores = Loop(PREFILL.body[:16] + (Instruction("STS.128"),) * 64)
    work, known = (dataclasses.replace(one, loop=stores) for one in (work, known))
    assert predict(known, A100) == predict(work, A100)


def test_products_of_warpgroups_have_the_published_rate() -> None:
    h100, loop = known_gpus()["H100"], Loop((Instruction("HGMMA.64x128x16.F32"),) * 4)
    assert loop.products == 4 * 64 * 16 and loop.moved_bytes == 4 * 32
    assert loop.products * 32 / h100.tensor_cycles(loop) == pytest.approx(4 * 512, rel=0.01)


def test_room_for_blocks() -> None:
    work = Work(0, 0, None, 1, 128, 128, 17920)
    assert work.resident(A100) == 4  # by registers
    assert Work(0, 0, None, 1, 128, 32, 40960).resident(A100) == 4  # by shared memory
    assert Work(0, 0, None, 1, 1024, 32, 0).resident(A100) == 2  # by threads
    small = predict(Work(1e3, 0, None, 1, 128, 32, 0), A100)
    assert small.bound == "memory" and small.microseconds == pytest.approx(0.83, abs=0.01)


def test_blocks_that_share_keys_wait_less() -> None:
    """32 heads of a token that sees 4096 keys: a block for each head, and as many as are built."""
    cache, isa = KVCache(4, 64, 4096, "float16"), GPU("cuda", "sm_80")
    times = {}
    for parts in (1, attention_parts(isa, 32, cache)):
        waits = memory_waits(cache, 4096, parts)
        work = Work(4096 * 1024, 0, None, 32 * parts, 256, 64, 9000, waits=waits)
        found = predict(dataclasses.replace(work, launches=1 + (parts > 1)), A100)
        times[parts] = found.microseconds
        assert found.bound == "latency"
    assert list(times) == [1, 8]
    assert times[1] == pytest.approx(43.2, abs=0.1) and times[8] == pytest.approx(7.6, abs=0.1)


def test_columns_of_the_table() -> None:
    machines = {"sm_80": Machine(Image(b"", b"", "Used 56 registers"), (), DECODE)}
    code = DeviceCode(9, {"dot": 32}, 128, {"registers": 56}, machines, (256, 1), 128)
    one = KernelFacts("k", {"decode": 1}, 1, 4096 * 4096, [8.9e6], 4, 4, 0, code)
    columns = predicted(one)
    assert columns == {"A100 us": "7.2 memory"}
    assert predicted(KernelFacts("k", {}, 1, 0, [0.0], 0, 0, 0, KernelCode())) == {}
    table = print_kernels([KernelFacts(**{**vars(one), "predicted": columns})])
    assert "A100 us" in table and "7.2 memory" in table
    assert table.endswith(DeviceCode.NOTES)
    assert one.to_json()["code"]["loop"] == {"dot": 32}
