"""Records can be read by this version, and their pages tell the numbers they hold."""

from pathlib import Path

import pytest

import pfc

RECORDS = Path(__file__).parents[1] / "records"
PROFILES = sorted(RECORDS.glob("*/*.json"))


@pytest.mark.parametrize(
    "path", [p for p in PROFILES if p.name != "config.json"], ids=lambda p: f"{p.parent.name}-{p.stem}"
)
def test_a_record_holds_the_numbers_of_its_page(path):
    profile = pfc.load(path)
    page = (path.parent / "README.md").read_text()
    for metric in ("pfc1", "pfc2", "pfc3"):
        for value in profile.columns[metric]:
            assert f"| {value:.4f} |" in page
    for segment in profile.segments:
        assert set(segment.curves) <= {"measured", "means", "etf"}
        assert segment.position()[-1] == pytest.approx(1)


def test_the_digits_recipe_collapses_on_every_seed_of_the_record():
    page = (RECORDS / "digits" / "README.md").read_text()
    for seed in range(5):
        assert f"| {seed} | 350 | " in page
    profile = pfc.load(RECORDS / "digits" / "profile.json")
    assert profile.accuracy == 1
    assert profile.columns["pfc3"][-1] == 1
    assert all(profile.steps_back(metric) == [] for metric in ("pfc1", "pfc2", "pfc3"))
