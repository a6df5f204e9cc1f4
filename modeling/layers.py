"""Linear maps, GELU, LayerNorm and rows of tables, each with its gradient by hand. Letters: N rows, H hidden."""

import math

import numpy as np

from modeling.operation import Operation, flow, gain, nn, scaled

# --------------------------------------------------------------------------------------- linear maps


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
        dbiases = np.split(np.ones(len(dy), np.float32) @ dy, self.maps)
        return (dy @ self.weight, *(gradient for pair in zip(dweights, dbiases) for gradient in pair))

    def formula(self, x, *parameters):
        return flow.cat([nn.functional.linear(x, *pair) for pair in zip(parameters[0::2], parameters[1::2])], dim=-1)


# --------------------------------------------------------------------------------------- gelu

PIECE = 1 << 16  # elements that are worked on at a time: a few such arrays of float32 stay in a core's cache


class Gelu(Operation):
    """x Phi(x), Phi the normal distribution function, of any shape; within 1e-6 of the formula with erf, its slope too.

    Phi(x) = (1 + tanh(x p(x^2))) / 2 with p a minimax polynomial, since numpy's tanh is vectorised and it has no erf.
    """

    POLYNOMIAL = tuple(map(np.float32, (
        0.79788458, 0.036333665, -3.2753996e-05, -5.5344583e-05, 3.9832516e-06, -1.3434357e-07, 1.8267002e-09)))
    HALF, ONE, MINUS_HALF, DENSITY = map(np.float32, (0.5, 1, -0.5, 1 / math.sqrt(2 * math.pi)))

    @np.errstate(over="ignore")  # far out the polynomial is infinite, and its tanh 1, as it should be
    def forward(self, x):
        y = np.empty_like(x)
        self.slope = np.empty_like(x) if self.saving else None
        square, phi = (np.empty(min(PIECE, x.size), np.float32) for _ in range(2))  # numpy is slow where two arrays touch
        for start in range(0, x.size, PIECE):
            piece = slice(start, min(start + PIECE, x.size))
            n = piece.stop - start
            self._piece(x.reshape(-1)[piece], y.reshape(-1)[piece], square[:n], phi[:n])
            if self.saving:
                self._slope(x.reshape(-1)[piece], self.slope.reshape(-1)[piece], square[:n], phi[:n])
        return y

    def _piece(self, x, y, square, phi):
        np.multiply(x, x, out=square)
        np.multiply(square, self.POLYNOMIAL[-1], out=phi)
        for coefficient in self.POLYNOMIAL[-2:0:-1]:
            phi += coefficient
            phi *= square
        phi += self.POLYNOMIAL[0]
        phi *= x
        np.tanh(phi, out=phi)
        phi += self.ONE
        phi *= self.HALF
        np.multiply(x, phi, out=y)

    def _slope(self, x, slope, square, phi):
        """Phi(x) + x exp(-x^2 / 2) / sqrt(2 pi)"""
        square *= self.MINUS_HALF
        np.exp(square, out=slope)
        slope *= self.DENSITY
        slope *= x
        slope += phi

    def backward(self, dy):
        dx, self.slope = self.slope, None  # its memory becomes the gradient: a graph is walked back once
        dx *= dy
        return (dx,)

    def formula(self, x):
        return nn.functional.gelu(x)


# --------------------------------------------------------------------------------------- layer norm


class Norm(Operation):
    """LayerNorm(dropout(x) + residual): (z - mean) / sqrt(variance + eps) * weight + bias over the last axis, H.

    Inputs: x [N, H], weight [H], bias [H], and residual [N, H] if there is one. kept: [N*H] of bool, or None.
    """

    ROWS = 128

    def __init__(self, eps, kept=None, rate=0.0):
        self.eps, self.kept, self.rate = eps, kept, rate

    def forward(self, x, weight, bias, residual=None):
        N, H = x.shape
        y, z = np.empty_like(x), np.empty_like(x)
        spread = np.empty((N, 1), np.float32)
        for start in range(0, N, self.ROWS):
            rows = slice(start, start + self.ROWS)
            piece = z[rows]
            self._sum(x, residual, rows, piece)
            piece -= piece.mean(axis=1, keepdims=True)
            spread[rows, 0] = 1 / np.sqrt(np.einsum("nh,nh->n", piece, piece) / H + self.eps)
            piece *= spread[rows]
            np.multiply(piece, weight, out=y[rows])
            y[rows] += bias
        if self.saving:
            self.normal, self.spread, self.weight, self.residual = z, spread, weight, residual is not None
        return y

    def _sum(self, x, residual, rows, out):
        if self.kept is None:
            np.copyto(out, x[rows])
        else:
            np.multiply(x[rows], self.kept.reshape(x.shape)[rows], out=out)
            out *= gain(self.rate)
        if residual is not None:
            out += residual[rows]

    def backward(self, dy):
        N, H = dy.shape
        dz, dx = np.empty_like(dy), np.empty_like(dy)
        dweight = np.zeros(H, np.float32)
        for start in range(0, N, self.ROWS):
            rows = slice(start, start + self.ROWS)
            piece, normal = dz[rows], self.normal[rows]
            dweight += np.einsum("nh,nh->h", dy[rows], normal)
            np.multiply(dy[rows], self.weight, out=piece)
            slope = np.einsum("nh,nh->n", piece, normal)[:, None] / H
            piece -= piece.mean(axis=1, keepdims=True)
            piece -= normal * slope
            piece *= self.spread[rows]
            self._sum(dz, None, rows, dx[rows])
        dbias = np.ones(N, np.float32) @ dy
        return (dx, dweight, dbias, dz) if self.residual else (dx, dweight, dbias)

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
