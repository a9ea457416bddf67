"""What adds in place is verified on a restored output, whatever ran before."""

from __future__ import annotations

import pytest

from bench.contenders.base import Contender
from bench.execute import measure
from bench.workload.tensors import Workload


def assert_verified_on_a_restored_output(contender: Contender, workload: Workload) -> None:
    """After three launches a fourth is wrong as it stands, and right once its output is restored."""
    launch = contender.setup(workload, static=False)
    for _ in range(3):
        launch(0)
    assert contender.in_place
    with pytest.raises(measure.NotMeasured, match="of the oracle's largest value"):
        measure._compare(contender, workload, [launch(0)])
    assert measure.verify_eager(contender, workload, launch).passed
