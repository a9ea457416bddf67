"""The errors that bad input raises. Each message says what was wrong and what was expected."""


class CsgmvEmbedError(Exception):
    """Base of every error this library raises on purpose."""


class ShapeError(CsgmvEmbedError, ValueError):
    """A tensor or sequence has the wrong number of dimensions or the wrong extent."""


class DtypeError(CsgmvEmbedError, TypeError):
    """A tensor has a dtype the op does not take, or two tensors disagree."""


class DeviceError(CsgmvEmbedError, ValueError):
    """Tensors lie on different devices, or on one where the kernel cannot run."""


class GradError(CsgmvEmbedError, RuntimeError):
    """Autograd expects a gradient of a tensor, but the op computes none."""


class SlotError(CsgmvEmbedError, ValueError):
    """A slot, rank or length on the host is out of range."""


class CapacityError(CsgmvEmbedError, ValueError):
    """A batch does not fit into its static buffers."""
