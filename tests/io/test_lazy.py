"""Names of packages and modules that are loaded when they are needed."""

import sys
import threading

import pytest

import umamba.planning
import umamba.preprocessing
from umamba.io.lazy import load_beside


def test_a_package_names_what_it_does_not_hold() -> None:
    with pytest.raises(AttributeError, match=r"module 'umamba\.preprocessing' has no attribute 'resample_imag'"):
        umamba.preprocessing.resample_imag  # noqa: B018
    assert set(umamba.planning.__all__) <= set(dir(umamba.planning))


@pytest.mark.parametrize("room", ["datasets", "evaluation", "io", "planning", "preprocessing"])
def test_every_name_of_a_room_loads(room: str) -> None:
    package = sys.modules[__import__(f"umamba.{room}").__name__ + f".{room}"]
    for name in package.__all__:
        assert getattr(package, name).__class__ is not sys.__class__, f"{name} is hidden by a module"


def test_a_module_is_loaded_beside_other_work(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delitem(sys.modules, "sched", raising=False)
    load_beside("sched")
    load_beside("umamba.io.no_such_module")  # which is told where it is needed
    for thread in threading.enumerate():
        if thread.name.startswith("load "):
            thread.join(10)
    assert "sched" in sys.modules
