"""Emitters: one per backend, from a plan to source text."""

if __name__ != "blockc.codegen":  # the root of a checkout links here: a second copy would have classes of its own
    raise ImportError("this is the package blockc.codegen: import it under that name")
