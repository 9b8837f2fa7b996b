"""Compiled CPU kernels: C++ called through XLA's foreign function interface.

XLA's own CPU convolution runs at the speed of the direct sum and, in the pinned versions, often on one
core. The kernels here compute the same numbers to float rounding with fewer multiplications and on all
cores of XLA's thread pool. They are compiled on first use with the machine's C++ compiler (seconds, kept
in the user's cache); where there is none, XLA's convolution does the work. GPUs and TPUs never see them.
"""
