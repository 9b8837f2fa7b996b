"""Faults injected into every promise this package makes, and what survived (launch/faults.sh).

Not part of the installed package: a tool beside it, like benchmarks/. What the suite makes and asserts
already is taken from there: its tables of bad files, its heads, and its tests (twins.py).
"""

import pathlib
import sys

ROOT = pathlib.Path(__file__).resolve().parent.parent
if str(ROOT / "tests") not in sys.path:
    sys.path.append(str(ROOT / "tests"))
