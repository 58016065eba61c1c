"""The shipped quickstart of the MAE link, as a user runs it. Minutes; run by `make test-slow`."""

from __future__ import annotations

import pandas as pd
import pytest

from fedsem import run

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def evaluated(tmp_path_factory: pytest.TempPathFactory) -> pd.DataFrame:
    table = run("mae_quickstart", out=tmp_path_factory.mktemp("mae_quickstart")).table
    return table[(table["stage"] == "evaluate") & table["seed"].notna()]


@pytest.mark.parametrize(
    ("metric", "sign"), [("mse_255", -1), ("psnr_db", 1), ("ssim", 1), ("f1", 1), ("ap50", 1), ("dice", 1)]
)
@pytest.mark.parametrize("ratio", [0.6, 0.8])
def test_scored_patches_beat_random_ones(evaluated: pd.DataFrame, metric: str, sign: int, ratio: float) -> None:
    """Paired differences whose interval excludes zero."""
    chosen = evaluated[(evaluated["metric"] == f"{metric}_vs_random") & (evaluated["mask_ratio"] == ratio)]
    row = chosen.set_index("selection").loc["score"]
    assert sign * row["value"] > 0
    assert min(sign * row["ci_low"], sign * row["ci_high"]) > 0


def test_the_detector_works_on_the_original_scenes(evaluated: pd.DataFrame) -> None:
    rows = evaluated[(evaluated["selection"] == "original") & (evaluated["metric"] == "ap50")]
    assert rows["value"].item() > 0.9
