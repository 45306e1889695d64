"""The README's Python blocks run as they stand, its commands exist, and its test command is the one CI runs."""

import re
import subprocess
import tomllib
from pathlib import Path

import numpy as np
import pytest
from conftest import ROOT

import neuralcodec as nc
from neuralcodec.cli import main, make_parser

README = (ROOT / "README.md").read_text("utf-8")
BLOCKS = re.findall(r"```python\n(.*?)```", README, re.S)


@pytest.mark.parametrize("block", BLOCKS, ids=lambda b: b.strip().splitlines()[0][:40])
def test_python_blocks_run(
    block: str, portrait_clip: list[np.ndarray], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    import av

    monkeypatch.chdir(tmp_path)
    with av.open("talk.mp4", "w") as film:
        out = film.add_stream("libx264", rate=25)
        out.width = out.height = 256
        for image in portrait_clip[:4]:
            film.mux(out.encode(av.VideoFrame.from_ndarray(image, format="rgb24")))
        film.mux(out.encode(None))
    assert main(["keygen", "me.key"]) == 0
    sent: list[bytes] = []
    shown: list[tuple[np.ndarray, int]] = []

    class Channel:
        def send(self, data: bytes) -> None:
            sent.append(data)

        def __iter__(self) -> object:
            return iter(sent)

    camera = list(enumerate(portrait_clip[:4]))
    names = {"nc": nc, "camera": camera, "channel": Channel(), "display": lambda *x: shown.append(x)}
    exec(compile(block, "README.md", "exec"), names)
    if "camera" in block:
        assert [pts for _, pts in shown] == [0, 1, 2, 3] and sum(map(len, sent)) < 4000


def test_commands_in_the_readme_exist() -> None:
    parser = make_parser()
    commands = "encode|decode|info|pack|doctor|demo|call|keygen"
    lines = re.findall(rf"^(?:python -m )?neuralcodec ((?:{commands})\b.*)$", README, re.M)
    assert len(lines) >= 5
    for line in lines:
        parser.parse_args(line.split("#")[0].split())


def test_ci_runs_the_readme_test_command() -> None:
    command = "python -m pytest"
    assert f"\n{command}\n" in README
    assert f"\n{command}\n" in (ROOT / ".ci" / "run").read_text("utf-8")


def test_a_source_distribution_holds_what_its_tests_read() -> None:
    listed = subprocess.run(["git", "ls-files"], cwd=ROOT, capture_output=True, text=True, check=False)
    tracked = {name.split("/")[0] for name in listed.stdout.split()}
    if "tests" not in tracked:
        pytest.skip("this is no checkout")
    project = tomllib.loads((ROOT / "pyproject.toml").read_text("utf-8"))
    taken = {name.strip("/") for name in project["tool"]["hatch"]["build"]["targets"]["sdist"]["include"]}
    assert tracked - taken == {".gitignore", "pyproject.toml"}  # which every one has


def test_links_between_documents_lead_somewhere() -> None:
    def anchors(text: str) -> set[str]:  # as GitHub makes them from headings
        headings = re.findall(r"^#+ (.*)$", re.sub(r"^```.*?^```", "", text, flags=re.M | re.S), re.M)
        return {re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-") for heading in headings}

    wrong, seen = [], 0
    folders = ("", "neuralcodec", "neuralcodec/packs/portrait", "export", "benchmarks", "benchmarks/results")
    for document in sorted(path for folder in folders for path in (ROOT / folder).glob("*.md")):
        for link in re.findall(r"\]\(([^)\s]+)\)", document.read_text("utf-8")):
            if link.startswith(("http://", "https://", "mailto:")):
                continue
            name, _, anchor = link.partition("#")
            target = document.parent / name if name else document
            seen += 1
            if not target.exists() or (anchor and anchor not in anchors(target.read_text("utf-8"))):
                wrong.append(f"{document.relative_to(ROOT)}: {link}")
    assert not wrong and seen >= 20


def test_the_first_example_is_short() -> None:
    assert len([line for line in BLOCKS[0].splitlines() if line.strip()]) <= 12
