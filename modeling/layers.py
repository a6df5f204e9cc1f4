"""Linear maps, the feed-forward part, LayerNorm and rows of tables, each with its gradient by hand. Letters: N rows, H hidden."""

import math

import numpy as np

from modeling.operation import Operation, flow, gain, nn, scaled

# --------------------------------------------------------------------------------------- linear maps


def column_sums(rows):
    """[N, H] -> [H], as a product, which is faster than a sum."""
    return np.ones(len(rows), np.float32) @ rows


class Affine(Operation):
    """x W^T + b of one or several maps side by side: x [N, H], then of each map a weight [O, H] and a bias [O] -> [N, k*O]."""

    def forward(self, x, *parameters):
        weight, bias = (part[0] if len(part) == 1 else np.concatenate(part) for part in (parameters[0::2], parameters[1::2]))
        if self.saving:
            self.x, self.weight, self.maps = x, weight, len(parameters) // 2
        y = x @ weight.T
        y += bias
        return y

    def backward(self, dy):
        dweights = np.split(dy.T @ self.x, self.maps)
        dbiases = np.split(column_sums(dy), self.maps)
        return (dy @ self.weight, *(gradient for pair in zip(dweights, dbiases) for gradient in pair))

    def formula(self, x, *parameters):
        return flow.cat([nn.functional.linear(x, *pair) for pair in zip(parameters[0::2], parameters[1::2])], dim=-1)


# --------------------------------------------------------------------------------------- gelu, feed-forward

PIECE = 1 << 16  # elements that are worked on at a time: a few such arrays of float32 stay in a core's cache
POLYNOMIAL = tuple(map(np.float32, (
    0.79788458, 0.036333665, -3.2753996e-05, -5.5344583e-05, 3.9832516e-06, -1.3434357e-07, 1.8267002e-09)))
HALF, ONE, MINUS_HALF, DENSITY = map(np.float32, (0.5, 1, -0.5, 1 / math.sqrt(2 * math.pi)))


@np.errstate(over="ignore")  # far out the polynomial is infinite, and its tanh 1, as it should be
def gelu(x, slope=None):
    """Turns x into x Phi(x) in its place and writes the derivative, Phi(x) + x exp(-x^2 / 2) / sqrt(2 pi), to `slope`.

    Phi, the normal distribution function, is (1 + tanh(x p(x^2))) / 2 with p a minimax polynomial, since numpy's tanh is
    vectorised and it has no erf: both results are within 1e-6 of the formula with erf.
    """
    squares, phis = (np.empty(min(PIECE, x.size), np.float32) for _ in range(2))
    for start in range(0, x.size, PIECE):
        piece = x.reshape(-1)[start:start + PIECE]
        square, phi = squares[:piece.size], phis[:piece.size]
        np.multiply(piece, piece, out=square)
        np.multiply(square, POLYNOMIAL[-1], out=phi)
        for coefficient in POLYNOMIAL[-2:0:-1]:
            phi += coefficient
            phi *= square
        phi += POLYNOMIAL[0]
        phi *= piece
        np.tanh(phi, out=phi)
        phi += ONE
        phi *= HALF
        if slope is not None:
            square *= MINUS_HALF
            density = np.exp(square, out=slope.reshape(-1)[start:start + PIECE])
            density *= DENSITY
            density *= piece
            density += phi
        piece *= phi


class FeedForward(Operation):
    """gelu(x W1^T + b1) W2^T + b2: x [N, H], W1 [I, H], b1 [I], W2 [H, I], b2 [H] -> [N, H], I the inner width."""

    def forward(self, x, weight1, bias1, weight2, bias2):
        inner = x @ weight1.T
        inner += bias1
        slope = np.empty_like(inner) if self.saving else None
        gelu(inner, slope)
        if self.saving:
            self.x, self.inner, self.slope, self.weights = x, inner, slope, (weight1, weight2)
        y = inner @ weight2.T
        y += bias2
        return y

    def backward(self, dy):
        weight1, weight2 = self.weights
        dinner, self.slope = self.slope, None  # its memory becomes the gradient: a graph is walked back once
        dinner *= dy @ weight2
        return dinner @ weight1, dinner.T @ self.x, column_sums(dinner), dy.T @ self.inner, column_sums(dy)

    def formula(self, x, weight1, bias1, weight2, bias2):
        return nn.functional.linear(nn.functional.gelu(nn.functional.linear(x, weight1, bias1)), weight2, bias2)


# --------------------------------------------------------------------------------------- layer norm


class Norm(Operation):
    """LayerNorm(dropout(x) + residual): (z - mean) / sqrt(variance + eps) * weight + bias over the last axis, H.

    Inputs: x [N, H], weight [H], bias [H], and residual [N, H] if there is one. kept: [N*H] of bool, or None.
    Sums along rows and columns are products with a vector, which BLAS does at the speed of reading.
    """

    ROWS = 128

    def __init__(self, eps, kept=None, rate=0.0):
        self.eps, self.kept, self.rate = eps, kept, rate

    def forward(self, x, weight, bias, residual=None):
        N, H = x.shape
        y = np.empty_like(x)
        normal = np.empty_like(x) if self.saving else y
        spread, average = np.empty((N, 1), np.float32), np.full(H, 1 / H, np.float32)
        for start in range(0, N, self.ROWS):
            rows = slice(start, start + self.ROWS)
            piece = normal[rows]
            self._sum(x[rows], residual, rows, piece)
            piece -= (piece @ average)[:, None]
            spread[rows, 0] = 1 / np.sqrt(np.einsum("nh,nh->n", piece, piece) / H + self.eps)
            piece *= spread[rows]
            np.multiply(piece, weight, out=y[rows])
            y[rows] += bias
        if self.saving:
            self.normal, self.spread, self.weight, self.residual = normal, spread, weight, residual is not None
        return y

    def _sum(self, x, residual, rows, out):
        """dropout(x) + residual[rows]; x: those rows alone."""
        if self.kept is not None:
            x = np.multiply(x, self.kept.reshape(-1, x.shape[1])[rows], out=out)
            x *= gain(self.rate)
        if residual is not None:
            np.add(x, residual[rows], out=out)
        elif x is not out:
            np.copyto(out, x)

    def backward(self, dy):
        """With n the normalised z and g = dy * weight: dz = (g - mean(g) - n * mean(g n)) * spread, dweight = sum over rows of dy n."""
        N, H = dy.shape
        dz, product = np.empty_like(dy), np.empty((self.ROWS, H), np.float32)
        dx = dz if self.kept is None else np.empty_like(dy)
        dweight, average = np.zeros(H, np.float32), self.weight / H
        for start in range(0, N, self.ROWS):
            rows = slice(start, start + self.ROWS)
            piece, normal = dz[rows], self.normal[rows]
            along = np.multiply(dy[rows], normal, out=product[: len(normal)])
            dweight += column_sums(along)
            slope = (along @ average)[:, None]
            np.multiply(dy[rows], self.weight, out=piece)
            piece -= (dy[rows] @ average)[:, None]
            piece -= np.multiply(normal, slope, out=along)
            piece *= self.spread[rows]
            if self.kept is not None:
                self._sum(piece, None, rows, dx[rows])
        return (dx, dweight, column_sums(dy), dz)[: 4 if self.residual else 3]

    def formula(self, x, weight, bias, residual=None):
        z = x if self.kept is None else x * scaled(self.kept, self.rate, x.device).reshape(x.shape)
        z = z if residual is None else z + residual
        z = z - z.mean(dim=-1, keepdim=True)
        return z / flow.sqrt((z * z).mean(dim=-1, keepdim=True) + self.eps) * weight + bias


class LayerNorm(nn.Module):
    """The gain and the shift of a `Norm`."""

    def __init__(self, size):
        super().__init__()
        self.weight, self.bias = nn.Parameter(flow.ones(size)), nn.Parameter(flow.zeros(size))


# --------------------------------------------------------------------------------------- rows


class Take(Operation):
    """The sum of rows from one or several tables: tables [V, H] and as many `places` [N] -> [N, H]."""

    def __init__(self, *places):
        self.places = places

    def forward(self, *tables):
        self.shapes = [table.shape for table in tables]
        rows = tables[0][self.places[0]]
        for table, places in zip(tables[1:], self.places[1:]):
            rows += table[places]
        return rows

    def backward(self, drows):
        """The gradient of a table adds up where a row was taken more than once."""
        return tuple(self._table(shape, places, drows) for shape, places in zip(self.shapes, self.places))

    def _table(self, shape, places, drows):
        dtable = np.zeros(shape, np.float32)
        order = np.argsort(places, kind="stable")
        taken, starts = np.unique(places[order], return_index=True)
        dtable[taken] = np.add.reduceat(drows[order], starts, axis=0)
        return dtable

    def formula(self, *tables):
        places = (flow.from_numpy(places).to(table.device) for table, places in zip(tables, self.places))
        return sum(nn.functional.embedding(where, table) for table, where in zip(tables, places))
