"""What changes programs: lowering, rules, fusion, safe arithmetic, costs, choice."""

if __name__ != "blockc.passes":  # the root of a checkout links here: a second copy would have classes of its own
    raise ImportError("this is the package blockc.passes: import it under that name")
