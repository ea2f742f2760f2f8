"""One tiny run of the reference forecaster, shared by the integration tests."""

from __future__ import annotations

from pathlib import Path

import pytest

from recipes.forecaster.data import data
from recipes.forecaster.forecast import forecast
from recipes.forecaster.settings import PRESETS, Settings
from recipes.forecaster.train import train
from recipes.forecaster.verify import verify


@pytest.fixture(scope="session")
def settings() -> Settings:
    return PRESETS["smoke"]()


@pytest.fixture(scope="session")
def run(settings: Settings, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("run")
    settings.keep(folder)
    for step in (data, train, forecast, verify):
        step(settings, folder, progress=False)
    return folder
