"""The gated activation `silu(gate) * up` of a feed-forward layer."""
