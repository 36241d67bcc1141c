"""Rules for our own code that no linter has: functions of a module's tree that yield the lines they object to."""

from __future__ import annotations

import ast
import re
from collections.abc import Callable, Iterator

Rule = Callable[[ast.Module, str], Iterator[int]]

_SECRET = re.compile(r"(^|_)(secret|password|signature|checksum|digest|hmac|webhook_token|api_key|seal)s?$")
_RUNS_WHAT_IT_READS = {"pickle", "cPickle", "_pickle", "marshal", "shelve", "dill", "cloudpickle", "jsonpickle", "yaml"}
_FETCHES = {"httpx", "requests", "urllib.request", "urllib3", "aiohttp", "ftplib", "smtplib"}
_PARSES_XML = {"xml", "xmltodict", "bs4", "html5lib", "defusedxml"}
# Each is said, whatever lxml has by default: what one of them lets in, the others stop, so that no test would see it.
_CLOSED = {
    "resolve_entities": False,
    "load_dtd": False,
    "dtd_validation": False,
    "no_network": True,
    "huge_tree": False,
}

# Digests that name content, and are compared where nobody gains by guessing: of settlement files and idempotency keys.
_NAMES_OF_CONTENT = {
    "workers/ledger/idempotency.py",
    "workers/ledger/reconciliations.py",
    "workers/reconcile/run.py",
}
_SEND_ALARMS = {"workers/alarms/mail.py", "workers/alarms/hook.py"}
# Which compares the secrets of one file with each other, at the start.
_SETTINGS = "receiver/settings.py"


def secrets_are_compared_in_constant_time(tree: ast.Module, path: str) -> Iterator[int]:
    """No ``==`` or ``in`` on what `reveal` gives, nor on a name that says secret, password, signature, digest..."""
    for node in () if path == _SETTINGS else ast.walk(tree):
        if isinstance(node, ast.Compare) and any(
            isinstance(o, ast.Eq | ast.NotEq | ast.In | ast.NotIn) for o in node.ops
        ):
            sides = [node.left, *node.comparators]
            if any(isinstance(side, ast.Constant) for side in sides):
                continue
            if any(_is_revealed(side) or (_named(side) and path not in _NAMES_OF_CONTENT) for side in sides):
                yield node.lineno


def _is_revealed(node: ast.expr) -> bool:
    return isinstance(node, ast.Call) and isinstance(node.func, ast.Attribute) and node.func.attr == "reveal"


def _named(node: ast.expr) -> bool:
    name = node.id if isinstance(node, ast.Name) else node.attr if isinstance(node, ast.Attribute) else ""
    return bool(_SECRET.search(name))


def nothing_runs_what_it_reads(tree: ast.Module, path: str) -> Iterator[int]:
    """No pickle and its like, no YAML, no `eval`, `exec` and `compile`, no shell."""
    for line, module in _imports(tree):
        if module.split(".")[0] in _RUNS_WHAT_IT_READS:
            yield line
    for call in _calls(tree):
        if isinstance(call.func, ast.Name) and call.func.id in ("eval", "exec", "compile", "__import__"):
            yield call.lineno
        if _attribute(call) in ("os.system", "os.popen") or any(
            each.arg == "shell" and not (isinstance(each.value, ast.Constant) and each.value.value is False)
            for each in call.keywords
        ):
            yield call.lineno


def rq_never_pickles(tree: ast.Module, path: str) -> Iterator[int]:
    """RQ's own default is pickle: each queue and worker names our serializer, and nobody takes one of RQ's."""
    for line, module in _imports(tree):
        if module.startswith("rq.serializers"):
            yield line
    of_rq = {module.rpartition(".")[2] for _, module in _imports(tree) if module.startswith("rq.")}
    for call in _calls(tree):
        name = call.func.id if isinstance(call.func, ast.Name) else ""
        if name in of_rq & {"Queue", "Worker", "SimpleWorker"} and not any(
            each.arg == "serializer" and isinstance(each.value, ast.Name) and each.value.id == "Serializer"
            for each in call.keywords
        ):
            yield call.lineno


def only_one_module_parses_xml(tree: ast.Module, path: str) -> Iterator[int]:
    """lxml with its limits in `receiver.reading`, and there with that parser only."""
    for line, module in _imports(tree):
        # Which only escapes.
        if module.startswith("xml.sax.saxutils"):
            continue
        if module.split(".")[0] in _PARSES_XML or (module.split(".")[0] == "lxml" and path != "receiver/reading.py"):
            yield line
    for call in _calls(tree):
        if _attribute(call) in ("etree.fromstring", "etree.parse", "etree.XML", "etree.iterparse", "etree.HTML"):
            last = call.args[-1] if len(call.args) > 1 else None
            if not (isinstance(last, ast.Name) and last.id == "_XML"):
                yield call.lineno
        if _attribute(call).endswith("Parser") and _attribute(call).startswith("etree."):
            given = {each.arg: getattr(each.value, "value", None) for each in call.keywords}
            if not _CLOSED.items() <= given.items():
                yield call.lineno


def nothing_is_fetched(tree: ast.Module, path: str) -> Iterator[int]:
    """Only the simulator sends requests, and alarms go where the configuration says: no address out of a body is ever
    asked."""
    if not path.startswith("workers/simulator/") and path not in _SEND_ALARMS:
        for line, module in _imports(tree):
            if module in _FETCHES or module.split(".")[0] in _FETCHES:
                yield line


def no_secret_is_logged(tree: ast.Module, path: str) -> Iterator[int]:
    """Neither `reveal` nor a request's headers and bodies in a call of a log."""
    for call in _calls(tree):
        if (
            isinstance(call.func, ast.Attribute)
            and isinstance(call.func.value, ast.Name)
            and call.func.value.id == "log"
        ):
            for part in ast.walk(call):
                if isinstance(part, ast.expr) and (_is_revealed(part) or _is_of_a_request(part)):
                    yield call.lineno


def _is_of_a_request(node: ast.expr) -> bool:
    return isinstance(node, ast.Attribute) and node.attr in ("body", "headers", "query_string", "cookies")


RULES: tuple[Rule, ...] = (
    secrets_are_compared_in_constant_time,
    nothing_runs_what_it_reads,
    rq_never_pickles,
    only_one_module_parses_xml,
    nothing_is_fetched,
    no_secret_is_logged,
)


def _imports(tree: ast.Module) -> Iterator[tuple[int, str]]:
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            for alias in node.names:
                yield node.lineno, alias.name
        elif isinstance(node, ast.ImportFrom) and node.module:
            yield node.lineno, node.module
            for alias in node.names:
                yield node.lineno, f"{node.module}.{alias.name}"


def _calls(tree: ast.Module) -> Iterator[ast.Call]:
    for node in ast.walk(tree):
        if isinstance(node, ast.Call):
            yield node


def _attribute(call: ast.Call) -> str:
    function = call.func
    if isinstance(function, ast.Attribute) and isinstance(function.value, ast.Name):
        return f"{function.value.id}.{function.attr}"
    return ""
