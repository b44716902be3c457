"""What a run is: its frozen configuration, presets and recipes, its identity, and the files of its folder.

May import `pipeline` and `snps3_model.config`; no torch, no Ray.
"""
