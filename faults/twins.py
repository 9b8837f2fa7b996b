"""Cases that a test of tests/ asserts already: the promise runs it, and each case counts as injected."""

import pathlib
import sys
import xml.etree.ElementTree
from collections.abc import Iterable

from faults.common import Outcome, child


def run(folder: pathlib.Path, nodes: Iterable[str], **environment: str) -> tuple[int, list[str]]:
    """(cases that ran, why each that failed did) of pytest's nodes ("test_x.py::test_y") in tests/.

    A skipped case is not counted. RuntimeError where a node is unknown, or none of its cases ran.
    """
    report, nodes = folder / "twins.xml", list(nodes)
    paths = [node if pathlib.Path(node).is_absolute() else f"tests/{node}" for node in nodes]
    words = ["-p", "no:cacheprovider", "-m", "", f"--junitxml={report}", *paths]  # slow ones too
    done = child([sys.executable, "-m", "pytest", *words], timeout=3600, **environment)
    if done.returncode not in (0, 1):
        raise RuntimeError(f"pytest ended with {done.returncode}: {done.stdout[-1000:]}")
    cases = list(xml.etree.ElementTree.parse(report).iter("testcase"))
    ran = [case for case in cases if case.find("skipped") is None]
    names = [case.get("name").partition("[")[0] for case in ran]
    wanted = {node.rpartition("::")[2].partition("[")[0] for node in nodes if "::test_" in node}
    if not ran or wanted - set(names):
        raise RuntimeError(f"no case ran of {sorted(wanted - set(names)) or nodes}")
    wrong = [(c.get("name"), x) for c in ran for x in c if x.tag in ("failure", "error")]
    return len(ran), [f"{name}: {why.get('message', '')[:300]}" for name, why in wrong]


def added(outcome: Outcome, folder: pathlib.Path, nodes: Iterable[str], **environment) -> Outcome:
    """The outcome with the cases of these nodes; as it was where there are none (`--quick`)."""
    if not nodes:
        return outcome
    count, wrong = run(folder, nodes, **environment)
    return outcome._replace(
        injected=outcome.injected + count,
        survived=outcome.survived + count - len(wrong),
        notes=[*outcome.notes, *wrong, f"{count} of them by tests of tests/"],
    )
