"""BERT's encoder for CPUs: forward and backward in numpy, on all cores, as one node of OneFlow's graph.

**Why numpy.** OneFlow 0.9.0 works on one thread of a CPU, and some of its operators are slow there. numpy's
OpenBLAS multiplies at the speed of the machine, its loops are vectorised, and it lets other Python threads
run meanwhile. So everything below is written for memory that numpy and OneFlow share, and what is left to
OneFlow is what takes little time: heads, losses, and the graph that ties them together.

**A kernel** (`layers.py`, `attention.py`) is one step of the network with its derivative by hand. Take the
linear map, y = x W^T + b:

    forward    y = x W^T + b             one product
    backward   dx = dy W                 two products, from dy, the gradient of the loss with respect to y
               dW = dy^T x
               db = the sum of dy over its rows

Every kernel has this form. An instance serves one call and keeps what its way back needs, but for the
values of GELU and of LayerNorm, which are large and made again at little cost. LayerNorm and GELU pass over
their arrays in pieces that stay in a core's cache; attention does so example by example, since it is over
an example's own tokens, or for several short examples of one length at once. Padding does not occur: the
rows are the real tokens, example after example.

**A layer** (`shard.py`) is seven kernels; its `backward` reads as its `forward` from bottom to top.

**Shards.** A batch is sorted by length and dealt out: S shards take every S-th example, and so are alike in
work. A shard goes through all layers, forward and then backward, in one thread (`threads.py`), and meets the
others twice in a step, at the end of each way. Gradients of weights are added up over the shards in the order
of their numbers, whoever comes first, since a sum of floats depends on its order. S is a function of the
batch alone (`encoder.split_batch`); threads take shards as they are free. So one thread or eight leave the
same bytes, and a machine with more cores makes the same model in less time.

**Dropout** (`dropout.py`, `modeling/bert/dropout.py`). Each example has a random stream of its own in each
step, keyed by (seed, step, example, ...). Its masks are the next bits of that stream whenever a layer asks,
in whichever thread and shard.

**One node** (`encoder.py`). `CpuBertModel` is a `BertModel`: it has the same parameters and returns the same
outputs, but its forward pass hands OneFlow a single autograd function, whose outputs are the pooled vectors
and what else was asked for. OneFlow runs the heads and the loss on these, and gives their gradients to the
function's backward pass. The gradients of weights never travel through the engine: they become the memory
of `parameter.grad`. The word vectors' gradient is merged, one row to a word, before it is put into its
table, which is far larger than a batch.

**Around it** (`optimizer.py`). On short texts clipping and AdamW over 23 million weights would take a third
of a step. They run in the same threads, on the parameters' memory, in pieces that stay in the cache.

**How it is tested** (tests/modeling/cpu). `BertModel` in OneFlow's operators draws the same masks, so that
outputs and every gradient of the two can be compared in training mode: they agree to 1e-5. Both are compared
with values that transformers gave. The bytes after twenty steps are those of one thread with 2, 3 and 4.
"""
