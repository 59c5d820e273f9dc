"""The block program and its kin: the data that all stages share."""

if __name__ != "blockc.ir":  # the root of a checkout links here: a second copy would have classes of its own
    raise ImportError("this is the package blockc.ir: import it under that name")
