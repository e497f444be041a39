"""What pip installs: a wheel with every file of the six folders, symlinks turned into folders."""

import shutil
import subprocess
import sys
import zipfile
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
FOLDERS = ("ir", "passes", "frontend", "codegen", "targets", "runtime")
BUILD = "from setuptools.build_meta import build_wheel; import sys; build_wheel(sys.argv[1])"


def test_a_wheel_holds_code_and_c_sources(tmp_path):
    source = tmp_path / "source"
    source.mkdir()
    for name in ("pyproject.toml", "README.md", "LICENSE"):
        shutil.copy(ROOT / name, source)
    for name in (*FOLDERS, "morendo"):
        ignore = shutil.ignore_patterns("__pycache__")
        shutil.copytree(ROOT / name, source / name, symlinks=True, ignore=ignore)
    done = subprocess.run(
        [sys.executable, "-c", BUILD, str(tmp_path)],
        cwd=source,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    packed = set(zipfile.ZipFile(next(tmp_path.glob("*.whl"))).namelist())
    wanted = {"morendo/__init__.py", "morendo/cli/entry.py", "morendo/py.typed"}
    for folder in FOLDERS:
        for path in (source / folder).rglob("*"):
            if path.suffix in (".py", ".c", ".h", ".toml", ".idl"):
                wanted.add(f"morendo/{path.relative_to(source).as_posix()}")
    assert any(name.endswith(".c") for name in wanted)
    assert not wanted - packed
    assert not [name for name in packed if name.startswith(FOLDERS)], "no second copy"
