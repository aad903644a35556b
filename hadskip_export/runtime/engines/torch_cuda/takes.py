"""Which models this engine has the code of."""

from collections.abc import Mapping

ACTIVATIONS = ("gelu", "relu")


def why_not(about: Mapping[str, str]) -> str | None:
    """What of a model the engine does not compute, in words; None of one that it takes.

    Args:
        about: what the file of weights says of them.
    """
    family, activation = about.get("family", "bert"), about["activation"]
    if family != "bert":
        return f"the family {family}"
    if about.get("segments") == "no":
        return "a model without segments"
    return None if activation in ACTIVATIONS else f"the activation {activation}"
