"""The compiled update of APOLLO by torch's own code generator: equal to the eager one, and eager where there is no compiler."""

import shutil
from functools import partial
from typing import Any

import pytest
import torch
from torch import nn

from rayrec.optim import compiling
from rayrec.optim.apollo import Apollo
from rayrec.optim.compiling import compiled_or_plain

NO_COMPILER = "/nowhere/g++"
SMALL = ((16, 24), (16, 24))  # a stack
LARGE = ((320, 256), (256, 320))  # worked on where they are


def steps(shapes: tuple[tuple[int, int], ...], compiled: bool) -> list[nn.Parameter]:
    """Matrices after four steps of Mini."""
    generator = torch.Generator().manual_seed(0)
    model = nn.ParameterList(nn.Parameter(torch.randn(shape, generator=generator)) for shape in shapes)
    compiler = compiled_or_plain if compiled else None
    optimizer = Apollo(model, lr=0.1, weight_decay=0.1, rank=1, scale_type="tensor", compiler=compiler)
    for _ in range(4):
        for parameter in model:
            parameter.grad = torch.randn(parameter.shape, generator=generator)
        optimizer.step()
    return list(model)


@pytest.mark.slow
@pytest.mark.skipif(shutil.which("g++") is None, reason="no C++ compiler")
def test_the_generated_kernels_update_as_the_eager_operations_do(capfd: pytest.CaptureFixture[str]) -> None:
    torch.testing.assert_close(steps(LARGE + SMALL, True), steps(LARGE + SMALL, False), rtol=1e-6, atol=1e-6)
    assert "not compiled" not in capfd.readouterr().err


@pytest.mark.slow
def test_where_torch_finds_no_compiler_the_line_names_what_it_looked_for(
    capfd: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    import torch._inductor.config as inductor

    monkeypatch.setattr(compiling, "_told", set())
    with inductor.patch({"cpp.cxx": (NO_COMPILER,), "force_disable_caches": True}):
        found = steps(SMALL, True)
    torch.testing.assert_close(found, steps(SMALL, False), rtol=1e-6, atol=1e-6)
    assert NO_COMPILER in told(capfd)


def test_an_update_that_cannot_be_compiled_is_told_once_and_runs_as_it_is(
    capfd: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    def broken(*arguments: Any) -> Any:
        raise RuntimeError("No working C++ compiler found")

    monkeypatch.setattr(compiling, "_told", set())
    monkeypatch.setattr(torch, "compile", partial(torch.compile, backend=broken))
    found = steps(LARGE + SMALL, True)
    torch.testing.assert_close(found, steps(LARGE + SMALL, False), rtol=1e-6, atol=1e-6)
    assert "No working C++ compiler found" in told(capfd)


def told(capfd: pytest.CaptureFixture[str]) -> str:
    """The one line about compiling."""
    (line,) = [line for line in capfd.readouterr().err.splitlines() if "compiled" in line]
    assert line.startswith("the optimizer's update is not compiled (")
    return line
