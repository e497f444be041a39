"""DIR/run, the executable of an artifact: what `morendo run` says, without Python."""

import json
import shutil
import signal
import subprocess
import sys
from pathlib import Path

import pytest

import morendo
from morendo.codegen.link import RUNTIME_SOURCES, _environment

PROMPT = "Once upon a time"
TINY = Path(__file__).parent.parent / "models" / "tiny_llama"
EXAMPLE = Path(__file__).resolve().parent.parent.parent / "examples" / "generate.c"
TEMPLATE = (
    "{% for m in messages %}<|{{ m.role }}|>{{ m.content }}\n{% endfor %}"
    "{% if add_generation_prompt %}<|assistant|>{% endif %}"
)


def call(artifact, *words, text="", **options):
    # Nothing of this process's environment: the executable needs none.
    return subprocess.run(
        [artifact / "run", *words], input=text.encode(), capture_output=True, env={}, check=False,
        **options,
    )  # fmt: skip


@pytest.fixture(scope="module")
def artifact(compile_tiny):
    return compile_tiny(bits=4)


@pytest.fixture(scope="module")
def chat_artifact(tmp_path_factory):
    """The same model with a chat template and settings of its own."""
    folder = tmp_path_factory.mktemp("chat")
    model = Path(shutil.copytree(TINY, folder / "model"))
    facts = json.loads((model / "tokenizer_config.json").read_text())
    facts["chat_template"] = TEMPLATE
    (model / "tokenizer_config.json").write_text(json.dumps(facts))
    sampling = {"do_sample": True, "temperature": 0.7, "top_k": 30}
    (model / "generation_config.json").write_text(json.dumps(sampling))
    return morendo.compile(model, bits=4, out=folder / "artifact", chunk=32)


@pytest.fixture(scope="module")
def answer(artifact):
    with morendo.load(artifact) as session:
        return "".join(session.stream(PROMPT, max_tokens=24)).encode()


def test_says_what_a_session_says(artifact, answer):
    done = call(artifact, PROMPT, "--max-tokens", "24")
    assert (done.returncode, done.stderr) == (0, b"")
    assert done.stdout == answer + b"\n"


def test_prompt_from_standard_input(artifact, answer):
    for words in (["--max-tokens=24"], ["-", "--max-tokens", "24"]):
        assert call(artifact, *words, text=f"{PROMPT}\n").stdout == answer + b"\n"


def test_is_static_and_small(artifact):
    program = (artifact / "run").read_bytes()
    assert b"/ld-" not in program  # no dynamic loader is asked for
    assert len(program) < 2_000_000


def test_runs_from_any_place(artifact, answer, tmp_path):
    moved = shutil.copytree(artifact, tmp_path / "a b")
    link = tmp_path / "link"
    link.symlink_to(moved / "run")
    done = subprocess.run([link, PROMPT, "--max-tokens", "24"], capture_output=True, check=True)
    assert done.stdout == answer + b"\n"


def test_ids_in_and_out(artifact):
    with morendo.load(artifact) as session:
        ids = session.encode(PROMPT)
        wanted = list(session.generate(ids, max_tokens=8))
    done = call(artifact, "--ids", " ".join(map(str, ids)), "--max-tokens", "8")
    assert [int(word) for word in done.stdout.split()] == wanted


def test_stop_text_is_left_out(artifact, answer):
    stop = answer.decode()[5:8]
    done = call(artifact, PROMPT, "--stop", stop, "--max-tokens", "24")
    assert done.stdout.decode() == answer.decode().partition(stop)[0] + "\n"


def test_statistics_go_to_standard_error(artifact, answer):
    done = call(artifact, PROMPT, "--max-tokens", "24", "--stats", "--threads", "1", "--level", "1")
    assert b"decode" in done.stderr and b"tokens/s  23 tokens" in done.stderr


def test_chat_is_the_models_own(chat_artifact):
    greedy = {"max_tokens": 16, "temperature": 0.0}
    words = ["--max-tokens", "16", "--temperature", "0"]
    with morendo.load(chat_artifact) as session:
        chat = session.encode_chat("Hi", system="Be brief")
        with_system = "".join(session.stream(chat, **greedy)).encode()
        asked = "".join(session.stream(session.encode_chat("Hi"), **greedy)).encode()
        raw = "".join(session.stream("Hi", **greedy)).encode()
    assert call(chat_artifact, "Hi", *words).stdout.rstrip(b"\n") == asked.rstrip(b"\n")
    assert call(chat_artifact, "Hi", *words, "--raw").stdout == raw + b"\n"
    done = call(chat_artifact, "Hi", *words, "--system", "Be brief")
    assert done.stdout == with_system + b"\n"


def test_models_sampling_is_the_default(chat_artifact):
    sampled = [call(chat_artifact, "Hi", "--seed", seed).stdout for seed in ("1", "1", "2")]
    assert sampled[0] == sampled[1] != sampled[2]


@pytest.mark.parametrize(
    ("words", "code", "said"),
    [
        (["--nonsense"], 2, "unrecognized arguments: --nonsense; see --help"),
        (["a", "b"], 2, "unrecognized arguments: b; put the prompt into quotes"),
        (["--max-tokens", "many"], 2, "--max-tokens: must be a whole number, 0 or more (got many)"),
        (["--max-tokens"], 2, "argument --max-tokens: expected one argument"),
        (["--threads", "257"], 2, "must be a whole number, 0 to 256 (got 257)"),
        (["--temperature", "inf"], 2, "must be a finite number of 0 or more (got inf)"),
        (["--repetition-penalty", "0"], 2, "must be a finite number above 0 (got 0)"),
        (["--top-p", "2", "a"], 2, "argument --top-p: must be above 0 and at most 1 (got 2)"),
        (["--min-p", "1.5", "a"], 2, "argument --min-p: must be 0 to 1 (got 1.5)"),
        (["--seed", "-1", "a"], 2, "argument --seed: must be a whole number, 0 or more (got -1)"),
        (["--stop", "", "a"], 2, "argument --stop: must not be empty"),
        (["--raw=1", "a"], 2, "--raw takes no value"),
        (["--raw", "--system", "s", "a"], 2, "--system needs the chat template"),
        (["--raw", "--chat", "a"], 2, "argument --chat: not allowed with argument --raw"),
        (["--system", "s", "a"], 1, "this model has no chat template; leave --system out"),
        (["--chat", "a"], 1, "this model has no chat template; leave --chat out"),
        (["--level", "9", "a"], 1, "precision level out of range (got 9, need 0 to 4)"),
        (["--ids", "1 x"], 1, "no token id, at byte 2"),
        (["--ids", "99999"], 1, "not in the vocabulary (got id 99999"),
        ([""], 1, "the prompt is empty"),
        (["word " * 3000], 1, "prompt too long"),
        ([b"\xff"], 1, "not valid UTF-8 (at byte 0)"),
    ],
)
def test_mistakes_are_one_line(artifact, words, code, said):
    done = call(artifact, *words)
    assert done.returncode == code
    assert said in done.stderr.decode()
    assert done.stderr.startswith(b"error: ") and done.stderr.count(b"\n") == 1
    assert done.stdout == b""


def test_help_teaches(artifact):
    done = call(artifact, "--help")
    assert done.returncode == 0
    for option in ("--raw", "--system", "--ids", "--stop", "--top-k", "--stats", "exit codes"):
        assert option in done.stdout.decode()


def test_version_and_model_are_told(artifact):
    done = call(artifact, "--version")
    assert (done.returncode, done.stderr) == (0, b"")
    assert done.stdout.decode() == f"morendo {morendo.__version__}, tiny_llama\n"


@pytest.mark.parametrize(
    ("name", "said"), [("weights.bin", "weights.bin"), ("tokenizer.bin", "tokenizer.bin")]
)
def test_missing_file_is_named(artifact, tmp_path, name, said):
    moved = Path(shutil.copytree(artifact, tmp_path / "copy"))
    (moved / name).unlink()
    done = call(moved, "a")
    assert done.returncode == 1
    assert said in done.stderr.decode() and done.stderr.count(b"\n") == 1


def test_ctrl_c_ends_it(artifact):
    words = [artifact / "run", PROMPT, "--max-tokens", "1000000", "--ignore-eos"]
    process = subprocess.Popen(words, stdout=subprocess.PIPE, stderr=subprocess.PIPE)
    process.stdout.read(1)
    process.send_signal(signal.SIGINT)
    _, errors = process.communicate(timeout=60)
    # It may have come to the end of its context before the signal did.
    assert (process.returncode, errors) == (130, b"error: interrupted\n") or b"context" in errors


def test_reader_that_goes_away(artifact):
    words = [artifact / "run", PROMPT, "--max-tokens", "1000000", "--ignore-eos"]
    process = subprocess.Popen(words, stdout=subprocess.PIPE, stderr=subprocess.PIPE)
    process.stdout.close()
    assert process.wait(timeout=60) == 141
    assert process.stderr.read() == b""


def test_full_disk_is_said(artifact):
    with open("/dev/full", "wb") as full:
        done = subprocess.run(
            [artifact / "run", PROMPT], stdout=full, stderr=subprocess.PIPE, check=False
        )
    assert done.returncode == 1
    assert b"cannot write the output" in done.stderr


def test_tokenizer_without_tables_takes_ids(tmp_path):
    model = Path(shutil.copytree(TINY, tmp_path / "model"))
    facts = json.loads((model / "tokenizer.json").read_text())
    facts["normalizer"] = {"type": "NFKC"}
    (model / "tokenizer.json").write_text(json.dumps(facts))
    out = morendo.compile(model, bits=4, out=tmp_path / "artifact", chunk=32)
    assert not (out / "tokenizer.bin").exists()
    done = call(out, "Hi")
    assert done.returncode == 1
    assert b"no tables for the normalizer NFKC" in done.stderr and b"--ids" in done.stderr
    assert call(out, "--ids", "1 2", "--max-tokens", "2").returncode == 0


def link_example(artifact, folder):
    """examples/generate.c, linked with the artifact's library."""
    program = folder / "generate"
    command = [sys.executable, "-m", "ziglang", "cc", "-std=c11", "-Wall", "-Wextra", "-Werror"]
    command += [str(EXAMPLE), f"-I{RUNTIME_SOURCES}", str(artifact / "model.so")]
    command += [f"-Wl,-rpath,{artifact}", "-o", str(program)]
    subprocess.run(command, env=_environment(), check=True)
    return program


@pytest.fixture(scope="module")
def example(artifact, tmp_path_factory):
    return link_example(artifact, tmp_path_factory.mktemp("example"))


def test_example_says_what_run_says(example, artifact, answer):
    done = subprocess.run([example, artifact, PROMPT, "24"], capture_output=True, check=True)
    assert done.stdout == PROMPT.encode() + answer + b"\n"


def test_example_draws_as_run_draws(example, artifact):
    words = ["24", "0.8", "7"]
    done = subprocess.run([example, artifact, PROMPT, *words], capture_output=True, check=True)
    options = ["--max-tokens", "24", "--temperature", "0.8", "--seed", "7"]
    assert done.stdout == PROMPT.encode() + call(artifact, PROMPT, *options).stdout


def test_example_begins_and_ends_as_the_model_wants(artifact, tmp_path):
    """A model whose texts begin with a token, and which ends an answer at one that comes soon."""
    model = Path(shutil.copytree(TINY, tmp_path / "model"))
    facts = json.loads((model / "tokenizer.json").read_text())
    begin = {"SpecialToken": {"id": "<s>", "type_id": 0}}
    text = {"Sequence": {"id": "A", "type_id": 0}}
    facts["post_processor"] = {
        "type": "TemplateProcessing", "single": [begin, text], "pair": [begin, text, text],
        "special_tokens": {"<s>": {"id": "<s>", "ids": [0], "tokens": ["<s>"]}},
    }  # fmt: skip
    (model / "tokenizer.json").write_text(json.dumps(facts))
    with morendo.load(artifact) as session:
        said = list(session.generate([0, *session.encode(PROMPT)], max_tokens=12))
        count, end = next((i, id) for i, id in enumerate(said) if i > 2 and id not in said[:i])
        wanted = PROMPT + session.decode(said[:count])
    (model / "generation_config.json").write_text(json.dumps({"eos_token_id": [1, end]}))
    out = morendo.compile(model, bits=4, out=tmp_path / "artifact", chunk=32)
    program = link_example(out, tmp_path)
    done = subprocess.run([program, out, PROMPT, "12"], capture_output=True, check=True)
    assert done.stdout.decode() == wanted + "\n"
    assert call(out, PROMPT, "--max-tokens", "12").stdout == done.stdout[len(PROMPT) :]


def test_example_tells_errors(example, artifact, tmp_path):
    def said(*words):
        return subprocess.run([example, *words], capture_output=True, check=False, text=True)

    assert said(artifact).returncode == 2
    assert said(tmp_path, PROMPT, "4").stderr.startswith("error: cannot read")
    failed = said(artifact, PROMPT, "4", "-1")
    assert failed.stderr.startswith("error: temperature is out of range (got -1, need")
    assert failed.returncode == 1


def test_header_is_c_plus_plus_too(tmp_path):
    source = tmp_path / "linked.cpp"
    source.write_text('#include "morendo.h"\nmr_sampling s = MR_GREEDY;\nint main() { return 0; }')
    command = [sys.executable, "-m", "ziglang", "c++", "-Wall", "-Wextra", "-Werror", "-c"]
    command += [str(source), f"-I{RUNTIME_SOURCES}", "-o", str(tmp_path / "linked.o")]
    subprocess.run(command, env=_environment(), check=True)
