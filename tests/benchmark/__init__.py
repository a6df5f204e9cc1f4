"""Speed and memory, measured: `python3 -m tests.benchmark [--against torch --torch_python PATH]`."""

# The model of every measurement: the size of MiniLM. The weights are random, since they do not matter to speed.
SIZES = {"vocab_size": 30522, "hidden_size": 384, "num_hidden_layers": 6, "num_attention_heads": 12, "intermediate_size": 1536}
B, T, STEPS = 24, 128, 5  # examples, tokens (all real), steps measured in a process after one that is not
