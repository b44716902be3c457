"""What a run is: its frozen configuration, presets and recipes, its identity, and the files of its folder.

May import `pipeline`, `snps3_model.config` and `snps3_model.loss_table`; no torch, no Ray.
"""
