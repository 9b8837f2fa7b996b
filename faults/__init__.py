"""Faults injected into every promise this package makes, and what survived (launch/faults.sh).

Not part of the installed package: a tool beside it, like benchmarks/.
"""
