"""The exceptions of thalweg, drawn once.

    ThalwegError
    ├── InvalidInputError      (ValueError)   a wrong argument, shape or setting
    ├── CheckpointError        (ValueError)   a model folder that cannot be loaded as it stands
    ├── TokenizationError      (ValueError)   a text that cannot be tokenised exactly in bounded memory
    ├── CorpusError            (ValueError)   input or output files of a corpus run that do not fit together
    ├── UnsupportedModelError  (ValueError)   a model of another library that cannot be driven exactly
    ├── MeasurementError       (RuntimeError) something that was to be measured and could not be run to its end
    ├── NumericalError         (ArithmeticError) a model whose numbers became inf or NaN
    ├── EndpointError          (RuntimeError) a service on the network that does not answer as it should
    └── MissingExtraError      (ImportError)  an optional dependency that is not installed

Every message quotes the offending value and says what to do about it.
"""


class ThalwegError(Exception):
    """Base of every error that thalweg raises on purpose."""


class InvalidInputError(ThalwegError, ValueError):
    """An argument, shape or setting that cannot be used."""


class CheckpointError(ThalwegError, ValueError):
    """A checkpoint that cannot be loaded: unknown format, unsupported variant, leftover or missing tensors."""


class TokenizationError(ThalwegError, ValueError):
    """A text that cannot be tokenised exactly in bounded memory."""


class CorpusError(ThalwegError, ValueError):
    """Inputs or outputs of a corpus run that do not fit together."""


class UnsupportedModelError(ThalwegError, ValueError):
    """A model of another library that does not give the same chunk by chunk as in one pass."""


class MeasurementError(ThalwegError, RuntimeError):
    """Something that was to be measured and could not be run to its end."""


class EndpointError(ThalwegError, RuntimeError):
    """A service on the network that refuses requests, or has not answered any of many."""


class MissingExtraError(ThalwegError, ImportError):
    """An optional dependency is not installed; the message holds the pip command."""


class NumericalError(ThalwegError, ArithmeticError):
    """A model's numbers became inf or NaN, so that a text has no vector."""
