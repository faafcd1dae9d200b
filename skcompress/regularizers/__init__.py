"""Penalties on weights for training, one idea per file.

Not here: the weight compander (Cakaj et al. 2023, arXiv 2306.16993). It is no penalty: it
computes each weight from another parameter by a bounded function, which is what
`torch.nn.utils.parametrize` is for. Weights that are parametrized so take part in every
penalty here, and are compressed, like others.
"""
