"""Causes of a level that moves, told apart; and changes that went away again."""

from __future__ import annotations

import pytest

from bench.judge.changes import changes
from bench.judge.moves import moves, standing
from bench.judge.series import Era, eras, order_of
from bench.model.history import Entry
from tests.support.history import HISTORY, entry


def made(entries: list[Entry]) -> list[Era]:
    return eras(entries, order_of(entries, None), lambda point: True, ["graph"])


def environment(number: int, us: float | list[float], **identity: object) -> Entry:
    """An entry of another machine or other tools."""
    found = entry(number, us, env_key="other")
    assert found.results.env is not None
    found.results.env.identity |= identity  # type: ignore[arg-type]
    return found


@pytest.mark.parametrize(
    ("second", "kinds"),
    [
        (entry(2, 3.0, version="v2"), ["measuring method"]),
        (environment(2, 3.0, triton="3.8.0"), ["toolchain"]),
        (environment(2, 3.0, driver="590.1"), ["toolchain"]),
        (environment(2, 3.0, gpu="Another GPU", sm_count=132), ["hardware"]),
        (environment(2, 3.0, gpu="Another GPU", triton="3.8.0"), ["toolchain", "hardware"]),
        (environment(5, 3.0, triton="3.8.0"), ["code", "toolchain"]),
    ],
)
def test_a_level_that_moves_between_eras_has_its_causes_named(second: Entry, kinds: list[str]) -> None:
    """The code is among them only where no commit was measured in both."""
    (move,) = moves(made([entry(number, 2.0) for number in range(3)] + [second]), HISTORY)
    assert move.ratio == pytest.approx(1.5) and move.worse
    assert [cause.kind for cause in move.causes] == kinds


def test_the_code_is_no_cause_where_the_library_is_the_same() -> None:
    second = environment(5, 3.0, triton="3.8.0")
    second.commit = type(second.commit)(**{**_fields(second.commit), "library": "library 2"})
    (move,) = moves(made([entry(number, 2.0) for number in range(3)] + [second]), HISTORY)
    assert [cause.kind for cause in move.causes] == ["toolchain"]


def _fields(commit: object) -> dict[str, object]:
    return {name: getattr(commit, name) for name in commit.__struct_fields__}  # type: ignore[attr-defined]


def test_what_the_noise_may_be_is_no_move() -> None:
    first = [entry(number, [2.0, 2.2, 1.8]) for number in range(3)]
    assert moves(made([*first, environment(2, [2.1, 2.3, 1.9], triton="3.8.0")]), HISTORY) == []
    assert len(moves(made([*first, environment(2, [4.0, 4.2, 3.8], triton="3.8.0")]), HISTORY)) == 1
    assert (
        moves(made([entry(0, 2.0), environment(0, 2.0 * (1 + HISTORY.least_pct / 200), triton="3.8.0")]), HISTORY) == []
    )


def changed(levels: list[float]) -> tuple[list[int], list[tuple[int, int]]]:
    """The commits of the changes that stand, and of those that went with what took them."""
    entries = [entry(number, level * (1 + 0.001 * (number % 2))) for number, level in enumerate(levels)]
    (era,) = made(entries)
    found = changes(era.series[0], order_of(entries, None), HISTORY)
    kept, gone = standing(found, HISTORY)
    number = {item.commit.sha: place for place, item in enumerate(entries)}
    back = [(number[one.change.commit.sha], number[one.back.commit.sha]) for one in gone]
    return [number[one.commit.sha] for one in kept], back


def test_a_step_whose_level_came_back_went_away_and_others_stand() -> None:
    assert changed([2.0] * 8 + [2.4] * 8) == ([8], [])
    assert changed([2.0] * 8 + [2.4] * 8 + [2.0] * 8) == ([], [(8, 16)])
    assert changed([2.0] * 8 + [2.4] * 8 + [2.2] * 8) == ([8, 16], []), "half of it is still there"
    assert changed([2.0] * 8 + [2.4] * 8 + [2.9] * 8 + [2.0] * 8 + [1.5] * 8) == ([32], [(8, 24), (16, 24)])
