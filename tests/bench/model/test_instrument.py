"""The version of the instrument: what moves the hash of the measuring code, what does not, and what old records are."""

from __future__ import annotations

import json
import re
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from bench.judge import comparable
from bench.model import instrument, store
from bench.model.instrument import KNOWN, MEASURING, ROOT, code_hash, described, unknown_code, version_of
from bench.model.records import Code

GRAPH = "bench/clocks/graph.py"
OLD_HASH = "ee98daa5f55dd6f2"


@pytest.fixture
def checkout(tmp_path: Path) -> Path:
    """A copy of the measuring code."""
    for name in MEASURING:
        source, target = ROOT / name, tmp_path / name
        target.parent.mkdir(parents=True, exist_ok=True)
        if source.is_dir():
            shutil.copytree(source, target, ignore=shutil.ignore_patterns("__pycache__"))
        else:
            shutil.copy(source, target)
    return tmp_path


def edit(name: str, pattern: str, new: str) -> Callable[[Path], None]:
    """Replace what a pattern finds in a file, which it has to."""

    def change(root: Path) -> None:
        text = (root / name).read_text(encoding="utf-8")
        edited, found = re.subn(pattern, new, text, count=1, flags=re.S)
        assert found, f"{name} has no {pattern}"
        (root / name).write_text(edited, encoding="utf-8")

    return change


def rename_a_clock(root: Path) -> None:
    """As when a file moves: its imports in other files follow."""
    (root / "bench/clocks/host").mkdir()
    (root / "bench/clocks/eager.py").rename(root / "bench/clocks/host/calls.py")
    edit("bench/execute/measure.py", "from bench.clocks import eager", "from bench.clocks.host import calls as eager")(
        root
    )


def move_a_folder(root: Path) -> None:
    (root / "bench/clocks/all").mkdir()
    for file in (root / "bench/clocks").glob("*.py"):
        text = re.sub(r"from bench\.clocks(\b)", r"from bench.clocks.all\1", file.read_text(encoding="utf-8"))
        (root / "bench/clocks/all" / file.name).write_text(text, encoding="utf-8")
        file.unlink()


def move_a_function(root: Path) -> None:
    """From one measuring file to another; the first imports it from there."""
    graph = root / GRAPH
    text = graph.read_text(encoding="utf-8")
    found = re.search(r"def event_us\(.*?(?=\n\n\n)", text, flags=re.S)
    assert found
    graph.write_text(text.replace(found[0], ""), encoding="utf-8")
    prepare = root / "bench/clocks/prepare.py"
    prepare.write_text(prepare.read_text(encoding="utf-8") + "\n\n" + found[0] + "\n", encoding="utf-8")


def test_the_measuring_code_has_a_number() -> None:
    found = code_hash()
    assert unknown_code(found) is None, unknown_code(found)
    assert instrument.present() == version_of(found)


@pytest.mark.parametrize(
    "change",
    [
        edit(GRAPH, r'"""The graph clock.*?"""', '"""Another docstring."""'),
        edit("bench/contenders/torch/gather.py", r'"""Two torch ops.*?"""', '"""Rows."""'),
        edit(GRAPH, r"    fill_queues\(\)\n", "    # a comment\n\n    fill_queues()  # another\n"),
        edit(GRAPH, r"WARMUP_LAUNCHES = 3\n(.*?)QUEUES = 16", r"QUEUES = 16\n\1WARMUP_LAUNCHES = 3"),
        edit(GRAPH, r"(from collections.abc import .*?\n)(.*?)(import torch\n)", r"\3\2\1"),
        edit(
            "bench/clocks/anchors.py", r"from bench.clocks import eager, graph", "from bench.clocks import graph, eager"
        ),
        move_a_folder,
    ],
    ids=[
        "docstring",
        "docstring of a contender",
        "comments",
        "order",
        "order of imports",
        "names of imports",
        "folder",
    ],
)
def test_what_measures_nothing_does_not_move_the_hash(checkout: Path, change: Callable[[Path], None]) -> None:
    before = code_hash(checkout)
    assert before == code_hash(ROOT), "the place of a checkout is nothing to it"
    change(checkout)
    assert code_hash(checkout) == before


def test_a_renamed_file_does_not_move_the_hash_where_its_name_is_no_name_of_the_code(checkout: Path) -> None:
    before = code_hash(checkout)
    (checkout / "bench/clocks/work/interpreter.py").rename(checkout / "bench/clocks/rounding.py")
    edit(
        "bench/clocks/work/tracing.py", "from bench.clocks.work.interpreter import", "from bench.clocks.rounding import"
    )(checkout)
    assert code_hash(checkout) == before
    rename_a_clock(checkout)
    assert code_hash(checkout) != before, "`calls as eager` is other code than `eager`: a line with a reason, then"


def test_a_function_may_move_between_measuring_files(checkout: Path) -> None:
    before = code_hash(checkout)
    move_a_function(checkout)
    assert code_hash(checkout) == before


@pytest.mark.parametrize(
    "change",
    [
        edit(GRAPH, r"for _ in range\(blocks\)\]", "for _ in range(blocks - 1)]"),
        edit(GRAPH, r"    fill_queues\(\)\n    _block", "    _block"),
        edit(GRAPH, r"L2_FLUSH_FACTOR = 4", "L2_FLUSH_FACTOR = 2"),
        edit(
            "bench/workload/tensors.py", r"from functools import lru_cache", "from functools import cache as lru_cache"
        ),
        edit("bench/model/case.py", r"MIXED_PREFILL_SHARE = 8\n", "MIXED_PREFILL_SHARE = 8\nMIXED_PREFILL_SHARE = 8\n"),
        lambda root: (root / "bench/contenders/another.py").write_text("ROWS = 1\n", encoding="utf-8"),
        lambda root: (root / "bench/clocks/prepare.py").unlink(),
    ],
    ids=["block loop", "a call less", "constant", "another import", "said twice", "new file", "file less"],
)
def test_other_code_moves_the_hash_and_the_guard_says_what_to_do(
    checkout: Path, change: Callable[[Path], None]
) -> None:
    change(checkout)
    found = code_hash(checkout)
    assert found != code_hash(ROOT)
    said = unknown_code(found)
    assert said is not None
    newest = KNOWN[-1].number
    assert f'Known({newest}, "{found}", "why figures stay comparable")' in said, "the line for comparable figures"
    assert f"Known({newest + 1}, ...)" in said and "bench/model/instrument.py" in said, "or another number"


def test_a_part_that_is_not_followed_is_named(checkout: Path) -> None:
    (checkout / "bench/execute/measure.py").rename(checkout / "bench/taking.py")
    with pytest.raises(FileNotFoundError, match=r"bench/execute/measure\.py: does not exist; expected MEASURING"):
        code_hash(checkout)


def test_a_command_prints_the_hash_and_its_number() -> None:
    done = subprocess.run(
        [sys.executable, "-m", "bench.cli.instrument"],
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=True,
        timeout=60,
    )
    assert done.stdout == f"the measuring code is {code_hash()}: {described(code_hash())}\n"


def test_every_number_is_explained_and_every_state_has_one_number_and_a_reason() -> None:
    history = re.findall(r"^(\d+)  \S", instrument.__doc__ or "", flags=re.M)
    assert [int(number) for number in history] == sorted({known.number for known in KNOWN})
    hashes = [known.hash for known in KNOWN]
    assert len(set(hashes)) == len(hashes)
    assert all(re.fullmatch("[0-9a-f]{16}", value) for value in hashes)
    assert all(known.why for known in KNOWN)


def test_every_published_record_has_a_number() -> None:
    numbers = {}
    for folder in ("bench/baselines", "docs/results", "docs/experiments", "history"):
        for path in (ROOT / folder).rglob("*.json"):
            document = json.loads(path.read_bytes())
            results = document.get("results", document) if isinstance(document, dict) else {}
            if "bench_version" in results.get("code", {}):
                numbers[path.relative_to(ROOT).as_posix()] = version_of(results["code"]["bench_version"])
    assert len(numbers) > 50
    assert {name: number for name, number in numbers.items() if number not in ("1", "2")} == {}
    assert numbers["docs/results/h200-full.json"] == numbers["docs/results/h100-eager.json"] == "1"
    assert numbers["docs/results/h100-full.json"] == numbers["docs/results/h100-head.json"] == "2"


@pytest.mark.parametrize("name", ["nvidia-h100-80gb-hbm3.json", "work-triton-3.6.json", "work-triton-3.8.json"])
def test_the_committed_baselines_have_the_number_of_the_code_they_were_made_with(name: str) -> None:
    assert int(store.read(ROOT / "bench/baselines" / name).code.instrument) >= 2


def code(bench_version: str) -> Code:
    return Code(None, None, None, None, None, None, "0", bench_version)


def test_old_records_are_compared_by_number_and_unknown_ones_with_themselves_alone() -> None:
    assert code(OLD_HASH).instrument == code("b8c690b2fabec2de").instrument == code("2").instrument == "2"
    assert code("91e65d324014359e").instrument == "1"
    assert code("0123456789abcdef").instrument == "0123456789abcdef"
    said = comparable.version_refusal(code("0123456789abcdef"), code(OLD_HASH))
    assert "version 2, the baseline was made with no known version (code 0123456789abcdef)" in said


@pytest.mark.parametrize(
    ("one", "other", "refused"), [("2", OLD_HASH, 0), ("1", OLD_HASH, 1), ("9", "9", 0), ("0f", "f", 1)]
)
def test_the_gate_refuses_other_numbers(one: str, other: str, refused: int) -> None:
    before, after = store.read(ROOT / "docs/results/h200-aa.json"), store.read(ROOT / "docs/results/h200-aa.json")
    before.code.bench_version, after.code.bench_version = one, other
    assert len(comparable.instrument_refusals(before, after)) == refused
