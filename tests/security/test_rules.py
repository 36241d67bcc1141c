"""Our own code keeps its rules, and each rule sees what it is there for."""

from __future__ import annotations

import ast
import re
from pathlib import Path

import pytest

from tests.security import rules

ROOT = Path(__file__).parents[2]
OURS = sorted(path for part in ("receiver", "workers") for path in (ROOT / part).rglob("*.py"))
TEMPLATES = sorted((ROOT / "workers/console/templates").glob("*.html"))


@pytest.mark.parametrize("rule", rules.RULES, ids=lambda rule: rule.__name__)
def test_our_code_keeps_it(rule: rules.Rule) -> None:
    broken = [
        f"{path.relative_to(ROOT)}:{line}"
        for path in OURS
        for line in rule(ast.parse(path.read_text()), str(path.relative_to(ROOT)))
    ]
    assert broken == []


@pytest.mark.parametrize(
    ("rule", "code"),
    [
        (rules.secrets_are_compared_in_constant_time, "given == key.reveal()"),
        (rules.secrets_are_compared_in_constant_time, "if self.password != given: pass"),
        (rules.secrets_are_compared_in_constant_time, "given in signatures"),
        (rules.nothing_runs_what_it_reads, "import pickle"),
        (rules.nothing_runs_what_it_reads, "from yaml import load"),
        (rules.nothing_runs_what_it_reads, "eval(text)"),
        (rules.nothing_runs_what_it_reads, "subprocess.run(text, shell=True)"),
        (rules.nothing_runs_what_it_reads, "os.system(text)"),
        (rules.rq_never_pickles, "from rq import Queue; Queue('x', connection=redis)"),
        (rules.rq_never_pickles, "from rq import Queue; Queue('x', connection=redis, serializer=None)"),
        (rules.rq_never_pickles, "from rq.serializers import DefaultSerializer"),
        (rules.only_one_module_parses_xml, "from lxml import etree"),
        (rules.only_one_module_parses_xml, "import xml.etree.ElementTree"),
        (rules.only_one_module_parses_xml, "etree.fromstring(body)"),
        (rules.only_one_module_parses_xml, "etree.fromstring(body, etree.XMLParser())"),
        (rules.only_one_module_parses_xml, "_XML = etree.XMLParser(resolve_entities=False, load_dtd=False)"),
        (rules.only_one_module_parses_xml, "_XML = etree.HTMLParser()"),
        (rules.nothing_is_fetched, "import httpx"),
        (rules.nothing_is_fetched, "from urllib import request"),
        (rules.nothing_is_fetched, "from urllib.request import urlopen"),
        (rules.no_secret_is_logged, "log.info('x', key=key.reveal())"),
        (rules.no_secret_is_logged, "log.warning('x', body=message.body)"),
    ],
)
def test_each_rule_sees_what_it_is_there_for(rule: rules.Rule, code: str) -> None:
    assert set(rule(ast.parse(code), "workers/new.py")) == {1}


@pytest.mark.parametrize("code", ["hmac.compare_digest(given, key.reveal())", "scheme == 'basic'", "password == ''"])
def test_what_is_no_comparison_of_secrets_passes(code: str) -> None:
    assert not list(rules.secrets_are_compared_in_constant_time(ast.parse(code), "workers/new.py"))


def test_no_template_switches_escaping_off() -> None:
    assert TEMPLATES
    for template in TEMPLATES:
        assert not re.search(r"\|\s*safe\b|autoescape|<script|\son\w+=|javascript:", template.read_text()), (
            template.name
        )
