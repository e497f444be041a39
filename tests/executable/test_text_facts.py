"""C data about a model's text is what it was made from, whatever characters are in it."""

import subprocess
import sys
from dataclasses import replace

from morendo.codegen.link import RUNTIME_SOURCES, _environment
from morendo.codegen.text_facts import ChatForm, SamplingDefaults, TextFacts

_MAIN = r"""
#include <stdio.h>
#include "model.h"
int main(void) {
  const Model m = model_facts;
  printf("%s|%s|%d|%d|", m.name, m.version, m.bos, m.stop_count);
  printf("%d|%d\n", m.stops[0], m.stop_count ? m.stops[1] : 0);
  printf("%s|%s|%s|%s\n", m.user[0], m.user[1],
         m.system[0] ? m.system[1] : "none",
         m.missing_chat ? m.missing_chat : "chat");
  printf("%s|%d|%.3f|%.3f|%.3f|%.3f|%d\n",
         m.missing_tokenizer ? m.missing_tokenizer : "tables", m.trims,
         m.sampling.temperature, m.sampling.top_p, m.sampling.min_p,
         m.sampling.repetition_penalty, m.sampling.top_k);
  printf("%lld|%lld\n", (long long)m.level_bytes[0], (long long)m.weights);
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
