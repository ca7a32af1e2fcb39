import dataclasses
import subprocess
import sys

import pytest

from enn.checkpoints.base import EnnCheckpoint
from enn.checkpoints.epinet import EpinetCheckpoint


def test_fields_are_in_the_order_of_their_positions() -> None:
    names = [field.name for field in dataclasses.fields(EnnCheckpoint)]
    assert names == [
        "name",
        "load_fn",
        "enn_ctor",
        "dataset",
        "report_cl",
        "tuned_eval_temperature",
    ]
    names = [field.name for field in dataclasses.fields(EpinetCheckpoint)]
    assert names == [
        "name",
        "load_fn",
        "epinet_ctor",
        "parse_hidden",
        "base_cpt",
        "base_index",
        "base_scale",
        "tuned_eval_temperature",
        "dataset",
        "report_cl",
    ]


@pytest.mark.parametrize("module", ["enn.checkpoints.base", "enn.checkpoints.epinet"])
def test_module_imports_first_and_without_data_pipelines(module: str) -> None:
    # Once, a cycle through enn.networks made this fail.
    code = (
        f"import sys, {module}; "
        "assert not {'tensorflow', 'grain', 'datasets'} & set(sys.modules)"
    )
    subprocess.run([sys.executable, "-c", code], check=True)


def test_networks_do_not_import_checkpoints() -> None:
    code = "import sys, enn.networks; assert 'enn.checkpoints' not in sys.modules"
    subprocess.run([sys.executable, "-c", code], check=True)
