"""The models and what trains them: encoder, heads, losses, scores, optimization, loops, snapshots."""
