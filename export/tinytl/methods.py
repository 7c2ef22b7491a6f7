"""What can train beside the classifier, by name (Cai et al., NeurIPS 2020, section 4); `auto`: the weights that
train for little memory (narrow.py), and the biases from the first of them on."""

METHODS = ("auto", "last", "bias", "lite-residual", "lite-residual+bias", "norm+last", "full")


def uses_lite_residuals(method: str) -> bool:
    """Does this method give blocks lite residual modules?"""
    return method.startswith("lite-residual")
