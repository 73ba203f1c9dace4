"""What a notebook imports from umamba.networks: plain modules and the scan."""

import subprocess
import sys
from collections.abc import Callable
from typing import Any

import pytest
import torch

from umamba.networks import Mamba, UMambaBot, UMambaEnc, build_network, selective_scan
from umamba.networks.unet import UNet
from umamba.planning import Configuration
from umamba.settings import UMambaBotSettings, UMambaEncSettings

Maker = Callable[..., Configuration]


@pytest.mark.parametrize(("name", "kind"), [("umamba_bot", UMambaBot), ("umamba_enc", UMambaEnc)])
@pytest.mark.parametrize("dim", [2, 3])
def test_the_classes_are_what_build_network_makes(
    name: str, kind: type[UMambaBot] | type[UMambaEnc], dim: int, make_configuration: Maker
) -> None:
    configuration = make_configuration(dim)
    torch.manual_seed(1)
    built = build_network(name, configuration, 2, 3)
    torch.manual_seed(1)
    direct = kind(2, 3, configuration=configuration)
    assert type(built) is kind
    assert isinstance(built, UNet)
    assert list(built.state_dict()) == list(direct.state_dict())
    assert all(
        torch.equal(a, b) for a, b in zip(built.state_dict().values(), direct.state_dict().values(), strict=True)
    )
    assert [type(module) for module in built.modules()] == [type(module) for module in direct.modules()]
    assert built.fixed_patch_size == direct.fixed_patch_size


def test_only_u_mamba_is_u_mamba(make_configuration: Maker) -> None:
    assert not isinstance(build_network("unet", make_configuration(2)), UMambaBot | UMambaEnc)
    assert not isinstance(build_network("umamba_enc", make_configuration(2)), UMambaBot)


def test_options_and_deep_supervision_are_arguments() -> None:
    network: Any = UMambaEnc(1, 3, UMambaEncSettings(d_state=4), patch_size=(32, 32), deep_supervision=False)
    assert network(torch.randn(1, 1, 32, 32)).shape == (1, 3, 32, 32)
    assert network.encoder.mamba_layers[1].mamba.d_state == 4
    bot = UMambaBot(1, 3, UMambaBotSettings(mamba="identity"), patch_size=(32, 32))
    assert isinstance(bot.mamba_layer, torch.nn.Identity)


def test_mamba_takes_the_arguments_of_mamba_ssm() -> None:
    mamba = Mamba(8, 4, 3, 1)
    assert mamba(torch.randn(2, 5, 8)).shape == (2, 5, 8)
    assert list(mamba.state_dict()) == [
        *("A_log", "D", "in_proj.weight", "conv1d.weight", "conv1d.bias", "x_proj.weight"),
        *("dt_proj.weight", "dt_proj.bias", "out_proj.weight"),
    ]
    assert mamba.A_log.shape == (8, 4)
    named = Mamba(d_model=8, d_state=4, d_conv=3, expand=1)
    named.load_state_dict(mamba.state_dict(), strict=True)


def test_selective_scan_of_one_step_by_hand() -> None:
    u, delta, one = torch.tensor([[[3.0]]]), torch.tensor([[[0.5]]]), torch.ones(1, 1, 1)
    out, state = selective_scan(u, delta, -torch.ones(1, 1), 2 * one, 5 * one, return_last_state=True)
    assert state.item() == pytest.approx(0.5 * 2 * 3)
    assert out.item() == pytest.approx(0.5 * 2 * 3 * 5)


def test_the_import_leaves_monai_numba_and_triton_alone() -> None:
    names = ("monai", "numba", "umamba.networks.scan.triton")
    code = f"import sys, umamba.networks; print([name for name in {names} if name in sys.modules])"
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert result.stdout.strip() == "[]"
