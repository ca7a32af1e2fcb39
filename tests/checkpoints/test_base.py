import dataclasses
import pathlib

from enn import networks
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


def test_networks_do_not_import_checkpoints() -> None:
    for file in pathlib.Path(networks.__file__).parent.rglob("*.py"):
        assert "import enn.checkpoints" not in (source := file.read_text()), file
        assert "from enn.checkpoints" not in source, file
