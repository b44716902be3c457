"""A trained model in use: load it, embed videos and texts, index a folder, search, export, convert, release.

May import `jobs.ROOT`, `jobs.run`, `jobs.tasks`, `jobs.tracking`, `jobs.training`, `jobs.evaluation`,
`jobs.launch.lease`, `cluster`, `pipeline` and `snps3_model`.
"""
