"""A trained model in use: load it, embed videos and texts, index a folder, search, export, convert.

May import `jobs.ROOT`, `jobs.run`, `jobs.tasks`, `jobs.tracking`, `jobs.evaluation`, `jobs.launch.lease`,
`pipeline` and `snps3_model`.
"""
