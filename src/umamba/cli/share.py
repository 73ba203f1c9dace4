"""Find the configs, studies and SLURM scripts, in the checkout or in the installed package."""

from pathlib import Path

from umamba.io.errors import UserError

_PACKAGE = Path(__file__).resolve().parents[1]
_CHECKOUT = _PACKAGE.parents[1]


def share(name: str) -> Path:
    """Return the path of one of the folders configs, experiments and slurm.

    A checkout has them at its top level, a wheel in the package as umamba/share.

    Args:
        name: name of the folder.

    Raises:
        UserError: the folder is in neither place.
    """
    for root in (_CHECKOUT, _PACKAGE / "share"):
        if (root / name).is_dir() and (root != _CHECKOUT or (root / "pyproject.toml").is_file()):
            return root / name
    raise UserError(f"The installation of umamba lacks its folder {name}. Install it again: pip install umamba")
