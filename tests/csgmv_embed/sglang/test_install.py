"""Loading, refusing, switching off and examining the plugin, each in a process of its own as a server would.

Most are forked from one process that has imported what SGLang imports in any case (forked.py).
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from csgmv_embed.sglang import SettingError, VersionError
from csgmv_embed.sglang.settings import Settings
from csgmv_embed.sglang.targets import RELEASES, release_for
from tests.support import real_sglang as support

# What a server process does first, then the plugin's own word, and whose function runs.
SCRIPT = """
import logging, sys
logging.basicConfig(level=logging.INFO, stream=sys.stderr)
{before}
from sglang.srt.plugins import load_plugins
load_plugins()
from csgmv_embed.sglang import runtime, status
from sglang.srt.lora.backend.chunked_backend import ChunkedSgmvLoRABackend as backend
found = status()
assert found.active == (runtime.active is not None)  # hooks in place pass through unless the check switched them on
print(found.active, "|", found.reason, "|", hasattr(backend.prepare_lora_batch, "__wrapped__"))
for hook in found.hooks:
    print(hook.name, hook.applied, hook.reason)
"""


PRINTS = "lambda self, forward_batch, routes: print('called', forward_batch, routes)"

DOCTOR = """
import runpy, sys
sys.argv[1:] = ["doctor"]
runpy.run_module("csgmv_embed", run_name="__main__", alter_sys=True)
"""

Done = subprocess.CompletedProcess[str]
Fork = Callable[..., Done]


def environment_with(folder: Path) -> dict[str, str]:
    """Of a process that sees this checkout as if it was installed."""
    support.entry_point_files(folder)
    return {**os.environ, "PYTHONPATH": os.pathsep.join([str(support.REPO), str(folder)])}


@pytest.fixture(scope="module")
def fork(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Fork]:
    """Runs a script in a process of its own, with these variables added to its environment."""
    folder = tmp_path_factory.mktemp("forked")
    out, err = folder / "out", folder / "err"
    command = [sys.executable, "-P", "-W", "ignore", str(Path(__file__).with_name("forked.py"))]
    with subprocess.Popen(
        command, env=environment_with(folder / "site"), stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    ) as process:
        assert process.stdin is not None and process.stdout is not None
        requests, answers = process.stdin, process.stdout

        def run(script: str, **environment: str) -> Done:
            for file in (out, err):
                file.write_bytes(b"")
            requests.write(json.dumps([script, environment, str(out), str(err)]) + "\n")
            requests.flush()
            return Done(script, int(answers.readline()), out.read_text(), err.read_text())

        yield run


@pytest.fixture
def run(fork: Fork) -> Fork:
    """SCRIPT in a process of its own, after these lines."""
    return lambda before="", **environment: fork(SCRIPT.format(before=before), **environment)


needs_plugins = pytest.mark.skipif(not support.has_plugins(), reason="this SGLang loads no plugins")


def test_the_entry_point_puts_every_hook_in_place(loaded: Any) -> None:
    found, active = loaded
    assert found.active and not found.reason
    assert [hook.name for hook in found.hooks] == [hook.name for hook in active.release.hooks]
    for hook in found.hooks:
        assert hook.applied, hook
        assert Path(hook.file).is_relative_to(support.REPO / "csgmv_embed" / "sglang"), hook


@needs_plugins
def test_disabled_by_the_environment(run: Fork) -> None:
    result = run(CSGMV_EMBED_DISABLE="1")
    assert result.stdout.splitlines()[0] == "False | CSGMV_EMBED_DISABLE=1 | False", result.stderr


@needs_plugins
def test_an_unknown_version_is_refused_unless_told_otherwise(run: Fork) -> None:
    pretend = (
        "import importlib.metadata as m; real = m.version; m.version = lambda n: '9.9.9' if n == 'sglang' else real(n)"
    )
    result = run(pretend)
    first = result.stdout.splitlines()[0]
    assert first.startswith("False | SGLang 9.9.9 is not one of 0.5.10, ") and first.endswith("| False"), result.stderr
    assert "WARNING:csgmv_embed:csgmv-embed is off: SGLang 9.9.9" in result.stderr


@needs_plugins
def test_a_hook_that_sglang_cannot_apply_switches_everything_off(run: Fork) -> None:
    """SGLang logs it and goes on; half a plugin would run."""
    broken = "import sglang.srt.lora.mem_pool as pool\ndel pool.LoRAMemoryPool.load_lora_weight_to_buffer"
    result = run(broken)
    lines = result.stdout.splitlines()
    assert lines[0].startswith("False | load: AttributeError") and lines[0].endswith("| True"), result.stderr
    assert "lookup True " in lines and any(line.startswith("load False AttributeError") for line in lines)
    assert "csgmv-embed is off, SGLang's own embedding LoRA runs: load" in result.stderr


@needs_plugins
def test_the_reason_is_the_import_that_failed(run: Fork) -> None:
    result = run("sys.modules['sglang.srt.lora.mem_pool'] = None")
    assert "storage False ModuleNotFoundError: import of sglang.srt.lora.mem_pool halted" in result.stdout, (
        result.stderr
    )
    assert result.stdout.startswith("False | ")


@needs_plugins
def test_another_signature_switches_everything_off(run: Fork, fork: Fork) -> None:
    changed = (
        "import sglang.srt.lora.backend.chunked_backend as b\n"
        "b.ChunkedSgmvLoRABackend.prepare_lora_batch = lambda self, forward_batch, routes: None"
    )
    result = run(changed)
    expected = "False | prepare: takes (self, forward_batch, routes); expected (self, forward_batch, weight_indices,"
    assert result.stdout.startswith(expected), result.stdout + result.stderr
    # SGLang looks at no signature: what it hooked has to work all the same.
    whole = SCRIPT.format(before=changed.replace("lambda self, forward_batch, routes: None", PRINTS))
    result = fork(whole + "backend.prepare_lora_batch(None, 1, routes=2)\n")
    assert result.stdout.splitlines()[-1] == "called 1 2", result.stdout + result.stderr


@needs_plugins
def test_without_an_optional_hook_the_rest_works(run: Fork, fork: Fork) -> None:
    """One that is not there, and one with other parameters: SGLang's own function gets the call as it was made."""
    layers = "import sglang.srt.lora.layers as layers\n"
    gone = run(f"{layers}del layers.ParallelLMHeadWithLoRA.apply_lora")
    assert gone.stdout.startswith("True |  |"), gone.stdout + gone.stderr
    assert "lm_head False AttributeError" in gone.stdout and "layer True" in gone.stdout
    assert "leaves SGLang's own function in place: sglang.srt.lora.layers.ParallelLMHeadWithLoRA" in gone.stderr

    before = f"{layers}layers.VocabParallelEmbeddingWithLoRA.forward = {PRINTS}"
    other = fork(
        SCRIPT.format(before=before)
        + "import sglang.srt.lora.layers as layers\nlayers.VocabParallelEmbeddingWithLoRA.forward(None, 1, routes=2)\n"
    )
    assert other.stdout.startswith("True |  |"), other.stdout + other.stderr
    assert "layer False takes (self, forward_batch, routes); expected (self, input_)" in other.stdout
    assert other.stdout.splitlines()[-1] == "called 1 2", other.stdout + other.stderr


@needs_plugins
def test_a_bad_setting_leaves_sglang_alone(run: Fork) -> None:
    result = run(CSGMV_EMBED_STORAGE="column_major")
    assert result.stdout.splitlines()[0].endswith("| False"), result.stderr
    assert "SettingError: CSGMV_EMBED_STORAGE is 'column_major'; expected vocab_major or rank_major" in result.stderr


def doctor_from_the_shell(folder: Path) -> Done:
    return subprocess.run(
        [sys.executable, "-W", "ignore", "-m", "csgmv_embed", "doctor"],
        env=environment_with(folder),
        capture_output=True,
        text=True,
        timeout=240,
        check=False,
    )


@pytest.mark.parametrize(
    ("environment", "code", "expected"),
    [
        ({}, 0, "plugin       on"),
        (
            {"CSGMV_EMBED_LAYER": "0"},
            0,
            "layer              applied, but SGLang's own function runs: CSGMV_EMBED_LAYER=0",
        ),
        (
            {"CSGMV_EMBED_LM_HEAD": "0"},
            0,
            "lm_head            applied, but SGLang's own function runs: CSGMV_EMBED_LM_HEAD=0",
        ),
        ({"CSGMV_EMBED_DISABLE": "1"}, 1, "plugin       off: CSGMV_EMBED_DISABLE=1"),
        ({"CSGMV_EMBED_STORAGE": "x"}, 1, "plugin       off: SettingError: CSGMV_EMBED_STORAGE is 'x'"),
        ({"SGLANG_PLUGINS": "another"}, 1, "plugin       off: SGLang did not load it: SGLANG_PLUGINS='another'"),
    ],
)
def test_doctor(environment: dict[str, str], code: int, expected: str, fork: Fork, tmp_path: Path) -> None:
    result = fork(DOCTOR, **environment) if environment else doctor_from_the_shell(tmp_path)
    assert expected in result.stdout, result.stdout + result.stderr
    assert result.returncode == code
    if code == 0:
        assert "lookup             applied\n" in result.stdout and "csgmv_embed/sglang/hooks/lookup.py" in result.stdout
        assert (
            "layer_add          applied" in result.stdout and "csgmv_embed/sglang/hooks/embedding.py" in result.stdout
        )
        assert result.stdout.count("SGLang's own function runs") == {
            "CSGMV_EMBED_LAYER": 2,
            "CSGMV_EMBED_LM_HEAD": 1,
        }.get(next(iter(environment), ""), 0)


def test_install_is_explicit_and_idempotent(fork: Fork) -> None:
    code = (
        "import csgmv_embed.sglang as p\n"
        "first, second = p.install(), p.install()\n"
        "p.register()\n"
        "from sglang.srt.lora.backend.chunked_backend import ChunkedSgmvLoRABackend as b\n"
        "depth, f = 0, b.prepare_lora_batch\n"
        "while hasattr(f, '__wrapped__'): depth, f = depth + 1, f.__wrapped__\n"
        "print(first.active, first == second, depth)\n"
    )
    result = fork(code)
    assert result.stdout.split() == ["True", "True", "1"], result.stdout + result.stderr


# Each puts a function of its own in the place of `held`, a hook's target that `holder` has under `name`.
REPLACEMENTS = {
    "another function": "setattr(holder, name, lambda *args, **kwargs: None)",
    "named in __wrapped__ alone": "setattr(holder, name, functools.wraps(held)(lambda *args, **kwargs: None))",
    "from a list": "kept = [held]; setattr(holder, name, lambda *args: kept[0](*args))",
    "deleted": "delattr(holder, name)",
}
WRAPPERS = {
    "a closure": "setattr(holder, name, (lambda inner: lambda *args, **kwargs: inner(*args, **kwargs))(held))",
    "a closure's closure": "f = lambda inner: lambda *args: inner(*args)\nsetattr(holder, name, f(f(held)))",
    "a global": "theirs = held\nsetattr(holder, name, lambda *args: theirs(*args))",
    "a default": "setattr(holder, name, lambda *args, inner=held: inner(*args))",
    "a partial": "setattr(holder, name, functools.partial(held))",
    "a method": "setattr(holder, name, types.MethodType(lambda inner, *args: inner(*args), held))",
    "an object": "Held = type('Held', (), {'__call__': lambda self, *args: self.inner(*args)})\n"
    "it = Held(); it.inner = held; setattr(holder, name, it)",
}
REPLACED = """
import functools, types
import csgmv_embed.sglang as plugin
from csgmv_embed.sglang import doctor, installer
before = plugin.install()
assert before.active and all(hook.applied and not hook.behind for hook in before.hooks), before
lines = []
for hook in before.hooks:
    if not {every} and hook.name not in ("lookup", "layer", "csgmv_launcher"):
        continue
    holder, name, held = installer._resolve(hook.target)
    raw = vars(holder)[name]
    {replace}
    found = plugin.status()
    now = next(other for other in found.hooks if other.name == hook.name)
    assert [other for other in found.hooks if other.name != hook.name] == [
        other for other in before.hooks if other.name != hook.name
    ]
    shown = next(line for line in doctor.report(found, "") if line.startswith(hook.name + " "))
    print(hook.name, hook.required, found.active, now.applied, now.reason or now.behind, found.reason, shown, sep=" | ")
    setattr(holder, name, raw)
    assert plugin.status() == before
"""


def replaced(fork: Fork, code: str, every: bool) -> list[list[str]]:
    result = fork(REPLACED.format(replace=code.replace("\n", "\n    "), every=every))
    assert result.returncode == 0, result.stdout + result.stderr
    return [line.split(" | ") for line in result.stdout.splitlines()]


@pytest.mark.parametrize("way", REPLACEMENTS)
def test_a_hook_that_another_module_replaced_is_said_to_be_out_of_the_chain(way: str, fork: Fork, loaded: Any) -> None:
    found = replaced(fork, REPLACEMENTS[way], every=way == "another function")
    names = [hook.name for hook in loaded[1].release.hooks]
    assert len(found) == (len(names) if way == "another function" else 3)
    for name, required, active, applied, reason, why, shown in found:
        assert applied == "False"
        if way == "deleted":  # a method of the class above it shows then
            assert reason.startswith(("AttributeError", "replaced by BaseL")), reason
        else:
            assert reason.startswith("replaced by <lambda> (<string>:") and "does not refer to ours" in reason, reason
        off = "False", f"the rest runs without {name}: {reason}"
        assert (active, why) == (
            off if required == "True" else ("True", "")
        )  # the plugin is on without an optional one
        assert f"not applied: {reason}" in shown


@pytest.mark.parametrize("way", WRAPPERS)
def test_a_function_around_ours_is_told_from_one_in_its_place(way: str, fork: Fork) -> None:
    for name, _, active, applied, behind, why, shown in replaced(fork, WRAPPERS[way], every=False):
        assert (active, applied, why) == ("True", "True", ""), name
        assert "(<string>:" in behind or behind in ("functools.partial object", "__main__.Held object"), behind
        assert f"applied, runs only if {behind} calls it" in shown


def test_the_doctor_says_what_another_plugin_put_in_place_of_ours(fork: Fork) -> None:
    """One that is loaded with ours, or after it."""
    late = (
        "import csgmv_embed.sglang as plugin\nreal = plugin.installer.check\n"
        "def check(release):\n"
        "    found = real(release)\n"
        "    import sglang.srt.lora.mem_pool as pool\n"
        "    pool.LoRAMemoryPool.init_buffers = lambda self, base_model: None\n"
        "    return found\n"
        "plugin.installer.check = check\n"
    )
    result = fork(late + DOCTOR)
    assert (
        "plugin       off: the rest runs without storage: replaced by check.<locals>.<lambda> (<string>:"
        in result.stdout
    ), result.stderr
    assert "storage            not applied: replaced by check.<locals>.<lambda>" in result.stdout
    assert "lookup             applied\n" in result.stdout
    assert result.returncode == 1


def test_importing_the_plugin_imports_nothing_of_sglang() -> None:
    code = "import sys, csgmv_embed.sglang; print([m for m in sys.modules if m.split('.')[0] == 'sglang'])"
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=240, check=True)
    assert result.stdout.strip() == "[]"


def test_releases() -> None:
    assert release_for("0.5.16").version == release_for("0.5.16.post1").version == "0.5.16"
    assert release_for("0.5.16+cu130").version == "0.5.16"
    for version in ("0.5.9", "0.5.16rc1", "0.6.0", "0.5.16.dev3"):
        with pytest.raises(VersionError, match="CSGMV_EMBED_ANY_VERSION"):
            release_for(version)
    nearest = {"0.5.9": "0.5.10", "0.5.16rc1": "0.5.16", "0.5.21": "0.5.21", "9.9.9": "0.5.23"}
    assert {wanted: release_for(wanted, any_version=True).version for wanted in nearest} == nearest
    assert len({release.version for release in RELEASES}) == len(RELEASES) == 10


def test_settings() -> None:
    assert Settings.from_environment({}) == Settings()
    assert Settings.from_environment({"CSGMV_EMBED_STORAGE": ""}) == Settings()
    assert Settings.from_environment({"CSGMV_EMBED_STORAGE": "rank_major"}).storage == "rank_major"
    found = Settings.from_environment({"CSGMV_EMBED_LAYER": "0"})
    assert (found.layer, found.lm_head) == (False, True)
    assert [found.switched_off(name) for name in ("lookup", "layer", "layer_add", "lm_head")] == [
        "",
        "CSGMV_EMBED_LAYER=0",
        "CSGMV_EMBED_LAYER=0",
        "",
    ]
    found = Settings.from_environment({"CSGMV_EMBED_LM_HEAD": "0"})
    assert (found.layer, found.lm_head) == (True, False) and found.switched_off("lm_head") == "CSGMV_EMBED_LM_HEAD=0"
    for environment in (
        {"CSGMV_EMBED_STORAGE": "strided"},
        {"CSGMV_EMBED_DISABLE": "yes"},
        {"CSGMV_EMBED_LAYER": "off"},
        {"CSGMV_EMBED_DISABLED": "1"},
    ):
        with pytest.raises(SettingError):
            Settings.from_environment(environment)
