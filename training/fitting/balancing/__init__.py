"""How the losses of several heads share one encoder.

It knows losses and gradients, not texts, epochs or the search.

Files in floor order: `balancer` (what all methods have in common), `fixed`, `uncertainty`, `dynamic_average`, `pcgrad`, and
`choose`, which makes the one the settings name.
"""
