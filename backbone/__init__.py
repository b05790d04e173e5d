"""Layers that the model packages share; it imports none of them."""
