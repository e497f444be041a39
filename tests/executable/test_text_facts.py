"""C data about a model's text is what it was made from, whatever characters are in it."""

import subprocess
import sys
from dataclasses import replace

from morendo.codegen.link import RUNTIME_SOURCES, _environment
from morendo.codegen.text_facts import ChatForm, SamplingDefaults, TextFacts

_MAIN = r"""
#include <stdio.h>
#include "run/run.h"
int main(void) {
  printf("%s|%s|%d|%d|", run_model.name, run_model.version, run_model.bos, run_model.stop_count);
  printf("%d|%d\n", run_model.stops[0], run_model.stop_count ? run_model.stops[1] : 0);
  printf("%s|%s|%s|%s\n", run_model.user[0], run_model.user[1],
         run_model.system[0] ? run_model.system[1] : "none",
         run_model.missing_chat ? run_model.missing_chat : "chat");
  printf("%s|%d|%.3f|%.3f|%.3f|%.3f|%d\n",
         run_model.missing_tokenizer ? run_model.missing_tokenizer : "tables", run_model.trims,
         run_model.sampling.temperature, run_model.sampling.top_p, run_model.sampling.min_p,
         run_model.sampling.repetition_penalty, run_model.sampling.top_k);
  printf("%lld|%lld\n", (long long)run_model.level_bytes[0], (long long)run_model.weights);
  return 0;
}
"""


def printed(facts: TextFacts, folder) -> list[str]:
    (folder / "facts.c").write_text(facts.c_source())
    (folder / "main.c").write_text(_MAIN)
    command = [sys.executable, "-m", "ziglang", "cc", "-std=c11", "-Wall", "-Wextra", "-Werror"]
    command += [f"-I{RUNTIME_SOURCES}", "facts.c", "main.c", "-o", "facts"]
    subprocess.run(command, cwd=folder, env=_environment(), check=True)
    done = subprocess.run([folder / "facts"], capture_output=True, check=True)
    return done.stdout.decode().split("\n")


def test_whole(tmp_path):
    nasty = 'a"b\\n??/é\x01' + "7"
    sampling = SamplingDefaults(0.7, 40, 0.9, 0.05, 1.1)
    chat = ChatForm((nasty, "u"), ("s", nasty, "e"), trims=True)
    facts = TextFacts(nasty, "1.2", 1, [2, 7], chat=chat, sampling=sampling)
    facts = replace(facts, level_bytes=(1 << 40, 7), weights=1 << 33)
    assert printed(facts, tmp_path) == [
        f"{nasty}|1.2|1|2|2|7",
        f"{nasty}|u|{nasty}|chat",
        "tables|1|0.700|0.900|0.050|1.100|40",
        f"{1 << 40}|{1 << 33}",
        "",
    ]


def test_nothing_known(tmp_path):
    facts = TextFacts("m", "1.2", None, [], missing_tokenizer="the normalizer NFKC")
    assert printed(facts, tmp_path) == [
        "m|1.2|-1|0|-1|0",
        "||none|",
        "the normalizer NFKC|0|0.000|1.000|0.000|1.000|0",
        "0|0",
        "",
    ]
