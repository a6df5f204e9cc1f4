"""The encoder's arithmetic with its gradients by hand: what OneFlow's CPU kernels do slowly, numpy does in their memory.

Letters: N rows (the real tokens of a batch, one after the other), H hidden, A heads, D = H / A, n tokens of one example.
"""

import math

import numpy as np

from util import load_oneflow, random_stream

flow = load_oneflow()
nn = flow.nn
_apply = flow._oneflow_internal.autograd.AutogradFunctionBase.apply  # what flow.autograd.Function.apply calls


class Operation:
    """One step of the network; an instance serves one call and keeps what its gradient needs.

    forward: arrays -> array, and backward: array -> an array per input, run on a CPU, in the memory of the tensors. (numpy's
    OpenBLAS multiplies twice as fast as the older one in OneFlow's wheel, and its elementwise loops are vectorised.)
    formula: tensors -> tensor, the same in OneFlow's own operators, runs on every other device.
    """

    saving = False  # whether a gradient will be asked for

    def __call__(self, *tensors):
        if tensors[0].device.type != "cpu":
            return self.formula(*tensors)
        self.saving = flow.is_grad_enabled()
        return _apply(type(self).__name__, self._forward, self._backward, *tensors)

    # The context that OneFlow 0.9.0 offers to keep things in gives every attribute away with one reference too few, which ends
    # in a segmentation fault: what a gradient needs is kept in the instance instead, which lives as long as its methods.

    def _forward(self, context, *tensors):
        return flow.from_numpy(self.forward(*(tensor.numpy() for tensor in tensors)))

    def _backward(self, context, gradient):
        return tuple(map(flow.from_numpy, self.backward(np.ascontiguousarray(gradient.numpy()))))


# --------------------------------------------------------------------------------------- dropout


class Dropouts:
    """Where the dropout masks of one model come from: each is a function of (seed, step, rank, ranks, number of the site).

    `key` opens a step; within it the sites are numbered in the order in which the forward pass reaches them. Nothing lives on
    from step to step, so that a resumed run draws what the first would have.
    """

    def __init__(self):
        self.key(0, 0)

    def key(self, seed, step, rank=0, ranks=1):
        """Opens step `step` of rank `rank` of `ranks`."""
        self._key, self._site = (seed, step, rank, ranks), 0

    def kept(self, size, rate):
        """[size] of bool: False with probability `rate`, to the nearest 1/65536."""
        seed, *rest = self._key
        stream, self._site = random_stream(seed, "dropout", *rest, self._site), self._site + 1
        bits = stream.bit_generator.random_raw((size + 3) // 4).view(np.uint16)[:size]
        return bits >= round(rate * 65536)


class Dropout(nn.Module):
    """Dropout with the masks of `dropouts`; the identity in eval mode and at rate 0."""

    def __init__(self, rate, dropouts):
        super().__init__()
        self.rate, self.dropouts = rate, dropouts

    def kept(self, size):
        """The mask of one call, [size] of bool, or None where nothing is dropped."""
        return self.dropouts.kept(size, self.rate) if self.training and self.rate else None

    def forward(self, x):
        kept = self.kept(x.numel())
        return x if kept is None else x * _scaled(kept, self.rate, x.device).reshape(x.shape)


def _gain(rate):
    """What the kept values are multiplied by: 1 / (1 - rate), with the rate that `Dropouts` really has."""
    return np.float32(65536 / (65536 - round(rate * 65536)))


def _scaled(kept, rate, device):
    return flow.from_numpy(np.multiply(kept, _gain(rate), dtype=np.float32)).to(device)


# --------------------------------------------------------------------------------------- linear maps


class Affine(Operation):
    """x W^T + b of one or several maps side by side: x [N, H], then k weights [O, H] and k biases [O] -> [N, k*O]."""

    def forward(self, x, *parameters):
        k = len(parameters) // 2
        weight, bias = (np.concatenate(part) if k > 1 else part[0] for part in (parameters[:k], parameters[k:]))
        if self.saving:
            self.x, self.weight, self.k = x, weight, k
        y = x @ weight.T
        y += bias
        return y

    def backward(self, dy):
        parts = np.split(dy.T @ self.x, self.k), np.split(np.ones(len(dy), np.float32) @ dy, self.k)
        return (dy @ self.weight, *parts[0], *parts[1])

    def formula(self, x, *parameters):
        k = len(parameters) // 2
        return flow.cat([nn.functional.linear(x, w, b) for w, b in zip(parameters[:k], parameters[k:])], dim=-1)


def affine(x, *linears):
    """The outputs of modules nn.Linear side by side: x [N, H] -> [N, sum of their widths], which are equal."""
    return Affine()(x, *(linear.weight for linear in linears), *(linear.bias for linear in linears))


# --------------------------------------------------------------------------------------- gelu

PIECE = 1 << 16  # elements that are worked on at a time: a few such arrays of float32 stay in a core's cache


class Gelu(Operation):
    """x Phi(x), Phi the normal distribution function, of any shape; within 1e-6 of the formula with erf, its slope too.

    Phi(x) = (1 + tanh(x p(x^2))) / 2 with p a minimax polynomial, since numpy's tanh is vectorised and it has no erf.
    """

    POLYNOMIAL = tuple(map(np.float32, (
        0.79788458, 0.036333665, -3.2753996e-05, -5.5344583e-05, 3.9832516e-06, -1.3434357e-07, 1.8267002e-09)))
    HALF, ONE, MINUS_HALF, DENSITY = map(np.float32, (0.5, 1, -0.5, 1 / math.sqrt(2 * math.pi)))

    def forward(self, x):
        y = np.empty_like(x)
        self.slope = np.empty_like(x) if self.saving else None
        square, phi = (np.empty(min(PIECE, x.size), np.float32) for _ in range(2))
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
            out *= _gain(self.rate)
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
        z = x if self.kept is None else x * _scaled(self.kept, self.rate, x.device).reshape(x.shape)
        z = z if residual is None else z + residual
        z = z - z.mean(dim=-1, keepdim=True)
        return z / flow.sqrt((z * z).mean(dim=-1, keepdim=True) + self.eps) * weight + bias


class LayerNorm(nn.Module):
    """LayerNorm over the last axis of [..., size]; with a residual, LayerNorm(dropout(x) + residual)."""

    def __init__(self, size, eps):
        super().__init__()
        self.weight, self.bias, self.eps = nn.Parameter(flow.ones(size)), nn.Parameter(flow.zeros(size)), eps

    def forward(self, x, residual=None, dropout=None):
        kept, rate = (None, 0.0) if dropout is None else (dropout.kept(x.numel()), dropout.rate)
        rows = [tensor.reshape(-1, x.shape[-1]) for tensor in (x, residual) if tensor is not None]
        return Norm(self.eps, kept, rate)(rows[0], self.weight, self.bias, *rows[1:]).reshape(x.shape)


# --------------------------------------------------------------------------------------- attention


class Packing:
    """Where the tokens of a batch lie among the rows of the encoder.

    On a CPU the rows are the real tokens alone, example after example, so that padding is never worked on; on other devices all
    B*T tokens. mask: [B, T], 1 at real tokens, which come first in each example.
    """

    def __init__(self, mask):
        self.B, self.T = mask.shape
        self.packed = mask.device.type == "cpu"
        if self.packed:
            real = mask.numpy() != 0
            self.lengths = real.sum(axis=1)
            self.places = np.flatnonzero(real)
        else:
            self.lengths = np.full(self.B, self.T)
            self.places = np.arange(self.B * self.T)
            self.mask = ((1 - mask.to(flow.float32)) * -1e4).reshape(self.B, 1, 1, self.T)
        ends = np.cumsum(self.lengths)
        self.starts = ends - self.lengths
        self.examples = [slice(end - n, end) for n, end in zip(self.lengths, ends)]


def _heads(rows, heads):
    """[n, H] -> a view [A, n, D]"""
    return rows.reshape(len(rows), heads, -1).transpose(1, 0, 2)


class SelfAttention(Operation):
    """softmax(Q K^T / sqrt(D)) V of each example over its own tokens: [N, 3H], queries, keys and values side by side -> [N, H].

    The scores of one example lie transposed, [A, keys, queries], and stay in the cache while softmax and dropout pass over
    them: numpy takes maxima down the columns 4 times faster than along the rows.
    """

    def __init__(self, packing, heads, dropout):
        self.packing, self.heads, self.rate = packing, heads, dropout.rate
        self.ends = np.cumsum(heads * packing.lengths ** 2)
        self.kept = dropout.kept(int(self.ends[-1]))

    def _examples(self, qkv):
        """Of each example: its rows, q, k, v as [A, n, D], and where its scores lie in a flat array of all."""
        H = qkv.shape[1] // 3
        for rows, n, end in zip(self.packing.examples, self.packing.lengths, self.ends):
            q, k, v = (_heads(qkv[rows, i * H : (i + 1) * H], self.heads) for i in range(3))
            yield rows, q, k, v, slice(end - self.heads * n * n, end)

    def forward(self, qkv):
        N, H = len(qkv), qkv.shape[1] // 3
        self.scale = np.float32(1 / math.sqrt(H // self.heads))
        context, sums = np.empty((N, H), np.float32), np.empty((N, self.heads), np.float32)
        largest = self.heads * self.packing.T ** 2
        powers = np.empty(self.ends[-1] if self.saving else largest, np.float32)
        dropped = np.empty(largest, np.float32)
        for rows, q, k, v, place in self._examples(qkv):
            n = q.shape[1]
            e = powers[place if self.saving else slice(self.heads * n * n)].reshape(self.heads, n, n)
            np.matmul(k, (q * self.scale).transpose(0, 2, 1), out=e)
            e -= e.max(axis=1, keepdims=True)
            np.exp(e, out=e)
            sums[rows] = np.matmul(np.ones((1, n), np.float32), e)[:, 0].T
            p = e if self.kept is None else np.multiply(e, self.kept[place].reshape(e.shape), out=dropped[: e.size].reshape(e.shape))
            np.matmul(p.transpose(0, 2, 1), v, out=_heads(context[rows], self.heads))
        self.factor = (1 if self.kept is None else _gain(self.rate)) / sums
        context.reshape(N, self.heads, -1)[:] *= self.factor[:, :, None]
        if self.saving:
            self.qkv, self.powers, self.context, self.sums = qkv, powers, context, sums
        return context

    def backward(self, dcontext):
        """With P = E / sums and the mask M: dS = E (M dC V^T - rowsum(dC C)) / sums, whose division dC has already had."""
        N, H = dcontext.shape
        dqkv = np.empty((N, 3 * H), np.float32)
        by_head = dcontext.reshape(N, self.heads, -1)
        shift = np.einsum("nad,nad->na", by_head, self.context.reshape(by_head.shape)) / self.sums
        scaled = by_head * self.factor[:, :, None]
        buffer = np.empty(self.heads * self.packing.T ** 2, np.float32)
        for (rows, q, k, v, place), (_, dq, dk, dv, _) in zip(self._examples(self.qkv), self._examples(dqkv)):
            n = q.shape[1]
            e, ds = self.powers[place].reshape(self.heads, n, n), buffer[: self.heads * n * n].reshape(self.heads, n, n)
            dc = scaled[rows].transpose(1, 0, 2)
            kept = None if self.kept is None else self.kept[place].reshape(e.shape)
            np.matmul(e if kept is None else np.multiply(e, kept, out=ds), dc, out=dv)
            np.matmul(v, dc.transpose(0, 2, 1), out=ds)
            if kept is not None:
                ds *= kept
            ds -= shift[rows].T[:, None, :]
            ds *= e
            np.matmul(ds, q * self.scale, out=dk)
            np.matmul(ds.transpose(0, 2, 1), k * self.scale, out=dq)
        return (dqkv,)

    def formula(self, qkv):
        B, T = self.packing.B, self.packing.T
        q, k, v = (part.reshape(B, T, self.heads, -1).transpose(1, 2) for part in qkv.chunk(3, dim=-1))
        scores = flow.matmul(q, k.transpose(2, 3)) * (1 / math.sqrt(q.shape[-1])) + self.packing.mask
        p = flow.softmax(scores, dim=-1)
        if self.kept is not None:
            p = p * _scaled(self.kept, self.rate, qkv.device).reshape(p.shape).transpose(2, 3)
        return flow.matmul(p, v).transpose(1, 2).reshape(B * T, -1)


class Scores(Operation):
    """Q K^T / sqrt(D), before mask, softmax and dropout, 0 at padding: [N, 3H] -> [B, A, T, T], or the mean over heads [B, T, T].

    The mean over heads is one product over all of H: no matrix of a single head is made.
    """

    def __init__(self, packing, heads, mean_over_heads):
        self.packing, self.parts, self.mean = packing, 1 if mean_over_heads else heads, mean_over_heads
        self.heads = heads

    def _scale(self, H):
        return np.float32(1 / math.sqrt(H // self.heads) / (self.heads if self.mean else 1))

    def forward(self, qkv):
        B, T, H = self.packing.B, self.packing.T, qkv.shape[1] // 3
        self.qkv = qkv
        scores = np.zeros((B, self.parts, T, T), np.float32)
        for rows, n, out in zip(self.packing.examples, self.packing.lengths, scores):
            q, k = _heads(qkv[rows, :H], self.parts), _heads(qkv[rows, H : 2 * H], self.parts)
            out[:, :n, :n] = q * self._scale(H) @ k.transpose(0, 2, 1)
        return scores[:, 0] if self.mean else scores

    def backward(self, dscores):
        H = self.qkv.shape[1] // 3
        dqkv = np.zeros_like(self.qkv)
        dscores = dscores.reshape(len(dscores), self.parts, *dscores.shape[-2:])
        for rows, n, ds in zip(self.packing.examples, self.packing.lengths, dscores):
            (q, k), (dq, dk) = ([_heads(x[rows, i * H : (i + 1) * H], self.parts) for i in (0, 1)] for x in (self.qkv, dqkv))
            np.matmul(ds[:, :n, :n], k * self._scale(H), out=dq)
            np.matmul(ds[:, :n, :n].transpose(0, 2, 1), q * self._scale(H), out=dk)
        return (dqkv,)

    def formula(self, qkv):
        B, T, H = self.packing.B, self.packing.T, qkv.shape[1] // 3
        q, k = (part.reshape(B, T, self.parts, -1).transpose(1, 2) for part in (qkv[:, :H], qkv[:, H : 2 * H]))
        scores = flow.matmul(q, k.transpose(2, 3)) * float(self._scale(H))
        return scores[:, 0] if self.mean else scores


# --------------------------------------------------------------------------------------- rows


class Take(Operation):
    """Rows `places` of a table: [V, H] -> [len(places), H]; the gradient adds up where a row was taken more than once."""

    def __init__(self, places):
        self.places = places

    def forward(self, table):
        self.shape = table.shape
        return table[self.places]

    def backward(self, drows):
        dtable = np.zeros(self.shape, np.float32)
        order = np.argsort(self.places, kind="stable")
        taken, starts = np.unique(self.places[order], return_index=True)
        dtable[taken] = np.add.reduceat(drows[order], starts, axis=0)
        return (dtable,)

    def formula(self, table):
        return flow.nn.functional.embedding(flow.from_numpy(self.places).to(table.device), table)


class Unpack(Operation):
    """Rows back in their batch: [N, H] -> [B, T, H], 0 at padding."""

    def __init__(self, packing):
        self.packing = packing

    def forward(self, rows):
        B, T, H = self.packing.B, self.packing.T, rows.shape[1]
        if len(rows) == B * T:
            return rows.reshape(B, T, H)
        batch = np.zeros((B * T, H), np.float32)
        batch[self.packing.places] = rows
        return batch.reshape(B, T, H)

    def backward(self, dbatch):
        rows = dbatch.reshape(-1, dbatch.shape[-1])
        return (rows if len(rows) == len(self.packing.places) else rows[self.packing.places],)

    def formula(self, rows):
        return rows.reshape(self.packing.B, self.packing.T, -1)
