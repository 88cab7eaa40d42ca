"""Helper functions that a source brings along where NumPy has none."""

from __future__ import annotations

_NUMBER_BY_NUMBER = '''def {name}(x):
    """Return {function} of each number."""
    x = np.asarray(x)
    return np.array([math.{function}(number) for number in x.ravel()], x.dtype).reshape(x.shape)
'''

HELPERS = {
    "_array": '''def _array(name, value, dtype, shape):
    """Return an input as an array; raise if it has another shape than the source was written for."""
    array = np.asarray(value, dtype)
    if array.shape != shape:
        raise ValueError(f"{name} must have shape {shape}, got {array.shape}")
    return array
''',
    "_erf": _NUMBER_BY_NUMBER.format(name="_erf", function="erf"),
    "_erfc": _NUMBER_BY_NUMBER.format(name="_erfc", function="erfc"),
    "_lgamma": _NUMBER_BY_NUMBER.format(name="_lgamma", function="lgamma"),
    "_complex": '''def _complex(real, imag):
    """Return complex numbers from their parts."""
    parts = np.stack(np.broadcast_arrays(real, imag), axis=-1)
    return parts.view(np.result_type(parts.dtype, np.complex64))[..., 0]
''',
    "_quotient": '''def _quotient(a, b):
    """Return a / b of whole numbers, rounded towards zero."""
    return np.sign(a) * np.sign(b) * (np.abs(a) // np.abs(b))
''',
    "_round_away": '''def _round_away(x):
    """Round to the nearest whole number, halves away from zero."""
    return np.trunc(x) + np.sign(x) * (np.abs(x - np.trunc(x)) >= 0.5)
''',
    "_pad": '''def _pad(x, number, config):
    """Return x with a number around and between its entries; config has (before, after, between) for each axis."""
    sizes = [max(n + (n - 1) * between, 0) for n, (_, _, between) in zip(x.shape, config)]
    wide = np.full(sizes, number, x.dtype)
    wide[tuple(slice(None, None, between + 1) for _, _, between in config)] = x
    wide = np.pad(wide, [(max(a, 0), max(b, 0)) for a, b, _ in config], constant_values=number)
    return wide[tuple(slice(max(-a, 0), n - max(-b, 0)) for n, (a, b, _) in zip(wide.shape, config))]
''',
    "_conv": '''def _conv(x, w, strides, padding, x_dilation, w_dilation, groups):
    """Return the correlation of x [batch, channels, *space] with w [outputs, channels / groups, *space]."""
    x = _pad(x, x.dtype.type(0), [(0, 0, 0)] * 2 + [(a, b, d - 1) for (a, b), d in zip(padding, x_dilation)])
    w = _pad(w, w.dtype.type(0), [(0, 0, 0)] * 2 + [(0, 0, d - 1) for d in w_dilation])
    space = tuple(range(2, x.ndim))
    windows = np.lib.stride_tricks.sliding_window_view(x, w.shape[2:], axis=space)
    windows = windows[(slice(None), slice(None), *(slice(None, None, s) for s in strides))]
    summed = (1, *range(x.ndim, windows.ndim))
    each = [
        np.tensordot(a, b, (summed, (1, *space)))
        for a, b in zip(np.split(windows, groups, 1), np.split(w, groups, 0))
    ]
    return np.moveaxis(np.concatenate(each, -1), -1, 1)
''',
    "_scatter": '''def _scatter(x, index, update, function):
    """Return x changed at an index, by a function or to new numbers; what is outside is dropped."""
    index = [np.broadcast_to(i, update.shape) for i in index]
    inside = np.all([(i >= 0) & (i < n) for i, n in zip(index, x.shape)], axis=0)
    places, x = tuple(i[inside] for i in index), x.copy()
    if function is None:
        x[places] = update[inside]
    else:
        function.at(x, places, update[inside])
    return x
''',
    "_lu": '''def _lu(a):
    """Return the factors L and U of a square matrix in one, the rows swapped at each column, and their order."""
    a, n = a.copy(), a.shape[0]
    swaps, order = np.zeros(n, np.int32), np.arange(n, dtype=np.int32)
    for k in range(n):
        swaps[k] = pivot = k + np.argmax(np.abs(a[k:, k]))
        a[[k, pivot]], order[[k, pivot]] = a[[pivot, k]], order[[pivot, k]]
        a[k + 1 :, k] /= a[k, k]
        a[k + 1 :, k + 1 :] -= np.outer(a[k + 1 :, k], a[k, k + 1 :])
    return a, swaps, order
''',
    "_order": '''def _order(swaps):
    """Return the order of rows after swaps of row k with row swaps[k], for k = 0, 1, ..."""
    order = np.arange(len(swaps), dtype=swaps.dtype)
    for k, other in enumerate(swaps):
        order[[k, other]] = order[[other, k]]
    return order
''',
    "_tridiagonal_solve": '''def _tridiagonal_solve(low, diagonal, high, b):
    """Solve a tridiagonal system by elimination; low[0] and high[-1] are not read."""
    c, d = np.zeros_like(high), b.copy()
    c[0], d[0] = high[0] / diagonal[0], b[0] / diagonal[0]
    for k in range(1, len(diagonal)):
        pivot = diagonal[k] - low[k] * c[k - 1]
        c[k], d[k] = high[k] / pivot, (b[k] - low[k] * d[k - 1]) / pivot
    for k in range(len(diagonal) - 2, -1, -1):
        d[k] -= c[k] * d[k + 1]
    return d
''',
}
NEEDS = {"_conv": ("_pad",)}
