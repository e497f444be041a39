"""The options of the C sampler, as ctypes has them."""

import ctypes


class COptions(ctypes.Structure):
    """mr_sampling."""

    _fields_ = (
        ("temperature", ctypes.c_float),
        ("top_p", ctypes.c_float),
        ("min_p", ctypes.c_float),
        ("repetition_penalty", ctypes.c_float),
        ("top_k", ctypes.c_int),
    )
