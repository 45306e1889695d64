"""What imports what: the layers of pyproject.toml, and what a plain `import neuralcodec` must not load."""

from __future__ import annotations

import ast
import json
import shutil
import subprocess
import sys
from pathlib import Path
from typing import get_type_hints

import pytest

ROOT = Path(__file__).parent.parent
PACKAGE = ROOT / "neuralcodec"
ISLANDS = {"models", "training"}  # the folders that may import torch, and that nothing else may import
HEAVY = {
    "torch",
    "torchvision",
    "onnxruntime",
    "tensorrt",
    "cuda",
    "cv2",
    "skimage",
    "scipy",
    "onnx",
    "safetensors",
    "aiortc",
    "aiohttp",
    "cryptography",
}
TORCH_SIDE = {"torch", "torchvision", "safetensors", "onnx", "onnxscript"}
# Needs the extra [webrtc] and is loaded by the command `call` alone.
ON_DEMAND = {PACKAGE / "call" / "server.py", PACKAGE / "call" / "prompt.py"}
MODULES = sorted(p for p in PACKAGE.rglob("*.py") if p.relative_to(PACKAGE).parts[0] not in ISLANDS)


def python(code: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, cwd=ROOT)


def imported(path: Path, *, top_level_only: bool = False) -> set[str]:
    """Absolute dotted names that a module imports, those inside functions too unless told otherwise."""
    tree = ast.parse(path.read_text("utf-8"))
    here = list(path.relative_to(ROOT).with_suffix("").parts)
    names: set[str] = set()
    for node in tree.body if top_level_only else ast.walk(tree):
        if isinstance(node, ast.Import):
            names |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            base = ".".join(here[: len(here) - node.level]) if node.level else ""
            module = ".".join(part for part in (base, node.module or "") if part)
            names |= {module, *(f"{module}.{alias.name}" for alias in node.names)}
    return names


def test_the_layers_hold() -> None:
    linter = shutil.which("lint-imports", path=str(Path(sys.executable).parent)) or shutil.which("lint-imports")
    if linter is None:
        pytest.skip("import-linter is not installed")
    done = subprocess.run(
        [linter, "--no-cache", "--config", "pyproject.toml"], capture_output=True, text=True, cwd=ROOT
    )
    assert done.returncode == 0, done.stdout + done.stderr


@pytest.mark.parametrize("path", MODULES, ids=lambda p: str(p.relative_to(PACKAGE)))
def test_nothing_outside_the_torch_islands_imports_them_or_torch(path: Path) -> None:
    allowed = {"onnx"} if path.name == "dequantize.py" else set()  # only where a GPU is given an 8-bit graph
    for name in imported(path):
        assert name.split(".")[0] not in TORCH_SIDE - allowed, f"{path.name} imports {name}"
        assert not any(name == f"neuralcodec.{i}" or name.startswith(f"neuralcodec.{i}.") for i in ISLANDS), name


@pytest.mark.parametrize("path", MODULES, ids=lambda p: str(p.relative_to(PACKAGE)))
def test_heavy_libraries_are_imported_inside_functions_only(path: Path) -> None:
    if path in ON_DEMAND:
        dotted = ".".join(path.relative_to(ROOT).with_suffix("").parts)
        assert not [p for p in MODULES if dotted in imported(p, top_level_only=True)]
        return
    assert not {name.split(".")[0] for name in imported(path, top_level_only=True)} & (HEAVY | {"rich", "export"})


def test_importing_the_package_loads_nothing_heavy() -> None:
    done = python(
        f"import json, sys, neuralcodec; print(json.dumps(sorted({HEAVY | {'rich'}!r} & sys.modules.keys())))"
    )
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout) == []


def test_every_module_imports_where_torch_cannot_be_had() -> None:
    plain = [p for p in MODULES if p not in ON_DEMAND]
    names = [".".join(p.relative_to(ROOT).with_suffix("").parts).removesuffix(".__init__") for p in plain]
    names.remove("neuralcodec.__main__") if "neuralcodec.__main__" in names else None
    blocked = sorted(TORCH_SIDE | {"onnxruntime", "tensorrt", "cuda", "cv2", "skimage"})
    done = python(
        f"import importlib, sys\nfor name in {blocked!r}: sys.modules[name] = None\n"
        f"for name in {names!r}: importlib.import_module(name)\nprint('all')"
    )
    assert done.stdout == "all\n", done.stderr


def test_what_is_loaded_late_is_listed_from_the_start() -> None:
    """Completion in a shell goes by it."""
    done = python("import neuralcodec, sys; print({*neuralcodec.__all__} <= {*dir(neuralcodec)}, 'av' in sys.modules)")
    assert done.stdout == "True False\n", done.stderr


def test_a_type_checker_finds_a_misspelled_name(tmp_path: Path) -> None:
    pytest.importorskip("mypy")
    program = tmp_path / "program.py"
    program.write_text("import neuralcodec as nc\n\nnc.Decodr\nnc.Decoder\n")
    done = subprocess.run(
        [sys.executable, "-m", "mypy", "--follow-imports=skip", "--ignore-missing-imports", "--config-file=",
         f"--cache-dir={tmp_path}", str(PACKAGE / "__init__.py"), str(program)],
        capture_output=True, text=True, cwd=ROOT,
    )  # fmt: skip
    found = [line for line in done.stdout.splitlines() if "program.py" in line]
    assert len(found) == 1 and ':3: error: Module has no attribute "Decodr"' in found[0], done.stdout + done.stderr


def test_annotations_name_what_is_taken() -> None:
    from neuralcodec import Decoder, Encoder, encode_file

    assert get_type_hints(Decoder.decode)["data"] == bytes | bytearray | memoryview  # what sockets read into
    assert get_type_hints(encode_file)["crop"] == get_type_hints(Encoder.__init__)["crop"]
