"""One installation for all tests of the contract that do not change it."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
from sqlalchemy import Engine

from receiver import settings as configuration
from tests.contract.subjects import Subject, subjects
from tests.live.installation import Installation, installed
from workers.ledger import database

NAMES = ["quickstream", "checkout", "debitsuccess casual", "debitsuccess event", "paymentz"]


@pytest.fixture(scope="package")
def installation(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Installation]:
    with installed(tmp_path_factory.mktemp("contract")) as running:
        yield running


@pytest.fixture(scope="package")
def engine(installation: Installation) -> Iterator[Engine]:
    engine = database.open_engine(f"sqlite:///{installation.data_dir / 'ledger.sqlite3'}")
    yield engine
    engine.dispose()


@pytest.fixture(scope="package")
def all_subjects(installation: Installation) -> dict[str, Subject]:
    endpoints = configuration.load(Path(installation.config)).endpoints
    return {subject.name: subject for subject in subjects(endpoints)}


@pytest.fixture(params=NAMES)
def subject(request: pytest.FixtureRequest, all_subjects: dict[str, Subject]) -> Subject:
    return all_subjects[request.param]
