"""The kernels of an encoder but attention: linear maps, the feed-forward part, LayerNorm, rows of tables.

A kernel serves one call: `forward` keeps what `backward` needs, and `backward` takes the gradient of the
output to that of the input, handing those of the weights to `gradients`. Letters: N rows (tokens), H hidden,
I inner width, V rows of a table.
"""

import math

import numpy as np

PIECE = 1 << 17  # elements that are worked on at a time: a few such arrays of float32 stay in a core's cache

# --------------------------------------------------------------------------------------- linear maps


def column_sums(rows: np.ndarray) -> np.ndarray:
    """[N, H] -> [H], as a product, which is faster than a sum."""
    return np.ones(len(rows), np.float32) @ rows


class Linear:
    """y = x W^T + b: x [N, I], W [O, I], b [O] -> [N, O].

    One product forward, two back: dx = dy W, dW = dy^T x; and db is the sum of dy over the rows. It keeps
    nothing: who gave it x has that again on the way back.
    """

    def __init__(self, name, weights):
        self.name, self.weight, self.bias = name, weights[f"{name}.weight"], weights[f"{name}.bias"]

    def forward(self, x):
        y = x @ self.weight.T  # [N, O]
        y += self.bias
        return y

    def backward(self, dy, x, gradients):
        gradients.add(f"{self.name}.weight", dy.T @ x)  # [O, I]
        gradients.add(f"{self.name}.bias", column_sums(dy))  # [O]
        return dy @ self.weight  # [N, I]


# --------------------------------------------------------------------------------------- gelu, feed-forward

POLYNOMIAL = tuple(
    map(
        np.float32,
        (
            0.79788458,
            0.036333665,
            -3.2753996e-05,
            -5.5344583e-05,
            3.9832516e-06,
            -1.3434357e-07,
            1.8267002e-09,
        ),
    )
)
HALF, ONE, MINUS_HALF, DENSITY = map(np.float32, (0.5, 1, -0.5, 1 / math.sqrt(2 * math.pi)))


@np.errstate(over="ignore")  # far out the polynomial is infinite, and its tanh 1, as it should be
def gelu(x: np.ndarray, out: np.ndarray, slope=None) -> np.ndarray:
    """Writes x Phi(x) to `out`, which may be x, and the derivative,
    Phi(x) + x exp(-x^2 / 2) / sqrt(2 pi), to `slope`. Returns `out`.

    Phi, the normal distribution function, is (1 + tanh(x p(x^2))) / 2 with p a minimax polynomial, since
    numpy's tanh is vectorised and it has no erf: both results are within 1e-6 of the formula with erf.
    """
    shape, x, out = out.shape, x.reshape(-1), out.reshape(-1)
    slope = None if slope is None else slope.reshape(-1)
    squares, phis = (np.empty(min(PIECE, x.size), np.float32) for _ in range(2))
    for start in range(0, x.size, PIECE):
        piece = x[start : start + PIECE]
        square, phi = squares[: piece.size], phis[: piece.size]
        np.multiply(piece, piece, out=square)

        # Phi(x) = (1 + tanh(x p(x^2))) / 2, p by Horner's rule from the highest coefficient down
        np.multiply(square, POLYNOMIAL[-1], out=phi)
        for coefficient in POLYNOMIAL[-2:0:-1]:
            phi += coefficient
            phi *= square
        phi += POLYNOMIAL[0]
        phi *= piece
        np.tanh(phi, out=phi)
        phi += ONE
        phi *= HALF  # Phi(x)

        # the derivative, Phi(x) + x exp(-x^2 / 2) / sqrt(2 pi)
        if slope is not None:
            square *= MINUS_HALF
            density = np.exp(square, out=slope[start : start + PIECE])
            density *= DENSITY
            density *= piece
            density += phi

        np.multiply(piece, phi, out=out[start : start + PIECE])  # x Phi(x)
    return out.reshape(shape)


class FeedForward:
    """y = gelu(x W1^T + b1) W2^T + b2: x [N, H], W1 [I, H], b1 [I], W2 [H, I], b2 [H] -> [N, H].

    Of its two arrays [N, I], the largest of a layer, one is kept for the way back, which works out the other
    anew, by the same operations: a fifth of a step's memory for a few hundredths of its time.
    """

    def __init__(self, first, second, weights, saving):
        self.first, self.second, self.saving = Linear(first, weights), Linear(second, weights), saving

    def forward(self, x):
        inner = outer = self.first.forward(x)  # [N, I]
        if self.saving:
            self.inner, outer = inner, np.empty_like(inner)
        return self.second.forward(gelu(inner, outer))  # [N, H]

    def backward(self, dy, x, gradients):
        slope = np.empty_like(self.inner)
        outer = gelu(self.inner, self.inner, slope)
        dinner = self.second.backward(dy, outer, gradients)  # [N, I]
        dinner *= slope  # gelu's derivative
        return self.first.backward(dinner, x, gradients)


# --------------------------------------------------------------------------------------- layer norm


class LayerNorm:
    """y = (z - mean) / sqrt(variance + eps) * weight + bias over the last axis,
    with z = dropout(x) + residual.

    x [N, H], residual [N, H] or None. Sums along rows are products with a vector, which BLAS does at the
    speed of reading.
    """

    def __init__(self, name, weights, eps, saving, mask=None):
        self.name, self.eps, self.saving, self.mask = name, eps, saving, mask
        self.weight, self.bias = weights[f"{name}.weight"], weights[f"{name}.bias"]

    def _pieces(self, N, H):
        """Slices of as many rows as stay in the cache."""
        rows = max(1, PIECE // H)
        return [slice(start, min(start + rows, N)) for start in range(0, N, rows)]

    def forward(self, x, residual=None):
        N, H = x.shape
        y = np.empty_like(x)
        self.normal = np.empty_like(x) if self.saving else y  # (z - mean) / deviation, [N, H]
        self.spread, average = np.empty((N, 1), np.float32), np.full(H, 1 / H, np.float32)  # 1 / deviation
        for rows in self._pieces(N, H):
            z = self.normal[rows]  # a view, [n, H]
            self._sum(x[rows], residual, rows, z)
            z -= (z @ average)[:, None]  # less its mean
            variance = np.einsum("nh,nh->n", z, z) / H  # [n]
            self.spread[rows, 0] = 1 / np.sqrt(variance + self.eps)
            z *= self.spread[rows]
            np.multiply(z, self.weight, out=y[rows])
            y[rows] += self.bias
        return y

    def output(self):
        """What `forward` returned, by the same operations."""
        y = self.normal * self.weight
        y += self.bias
        return y

    def _sum(self, x, residual, rows, out):
        """out = dropout(x) + residual[rows], x being those rows."""
        if self.mask is not None:
            self.mask.apply(x, rows.start * x.shape[1], out)
            x = out
        if residual is not None:
            np.add(x, residual[rows], out=out)
        elif x is not out:
            np.copyto(out, x)

    def backward(self, dy, gradients):
        """With n the normalised z and g = dy * weight: dz = (g - mean(g) - n * mean(g n)) / deviation.
        Returns dx and dz.
        """
        N, H = dy.shape
        dz, average = np.empty_like(dy), self.weight / H
        dx = dz if self.mask is None else np.empty_like(dy)
        dweight, pieces = np.zeros(H, np.float32), self._pieces(N, H)
        buffer = np.empty((pieces[0].stop, H), np.float32)
        for rows in pieces:
            piece, normal, part = dz[rows], self.normal[rows], dy[rows]  # [n, H] each
            along = np.multiply(part, normal, out=buffer[: len(part)])  # dy n
            dweight += column_sums(along)
            slope = (along @ average)[:, None]  # mean(g n), [n, 1]
            np.multiply(part, self.weight, out=piece)  # g
            piece -= (part @ average)[:, None]  # mean(g)
            piece -= np.multiply(normal, slope, out=along)  # n mean(g n)
            piece *= self.spread[rows]  # / deviation
            if self.mask is not None:
                self.mask.apply(piece, rows.start * H, dx[rows])
        gradients.add(f"{self.name}.weight", dweight)
        gradients.add(f"{self.name}.bias", column_sums(dy))
        return dx, dz


# --------------------------------------------------------------------------------------- rows of tables


def merge_rows(places: np.ndarray, rows: np.ndarray):
    """The rows that go to one place added up: places int [N],
    rows [N, H] -> (places without repeats, their sums).
    """
    order = np.argsort(places, kind="stable")
    merged, starts = np.unique(places[order], return_index=True)
    return merged, np.add.reduceat(rows[order], starts, axis=0)
