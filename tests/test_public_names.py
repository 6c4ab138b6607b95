"""The public names of each package are these, and stay what they are whatever else is imported."""

import importlib
import pkgutil
import subprocess
import sys

import pytest

from featurestore import errors

PUBLIC = {
    "featurestore": {
        "DamageError", "DiskError", "FeatureStoreError", "HookError", "ModelError", "NotAStoreError", "PromptsError",
        "QueryError", "RunError", "SAEError", "Selection", "SelectionError", "ShareError", "Store", "StoreError", "TableError",
        "TakenError", "UsageError", "VersionError", "__version__",
    },
    "sae": {
        "SAE", "ActivationBatches", "Intervention", "SAEConfig", "TrainSettings", "Window", "ablate", "attach", "encode",
        "evaluate", "load_judge", "load_model", "load_sae", "RunSettings", "score_folder", "store_sae", "train",
    },
    "collectors": {"CollectSettings", "collect", "train_live"},
    "queries": {"ask", "connect", "plot", "score", "select", "sql"},
}  # fmt: skip


@pytest.mark.parametrize("package", PUBLIC)
def test_public_names(package):
    module = importlib.import_module(package)
    assert set(module.__all__) == PUBLIC[package]
    assert set(module.__all__) - {"__version__"} <= set(dir(module))
    for name in module.__all__:
        assert getattr(module, name) is not None
    with pytest.raises(AttributeError, match=f"module '{package}' has no attribute 'nothing'"):
        module.nothing  # noqa: B018


def test_every_error_is_public():
    kinds = [
        kind
        for kind in vars(errors).values()
        if isinstance(kind, type) and issubclass(kind, Exception)
    ]
    assert {kind.__name__ for kind in kinds} <= PUBLIC["featurestore"]


@pytest.mark.parametrize("package", PUBLIC)
def test_no_module_bears_the_name_of_a_public_function(package):
    module = importlib.import_module(package)
    assert not {found.name for found in pkgutil.iter_modules(module.__path__)} & set(module.__all__)


@pytest.mark.parametrize("package", PUBLIC)
def test_importing_a_package_loads_no_library(package):
    code = f"import sys, {package}; print(*sorted({{m.split('.')[0] for m in sys.modules}}))"
    loaded = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=True
    ).stdout.split()
    assert not {"torch", "numpy", "pyarrow", "diffusers", "duckdb", "datasets"} & set(loaded)
