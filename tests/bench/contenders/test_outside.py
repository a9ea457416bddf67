"""Contenders of files and packages: the examples of the docs, what a bad file becomes, and which content is which."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import msgspec
import pytest
import torch

from bench import contenders
from bench.execute.measure import verify_eager
from bench.judge import comparable
from bench.model import config, outside, registry, store
from bench.model.case import Case
from bench.model.records import Point
from bench.model.toml import ConfigError
from bench.workload import traffic
from bench.workload.tensors import Workload, make_workload

ROOT = Path(__file__).parents[3]
EXAMPLES = ROOT / "docs" / "examples"
CASES = [
    Case("decode", 5, 1, 16, adapters=3, vocab=997),
    Case("mixed", 9, 7, 8, adapters=3, rank_mix="gaps", vocab=997, base_fraction=0.4),
]
GOOD = """
import torch
class Good:
    name = "{name}"
    def setup(self, workload, *, static):
        return lambda k: torch.zeros(1)
    def required_bytes(self, workload):
        return 1
"""


@pytest.fixture(autouse=True)
def forgotten(monkeypatch: pytest.MonkeyPatch) -> None:
    """Files that a test names are unknown after it."""
    monkeypatch.setenv(outside.VARIABLE, "")


def file_of(folder: Path, text: str, name: str = "mine.py") -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / name
    path.write_text(text, encoding="utf-8")
    return path


def workload_of(case: Case) -> Workload:
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    return make_workload(case, seed=1, index_sets=2, device=device)


@pytest.mark.parametrize("case", CASES, ids=lambda case: case.label)
@pytest.mark.parametrize("name", ["triton_rank_major", "torch_take", "cuda_gather"])
def test_the_examples_give_the_exact_result(name: str, case: Case) -> None:
    outside.register([EXAMPLES / f"{name}.py"])
    (known,) = outside.of_files()
    assert outside.without_hash(known) == name
    contender = contenders.build(known, "lookup")
    if reason := contenders.unavailable(contender):
        pytest.skip(reason)
    workload = workload_of(case)
    assert verify_eager(contender, workload, contender.setup(workload, static=False)).max_error == 0.0
    assert contender.required_bytes(workload) > traffic.minimum(workload)


def test_the_page_has_every_example_and_every_attribute() -> None:
    page = (ROOT / outside.PAGE).read_text(encoding="utf-8")
    assert sorted(path.name for path in EXAMPLES.glob("*.py")) == [
        "cuda_gather.py",
        "torch_take.py",
        "triton_rank_major.py",
    ]
    for name in (
        *EXAMPLES.glob("*.py"),
        *outside.METHODS,
        outside.GROUP,
        "kernels",
        "roundings",
        "sources",
        "unavailable",
    ):
        assert (name.name if isinstance(name, Path) else name) in page


BAD = {
    "raises": GOOD.format(name="raises").replace("import torch", "raise RuntimeError('no such luck')"),
    "ends": GOOD.format(name="ends").replace("import torch", "import os; os._exit(9)"),
    "wrong": (EXAMPLES / "triton_rank_major.py")
    .read_text(encoding="utf-8")
    .replace('"triton_rank_major"', '"wrong"')
    .replace("max_rank + column, row,", "max_rank + column, row + row,"),
}


def test_a_sweep_counts_the_examples_and_each_bad_file_is_a_row_that_says_why(tmp_path: Path) -> None:
    files = [file_of(tmp_path / name, text) for name, text in BAD.items()]
    options = [word for path in (EXAMPLES / "triton_rank_major.py", *files) for word in ("--contender-file", str(path))]
    command = [sys.executable, "-m", "bench", "sweep", "-p", "smoke", "-k", "work", "--case", "op=lookup,phase=decode"]
    chosen = [
        "-c",
        "triton_rank_major",
        *(word for name in BAD for word in ("-c", name)),
        "-o",
        str(tmp_path / "r.json"),
    ]
    done = subprocess.run([*command, *options, *chosen], cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 1, done.stderr
    results = store.read(tmp_path / "r.json")
    found = {outside.without_hash(point.contender): point for point in results.points}
    ours = found.pop("triton_rank_major")
    assert ours.work is not None and ours.work.counts.programs == 8 and ours.work.compiled
    assert ours.contender in done.stdout
    assert (found["raises"].status, found["raises"].reason) == ("error", "RuntimeError: no such luck")
    assert found["wrong"].status == "wrong" and "of the oracle's largest value" in str(found["wrong"].reason)
    assert found["ends"].status == "crashed" and "exit status 9" in str(found["ends"].reason)
    assert {item.file for item in results.outside} == {"triton_rank_major.py", "mine.py"}


@pytest.mark.parametrize(
    ("output", "words"),
    [
        ("torch.zeros(5, 16, dtype=torch.bfloat16)", "error 1 of the oracle's largest value; at most 0 allowed"),
        ("torch.zeros(5, 8, dtype=torch.bfloat16)", r"output is \(5, 8\).*expected \(5, 16\)"),
        ("None", "launch returned NoneType; expected the output, a tensor"),
    ],
)
def test_a_wrong_output_is_named(output: str, words: str, tmp_path: Path) -> None:
    outside.register([file_of(tmp_path, GOOD.format(name="mine").replace("torch.zeros(1)", output))])
    contender = contenders.build(next(iter(outside.of_files())), "lookup")
    workload = make_workload(CASES[0], seed=1, index_sets=1, device=torch.device("cpu"))
    with pytest.raises(Exception, match=words):
        verify_eager(contender, workload, contender.setup(workload, static=False))


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("x = 1", 'has no class with `name = "..."`; expected a contender as in docs/how-to/add-a-contender.md'),
        ("class A:\n    name = 'a'\n    def setup(self): ...", "class A: has no method required_bytes; expected both"),
        ("class A:\n    name = 'A b'", "class A: name is 'A b'; expected small letters"),
        ("class A:\n    name = 'a'\n    ops = ('gather',)", "ops is .'gather',.; expected some of lookup, layer"),
        ("class A:", "is not valid Python: .*; expected a file as in"),
        (
            GOOD.format(name="a").replace("def setup", 'sources = ("a.cu",)\n    def setup'),
            "sources has a.cu: No such file",
        ),
    ],
)
def test_a_file_without_a_contender_is_an_error_that_says_what_it_lacks(text: str, words: str, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=words):
        outside.register([file_of(tmp_path, text)])


def test_methods_of_a_base_in_the_file_count_and_those_of_another_module_may_be_there(tmp_path: Path) -> None:
    own = GOOD.format(name="base").replace('    name = "base"\n', "") + "class Mine(Good):\n    name = 'mine'\n"
    assert [outside.without_hash(item.name) for item in outside.read_file(file_of(tmp_path, own))] == ["mine"]
    foreign = "from x import Base\nclass Mine(Base):\n    name = 'mine'\n"
    assert outside.read_file(file_of(tmp_path, foreign))[0].class_name == "Mine"


def test_another_content_of_file_or_source_is_another_contender(tmp_path: Path) -> None:
    text = GOOD.format(name="mine").replace("def setup", 'sources = ("a.cu",)\n    def setup')
    file_of(tmp_path, "one", "a.cu")
    path = file_of(tmp_path, text)
    names = [outside.read_file(path)[0].name]
    file_of(tmp_path, "two", "a.cu")
    names.append(outside.read_file(path)[0].name)
    file_of(tmp_path, text + "\n# changed\n")
    names.append(outside.read_file(path)[0].name)
    assert len(set(names)) == 3 and {outside.without_hash(name) for name in names} == {"mine"}
    with pytest.raises(KeyError, match="no file or package has the contender 'mine#.*' with this content; .* none"):
        contenders.build(names[0])


def test_a_plan_has_the_contenders_of_files_at_the_ops_that_they_have(tmp_path: Path) -> None:
    text = GOOD.format(name="mine") + GOOD.format(name="other").replace(
        "def setup", "ops = ('expand',)\n    def setup", 1
    )
    outside.register([file_of(tmp_path, text.replace("class Good", "class B", 1))])
    mine, other = outside.of_files()
    plan = config.make_plan(config.load(), "smoke")
    assert {point.case.op for point in plan.points if point.contender == mine} == {"lookup"}
    assert {point.case.op for point in plan.points if point.contender == other} == {"expand"}
    assert registry.provides(other, "expand", "qkv") and not registry.provides(other, "linear", "qkv")
    chosen = config.make_plan(config.load(), "smoke", contenders=["mi*"])
    assert {point.contender for point in chosen.points} == {mine}
    with pytest.raises(ConfigError, match="--contender nobody: matches none of .*mine#"):
        config.make_plan(config.load(), "smoke", contenders=["nobody"])


def test_a_package_offers_contenders_by_an_entry_point(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    file_of(
        tmp_path,
        GOOD.format(name="packed").replace("import torch", "from bench_packed_helper import torch"),
        "bench_packed.py",
    )
    file_of(tmp_path, "import torch", "bench_packed_helper.py")
    file_of(tmp_path / "packed-1.dist-info", f"[{outside.GROUP}]\npacked = bench_packed:Good\n", "entry_points.txt")
    file_of(tmp_path / "packed-1.dist-info", "Name: packed\nVersion: 1\n", "METADATA")
    monkeypatch.syspath_prepend(tmp_path)
    outside.installed.cache_clear()
    try:
        plain = {point.contender for point in config.make_plan(config.load(), "smoke").points}
        asked = {point.contender for point in config.make_plan(config.load(), "smoke", contenders=["packed"]).points}
        assert not any(map(outside.is_outside, plain)) and [outside.without_hash(name) for name in asked] == ["packed"]
        assert contenders.build(asked.pop(), "lookup").name.startswith("packed#")
        file_of(
            tmp_path / "packed-1.dist-info", f"[{outside.GROUP}]\npacked = nowhere_to_be_found\n", "entry_points.txt"
        )
        outside.installed.cache_clear()
        with pytest.raises(
            ConfigError, match="entry point packed of csgmv_bench.contenders: nowhere_to_be_found does not name a class"
        ):
            outside.installed()
    finally:
        outside.installed.cache_clear()


def test_compare_holds_a_content_against_the_one_before_it(tmp_path: Path) -> None:
    def point(name: str) -> Point:
        return Point(CASES[0], name, "graph", 0, "ok")

    def matched(old: list[str], new: list[str]) -> comparable.Match:
        return comparable.match(map(point, old), map(point, new), lambda _: True)

    both = matched(["a#1", "b"], ["a#2", "b"])
    assert [(x.contender, y.contender) for x, y in both.both] == [("a#1", "a#2"), ("b", "b")]
    assert both.notes == ["a#1 is a#2 now: its file has changed"]
    unclear = matched(["a#1"], ["a#2", "a#3"])
    assert (unclear.both, unclear.notes) == ([], []) and len(unclear.new) == 2


def test_a_sweep_goes_on_with_the_content_it_was_begun_with_alone(tmp_path: Path) -> None:
    from bench.cli.measure import _check_resumable, plan_of
    from bench.execute.sweep import new_results
    from bench.model.records import ResultsError, Selection

    selection = Selection("smoke", clocks=["work"], contenders=["mine"])
    path = file_of(tmp_path, GOOD.format(name="mine"))
    outside.register([path])
    plan = plan_of(config.load(), selection)
    results = new_results(plan, selection)
    _check_resumable(results, plan, tmp_path / "r.json")
    file_of(tmp_path, GOOD.format(name="mine") + "# changed\n")
    changed = plan_of(config.load(), selection)
    with pytest.raises(ResultsError, match=r"r.json: mine#.* was measured from mine.py, and no --contender-file"):
        _check_resumable(results, changed, tmp_path / "r.json")
    assert msgspec.to_builtins(results.outside[0])["file"] == "mine.py"
