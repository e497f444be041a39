"""The rules that keep the repository in shape: import directions, names, sizes, documents.

Everything here reads files; it takes a second and needs neither TVM nor torch.
"""

import ast
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent
FOLDERS = ("ir", "passes", "frontend", "codegen", "targets", "runtime")

# Our packages that a folder may import, besides itself. morendo/ (compiler, cli) may import all.
MAY_IMPORT = {
    "ir": set(),
    "frontend": {"ir"},
    "passes": {"ir"},
    "codegen": {"ir"},
    "runtime": {"ir"},
    "targets": {"ir", "passes", "codegen", "runtime"},
}
# What has to load on a device, without the compiler's dependencies.
LIGHT = ("runtime", "ir/__init__.py", "ir/errors.py", "ir/formats.py", "ir/reference.py")
HEAVY = {"tvm", "tvm_ffi", "torch", "transformers"}

MAX_FILE_LINES = 400
MAX_FUNCTION_LINES = 60
MAX_SCHEDULE_LINES = 80  # codegen/ and targets/

TARGET_NAMES = re.compile(
    r"\b(x86|x86-64|x86_64|amd64|avx\w*|sse\d\w*|vnni|amx|znver\d|arm|armv\d\w*|aarch64|neon|sdot|i8mm"
    r"|cuda|nvptx|ptx|hexagon\w*|hvx\w*|vrmpy)\b",
    re.IGNORECASE,
)
# The default target has to be named somewhere.
MAY_NAME_THE_DEFAULT = re.compile(r"morendo/(compiler|cli/\w+|__init__)\.py")
MACHINE_PATHS = re.compile(r"(?<![\w.])/(?:work|root|home|Users)/\w+")


def python_files(*folders: str) -> list[Path]:
    """Our Python files, each once, under its top-level name."""
    found = [path for folder in folders for path in (ROOT / folder).rglob("*.py")]
    return sorted(path for path in found if path.relative_to(ROOT).parts[:2] not in LINKS)


LINKS = {("morendo", folder) for folder in FOLDERS}
SOURCES = python_files(*FOLDERS, "morendo")
EVERYTHING = python_files(*FOLDERS, "morendo", "tests", "benchmarks", "tools")


def name(path: Path) -> str:
    return path.relative_to(ROOT).as_posix()


def tree(path: Path) -> ast.Module:
    return ast.parse(path.read_text(encoding="utf-8"), filename=str(path))


def tracked_files() -> list[Path]:
    """What git tracks; in an unpacked archive, every file of ours."""
    listing = subprocess.run(
        ["git", "ls-files", "-z"], cwd=ROOT, capture_output=True, text=True, check=False
    )
    if listing.returncode == 0:
        paths = [ROOT / line for line in listing.stdout.split("\0") if line]
        return [path for path in paths if path.is_file()]
    return [*EVERYTHING, *ROOT.glob("*.md"), *ROOT.glob("docs/*.md"), ROOT / "Makefile"]


def imported_modules(path: Path) -> set[str]:
    """Absolute names of all modules that a file imports, anywhere in it."""
    package = ["morendo", *path.relative_to(ROOT).parent.parts]
    if package[1:2] == ["morendo"]:
        package = package[1:]
    modules = set()
    for node in ast.walk(tree(path)):
        if isinstance(node, ast.Import):
            modules |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            base = package[: len(package) - node.level + 1] if node.level else []
            stem = ".".join([*base, *([node.module] if node.module else [])])
            modules.add(stem)
            # `from morendo import ir` imports morendo.ir
            modules |= {f"{stem}.{alias.name}" for alias in node.names}
    return modules


def own_packages(path: Path) -> set[str]:
    parts = [module.split(".") for module in imported_modules(path)]
    return {part[1] for part in parts if part[0] == "morendo" and len(part) > 1}


@pytest.mark.parametrize("folder", FOLDERS)
def test_symlinks_make_one_package(folder):
    link = ROOT / "morendo" / folder
    assert link.is_symlink(), f"morendo/{folder} must be a relative symlink to ../{folder}"
    assert os.readlink(link) == f"../{folder}"


@pytest.mark.parametrize("folder", FOLDERS)
def test_imports_point_one_way(folder):
    allowed = MAY_IMPORT[folder] | {folder}
    wrong = [
        f"{name(path)} imports morendo.{package}"
        for path in python_files(folder)
        for package in sorted(own_packages(path) - allowed)
    ]
    assert not wrong, f"{folder}/ may import {sorted(allowed)}: {wrong}"


def test_what_runs_on_a_device_imports_no_compiler():
    files = [path for path in python_files("runtime", "ir") if name(path).startswith(LIGHT)]
    wrong = [
        f"{name(path)} imports {module}"
        for path in files
        for module in sorted(imported_modules(path))
        if module.split(".")[0] in HEAVY
    ]
    assert files
    assert not wrong


@pytest.mark.parametrize(
    ("module", "banned"),
    [
        ("morendo", {"numpy", "rich", "morendo.ir", *HEAVY}),
        ("morendo.cli", {"numpy", "rich", *HEAVY}),
        ("morendo.ir.reference", HEAVY),
        ("morendo.runtime", HEAVY),
    ],
)
def test_start_is_light(module, banned):
    code = f"import sys, {module}; print(*sorted(set(sys.modules) & {banned!r}))"
    loaded = subprocess.run(
        [sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True
    )
    assert not loaded.stdout.split(), f"import {module} loads {loaded.stdout}"


def test_targets_are_named_only_in_their_folder():
    wrong = []
    sources = [path for path in SOURCES if not name(path).startswith("targets/")]
    for path in [*sources, *(ROOT / "runtime" / "c").glob("*.[ch]")]:
        for number, line in enumerate(path.read_text(encoding="utf-8").splitlines(), 1):
            named = {word.lower() for word in TARGET_NAMES.findall(line)}
            if MAY_NAME_THE_DEFAULT.fullmatch(name(path)):
                named -= {"x86", "x86-64"}
            wrong += [f"{name(path)}:{number} names {word}" for word in sorted(named)]
    assert not wrong, "ask the target's capabilities instead"


def test_files_are_short():
    files = [*EVERYTHING, *(ROOT / "runtime" / "c").glob("*.[ch]")]
    sizes = {name(path): len(path.read_text(encoding="utf-8").splitlines()) for path in files}
    assert not {path: size for path, size in sizes.items() if size > MAX_FILE_LINES}


def code_lines(function: ast.FunctionDef | ast.AsyncFunctionDef) -> int:
    """Lines from `def` to the end, without the docstring."""
    lines = (function.end_lineno or 0) - function.lineno + 1
    first = function.body[0]
    if ast.get_docstring(function) is not None:
        lines -= (first.end_lineno or 0) - first.lineno + 1
    return lines


def test_functions_are_short():
    wrong = []
    for path in EVERYTHING:
        if name(path).startswith("tests/golden/"):
            continue
        schedules = name(path).startswith(("codegen/", "targets/"))
        limit = MAX_SCHEDULE_LINES if schedules else MAX_FUNCTION_LINES
        for node in ast.walk(tree(path)):
            if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
                lines = code_lines(node)
                if lines > limit:
                    wrong.append(f"{name(path)}: {node.name} has {lines} lines, limit {limit}")
    assert not wrong


def test_nothing_depends_on_one_machine():
    wrong = []
    for path in tracked_files():
        try:
            text = path.read_text(encoding="utf-8")
        except UnicodeDecodeError:
            continue
        wrong += [f"{name(path)}: {match}" for match in MACHINE_PATHS.findall(text)]
    assert not wrong


def pass_classes(path: Path) -> list[ast.ClassDef]:
    return [
        node
        for node in tree(path).body
        if isinstance(node, ast.ClassDef) and pass_name(node) is not None
    ]


def pass_name(node: ast.ClassDef) -> str | None:
    """The spec name of a pass: `name: ClassVar[str] = "verb-object"` in a subclass of Pass."""
    if not any(isinstance(base, ast.Name) and base.id == "Pass" for base in node.bases):
        return None
    for item in node.body:
        if not isinstance(item, ast.AnnAssign) or not isinstance(item.value, ast.Constant):
            continue
        if isinstance(item.target, ast.Name) and item.target.id == "name":
            return str(item.value.value)
    return None


def test_a_pass_has_one_name():
    """passes/promote_groups.py holds PromoteGroups, called promote-groups."""
    wrong = []
    for path in python_files("passes", "targets"):
        for node in pass_classes(path):
            words = path.stem.split("_")
            want = ("".join(word.capitalize() for word in words), "-".join(words))
            if (node.name, pass_name(node)) != want:
                wrong.append(f"{name(path)}: {node.name}, {pass_name(node)}; want {want}")
            if not ast.get_docstring(node):
                wrong.append(f"{name(path)}: {node.name} has no docstring")
    assert not wrong


def test_a_target_explains_itself():
    folders = [path for path in (ROOT / "targets").iterdir() if (path / "__init__.py").exists()]
    assert folders
    wanted = [folder / file for folder in folders for file in ("README.md", "target.py")]
    assert not [name(path) for path in wanted if not path.exists()]


DOCUMENTS = [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md"))]


@pytest.mark.parametrize("document", DOCUMENTS, ids=name)
def test_documents_show_real_commands(document):
    from morendo.cli import make_parser

    text = document.read_text(encoding="utf-8")
    parser = make_parser()
    for command, words in shown_commands(text):
        if command == "make":
            assert re.search(rf"^{words[0]}:", (ROOT / "Makefile").read_text(), re.MULTILINE), words
        else:
            known = known_options(parser, words[0])
            options = {word.split("=")[0] for word in words if re.match(r"--?[a-z]", word)}
            assert options <= known, f"{document.name}: morendo {' '.join(words)}"


def shown_commands(text: str) -> list[tuple[str, list[str]]]:
    """Lines of code blocks that call make or morendo, as (command, words)."""
    blocks = "\n".join(re.findall(r"```\w*\n(.*?)```", text, re.DOTALL))
    lines = re.findall(r"^\s*(?:\$ )?(make|morendo) ([a-z].*)$", blocks, re.MULTILINE)
    return [(command, rest.split("#")[0].split()) for command, rest in lines]


def known_options(parser, command: str) -> set[str]:
    import argparse

    choices = next(a for a in parser._actions if isinstance(a, argparse._SubParsersAction)).choices
    assert command in choices, f"there is no `morendo {command}`"
    return {option for action in choices[command]._actions for option in action.option_strings}


def test_links_in_documents_lead_somewhere():
    wrong = []
    for document in [*DOCUMENTS, *(ROOT / "targets").rglob("README.md")]:
        for link in re.findall(r"\]\(([^)#:]+)(?:#[^)]*)?\)", document.read_text(encoding="utf-8")):
            if not (document.parent / link).exists():
                wrong.append(f"{name(document)}: {link}")
    assert not wrong
