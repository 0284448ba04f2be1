"""The names of a layer's arguments, and hints for wrong ones."""

import difflib
import inspect
from collections.abc import Iterable

_OF_KERAS = {"activity_regularizer", "batch_shape", "input_shape", "trainable"}
_SYNONYMS = {
    "rate": ("p", "prob", "probability"),
    "smoothness": ("gamma", "sigma"),
    "steps": ("iterations", "num_steps"),
}
_OF_STRENGTH = ("eps", "epsilon", "factor", "strength")


def argument_names(kind: type, base: type) -> set[str]:
    """Returns the names of the constructor's arguments, those of base classes too.

    Args:
        kind: a subclass of `base`.
        base: the class at which to stop.
    """
    return {
        name
        for one in kind.__mro__
        if issubclass(one, base)
        for name, parameter in inspect.signature(one).parameters.items()
        if parameter.kind not in (parameter.VAR_POSITIONAL, parameter.VAR_KEYWORD)
    }


def check_names(
    layer: str, given: Iterable[str], known: set[str], strength_name: str
) -> None:
    """Raises a `TypeError` for a name that is neither known nor of Keras' layers.

    Args:
        layer: the name of the class.
        given: the names.
        known: the arguments of the class.
        strength_name: the argument for the strength.
    """
    meant = {word: name for name, words in _SYNONYMS.items() for word in words}
    meant |= dict.fromkeys(_OF_STRENGTH, strength_name)
    for name in set(given) - _OF_KERAS:
        near = difflib.get_close_matches(name, known, 1)
        hint = meant[name] if meant.get(name) in known else "".join(near)
        raise TypeError(
            f"{layer} has no argument {name!r}. "
            + (f"Did you mean {hint}? " if hint else "")
            + f"Pass some of {sorted(known)}."
        )
