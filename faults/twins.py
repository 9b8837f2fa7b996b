"""Cases that a test of tests/ asserts already: the promise runs it, and each case counts as injected."""

import pathlib
import sys
import xml.etree.ElementTree
from collections.abc import Iterable

from faults.common import Outcome, Promise, child, tally


def run(
    folder: pathlib.Path, nodes: Iterable[str], quick=False, **environment: str
) -> dict[str, str]:
    """{case: why it failed, "" where it did not} of pytest's nodes ("test_x.py::test_y") in tests/;
    `quick`: without what is marked slow.

    A skipped case is not counted. RuntimeError where a node is unknown, or none of its cases ran.
    """
    report = folder / "twins.xml"
    paths = [node if pathlib.Path(node).is_absolute() else f"tests/{node}" for node in nodes]
    words = ["-p", "no:cacheprovider", "-m", "not slow" if quick else "", f"--junitxml={report}"]
    done = child([sys.executable, "-m", "pytest", *words, *paths], timeout=3600, **environment)
    if done.returncode not in (0, 1):
        raise RuntimeError(f"pytest ended with {done.returncode}: {done.stdout[-1000:]}")
    found = {}
    for case in xml.etree.ElementTree.parse(report).iter("testcase"):
        if case.find("skipped") is None:
            why = [x.get("message", "")[:300] for x in case if x.tag in ("failure", "error")]
            found[f"{case.get('classname')}.{case.get('name')}"] = "; ".join(why)
    missing = {_test(node) for node in nodes if "::test_" in node} - set(map(_test, found))
    if missing or not found:
        raise RuntimeError(f"no case ran of {sorted(missing) or nodes}")
    return found


def _test(name: str) -> str:
    """The function's, of a node or a case."""
    return name.partition("[")[0].replace("::", ".").rpartition(".")[2]


def promise(number: int, name: str, nodes: tuple, controls: tuple, **environment: str) -> Promise:
    """A promise that is tests only. `controls` are those of what comes without the protection."""

    def kept(folder: pathlib.Path, quick: bool) -> Outcome:
        found = run(folder, [*nodes, *controls], quick, **({} if quick else environment))
        of_controls = {case for case in found if _test(case) in map(_test, controls)}
        blind = [why for why in map(found.pop, of_controls) if why]
        return tally(found, not blind)

    return Promise(number, name, kept)
