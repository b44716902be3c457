"""The definition of a run: its frozen configuration, presets and recipes, its identity, and the files of its folder.

May import `pipeline`, `snps3_model.config`, `snps3_model.loss_table` and `cluster.ray_internals`; no torch, no Ray.
"""
