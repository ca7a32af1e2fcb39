"""Transformers: a `grain.MapDataset` of examples in, another one out."""
